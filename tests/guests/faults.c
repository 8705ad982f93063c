/* Exceptions must be exact: vector, error code, rip, rsp, rflags and CR2 of every frame are checked,
 * in the middle of long blocks and with flags that the code around never reads. */
#include "lib/guest.h"

#define VA 0x8000000000ul /* three pages: mapped, a hole, mapped */
#define HOLE (VA + 4096)
#define NONCANONICAL 0x0000900000000000ul

u64 rsp_before; /* written by the snippets */

/* Run one instruction that must trap; rax, rcx and rdx are the snippet's to use. */
#define SNIPPET(label, before, insn, ...) \
    do { \
        extern u8 label##_after[]; \
        expect_trap((u64)label##_after); \
        asm volatile(before "\n mov %%rsp, rsp_before\n .globl " #label "_at, " #label "_after\n" #label "_at: " insn \
                     "\n" #label "_after:" : : __VA_ARGS__ : "memory", "cc", "rax", "rcx", "rdx", "r8", "r9", "r10"); \
    } while (0)
#define EXPECT(label, what, vec, err, at) \
    do { \
        extern u8 label##_at[], label##_after[]; \
        (void)label##_at; \
        (void)label##_after; \
        verify(what, vec, err, (u64)(at)); \
    } while (0)
#define FAULT(label, what, vec, err, before, insn, ...) \
    do { \
        SNIPPET(label, before, insn, __VA_ARGS__); \
        EXPECT(label, what, vec, err, label##_at); \
    } while (0)
/* A trap, whose frame points behind the instruction. */
#define TRAP(label, what, vec, before, insn, ...) \
    SNIPPET(label, before, insn, __VA_ARGS__); \
    EXPECT(label, what, vec, 0, label##_after)

static void verify(const char *what, u64 vector, u64 error, u64 rip) {
    check_eq(what, caught.count, 1);
    if (caught.count != 1) return;
    check_eq(what, caught.f.vector, vector);
    /* TCG reads before it writes in a read-modify-write, and forgets P with a reserved bit. */
    u64 forgiven = on_tcg() && vector == 14 ? error & 8 ? 3 : error & 2 : 0;
    check_eq(what, caught.f.error & ~forgiven, error & ~forgiven);
    check_eq(what, caught.f.rip, rip);
    check_eq(what, caught.f.rsp, rsp_before);
    check_eq(what, caught.f.cs, SEL_KCODE64);
    check_eq(what, caught.f.ss, SEL_KDATA);
}

static void arithmetic(void) {
    FAULT(de0, "#DE division by zero", 0, 0, "mov $7, %%eax; xor %%edx, %%edx; xor %%ecx, %%ecx", "div %%ecx", );
    check_eq("#DE leaves the dividend", caught.f.rax, 7);
    FAULT(de1, "#DE quotient too large", 0, 0, "mov $1, %%edx; mov $5, %%eax; mov $1, %%ecx", "div %%rcx", );
    FAULT(de2, "#DE idiv overflow", 0, 0, "mov $0x80000000, %%eax; cltd; mov $-1, %%ecx", "idiv %%ecx", );
    FAULT(de3, "#DE 8-bit", 0, 0, "mov $0x1000, %%eax; mov $1, %%ecx", "div %%cl", );
    FAULT(de4, "#DE from memory", 0, 0, "xor %%edx, %%edx; mov $9, %%eax", "divq %0", "m"(*(u64 *)VA));
}

static void opcodes(void) {
    FAULT(ud0, "#UD ud2", 6, 0, "", "ud2", );
    FAULT(ud1, "#UD lock on a register", 6, 0, "", ".byte 0xf0, 0x01, 0xc0", );
    if (!on_tcg()) /* which lets a locked store pass */
        FAULT(ud2_, "#UD lock mov", 6, 0, "lea rsp_before(%%rip), %%rcx", ".byte 0xf0, 0x89, 0x01", );
    FAULT(ud3, "#UD opcode gone in 64-bit mode", 6, 0, "", ".byte 0x06", );
    FAULT(ud4, "#UD mov to cs", 6, 0, "xor %%eax, %%eax", ".byte 0x8e, 0xc8", );
    FAULT(gp15, "#GP instruction of 16 bytes", 13, 0, "", ".fill 15, 1, 0x66; .byte 0x90", );
    TRAP(bp0, "#BP int3", 3, "", "int3", );
    TRAP(bp1, "#BP int 3", 3, "", ".byte 0xcd, 3", );
    TRAP(int4, "int 4", 4, "", "int $4", );
}

static void protection(void) {
    FAULT(gp0, "#GP non-canonical load", 13, 0, "movabs %0, %%rax", "mov (%%rax), %%rcx", "i"(NONCANONICAL));
    FAULT(gp1, "#GP non-canonical store", 13, 0, "movabs %0, %%rax", "movb $1, (%%rax)", "i"(NONCANONICAL));
    extern u8 ss0_at[], ss0_after[];
    expect_trap((u64)ss0_after);
    asm volatile("mov %%rsp, rsp_before; mov %%rbp, %%rbx; mov %0, %%rbp\n.globl ss0_at, ss0_after\nss0_at: mov (%%rbp), %%rcx\n"
                 "ss0_after: mov %%rbx, %%rbp" : : "r"(NONCANONICAL) : "memory", "rbx", "rcx");
    /* TCG raises #GP for every non-canonical address. */
    verify("#SS non-canonical through rbp", on_tcg() ? 13 : 12, 0, (u64)ss0_at);
    FAULT(gp2, "#GP bad selector", 13, 0x1230, "mov $0x1230, %%eax", "mov %%eax, %%ds", );
    if (!on_tcg()) /* which does not compare the RPL of a null SS */
        FAULT(gp3, "#GP null ss with RPL 3 at ring 0", 13, 0, "mov $3, %%eax", "mov %%eax, %%ss", );
    gdt[GDT_FREE0] = 0x00cf13000000ffff; /* data, not present */
    FAULT(np0, "#NP segment not present", 11, SEL_FREE0, "mov $0x48, %%eax", "mov %%eax, %%es", );
    FAULT(ss1, "#SS stack segment not present", 12, SEL_FREE0, "mov $0x48, %%eax", "mov %%eax, %%ss", );
    if (!on_tcg()) FAULT(gp4, "#GP reserved CR4 bit", 13, 0, "mov %%cr4, %%rax; bts $30, %%rax", "mov %%rax, %%cr4", );
    if (!on_tcg()) FAULT(gp5, "#GP unknown MSR", 13, 0, "mov $0x12345678, %%ecx", "rdmsr", );
    if (!on_tcg()) FAULT(gp6, "#GP non-canonical MSR value", 13, 0, "mov $0xc0000101, %%ecx; mov $0x9000, %%edx; xor %%eax, %%eax", "wrmsr", );
    if (!on_tcg()) FAULT(gp7, "#GP cr0.PG without PE", 13, 0, "mov %%cr0, %%rax; and $-2, %%rax", "mov %%rax, %%cr0", );
    struct { u16 limit; u64 base; } __attribute__((packed)) idt, whole;
    asm volatile("sidt %0" : "=m"(whole));
    idt = whole;
    idt.limit = 0x20 * 16 - 1;
    asm volatile("lidt %0" : : "m"(idt));
    if (!on_tcg()) /* which scales the error code by 16 */
        FAULT(gp8, "#GP vector beyond the IDT", 13, 0x20 * 8 + 2, "", "int $0x20", );
    asm volatile("lidt %0" : : "m"(whole));
}

static void page_faults(void) {
    volatile u64 *a = (u64 *)VA;
    FAULT(pf0, "#PF read not present", 14, 0, "movabs %0, %%rcx", "mov 8(%%rcx), %%rax", "i"(HOLE));
    check_eq("CR2 of a read", caught.cr2, HOLE + 8);
    FAULT(pf1, "#PF write not present", 14, 2, "movabs %0, %%rcx", "movw $1, 0x123(%%rcx)", "i"(HOLE));
    check_eq("CR2 of a write", caught.cr2, HOLE + 0x123);
    FAULT(pf2, "#PF read-modify-write says write", 14, 2, "movabs %0, %%rcx", "lock incq (%%rcx)", "i"(HOLE));
    map_page(HOLE, (u64)page_alloc(), PTE_P);
    FAULT(pf3, "#PF write to a read-only page", 14, 3, "movabs %0, %%rcx", "addl $1, (%%rcx)", "i"(HOLE));
    map_page(HOLE, (u64)page_alloc(), PTE_P | PTE_W | PTE_NX);
    rsp_before = 0;
    {
        /* A call to a no-execute page: the frame is at the target and the return address is pushed. */
        extern u8 pf4_after[];
        expect_trap((u64)pf4_after);
        u64 pushed;
        asm volatile("lea -8(%%rsp), %%rcx; mov %%rcx, rsp_before; movabs %1, %%rax; call *%%rax\n.globl pf4_after\npf4_after: pop %0"
                     : "=r"(pushed) : "i"(HOLE + 16) : "memory", "cc", "rax", "rcx", "rdx");
        verify("#PF fetch from a no-execute page", 14, 0x11, HOLE + 16);
        check_eq("CR2 of a fetch", caught.cr2, HOLE + 16);
        check_eq("pushed return address", pushed, (u64)pf4_after);
    }
    map_page(HOLE, (u64)page_alloc() | 1ul << 51, PTE_P | PTE_W);
    FAULT(pf5, "#PF reserved bit", 14, 9, "movabs %0, %%rcx", "mov (%%rcx), %%rax", "i"(HOLE));
    FAULT(pf6, "#PF reserved bit on a write", 14, 0xb, "movabs %0, %%rcx", "mov %%rax, (%%rcx)", "i"(HOLE));
    map_page(HOLE, 0, 0);

    /* Accesses that cross into the hole: CR2 is the second page, and nothing is written. */
    volatile u64 *edge = (u64 *)(HOLE - 4);
    volatile u32 *last = (u32 *)edge;
    *last = 0x11223344;
    FAULT(pc0, "#PF crossing store", 14, 2, "movabs %0, %%rcx; mov $-1, %%rax", "mov %%rax, (%%rcx)", "i"(HOLE - 4));
    check_eq("CR2 of a crossing store", caught.cr2, HOLE);
    check_eq("no partial store", *last, 0x11223344);
    FAULT(pc1, "#PF crossing add", 14, 2, "movabs %0, %%rcx; mov $-1, %%rax", "add %%rax, (%%rcx)", "i"(HOLE - 4));
    check_eq("no partial add", *last, 0x11223344);
    FAULT(pc2, "#PF crossing load", 14, 0, "movabs %0, %%rcx; mov $77, %%eax", "mov (%%rcx), %%rax", "i"(HOLE - 7));
    check_eq("CR2 of a crossing load", caught.cr2, HOLE);
    check_eq("a faulting load leaves its register", caught.f.rax, 77);
    FAULT(pc3, "#PF crossing 2-byte store", 14, 2, "movabs %0, %%rcx", "movw $0, (%%rcx)", "i"(HOLE - 1));
    check_eq("no partial 2-byte store", *last, 0x11223344);
    FAULT(pc4, "#PF crossing xchg", 14, 2, "movabs %0, %%rcx; mov $5, %%eax", "xchg %%rax, (%%rcx)", "i"(HOLE - 1));
    check_eq("xchg keeps its register", caught.f.rax, 5);
    FAULT(pc5, "#PF cmpxchg to a hole", 14, 2, "movabs %0, %%rcx; mov $5, %%eax", "cmpxchg %%rdx, (%%rcx)", "i"(HOLE));

    /* An instruction whose tail is on a missing page: mov $imm32, %eax with two bytes mapped. */
    u8 *code = (u8 *)(HOLE - 2);
    code[0] = 0xb8;
    code[1] = 0x01;
    extern u8 pc6_after[];
    expect_trap((u64)pc6_after);
    asm volatile("mov %%rsp, rsp_before; jmp *%0\n.globl pc6_after\npc6_after:" : : "r"(code) : "memory", "rax", "rcx", "rdx");
    verify("#PF fetch crossing into a hole", 14, 0x10, (u64)code);
    check_eq("CR2 of a crossing fetch", caught.cr2, HOLE);
    (void)a;

    /* A push, a pop and a call that fault leave rsp as it was. */
    extern u8 st0_after[], st1_after[], st0_at[], st1_at[];
    expect_trap((u64)st0_after);
    asm volatile("mov %%rsp, %%rbx; movabs %0, %%rax; mov %%rax, %%rsp; mov %%rsp, rsp_before\n.globl st0_at, st0_after\nst0_at: push %%rax\n"
                 "st0_after: mov %%rbx, %%rsp" : : "i"(HOLE + 4096) : "memory", "rbx", "cc", "rax", "rcx", "rdx");
    /* The frame itself goes to the same missing stack: a double fault, on its own stack. */
    verify("#DF push with a missing stack", 8, 0, (u64)st0_at);
    check_eq("CR2 of the double fault's push", caught.cr2 & ~0xffful, HOLE);
    expect_trap((u64)st1_after);
    asm volatile("mov %%rsp, %%rbx; movabs %0, %%rax; mov %%rax, %%rsp; mov %%rsp, rsp_before\n.globl st1_at, st1_after\nst1_at: ud2\n"
                 "st1_after: mov %%rbx, %%rsp" : : "i"(HOLE + 2048) : "memory", "rbx", "cc", "rax", "rcx", "rdx");
    verify("#DF #UD with a missing stack", 8, 0, (u64)st1_at);
    set_gate(14, 0, 3); /* with a stack of its own, the page fault of the push is exact */
    extern u8 st2_at[], st2_after[], st3_at[], st3_after[];
    expect_trap((u64)st2_after);
    asm volatile("mov %%rsp, %%rbx; movabs %0, %%rax; mov %%rax, %%rsp; mov %%rsp, rsp_before\n.globl st2_at, st2_after\nst2_at: push %%rax\n"
                 "st2_after: mov %%rbx, %%rsp" : : "i"(HOLE + 4096) : "memory", "rbx", "cc", "rax", "rcx", "rdx");
    verify("#PF push", 14, 2, (u64)st2_at);
    check_eq("CR2 of a push", caught.cr2, HOLE + 4096 - 8);
    expect_trap((u64)st3_after);
    asm volatile("mov %%rsp, %%rbx; movabs %0, %%rax; mov %%rax, %%rsp; mov %%rsp, rsp_before\n.globl st3_at, st3_after\nst3_at: ret\n"
                 "st3_after: mov %%rbx, %%rsp" : : "i"(HOLE + 2048) : "memory", "rbx", "cc", "rax", "rcx", "rdx");
    verify("#PF ret", 14, 0, (u64)st3_at);
    set_gate(14, 0, 0);
}

/* A fault deep in a straight run of code. The flags of `sub` are dead, for `add` overwrites them, but
 * the frame shows them; registers hold the values of just that moment. */
static void middle_of_block(void) {
    for (u64 x = 0; x < 40; x++) {
        u64 a = x * 0x123456789abcdeful, b = x * x * 0xfedcba987654321ul, want;
        asm volatile("mov %1, %%rax; sub %2, %%rax; pushfq; pop %0" : "=r"(want) : "r"(a), "r"(b) : "rax", "cc");
        SNIPPET(mid, "mov %0, %%rax; mov %1, %%rdx; lea 1(%%rax), %%r8; lea 2(%%r8), %%r8; imul $3, %%r8, %%r8\n"
                     "add $1, %%r8; inc %%r8; not %%r8; neg %%r8; rol $7, %%r8; xor $5, %%r8; dec %%r8; movabs %2, %%r9\n"
                     "sub %%rdx, %%rax", "mov (%%r9), %%r10; add %%rax, %%rdx; inc %%rdx; add $1, %%r8; xor %%eax, %%eax",
                "r"(a), "r"(b), "i"(HOLE + 0x42));
        EXPECT(mid, "#PF inside a block", 14, 0, mid_at);
        check_eq("dead flags in the frame", caught.f.rflags & FL_ARITH, want & FL_ARITH);
        check_eq("rax in the frame", caught.f.rax, a - b);
        check_eq("rdx in the frame", caught.f.rdx, b);
        u64 r8 = (a + 3) * 3 + 2;
        r8 = 0 - ~r8;
        r8 = ((r8 << 7 | r8 >> 57) ^ 5) - 1;
        check_eq("r8 in the frame", caught.f.r8, r8);
    }
    /* INC keeps CF; a shift by zero keeps all flags. */
    SNIPPET(mid2, "movabs %0, %%rcx; mov $-1, %%eax; stc; inc %%eax; mov $0, %%edx; xchg %%rcx, %%rdx; shl %%cl, %%eax",
            "addb $1, (%%rdx)", "i"(HOLE));
    EXPECT(mid2, "#PF after inc", 14, 2, mid2_at);
    check_eq("flags of inc with carry", caught.f.rflags & FL_ARITH, FL_CF | FL_ZF | FL_PF | FL_AF);
}

static void debugging(void) {
    /* TF: one instruction runs after POPF, then the trap. */
    extern u8 tf_at[], tf_after[];
    expect_trap((u64)tf_after);
    wrdr6(0xffff0ff0);
    u64 rax;
    asm volatile("mov %%rsp, rsp_before; mov $1, %%eax; pushfq; orl $0x100, (%%rsp); popfq; add $1, %%eax\n"
                 ".globl tf_at, tf_after\ntf_at: add $1, %%eax; add $1, %%eax\ntf_after:" : "=a"(rax) : : "memory", "cc");
    verify("#DB single step", 1, 0, (u64)tf_at);
    check_eq("DR6 of a single step", caught.dr6 & 0xe00f, 0x4000);
    check_eq("instructions run under TF", rax, 2);

    extern u8 x0_at[], x0_after[];
    wrdr6(0xffff0ff0);
    wrdr0((u64)x0_at);
    wrdr7(0x402 | 0x2); /* G0, execution */
    expect_trap((u64)x0_after);
    asm volatile("mov %%rsp, rsp_before; mov $1, %%eax; add $1, %%eax\n.globl x0_at, x0_after\nx0_at: add $1, %%eax\nx0_after:"
                 : "=a"(rax) : : "memory", "cc");
    wrdr7(0x400);
    verify("#DB execution breakpoint", 1, 0, (u64)x0_at);
    check_eq("DR6 of an execution breakpoint", caught.dr6 & 0xe00f, 1);
    check_eq("stopped before the instruction", rax, 2);

    extern u8 w1_at[], w1_after[];
    volatile u64 *a = (u64 *)VA;
    wrdr6(0xffff0ff0);
    wrdr1(VA + 8);
    wrdr7(0x400 | 0x8 | 1ul << 20 | 2ul << 22); /* G1, write, 8 bytes */
    expect_trap((u64)w1_after);
    asm volatile("mov %%rsp, rsp_before; movq $7, (%0); mov 8(%0), %%rax; movl $9, 12(%0)\n"
                 ".globl w1_at, w1_after\nw1_at: movq $11, 16(%0); w1_after:" : : "r"(a) : "memory", "rax");
    wrdr7(0x400);
    verify("#DB data write", 1, 0, (u64)w1_at);
    check_eq("DR6 of a data write", caught.dr6 & 0xe00f, 2);
    check_eq("the write is done", a[1] >> 32, 9);
    check_eq("the next one is not", a[2], 0);
}

static void floating_point(void) {
    u16 cw = 0x37b; /* ZM clear */
    SNIPPET(mf, "fninit; fldcw %0; fld1; fldz; fdivrp %%st, %%st(1)", "fwait", "m"(cw));
    EXPECT(mf, "#MF division by zero", 16, 0, mf_at);
    u16 sw;
    asm volatile("fnstsw %0; fninit" : "=a"(sw));
    check_eq("status word of #MF", sw & 0x80bf, 0x8084);
    wrcr4(rdcr4() | CR4_OSFXSR | CR4_OSXMMEXCPT);
    u32 unmasked = 0x1f80 & ~0x200u, masked = 0x1f80;
    if (!on_tcg()) { /* which has no unmasked SSE exceptions */
        SNIPPET(xm, "ldmxcsr %0; mov $0x3f800000, %%eax; movd %%eax, %%xmm0; xorps %%xmm1, %%xmm1", "divss %%xmm1, %%xmm0",
                "m"(unmasked));
        EXPECT(xm, "#XM division by zero", 19, 0, xm_at);
        u32 left, flags;
        asm volatile("movd %%xmm0, %0; stmxcsr %1; ldmxcsr %2" : "=r"(left), "=m"(flags) : "m"(masked));
        check_eq("#XM leaves the destination", left, 0x3f800000);
        check_eq("MXCSR of #XM", flags & 0x3f, 4);
    }
    wrcr0(rdcr0() | CR0_TS);
    FAULT(nm0, "#NM x87 with TS", 7, 0, "", "fld1", );
    FAULT(nm1, "#NM SSE with TS", 7, 0, "", "xorps %%xmm0, %%xmm0", );
    wrcr0((rdcr0() & ~CR0_TS) | CR0_EM);
    FAULT(nm2, "#NM x87 with EM", 7, 0, "", "fninit", );
    FAULT(ud5, "#UD SSE with EM", 6, 0, "", "xorps %%xmm0, %%xmm0", );
    wrcr0(rdcr0() & ~CR0_EM);
    wrcr4(rdcr4() & ~CR4_OSFXSR);
    FAULT(ud6, "#UD SSE without OSFXSR", 6, 0, "", "xorps %%xmm0, %%xmm0", );
}

void guest_main(void) {
    map_page(VA, (u64)page_alloc(), PTE_P | PTE_W);
    map_page(VA + 8192, (u64)page_alloc(), PTE_P | PTE_W);
    arithmetic();
    opcodes();
    protection();
    page_faults();
    middle_of_block();
    debugging();
    floating_point();
    finish("faults");
}
