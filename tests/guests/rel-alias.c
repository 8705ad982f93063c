/* One physical page under two virtual addresses, patched through the one and run through the other:
 * a machine that finds the blocks to remove by the address of the store runs the old ones. */
#include "lib/stale.h"

#define ALIAS 0x8000000000ul

asm(".data\n.balign 4096\n"
    "written_by_alias: .byte 0x66, 0x66, 0x90, 0xb8\n .long 0x11111111\n ret\n .balign 4096, 0xcc\n"
    "run_by_alias: .byte 0x66, 0x66, 0x90, 0xb8\n .long 0x11111111\n ret\n .balign 4096, 0xcc\n"
    ".text\n");
extern u8 written_by_alias[], run_by_alias[];

static void test(const char *name, u64 paddr, u64 write_at, u64 run_at) {
    u64 (*fn)(void) = (u64(*)(void))run_at;
    struct store s;
    cases_done++;
    for (u32 round = 0; round < rounds_option(); round++) {
        for (int i = 0; i < 3; i++) fn();
        u32 want = value_of(round);
        store_begins(&s, "mov", write_at + 4, paddr + 4, 4);
        *(volatile u32 *)(write_at + 4) = want;
        store_ends(&s);
        forget_jumps();
        if (stale(&s, name, round, run_at, fn(), want)) return;
    }
}

void guest_main(void) {
    u64 a = (u64)written_by_alias, b = (u64)run_by_alias;
    map_page(ALIAS, a, PTE_P | PTE_W);
    map_page(ALIAS + PAGE_SIZE, b, PTE_P | PTE_W);
    test("written-by-alias", a, ALIAS, a);
    test("run-by-alias", b, b, ALIAS + PAGE_SIZE);
    verdict("rel-alias");
}
