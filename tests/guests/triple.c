/* An exception with no way to deliver it, nor the double fault: a triple fault. */
#include "lib/guest.h"

void guest_main(void) {
    struct { u16 limit; u64 base; } __attribute__((packed)) none = {0, 0};
    say("triple: the IDT is gone\n");
    asm volatile("lidt %0; ud2" : : "m"(none));
}
