/* The processor's modes in one trip each: compatibility mode of 32 and 16 bits under long mode, with
 * bases and limits that are not flat; then out of long mode to 32-bit, 16-bit protected and real mode
 * (with a BIOS-style interrupt), and back. Each leg leaves results in memory. */
#include "lib/guest.h"

#define LOW 0x7000ul /* the real-mode part runs here */

u32 results[32];
static u8 segment_data[256] __attribute__((aligned(16)));
u64 saved_rsp, saved_idt[2];

asm(".globl run_compat, compat32, compat16, run_low, low_start, low_end\n"
    /* run_compat(selector, entry): a far call there and back by far return */
    "run_compat: push %rbx\n push %rbp\n sub $16, %rsp\n mov %esi, (%rsp)\n mov %edi, 4(%rsp)\n lcall *(%rsp)\n"
    " mov $0x10, %ecx\n mov %ecx, %ds\n mov %ecx, %es\n add $16, %rsp\n pop %rbp\n pop %rbx\n ret\n"
    ".code32\n"
    "compat32: mov $results, %ebx\n"
    " mov $0xfffffff0, %eax\n inc %eax\n mov %eax, (%ebx)\n"             /* 0: 0x40 is INC here, no REX */
    " mov $0x48, %ecx\n mov %ecx, %es\n mov %es:4, %eax\n mov %eax, 4(%ebx)\n" /* 1: a based segment */
    " movw $0xabcd, %es:8\n"
    " push $0x12345678\n pop %eax\n mov %eax, 8(%ebx)\n"                  /* 2 */
    " pushal\n mov %esp, 12(%ebx)\n popal\n sub %esp, 12(%ebx)\n" /* 3: -32 */
    " mov $0x99, %al\n add $0x01, %al\n daa\n mov %eax, 16(%ebx)\n"      /* 4: BCD */
    " mov $7, %al\n mov $9, %ah\n aad\n mov %eax, 20(%ebx)\n"            /* 5: 97 */
    " mov $0, %edx\n arpl %dx, %dx\n lea (%ebx,%edx,8), %eax\n sub $results, %eax\n mov %eax, 24(%ebx)\n" /* 6 */
    " mov $0x80000000, %eax\n bound_skip: add %eax, %eax\n sbb %eax, %eax\n mov %eax, 28(%ebx)\n" /* 7 */
    " lret\n"
    ".code16\n"
    "compat16: movl $results, %ebx\n"
    " movw $0xfff0, %ax\n addw $0x20, %ax\n pushfw\n popw %dx\n movzwl %ax, %eax\n movl %eax, 32(%ebx)\n" /* 8 */
    " movzwl %dx, %edx\n andl $1, %edx\n movl %edx, 36(%ebx)\n"          /* 9: carry */
    " movw $0xffff, %si\n movw $3, %di\n leaw 2(%bx,%si), %ax\n subw %bx, %ax\n movzwl %ax, %eax\n movl %eax, 40(%ebx)\n" /* 10: 1 */
    " movl $0x12345678, %eax\n rolw $4, %ax\n movl %eax, 44(%ebx)\n"     /* 11 */
    " lretl\n"
    ".code64\n"
    /* run_low: to real mode and back; everything below is copied to LOW */
    "run_low: push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n mov %rsp, saved_rsp\n sidt saved_idt\n"
    " sub $16, %rsp\n movl $0x7000, (%rsp)\n movl $0x38, 4(%rsp)\n ljmp *(%rsp)\n"
    "low_back: mov $0x10, %eax\n mov %eax, %ds\n mov %eax, %es\n mov %eax, %ss\n mov saved_rsp, %rsp\n lidt saved_idt\n"
    " xor %eax, %eax\n mov %eax, %fs\n mov %eax, %gs\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n"
    "low_start:\n"
    ".code32\n"
    " mov $0x10, %eax\n mov %eax, %ss\n mov %eax, %ds\n mov %eax, %es\n mov $0x6ff0, %esp\n"
    " mov %cr0, %eax\n and $0x7fffffff, %eax\n mov %eax, %cr0\n"         /* paging off: leaves IA-32e mode */
    " mov $0xc0000080, %ecx\n rdmsr\n and $~0x100, %eax\n wrmsr\n"
    " movl $0x32, results+48\n"                                          /* 12: 32-bit protected mode */
    " mov %cr3, %ebp\n xor %eax, %eax\n mov %eax, %cr4\n"
    " mov $0x7fffffff, %eax\n add $1, %eax\n seto %cl\n movzbl %cl, %ecx\n mov %ecx, results+52\n" /* 13 */
    " ljmp $0x50, $(0x7000 + low16 - low_start)\n"
    ".code16\n"
    "low16: movw $0x58, %ax\n movw %ax, %ds\n movw %ax, %es\n movw %ax, %ss\n" /* 16-bit data of 64 KiB */
    " movw $0x16, %ax\n movw %ax, (0x7000 + low_word - low_start)\n"
    " movl %cr0, %eax\n andb $0xfe, %al\n movl %eax, %cr0\n"
    " ljmp $0x700, $(low_real - low_start)\n"
    "low_real: xorw %ax, %ax\n movw %ax, %ss\n movw $0x6ff0, %sp\n movw %cs, %ax\n movw %ax, %ds\n"
    " movw $(low_words - low_start), %bx\n"
    " movw %ax, (%bx)\n"                                                  /* word 0: cs = 0x700 */
    " lidtl (low_ivt - low_start)\n"
    " xorw %ax, %ax\n movw %ax, %es\n movl %es:(4*0x60), %esi\n"         /* keep the old vector */
    " movw $(low_int - low_start), %es:(4*0x60)\n movw $0x700, %es:(4*0x60+2)\n"
    " movw $5, %ax\n sti\n cli\n int $0x60\n movw %ax, 2(%bx)\n"         /* word 1: 5*3+1 */
    " movl %esi, %es:(4*0x60)\n"
    " movw $0xffff, %ax\n movw %ax, %es\n movw %es:(0x7010 + low_word - low_start), %ax\n"  /* 0xffff0+.. wraps or not: A20 */
    " movw $0x600, %ax\n movw %ax, %es\n movw %es:(0x1000 + low_word - low_start), %ax\n movw %ax, 4(%bx)\n" /* word 2: 0x16, by another segment */
    " movl $0x00010003, %eax\n movl $0x10000, %ecx\n mull %ecx\n movw %dx, 6(%bx)\n" /* word 3: 32-bit operands in real mode: 1 */
    " pushw $0x1234\n movw %sp, %ax\n popw %cx\n movw %ax, 8(%bx)\n movw %cx, 10(%bx)\n" /* words 4, 5 */
    " movw $4, %cx\n xorw %ax, %ax\n1: addw %cx, %ax\n loop 1b\n movw %ax, 12(%bx)\n" /* word 6: 10 */
    " call 2f\n2: popw %ax\n subw $(2b - low_start), %ax\n movw %ax, 14(%bx)\n" /* word 7: 0 */
    " lgdtl (low_gdt - low_start)\n movl %cr0, %eax\n orb $1, %al\n movl %eax, %cr0\n"
    " ljmpl $0x38, $(0x7000 + low_up - low_start)\n"
    "low_int: pushw %bp\n movw %ax, %bp\n addw %ax, %ax\n addw %bp, %ax\n incw %ax\n popw %bp\n iretw\n"
    ".code32\n"
    "low_up: mov $0x10, %eax\n mov %eax, %ds\n mov %eax, %ss\n mov $0xa0, %eax\n mov %eax, %cr4\n mov %ebp, %cr3\n"
    " mov $0xc0000080, %ecx\n rdmsr\n or $0x100, %eax\n wrmsr\n mov %cr0, %eax\n or $0x80000000, %eax\n mov %eax, %cr0\n"
    " ljmp $0x08, $low_back\n"
    ".balign 4\nlow_ivt: .word 0x3ff\n .long 0\n"
    ".balign 4\nlow_gdt: .word 46*8-1\n .long gdt\n"
    ".balign 4\nlow_word: .word 0\n"
    ".balign 4\nlow_words: .fill 16, 2, 0\n"
    "low_end:\n.code64\n.text\n");
extern u8 compat32[], compat16[], low_start[], low_end[], low_words[], low_word[];
void run_compat(u64 selector, u64 entry);
void run_low(void);

static u64 descriptor(u64 base, u64 limit, u64 type, u64 flags) {
    return (limit & 0xffff) | (base & 0xffffff) << 16 | type << 40 | (limit >> 16 & 15) << 48 | flags << 52 | (base >> 24 & 0xff) << 56;
}

/* An access through ES in 32-bit code at `offset`; 0 when it went through, else vector << 32 | error. */
static u64 limit_access(u32 offset) {
    extern u8 limit_after[];
    static u8 code[32];
    code[0] = 0x26; /* es: movb (offset), %al; lret */
    code[1] = 0xa0;
    memcpy(code + 2, &offset, 4);
    code[6] = 0xcb;
    (void)limit_after;
    expect_trap((u64)code + 6);
    asm volatile("mov %0, %%es" : : "r"(SEL_FREE0));
    run_compat(SEL_KCODE32, (u64)code);
    caught.resume = 0;
    return caught.count ? caught.f.vector << 32 | caught.f.error : 0;
}

void guest_main(void) {
    for (int i = 0; i < 256; i++) segment_data[i] = (u8)i;
    gdt[GDT_FREE0] = descriptor((u64)segment_data, 0x7f, 0x93, 4);
    gdt[GDT_FREE0 + 1] = descriptor(0, 0xffff, 0x9b, 0); /* 0x50: 16-bit code */
    gdt[GDT_FREE0 + 2] = descriptor(0, 0xffff, 0x93, 0); /* 0x58: 16-bit data */
    run_compat(SEL_KCODE32, (u64)compat32);
    check_eq("inc in compatibility mode", results[0], 0xfffffff1);
    check_eq("load through a based segment", results[1], 0x07060504);
    check_eq("store through a based segment", segment_data[8] | segment_data[9] << 8, 0xabcd);
    check_eq("push imm32, pop", results[2], 0x12345678);
    check_eq("pusha", results[3], 0xffffffe0);
    check_eq("daa", results[4] & 0xff, 0x00);
    check_eq("aad", results[5] & 0xffff, 97);
    check_eq("lea", results[6], 0);
    check_eq("sbb", results[7], 0xffffffff);
    run_compat(SEL_KCODE16, (u64)compat16);
    check_eq("16-bit add wraps", results[8], 0x10);
    check_eq("16-bit carry", results[9], 1);
    check_eq("16-bit effective address wraps", results[10], 1);
    check_eq("16-bit rotate keeps the upper half", results[11], 0x12346785);
    check_eq("inside the limit", limit_access(0x7f), 0);
    if (!on_tcg()) /* which does not check segment limits */
        check_eq("beyond the limit", limit_access(0x80), 13ul << 32);
    say("modes: compatibility mode, 32 and 16 bits, done\n");

    memcpy((void *)LOW, low_start, (size_t)(low_end - low_start));
    run_low();
    const u16 *w = (const u16 *)(LOW + (u64)(low_words - low_start));
    check_eq("32-bit protected mode", results[12], 0x32);
    check_eq("32-bit overflow", results[13], 1);
    check_eq("16-bit protected mode", *(u16 *)(LOW + (u64)(low_word - low_start)), 0x16);
    check_eq("real-mode cs", w[0], 0x700);
    check_eq("real-mode interrupt", w[1], 16);
    check_eq("another segment, same byte", w[2], 0x16);
    check_eq("32-bit multiplication in real mode", w[3], 1);
    check_eq("real-mode sp", w[4], 0x6fee);
    check_eq("real-mode push", w[5], 0x1234);
    check_eq("real-mode loop", w[6], 10);
    check_eq("real-mode call", w[7], 0);
    say("modes: real mode and back, done\n");
    finish("modes");
}
