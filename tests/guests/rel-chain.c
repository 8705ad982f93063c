/* Blocks that jump straight to one another, and jumps that go through a cache of targets. The target
 * is patched; a machine that removes its block but leaves the jump pointing there, or the cache's
 * entry, runs the old one. Each source and target share a page but no cache line. */
#include "lib/stale.h"

#define TARGET(name) ".balign 64, 0xcc\n" name ": .byte 0x66, 0x66, 0x90, 0xb8\n .long 0x11111111\n ret\n"
asm(".data\n.balign 4096\n"
    "by_jump: jmp jump_target\n" TARGET("jump_target")
    ".balign 4096, 0xcc\n"
    "by_branch: test %rsp, %rsp\n jnz branch_target\n ud2\n" TARGET("branch_target")
    ".balign 4096, 0xcc\n"
    "by_call: call call_target\n ret\n" TARGET("call_target")
    ".balign 4096, 0xcc\n"
    "by_pointer: lea pointer_target(%rip), %rax\n call *%rax\n ret\n" TARGET("pointer_target")
    /* the call lies at the end of its line, so that the patched code it returns to has its own */
    ".balign 4096, 0xcc\n"
    "return_callee: ret\n"
    ".balign 64, 0xcc\n .skip 59, 0x90\n"
    "by_return: call return_callee\n" TARGET("return_target")
    ".balign 4096, 0xcc\n"
    ".text\n");
#define EXTERN(name) extern u8 by_##name[], name##_target[]
EXTERN(jump);
EXTERN(branch);
EXTERN(call);
EXTERN(pointer);
EXTERN(return);

static void test(const char *name, u8 *entry, u8 *target) {
    u64 (*fn)(void) = (u64(*)(void))entry;
    struct store s;
    cases_done++;
    for (u32 round = 0; round < rounds_option(); round++) {
        for (int i = 0; i < 10; i++) fn();
        u32 want = value_of(round);
        u64 p = (u64)target + 4;
        store_begins(&s, "mov", p, p, 4);
        *(volatile u32 *)p = want;
        store_ends(&s);
        if (stale(&s, name, round, (u64)target, fn(), want)) return;
    }
}

void guest_main(void) {
#define TEST(name) test(#name, by_##name, name##_target)
    TEST(jump);
    TEST(branch);
    TEST(call);
    TEST(pointer);
    TEST(return);
    verdict("rel-chain");
}
