/* Loops whose last byte is a page's last byte: copy, sum and fill with steps of 1, 4 and 8 bytes, as 64-bit and as
 * 32-bit code. Assembled into the guest, and with HOST defined into a program for the host, which must agree.
 *
 * A loop takes its source in ESI, its target in EDI and the number of its turns in ECX, and gives a sum in EAX. All
 * addresses are below 4 GiB. */
#ifdef HOST
#define CODE32 0x23
#define CODE64 0x33
#define DATA32 0x2b
#else
#define CODE32 0x38
#define CODE64 0x08
#define DATA32 0x10
#endif

    .section .text.loops, "ax"

/* The last byte of the loop is `left` bytes before the end of a page. The function begins in the page before. */
#define LOOP(name, left, ...) \
    .balign 4096; \
    .skip 4096 - left - (9f - 8f); \
8:  __VA_ARGS__; \
    dec %ecx; \
    .byte 0x75, 8b - 9f; \
9:  ret; \
    .balign 64; \
    .globl name; \
name: \
    xor %eax, %eax; \
    jmp 8b

#define LOOPS(bits, left, s, d) \
    LOOP(copy1_##bits##_##left, left, mov (%s), %dl; mov %dl, (%d); add $1, %s; add $1, %d); \
    LOOP(copy4_##bits##_##left, left, mov (%s), %edx; mov %edx, (%d); add $4, %s; add $4, %d); \
    LOOP(copy8_##bits##_##left, left, movq (%s), %xmm1; movq %xmm1, (%d); add $8, %s; add $8, %d); \
    LOOP(sum1_##bits##_##left, left, movzbl (%s), %edx; add %edx, %eax; add $1, %s); \
    LOOP(sum4_##bits##_##left, left, add (%s), %eax; add $4, %s); \
    LOOP(sum8_##bits##_##left, left, add (%s), %eax; adc 4(%s), %eax; add $8, %s); \
    LOOP(fill1_##bits##_##left, left, mov %cl, (%d); add $1, %d); \
    LOOP(fill4_##bits##_##left, left, mov %ecx, (%d); add $4, %d); \
    LOOP(fill8_##bits##_##left, left, mov %ecx, (%d); mov %ecx, 4(%d); add $8, %d)

    .code64
    LOOPS(64, 0, rsi, rdi)
    LOOPS(64, 1, rsi, rdi)
    .code32
    LOOPS(32, 0, esi, edi)
    LOOPS(32, 1, esi, edi)

/* u32 run64(code, source, target, turns) and run32, which goes through compatibility mode on a stack of its own. */
    .code64
    .text
    .globl run64, run32
run64:
    mov %rdi, %rax
    mov %rdx, %rdi
    jmp *%rax
run32:
    push %rbx
    push %rbp
    mov %rsp, %rbp
    mov $stack32_end, %esp
    mov %edi, %ebx
    mov %edx, %edi
    mov %ds, %r8d
    lcall *to32
    mov %r8d, %ds
    mov %rbp, %rsp
    pop %rbp
    pop %rbx
    ret
    .code32
code32:
    mov $DATA32, %eax
    mov %eax, %ds
    call *%ebx
    lret
    .code64

    .data
    .balign 8
to32:
    .long code32
    .word CODE32
    .bss
    .balign 16
    .skip 4096
stack32_end:
    .section .note.GNU-stack, "", @progbits
