/* Breakpoints that are honest: INT3s that memory holds when they are executed, as a debugger in the
 * guest sets them. It writes CC over an instruction that runs all the time, on #BP puts the byte back
 * and single-steps, and on #DB sets the breakpoint anew. INT3 and the two-byte INT 3 stand in code of
 * their own as well. None of them is stale, whatever the block protocol does.
 * Command line: rounds=N (default 100). */
#include "lib/guest.h"

asm(".data\n.balign 4096\n"
    "traced: mov %edi, %eax\n"
    "stop_here: lea 1(%rax), %eax\n"
    " ret\n"
    ".balign 4096, 0x90\n"
    "compiled_in: int3\n mov $1, %eax\n ret\n"
    "long_form: .byte 0xcd, 0x03\n mov $2, %eax\n ret\n"
    ".balign 4096, 0xcc\n"
    ".text\n");
extern u8 stop_here[];
extern u32 traced(u32), compiled_in(void), long_form(void);

#define INT3 0xcc

static u8 kept;
static bool armed;
static u32 stops, steps, short_ones, long_ones, strangers;

static void set_breakpoint(void) {
    kept = *(volatile u8 *)stop_here;
    *(volatile u8 *)stop_here = INT3;
    armed = true;
}

static void clear_breakpoint(void) {
    *(volatile u8 *)stop_here = kept;
    armed = false;
}

static void on_breakpoint(struct frame *f) {
    const u8 *next = (const u8 *)f->rip;
    if (armed && next - 1 == stop_here) {
        stops++;
        clear_breakpoint();
        f->rip--;
        f->rflags |= FL_TF;
    } else if (next == (const u8 *)compiled_in + 1) {
        short_ones++;
    } else if (next == (const u8 *)long_form + 2) {
        long_ones++;
    } else {
        strangers++;
    }
}

static void on_debug(struct frame *f) {
    steps++;
    f->rflags &= ~FL_TF;
    set_breakpoint();
}

void guest_main(void) {
    u32 rounds = (u32)option("rounds", 100);
    trap_handler[3] = on_breakpoint;
    trap_handler[1] = on_debug;
    check_eq("before", traced(4), 5);
    set_breakpoint();
    for (u32 i = 0; i < rounds; i++) {
        check_eq("traced code", traced(i), i + 1);
        check_eq("INT3 in the code", compiled_in(), 1);
        check_eq("INT 3 in the code", long_form(), 2);
    }
    clear_breakpoint();
    check_eq("after", traced(6), 7);
    check_eq("stops", stops, rounds);
    check_eq("steps", steps, rounds);
    check_eq("INT3s", short_ones, rounds);
    check_eq("INT 3s", long_ones, rounds);
    check_eq("strangers", strangers, 0);
    say("breakpoint: %u stops, %u INT3s, %u INT 3s\n", stops, short_ones, long_ones);
    finish("breakpoint");
}
