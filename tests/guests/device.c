/* A device in Python, the one of docs/devices.md, by all that a device can have: a port, registers in memory, an
 * interrupt, a timer on virtual time, and transfers to and from guest memory. It adds bytes up. */
#include "lib/guest.h"

#define PORT 0x5f0
#define LINE 5
#define VECTOR 0x35

static volatile u64 *const registers = (u64 *)0xfea00000; /* source, length, target */
static volatile u32 interrupts;
static volatile u64 total;
static u8 bytes[6000];

static void on_done(struct frame *f) {
    (void)f;
    interrupts++;
    check_eq("status at the interrupt", inb(PORT), 1);
    outb(PORT, 0);
    eoi();
}

static void add(u64 source, u64 length) {
    u32 before = interrupts;
    registers[0] = source;
    registers[1] = length;
    registers[2] = (u64)&total;
    check_eq("a register reads back", registers[1], length);
    total = ~0ul;
    u64 start = rdtsc();
    outb(PORT, 1);
    cli();
    while (interrupts == before) sti_hlt_cli();
    sti();
    check("the device took its time", rdtsc() - start >= option("delay", 50000));
}

void guest_main(void) {
    platform_init(false);
    trap_handler[VECTOR] = on_done;
    ioapic_route(LINE, VECTOR);
    check_eq("nothing is done yet", inb(PORT), 0);
    u32 rounds = (u32)option("rounds", 40);
    for (u32 round = 0; round < rounds; round++) {
        u64 want = 0;
        for (u32 i = 0; i < sizeof bytes; i++) {
            bytes[i] = (u8)(i * 7 + round);
            want += bytes[i];
        }
        add((u64)bytes, sizeof bytes);
        check_eq("sum", total, want);
        check_eq("one interrupt a round", interrupts, round + 1);
    }
    say("device: %u rounds, last sum %lu\n", rounds, total);
    add(0xf00000000000, 16);
    check_eq("there is no RAM", total, 0);
    finish("device");
}
