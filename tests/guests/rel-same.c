/* A store into the block that is running: the instructions behind it must be the new ones at once,
 * without any serialisation (SDM Vol. 3A, "Handling Self- and Cross-Modifying Code"). A machine that
 * lets the block run to its end runs the old ones, once. */
#include "lib/stale.h"

/* Every patched immediate stands at a multiple of four behind its label, for one aligned store. */
asm(".data\n.balign 4096\n"
    "same_next: mov %edi, same_next_imm(%rip)\n"
    ".byte 0x66, 0x66, 0x66, 0x66, 0x90, 0xb8\nsame_next_imm: .long 0x11111111\n ret\n"
    ".balign 4096, 0xcc\n"
    "same_later: mov %edi, same_later_imm(%rip)\n lea 5(%rdi), %ecx\n add $3, %ecx\n xor %eax, %eax\n"
    ".balign 4, 0x90\n nop\n nop\n nop\n.byte 0xb8\nsame_later_imm: .long 0x11111111\n ret\n"
    ".balign 4096, 0xcc\n"
    /* one byte, of an instruction that has only two */
    "same_byte: mov %dil, same_byte_imm(%rip)\n xor %eax, %eax\n.byte 0xb0\nsame_byte_imm: .byte 0x11\n ret\n"
    ".balign 4096, 0xcc\n"
    ".text\n");
extern u8 same_next[], same_next_imm[], same_later[], same_later_imm[], same_byte[], same_byte_imm[];

static void test(const char *name, u8 *code, u8 *imm, u32 length) {
    u64 (*fn)(u64) = (u64(*)(u64))code;
    struct store s;
    cases_done++;
    for (u32 round = 0; round < rounds_option(); round++) {
        u64 want = length == 1 ? (u8)value_of(round) : value_of(round);
        forget_jumps();
        /* The same value again: the block is there, and what it stores changes nothing. */
        fn(length == 1 ? *imm : *(volatile u32 *)imm);
        forget_jumps();
        store_begins(&s, "mov", (u64)imm, (u64)imm, length);
        u64 got = fn(want);
        store_ends(&s);
        if (stale(&s, name, round, (u64)code, got, want)) return;
    }
}

void guest_main(void) {
    test("next", same_next, same_next_imm, 4);
    test("later", same_later, same_later_imm, 4);
    test("byte", same_byte, same_byte_imm, 1);
    verdict("rel-same");
}
