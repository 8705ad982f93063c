/* Paging: accessed and dirty bits, invlpg and global pages, WP, NX, SMEP and SMAP, large pages, aliases. */
#include "lib/guest.h"

#define VA 0x8000000000ul
#define VA2 (VA + 0x40000000ul)

static u64 *pte;
static volatile u64 *const p = (u64 *)VA;

/* Error code of a read or write of `at`, or ~0 when it goes through. */
static u64 try_read(u64 at) {
    extern u8 read_after[];
    expect_trap((u64)read_after);
    asm volatile("mov (%0), %%rax\n.globl read_after\nread_after:" : : "r"(at) : "rax", "memory");
    caught.resume = 0;
    return caught.count ? caught.f.error : ~0ul;
}
static u64 try_write(u64 at) {
    extern u8 write_after[];
    expect_trap((u64)write_after);
    asm volatile("movb $1, (%0)\n.globl write_after\nwrite_after:" : : "r"(at) : "memory");
    caught.resume = 0;
    return caught.count ? caught.f.error : ~0ul;
}
static u64 try_call(u64 at) {
    extern u8 call_after[];
    expect_trap((u64)call_after);
    asm volatile("mov %%rsp, %%rbx; call *%0\n.globl call_after\ncall_after: mov %%rbx, %%rsp" : : "r"(at) : "rbx", "rax", "memory");
    caught.resume = 0;
    return caught.count ? caught.f.error : ~0ul;
}
#define DONE (~0ul)

static void accessed_dirty(void) {
    u64 pa = (u64)page_alloc();
    map_page(VA, pa, PTE_P | PTE_W);
    pte = pte_at((u64 *)rdcr3(), VA, 1);
    u64 *pde = pte_at((u64 *)rdcr3(), VA, 2);
    *pde &= ~PTE_A;
    invlpg((void *)VA);
    check_eq("A and D clear at first", *pte & (PTE_A | PTE_D), 0);
    (void)p[0];
    check_eq("a read sets A only", *pte & (PTE_A | PTE_D), PTE_A);
    check_eq("A in the directory, never D", *pde & (PTE_A | PTE_D), PTE_A);
    p[0] = 1;
    check_eq("a write sets D although the TLB has the page", *pte & (PTE_A | PTE_D), PTE_A | PTE_D);
    *pte = pa | PTE_P;
    invlpg((void *)VA);
    check_eq("write to a read-only page", try_write(VA), 3);
    check_eq("a refused write leaves D clear", *pte & PTE_D, 0);
    *pte = pa | PTE_P | PTE_W;
    invlpg((void *)VA);
    asm volatile("lock cmpxchg %1, %0" : "+m"(*p) : "r"(5ul), "a"(99ul) : "cc", "memory");
    check_eq("a failing cmpxchg still dirties", *pte & (PTE_A | PTE_D), PTE_A | PTE_D);
    *pte = pa | PTE_P | PTE_W;
    invlpg((void *)VA);
    *(u8 *)pa = 0xc3;
    check_eq("fetch", try_call(VA), DONE);
    check_eq("a fetch sets A", *pte & (PTE_A | PTE_D), PTE_A);
    wrcr0(rdcr0() & ~CR0_WP);
    *pte = pa | PTE_P;
    invlpg((void *)VA);
    check_eq("write to a read-only page without WP", try_write(VA), DONE);
    check_eq("which sets D", *pte & PTE_D, PTE_D);
    wrcr0(rdcr0() | CR0_WP);
    check_eq("WP again", try_write(VA), 3);
    /* Rights of all levels count together. */
    *pte = pa | PTE_P | PTE_W;
    *pde &= ~PTE_W;
    wrcr3(rdcr3());
    check_eq("directory without W", try_write(VA), 3);
    *pde |= PTE_W | PTE_NX;
    wrcr3(rdcr3());
    *(u8 *)pa = 0xc3;
    check_eq("directory with NX", try_call(VA), 0x11);
    check_eq("NX does not stop a read", try_read(VA), DONE);
    *pde &= ~PTE_NX;
    wrcr3(rdcr3());
    check_eq("NX gone", try_call(VA), DONE);
}

static void tlb(void) {
    volatile u64 *a = page_alloc(), *b = page_alloc();
    *a = 1;
    *b = 2;
    map_page(VA, (u64)a, PTE_P | PTE_W);
    check_eq("first page", *p, 1);
    map_page(VA, (u64)b, PTE_P | PTE_W);
    check_eq("after invlpg", *p, 2);
    *pte = (u64)a | PTE_P | PTE_W;
    wrcr3(rdcr3());
    check_eq("after a CR3 write", *p, 1);
    *pte = (u64)a | PTE_P | PTE_W | PTE_G;
    invlpg((void *)VA);
    check_eq("global", *p, 1);
    invlpg((void *)VA);
    *pte = (u64)b | PTE_P | PTE_W | PTE_G;
    invlpg((void *)VA);
    check_eq("invlpg drops a global page", *p, 2);
    *pte = (u64)a | PTE_P | PTE_W | PTE_G;
    wrcr4(rdcr4() & ~CR4_PGE);
    check_eq("clearing PGE drops global pages", *p, 1);
    wrcr4(rdcr4() | CR4_PGE);
    /* Two address spaces. */
    u64 *other = page_alloc(), old = rdcr3();
    other[0] = boot_pml4[0];
    *pte_at(other, VA, 1) = (u64)b | PTE_P | PTE_W;
    *pte = (u64)a | PTE_P | PTE_W;
    invlpg((void *)VA);
    for (int i = 0; i < 20; i++) {
        wrcr3((u64)other);
        check_eq("other address space", *p, 2);
        wrcr3(old);
        check_eq("own address space", *p, 1);
    }
    map_page(VA + 4096, (u64)a, PTE_P | PTE_W);
    p[1] = 77;
    check_eq("alias reads the same", p[513], 77);
    asm volatile("lock incq %0" : "+m"(p[513]));
    check_eq("alias written", p[1], 78);
    check_eq("physical", a[1], 78);
    *(volatile u32 *)(VA + 4094) = 0xaabbccdd; /* over the boundary into the page itself */
    check_eq("crossing store, tail", a[0] & 0xffff, 0xaabb);
    check_eq("crossing store, head", *(u16 *)((u64)a + 4094), 0xccdd);
    check_eq("crossing load", *(volatile u32 *)(VA + 4094), 0xaabbccdd);
}

static void large(void) {
    static u8 area[3 * 2097152];
    u64 pa = ((u64)area + 0x1fffff) & ~0x1ffffful;
    u64 *pde = pte_at((u64 *)rdcr3(), VA2, 2);
    *pde = pa | PTE_P | PTE_W | PTE_PS;
    invlpg((void *)VA2);
    *(volatile u64 *)(VA2 + 0x123458) = 0x2222;
    check_eq("2 MiB page", *(u64 *)(pa + 0x123458), 0x2222);
    check_eq("A and D of a 2 MiB page", *pde & (PTE_A | PTE_D), PTE_A | PTE_D);
    /* Split it: the same addresses through 4 KiB pages, one of them elsewhere. */
    u64 *table = page_alloc();
    for (u64 i = 0; i < 512; i++) table[i] = (pa + i * 4096) | PTE_P | PTE_W;
    table[1] = table[0x123];
    *pde = (u64)table | PTE_P | PTE_W;
    invlpg((void *)VA2);
    wrcr3(rdcr3());
    check_eq("split", *(volatile u64 *)(VA2 + 0x123458), 0x2222);
    check_eq("remapped piece", *(volatile u64 *)(VA2 + 0x1458), 0x2222);
    if (cpu_has(0x80000001, 3, 26)) {
        u64 *pdpte = pte_at((u64 *)rdcr3(), VA + 0x80000000ul, 3);
        *pdpte = PTE_P | PTE_W | PTE_PS;
        check_eq("1 GiB page", *(volatile u64 *)(VA + 0x80000000ul + pa + 0x123458), 0x2222);
        *(volatile u64 *)(VA + 0x80000000ul + pa) = 0x1111;
        check_eq("1 GiB page written", *(u64 *)pa, 0x1111);
        check_eq("A and D of a 1 GiB page", *pdpte & (PTE_A | PTE_D), PTE_A | PTE_D);
        *pdpte = 0x2000 | PTE_P | PTE_W | PTE_PS;
        invlpg((void *)(VA + 0x80000000ul));
        if (!on_tcg()) check_eq("reserved bit of a 1 GiB page", try_read(VA + 0x80000000ul), 9);
    }
}

static void supervisor_protection(void) {
    u8 *code = page_alloc();
    code[0] = 0xc3;
    map_page(VA, (u64)code, PTE_P | PTE_W | PTE_U);
    check_eq("user code without SMEP", try_call(VA), DONE);
    if (cpu_has(7, 1, 7)) {
        wrcr4(rdcr4() | CR4_SMEP);
        check_eq("user code with SMEP", try_call(VA), 0x11);
        check_eq("user data with SMEP", try_read(VA), DONE);
        wrcr4(rdcr4() & ~CR4_SMEP);
    }
    if (cpu_has(7, 1, 20)) {
        wrcr4(rdcr4() | CR4_SMAP);
        check_eq("user data with SMAP", try_read(VA), 1);
        check_eq("user data written with SMAP", try_write(VA), 3);
        asm volatile("stac" : : : "memory", "cc");
        check_eq("after stac", try_write(VA), DONE);
        check_eq("AC is set", rdflags() & FL_AC, FL_AC);
        asm volatile("clac" : : : "memory", "cc");
        check_eq("after clac", try_read(VA), 1);
        wrcr4(rdcr4() & ~CR4_SMAP);
        check_eq("SMAP off", try_read(VA), DONE);
    }
}

void guest_main(void) {
    accessed_dirty();
    tlb();
    large();
    supervisor_protection();
    finish("paging");
}
