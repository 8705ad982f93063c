/* vCPUs that wait with interrupts off while timers run: mode=0, nothing can wake them; mode=1, the PIT sends an NMI
 * through the I/O APIC after an hour of virtual time in which a fast timer did nothing; mode=2, an INIT does not
 * count as waking vCPU 1, which then waits for a SIPI; mode=3, vCPU 0 waits with interrupts on, behind a priority that nothing beats. */
#include "lib/guest.h"

#define VEC 0x40
#define HPET_TICKS_PER_SECOND 100000000ul

static volatile u64 *const hpet = (u64 *)0xfed00000;
static volatile bool woken;

static void on_nmi(struct frame *f) { (void)f; woken = true; }

static void sleep_for_ever(int cpu) {
    (void)cpu;
    for (;;) asm volatile("cli; hlt");
}

static void ioapic_entry(u32 pin, u32 low, u32 apic_id) {
    ioapic_write(0x11 + 2 * pin, apic_id << 24);
    ioapic_write(0x10 + 2 * pin, low);
}

void guest_main(void) {
    u64 mode = option("mode", 0);
    platform_init(false);
    if (cpu_count > 1) smp_start(sleep_for_ever);
    say("asleep: %d vCPUs, mode %lu\n", cpu_count, mode);
    trap_handler[2] = on_nmi;
    /* a millionth of a second apart, for ever */
    lapic_timer(1u << 17 | VEC, 1000);
    pit_periodic(100000);
    ioapic_route(0, VEC + 1);
    if (mode == 1) {
        /* A comparator of the HPET, edge, on pin 20, in an hour. */
        ioapic_entry(20, 0x400, 0);
        hpet[0xf0 / 8] = 0;
        hpet[0x100 / 8] = 20ul << 9 | 1 << 2;
        hpet[0x108 / 8] = 3600 * HPET_TICKS_PER_SECOND;
        hpet[0x10 / 8] = 1;
    }
    if (mode == 2) ioapic_entry(2, 0x500, cpu_apic_id[1]);
    u64 before = rdtsc();
    if (mode == 3) {
        asm volatile("mov %0, %%cr8" : : "r"(15ul));
        asm volatile("sti; hlt; cli");
    } else {
        asm volatile("cli; hlt");
    }
    check("woken by the NMI", woken && mode == 1);
    u64 passed = (rdtsc() - before) / 1000000;
    check("after an hour", passed >= 3600ul * 1000 && passed < 3601ul * 1000);
    finish("asleep");
}
