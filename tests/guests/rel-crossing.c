/* An instruction that crosses into the next page, patched there: a machine that tracks a block by its
 * first page alone runs the old tail. Everything else is as harmless as can be: plain stores by the
 * same vCPU, through the same address, from another page. */
#include "lib/stale.h"

asm(".data\n.balign 4096\ncrossing_code:\n"
    /* the opcode alone on the first page; RET on the second page is code of its own */
    ".org crossing_code + 4095, 0xcc\n"
    "span1: mov $0x11111111, %eax\n ret\n"
    /* the opcode and one byte on the first page */
    ".org crossing_code + 2 * 4096 + 4094, 0xcc\n"
    "span2: mov $0x11111111, %eax\n ret\n"
    /* a jump, so that nothing on the second page is code but its tail */
    ".org crossing_code + 4 * 4096, 0xcc\n"
    "off: mov $1, %eax\n ret\n"
    "on: mov $2, %eax\n ret\n"
    ".org crossing_code + 4 * 4096 + 4095, 0xcc\n"
    "jump: .byte 0xe9\n .long off - (jump + 5)\n"
    ".org crossing_code + 6 * 4096, 0xcc\n"
    ".text\n");
extern u8 span1[], span2[], jump[], on[], off[];

static void test(const char *name, u8 *code, u32 at, u32 length) {
    u64 (*fn)(void) = (u64(*)(void))code;
    struct store s;
    bool jumps = code == jump;
    cases_done++;
    for (u32 round = 0; round < rounds_option(); round++) {
        for (int i = 0; i < 3; i++) fn();
        u32 new = value_of(round), old = *(volatile u32 *)(code + 1);
        u64 want = length == 4 ? new : (old & 0xff) | (new & 0xffff) << 8 | (old & 0xff000000);
        if (jumps) {
            want = 1 + (round & 1 ? 0 : 1);
            new = (u32)((want == 2 ? on : off) - (jump + 5));
        }
        u64 p = (u64)code + at;
        store_begins(&s, "mov", p, p, length);
        if (length == 4) *(volatile u32 *)p = new;
        else *(volatile u16 *)p = (u16)new;
        store_ends(&s);
        forget_jumps();
        if (stale(&s, name, round, (u64)code, fn(), want)) return;
    }
}

void guest_main(void) {
    test("tail-of-4", span1, 1, 4);
    test("tail-of-3", span2, 2, 2);
    test("jump", jump, 1, 4);
    verdict("rel-crossing");
}
