/* GDT and IDT per vCPU, dispatch of traps, the catcher for expected exceptions, page tables. */
#include "guest.h"

extern const u8 trap_stubs[];
extern const struct { u16 limit; u64 base; } __attribute__((packed)) gdt_pointer;
void guest_main(void);
void start_c(void);
void trap_dispatch(struct frame *f);

trap_fn trap_handler[256];
struct tss tss[MAX_CPUS];
volatile struct caught caught;
static struct { u64 low, high; } __attribute__((aligned(16))) idt[256];
static u8 ist_stacks[MAX_CPUS][3][4096] __attribute__((aligned(16)));

void set_gate(int vector, int dpl, int ist) {
    u64 at = (u64)trap_stubs + 16 * (u64)vector;
    idt[vector].low = (at & 0xffff) | SEL_KCODE64 << 16 | (u64)ist << 32 | 0x8e00ul << 32 |
                      (u64)dpl << 45 | (at >> 16 & 0xffff) << 48;
    idt[vector].high = at >> 32;
}

void traps_init_cpu(int cpu) {
    struct tss *t = &tss[cpu];
    for (int i = 0; i < 3; i++) t->ist[i] = (u64)ist_stacks[cpu][i] + 4096;
    t->iomap_base = sizeof *t; /* beyond the limit: no port is open to ring 3 */
    u64 base = (u64)t, limit = sizeof *t - 1;
    gdt[GDT_TSS0 + 2 * cpu] = (limit & 0xffff) | (base & 0xffffff) << 16 | 0x89ul << 40 |
                              (limit >> 16 & 0xf) << 48 | (base >> 24 & 0xff) << 56;
    gdt[GDT_TSS0 + 2 * cpu + 1] = base >> 32;
    struct { u16 limit; u64 base; } __attribute__((packed)) p = {sizeof idt - 1, (u64)idt};
    asm volatile("lidt %0" : : "m"(p));
    asm volatile("ltr %w0" : : "r"(SEL_TSS0 + 16 * cpu));
}

static void dump(struct frame *f) {
    const u64 *r = (const u64 *)f;
    static const char names[15][4] = {"r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8",
                                      "rbp", "rdi", "rsi", "rdx", "rcx", "rbx", "rax"};
    /* Straight to the port: the printing lock may be held by the code that trapped. */
    for (int i = 0; i < 15; i++) {
        puts_raw(names[i]);
        puts_raw("=");
        for (int s = 60; s >= 0; s -= 4) putch("0123456789abcdef"[r[i] >> s & 15]);
        puts_raw(i % 4 == 3 ? "\n" : " ");
    }
    static const char last[8][8] = {"vector", "error", "rip", "cs", "rflags", "rsp", "ss", "cr2"};
    u64 cr2 = rdcr2();
    puts_raw("\n");
    for (int i = 0; i < 8; i++) {
        u64 v = i < 7 ? r[15 + i] : cr2;
        puts_raw(last[i]);
        puts_raw("=");
        for (int s = 60; s >= 0; s -= 4) putch("0123456789abcdef"[v >> s & 15]);
        puts_raw(i == 3 ? "\n" : " ");
    }
    puts_raw("\n");
}

void expect_trap(u64 resume) {
    caught.count = 0;
    caught.resume = resume;
    barrier();
}

void trap_dispatch(struct frame *f) {
    if (trap_handler[f->vector]) {
        trap_handler[f->vector](f);
        return;
    }
    if (f->vector < 32 && caught.resume) {
        memcpy((void *)&caught.f, f, sizeof *f);
        caught.cr2 = rdcr2();
        caught.dr6 = rddr6();
        caught.count++;
        f->rip = caught.resume;
        f->rflags &= ~(FL_TF | FL_RF | FL_DF);
        caught.resume = 0;
        return;
    }
    puts_raw("\nUNEXPECTED TRAP\n");
    dump(f);
    debug_exit(EXIT_TRAP);
}

static u8 pool[512][4096] __attribute__((aligned(4096)));
static u32 pool_used;

void *page_alloc(void) {
    u32 n = __atomic_fetch_add(&pool_used, 1, __ATOMIC_RELAXED);
    if (n >= 512) timed_out("page pool exhausted", __LINE__);
    return memset(pool[n], 0, 4096);
}

u64 *pte_at(u64 *pml4, u64 va, int level) {
    u64 *table = pml4;
    for (int l = 4;; l--) {
        u64 *e = &table[va >> (12 + 9 * (l - 1)) & 511];
        if (l == level) return e;
        if (!(*e & PTE_P)) *e = (u64)page_alloc() | PTE_P | PTE_W | PTE_U;
        table = (u64 *)(*e & PTE_ADDR);
    }
}

void map_page(u64 va, u64 pa, u64 flags) {
    *pte_at((u64 *)(rdcr3() & PTE_ADDR), va, 1) = pa | flags;
    invlpg((void *)va);
}

void identity_for_user(void) {
    extern char image_end[];
    for (u64 i = 0; i <= (u64)image_end >> 21; i++) boot_pd[i] |= PTE_U;
    wrcr3(rdcr3());
    wrcr4(rdcr4() ^ CR4_PGE); /* drop global entries as well */
    wrcr4(rdcr4() ^ CR4_PGE);
}

void start_c(void) {
    for (int v = 0; v < 256; v++) set_gate(v, 0, 0);
    set_gate(8, 0, 1); /* a double fault needs a stack that is surely good */
    traps_init_cpu(0);
    guest_main();
    debug_exit(EXIT_FAIL);
}
