/* A page table that is code as well: two bytes of one entry are the opcode of movabs, and the next
 * entry, all eight bytes of it, is the immediate. When the page walker sets the accessed or the dirty
 * bit of that entry, it patches the instruction; a machine that does not look for code there runs the
 * old one. */
#include "lib/stale.h"

#define WINDOW 0x8000000000ul /* 2 MiB that the table maps */
#define ENTRY 8               /* its entry whose walks are watched */

static u64 *table;
static u8 *code;

static void make_code(void) {
    /* The entries on both sides map nothing: their P bits are clear. */
    volatile u8 *b = (volatile u8 *)table;
    b[8 * ENTRY - 2] = 0x48; /* movabs $entry, %rax */
    b[8 * ENTRY - 1] = 0xb8;
    b[8 * ENTRY + 8] = 0x90; /* nop; ret: bit 0, P, is clear */
    b[8 * ENTRY + 9] = 0xc3;
    code = (u8 *)table + 8 * ENTRY - 2;
}

static void test(const char *name, bool write, u64 frame) {
    u64 (*fn)(void) = (u64(*)(void))code;
    volatile u64 *pte = &table[ENTRY];
    volatile u8 *va = (volatile u8 *)(WINDOW + ENTRY * PAGE_SIZE + 16);
    struct store s;
    cases_done++;
    for (u32 round = 0; round < rounds_option(); round++) {
        u64 before = frame | PTE_P | PTE_W | (write ? PTE_A : 0);
        *pte = before;
        invlpg((const void *)va);
        forget_jumps();
        for (int i = 0; i < 3; i++) check_eq("the code before the walk", fn(), before);
        store_begins(&s, write ? "walk-dirty" : "walk-accessed", (u64)va, (u64)pte, 8);
        if (write) *va = 1;
        else (void)*va;
        store_ends(&s);
        u64 want = before | PTE_A | (write ? PTE_D : 0);
        check_eq("the entry after the walk", *pte, want);
        forget_jumps();
        if (stale(&s, name, round, (u64)code, fn(), want)) return;
    }
}

void guest_main(void) {
    u64 frame = (u64)page_alloc();
    table = page_alloc();
    make_code();
    *pte_at(boot_pml4, WINDOW, 2) = (u64)table | PTE_P | PTE_W | PTE_U | PTE_A;
    test("accessed", false, frame);
    test("dirty", true, frame);
    if (checks_failed) finish("rel-walk");
    verdict("rel-walk");
}
