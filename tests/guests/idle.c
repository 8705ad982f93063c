/* All vCPUs halt for ever, with a timer of the board armed whose interrupt line goes up once more. Options:
 * timer=0 PIT, 1 HPET by level, 2 HPET by edge, 3 PM timer, 4 local APIC; pin=1 opens the line at the I/O APIC,
 * pic=1 at the 8259 pair; open=1 halts with interrupts on; beat=1 lets the PIT tick for ever instead. */
#include "lib/guest.h"

static volatile u64 *const hpet = (u64 *)0xfed00000;
static volatile u32 ticks;

static void on_timer(struct frame *f) {
    ticks++;
    if (f->vector < 0x40) outb(0x20, 0x20);
    else eoi();
}

__attribute__((noreturn)) static void halt(int cpu) {
    (void)cpu;
    for (;;) {
        if (option("open", 0)) asm volatile("sti; hlt" : : : "memory");
        else asm volatile("cli; hlt" : : : "memory");
    }
}

static void park(int cpu) { halt(cpu); }

void guest_main(void) {
    platform_init(false);
    for (int vector = 0x30; vector < 0x60; vector++) trap_handler[vector] = on_timer;
    pic_init(0x30, option("pic", 0) ? 0xfefa : 0xffff);
    lapic_write(0x350, 0x700);
    for (u32 pin = 1; pin < 24; pin++) {
        ioapic_write(0x11 + 2 * pin, cpu_apic_id[0] << 24);
        u32 mode = pin == 9 || pin == 20 ? 0x8000 : 0;
        ioapic_write(0x10 + 2 * pin, (0x40 + pin) | mode | (option("pin", 0) ? 0 : 0x10000));
    }
    smp_start(park);
    say("idle: timer %lu\n", option("timer", 0));
    switch (option("timer", 0)) {
    case 0:
        if (option("beat", 0)) {
            pit_periodic(1000);
            break;
        }
        outb(0x43, 0x30);
        outb(0x40, 0);
        outb(0x40, 0x40);
        break;
    case 1:
    case 2:
        hpet[0x10 / 8] = 0;
        hpet[0xf0 / 8] = 0;
        hpet[0x100 / 8] = (option("timer", 0) == 1 ? 20ul << 9 | 2 : 21ul << 9) | 4;
        hpet[0x108 / 8] = 100000;
        hpet[0x10 / 8] = 1;
        break;
    case 3:
        outw(0x602, 1);
        break;
    default:
        lapic_timer(0x10000 | 0x50, 100000);
        break;
    }
    halt(0);
}
