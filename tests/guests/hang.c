/* Every vCPU spins with interrupts off, for ever: only a limit of the outside ends this run. */
#include "lib/guest.h"

static void spin(int cpu) {
    (void)cpu;
    for (;;) asm volatile("");
}

void guest_main(void) {
    platform_init(false);
    smp_start(spin);
    say("hang: %d vCPUs spin\n", cpu_count);
    spin(0);
}
