/* Loops of known lengths in functions of known names, for profiles: of each four instructions three are in
 * hot_loop, called by often, and one is in warm_loop, called by seldom. Both keep frame pointers. */
#include "lib/guest.h"

#define FRAME __attribute__((noinline, noclone, optimize("no-omit-frame-pointer", "no-optimize-sibling-calls")))
#define ROUNDS 10
#define ITERATIONS 50000ul

/* Two instructions each time. */
void hot_loop(u64 iterations);
void warm_loop(u64 iterations);
asm(".macro LOOP name\n .globl \\name\n .type \\name, @function\n"
    "\\name: push %rbp\n mov %rsp, %rbp\n 1: dec %rdi\n jnz 1b\n pop %rbp\n ret\n .size \\name, . - \\name\n.endm\n"
    "LOOP hot_loop\n LOOP warm_loop\n");

FRAME void often(void) {
    hot_loop(3 * ITERATIONS);
    asm volatile("");
}
FRAME void seldom(void) {
    warm_loop(ITERATIONS);
    asm volatile("");
}

FRAME void guest_main(void) {
    for (int round = 0; round < ROUNDS; round++) {
        often();
        seldom();
    }
    say("hot: %d rounds\n", ROUNDS);
    debug_exit(EXIT_PASS);
}
