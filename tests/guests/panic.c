/* A guest that dies of an unexpected exception: the dump must be readable and the end a failure. */
#include "lib/guest.h"

void guest_main(void) {
    say("panic: on purpose\n");
    asm volatile("mov $0x123456789abc, %%rbx; movabs $0x8000000010, %%rax; movl $1, (%%rax)" : : : "rax", "rbx", "memory");
}
