/* Faults without end on vCPU 1 while vCPU 0 goes on: kind=0, the handler's first instruction faults, on a stack of
 * its own; kind=1, the handler is on a page that is not there; kind=2, its second instruction faults; kind=3, an
 * execution breakpoint on its own handler; kind=4, a handler that comes back to what faulted. vCPU 0 ends the run when
 * it has seen time pass, or with stay=1 never. */
#include "lib/guest.h"

extern u8 faults_at_once[], faults_second[], comes_back[];
asm(".text\n"
    "faults_at_once: ud2\n"
    "faults_second: mov $1, %eax\n ud2\n"
    "comes_back: iretq\n");

static volatile bool begun;

static void aim(int vector, u64 handler) {
    /* Interrupt gates for the kernel, on IST 1: every frame lies where the last one did. */
    struct { u16 limit; u64 base; } __attribute__((packed)) idtr;
    asm volatile("sidt %0" : "=m"(idtr));
    u64 *gate = (u64 *)(idtr.base + 16 * (u64)vector);
    gate[0] = (handler & 0xffff) | (u64)SEL_KCODE64 << 16 | 1ul << 32 | 0x8eul << 40 | (handler >> 16 & 0xffff) << 48;
    gate[1] = handler >> 32;
}

static void fall(int cpu) {
    static u8 stack[4096] __attribute__((aligned(16)));
    u64 kind = option("kind", 0);
    tss[cpu].ist[0] = (u64)stack + sizeof stack;
    u64 nowhere = 0x7000000000;
    aim(6, (u64)(kind == 0 ? faults_at_once : kind == 2 ? faults_second : kind == 4 ? comes_back : faults_at_once));
    if (kind == 1) { aim(6, nowhere); aim(14, nowhere); }
    if (kind == 3) {
        aim(1, (u64)comes_back);
        aim(6, (u64)comes_back);
        wrdr0((u64)comes_back);
        wrdr7(0x401);
    }
    begun = true;
    asm volatile("ud2");
}

void guest_main(void) {
    platform_init(false);
    smp_start(fall);
    while (!begun) pause();
    u64 start = rdtsc();
    while (rdtsc() - start < 200000 || option("stay", 0)) asm volatile("");
    say("storm: vCPU 0 runs on\n");
    check("time passes", true);
    finish("storm");
}
