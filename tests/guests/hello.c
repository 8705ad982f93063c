/* The smallest guest: print over the first serial port, then power off through ACPI S5. */
#include "lib/guest.h"

void guest_main(void) {
    say("hello from a guest on one vCPU\n");
    say("command line: '%s'\n", command_line());
    say("2 + 3 = %d, %u, 0x%08x, %lx, %5d|%c\n", 2 + 3, 4000000000u, 0xbeef, 0x123456789abcdeful, -42, 'z');
    power_off();
}
