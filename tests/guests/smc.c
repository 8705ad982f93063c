/* Self-modifying code: whatever a vCPU stores into its own code, it executes next, without any
 * serialising instruction (SDM Vol. 3A 9.1.3: same linear address) or after a jump (alias mappings,
 * where the SDM asks for serialisation, get a CPUID). */
#include "lib/guest.h"

#define ALIAS 0x8000000000ul

/* Writable code with patch points. The functions take the new value in edi and return what ran. */
asm(".data\n.balign 4096\nsmc_page:\n"
    /* the very next instruction, one block */
    "smc_next: mov %dil, 1f+1(%rip)\n1: mov $0x11, %eax\n ret\n"
    /* three instructions on, with work in between */
    "smc_later: mov %edi, 1f+1(%rip)\n lea 5(%rdi), %ecx\n add $3, %ecx\n1: mov $0x11111111, %eax\n ret\n"
    /* an earlier instruction, through a loop: the second pass must see it */
    "smc_earlier: mov $2, %ecx\n0: mov $0x11, %eax\n mov %dil, 0b+1(%rip)\n dec %ecx\n jnz 0b\n ret\n"
    /* two adjacent instructions with one 8-byte store that also covers its own tail's neighbours */
    "smc_wide: mov %rdi, 1f(%rip)\n1: .byte 0x90,0x90,0x90,0x90,0x90,0x90,0x90,0x90\n ret\n"
    /* locked compare-exchange into the next instruction */
    "smc_cmpxchg: mov 1f+1(%rip), %eax\n lock cmpxchg %edi, 1f+1(%rip)\n1: mov $0x11111111, %eax\n ret\n"
    "smc_xadd: mov %edi, %eax\n lock xadd %eax, 1f+1(%rip)\n1: mov $0, %eax\n ret\n"
    /* push with rsp pointing at the instruction */
    "smc_push: mov %rsp, %rcx\n lea 1f+10(%rip), %rsp\n push %rdi\n1: movabs $0x1111111111111111, %rax\n mov %rcx, %rsp\n ret\n"
    /* rep movsb over the instruction that follows it */
    "smc_movs: mov %rdi, %rsi\n lea 1f(%rip), %rdi\n mov $5, %ecx\n rep movsb\n1: mov $0x11111111, %eax\n ret\n"
    "smc_stos: mov %edi, %eax\n lea 1f+1(%rip), %rdi\n mov $4, %ecx\n rep stosb\n1: mov $0x11111111, %eax\n ret\n"
    /* turn the next branch round */
    "smc_branch: mov %dil, 1f(%rip)\n xor %eax, %eax\n1: jz 2f\n mov $1, %eax\n ret\n2: mov $2, %eax\n ret\n"
    /* a block that calls another, which patches the caller behind the call */
    "smc_caller: call smc_callee\nsmc_caller_tail: mov $0x11, %eax\n ret\n"
    "smc_callee: mov %dil, smc_caller_tail+1(%rip)\n ret\n"
    /* a store of its own immediate over itself; what the last call left there comes back */
    "smc_self: movb $0, smc_self+6(%rip)\n movzbl smc_self+6(%rip), %eax\n mov %dil, smc_self+6(%rip)\n ret\n"
    /* an instruction over a page boundary: opcode and one byte on the first page */
    ".org smc_page + 4094, 0x90\n"
    "smc_span: mov $0x11111111, %eax\n ret\n"
    ".org smc_page + 8191, 0x90\n"
    "smc_span1: mov $0x11111111, %eax\n ret\n"
    ".org smc_page + 12288, 0x90\n"
    ".text\n");
extern u8 smc_page[], smc_span[], smc_span1[];
typedef u64 (*fn)(u64);
extern u64 smc_next(u64), smc_later(u64), smc_earlier(u64), smc_wide(u64), smc_cmpxchg(u64), smc_xadd(u64), smc_push(u64),
    smc_movs(u64), smc_stos(u64), smc_branch(u64), smc_caller(u64), smc_self(u64);

static void serialise(void) {
    u32 r[4];
    cpuid(0, 0, r);
}

void guest_main(void) {
    u64 sum = 0, own = 0;
    for (u32 i = 0; i < 300; i++) {
        u32 v = i * 2654435761u;
        check_eq("next instruction", smc_next((u8)v), (u8)v);
        check_eq("later in the block", smc_later(v), v);
        smc_earlier(0x11 + (i & 1));
        check_eq("earlier in a loop", smc_earlier((u8)v), (u8)v);
        /* b8 imm32 (mov $imm, %eax) and three NOPs, then 31 c0 ff c0 ... (xor, inc) */
        check_eq("wide store", smc_wide(0xb8ul | (u64)v << 8 | 0x909090ul << 40), v);
        check_eq("wide store of other code", smc_wide(0x90c0ffc0ffc031ul | 0x90ul << 56), 2);
        check_eq("lock cmpxchg", smc_cmpxchg(v), v);
        sum += v;
        check_eq("lock xadd", smc_xadd(v), (u32)sum);
        check_eq("push", smc_push((u64)v * v), (u64)v * v);
        u8 code[5] = {0xb8, (u8)v, (u8)(v >> 8), (u8)(v >> 16), (u8)(v >> 24)};
        check_eq("rep movsb", smc_movs((u64)code), v);
        check_eq("rep stosb", smc_stos((u8)v), (u8)v * 0x01010101u);
        check_eq("branch turned", smc_branch(i & 1 ? 0x74 : 0x75), i & 1 ? 2 : 1);
        check_eq("behind a call", smc_caller((u8)v), (u8)v);
        check_eq("its own immediate", smc_self((u8)v), own);
        own = (u8)v;

        /* The tail, the head and one byte either side of a page boundary. */
        *(volatile u32 *)(smc_span + 1) = v;
        check_eq("spanning instruction rewritten", ((fn)smc_span)(0), v);
        smc_page[4096 + (i & 1)] = (u8)i;
        u32 want;
        memcpy(&want, smc_span + 1, 4);
        check_eq("tail byte on the second page", ((fn)smc_span)(0), want);
        smc_page[4095] = (u8)~i;
        memcpy(&want, smc_span + 1, 4);
        check_eq("last byte of the first page", ((fn)smc_span)(0), want);
        *(volatile u32 *)(smc_page + 8192) = ~v;
        check_eq("all of the immediate on the second page", ((fn)smc_span1)(0), ~v);

        /* Through another linear address; and another way round, executing through the alias. */
        if (i == 0)
            for (u64 o = 0; o < 12288; o += 4096) map_page(ALIAS + o, (u64)smc_page + o, PTE_P | PTE_W);
        u64 span = (u64)smc_span - (u64)smc_page;
        *(volatile u32 *)(ALIAS + span + 1) = v + 1;
        serialise();
        check_eq("written through an alias", ((fn)smc_span)(0), v + 1);
        *(volatile u8 *)(ALIAS + 4097) = (u8)(i + 7);
        serialise();
        memcpy(&want, smc_span + 1, 4);
        check_eq("tail through an alias", ((fn)smc_span)(0), want);
        *(volatile u32 *)(smc_span + 1) = v + 2;
        serialise();
        check_eq("executed through an alias", ((fn)(ALIAS + span))(0), v + 2);
    }

    /* The second page of a spanning instruction is remapped rather than rewritten. */
    u8 *a = page_alloc(), *b = page_alloc(), *c = page_alloc();
    a[4095] = 0xb8;
    memcpy(b, "\x01\x00\x00\x00\xc3", 5);
    memcpy(c, "\x02\x00\x00\x00\xc3", 5);
    u64 at = ALIAS + 0x100000;
    map_page(at, (u64)a, PTE_P | PTE_W);
    for (u32 i = 0; i < 50; i++) {
        map_page(at + 4096, (u64)(i & 1 ? c : b), PTE_P | PTE_W);
        check_eq("second page remapped", ((fn)(at + 4095))(0), i & 1 ? 2 : 1);
    }
    /* Two addresses of one page hold one block's bytes: the rip-relative result differs. */
    u8 *d = page_alloc();
    memcpy(d, "\x48\x8d\x05\xf9\xff\xff\xff\xc3", 8); /* lea -7(%rip), %rax; ret */
    map_page(at, (u64)d, PTE_P);
    map_page(at + 4096, (u64)d, PTE_P);
    for (int i = 0; i < 10; i++) {
        check_eq("rip at one address", ((fn)at)(0), at);
        check_eq("rip at the other", ((fn)(at + 4096))(0), at + 4096);
    }
    finish("smc");
}
