/* The fixed part of a hostile guest: from the Multiboot entry, or from a SIPI, into the mode that PARAMS asks
 * for, and from there from one case to the next. A case is a descriptor: registers and an IRET frame. What runs
 * between is the seed's. Handlers reload all they need, since the case may have left anything behind. */
        .set LAPIC, 0xfee00000
        .set CASES, 0x40000             /* 32 KiB for each vCPU */
        .set DATA, 0x13000
        .set COUNTS, DATA               /* next case, a word for each vCPU */
        .set TICKS, DATA + 0x20
        .set SKIPS, DATA + 0x40
        .set LEFT, DATA + 0x60          /* vCPUs that are not done */
        .set PARAMS, DATA + 0x1000
        .set MODE, PARAMS               /* 64, 32 or 16 */
        .set VCPUS, PARAMS + 4
        .set NUMBER, PARAMS + 8         /* cases of each vCPU */
        .set SIZE, PARAMS + 12          /* of a descriptor */
        .set TIMER, PARAMS + 16         /* initial count; 0: no timer */
        .set LVT, PARAMS + 20
        .set TICKS_EACH, PARAMS + 24
        .set SKIPS_EACH, PARAMS + 28
        .set CR0, PARAMS + 32
        .set CR3, PARAMS + 36
        .set CR4, PARAMS + 40
        .set EFER, PARAMS + 44
        .set GDTR, PARAMS + 48
        .set IDTR, PARAMS + 64

        .text
        .code32
        .globl _start
base:
_start:
        cli
        cld
        movl $LAPIC, %edi
        cmpl $1, VCPUS
        je common
        movl $0x1ff, 0xf0(%edi)
        movl $0xc4500, 0x300(%edi)
        movl $0xc4612, 0x300(%edi)
        movl $0xc4612, 0x300(%edi)

common: movl $LAPIC, %edi
        movl 0x20(%edi), %ebx
        shrl $24, %ebx
        andl $7, %ebx
        movl $0x1ff, 0xf0(%edi)
        movl $0, 0x80(%edi)
        cmpl $0, TIMER
        je 1f
        movl $0xb, 0x3e0(%edi)
        movl LVT, %eax
        movl %eax, 0x320(%edi)
        movl TIMER, %eax
        movl %eax, 0x380(%edi)
1:      lgdt GDTR
        movl $0x10, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        movl %ebx, %esp
        shll $12, %esp
        addl $0x18ff0, %esp
        lidt IDTR
        cmpl $16, MODE
        je to16
        movl CR4, %eax
        movl %eax, %cr4
        movl CR3, %eax
        movl %eax, %cr3
        movl $0xc0000080, %ecx
        xorl %edx, %edx
        movl EFER, %eax
        wrmsr
        /* STAR, LSTAR, CSTAR, FMASK, and the three of SYSENTER: all lead to the next case. */
        incl %ecx
        movl $0x00380018, %edx
        xorl %eax, %eax
        wrmsr
        xorl %edx, %edx
        incl %ecx
        movl $next64, %eax
        wrmsr
        incl %ecx
        wrmsr
        incl %ecx
        movl $0x40700, %eax
        wrmsr
        movl $0x174, %ecx
        movl $0x18, %eax
        cmpl $64, MODE
        je 1f
        movl $0x08, %eax
1:      wrmsr
        incl %ecx
        movl %esp, %eax
        wrmsr
        incl %ecx
        movl $next64, %eax
        cmpl $64, MODE
        je 1f
        movl $next32, %eax
1:      wrmsr
        movl CR0, %eax
        movl %eax, %cr0
        movl %ebx, %eax
        shll $4, %eax
        addl $0x50, %eax
        cmpl $64, MODE
        je 1f
        ltr %ax
        jmp next32
1:      ljmp $0x18, $to64

        .code64
to64:   ltr %ax

        .globl next64
next64: movl $LAPIC, %eax
        movl $0, 0xb0(%rax)
        movl 0x20(%rax), %ebx
        shrl $24, %ebx
        andl $7, %ebx
        movl COUNTS(,%rbx,4), %ecx
        cmpl NUMBER, %ecx
        jae done64
        incl COUNTS(,%rbx,4)
        movl TICKS_EACH, %eax
        movl %eax, TICKS(,%rbx,4)
        movl SKIPS_EACH, %eax
        movl %eax, SKIPS(,%rbx,4)
        imull SIZE, %ecx
        shll $15, %ebx
        leaq CASES(%rbx,%rcx), %rsp
        popq %r15
        popq %r14
        popq %r13
        popq %r12
        popq %r11
        popq %r10
        popq %r9
        popq %r8
        popq %rdi
        popq %rsi
        popq %rbp
        popq %rbx
        popq %rdx
        popq %rcx
        popq %rax
        iretq
        /* A vCPU that is done sleeps without a timer; those that are not may need no company. */
done64: movl $LAPIC, %eax
        movl $0x10000, 0x320(%rax)
        movw $0x3f8, %dx
        movb $'K', %al
        outb %al, %dx
        movb $'\n', %al
        outb %al, %dx
        lock decl LEFT
        jnz 1f
        movl $1, %eax
        outl %eax, $0xf4
1:      cli
        hlt
        jmp 1b

        .globl skip64, skip64e, tick64, eoi64
skip64e: addq $8, %rsp
skip64: pushq %rax
        pushq %rbx
        movl $LAPIC, %eax
        movl 0x20(%rax), %ebx
        shrl $24, %ebx
        andl $7, %ebx
        decl SKIPS(,%rbx,4)
        js next64
        incq 16(%rsp)
        popq %rbx
        popq %rax
        iretq
tick64: pushq %rax
        pushq %rbx
        movl $LAPIC, %eax
        movl $0, 0xb0(%rax)
        movl 0x20(%rax), %ebx
        shrl $24, %ebx
        andl $7, %ebx
        decl TICKS(,%rbx,4)
        js next64
        popq %rbx
        popq %rax
        iretq
eoi64:  pushq %rax
        movl $LAPIC, %eax
        movl $0, 0xb0(%rax)
        popq %rax
        iretq

        .code32
        .globl next32
next32: movl $0x10, %eax
        movl %eax, %ds
        movl %eax, %ss
        movl $LAPIC, %eax
        movl $0, 0xb0(%eax)
        movl 0x20(%eax), %ebx
        shrl $24, %ebx
        andl $7, %ebx
        movl COUNTS(,%ebx,4), %ecx
        cmpl NUMBER, %ecx
        jae done32
        incl COUNTS(,%ebx,4)
        movl TICKS_EACH, %eax
        movl %eax, TICKS(,%ebx,4)
        movl SKIPS_EACH, %eax
        movl %eax, SKIPS(,%ebx,4)
        imull SIZE, %ecx
        shll $15, %ebx
        leal CASES(%ebx,%ecx), %esp
        popl %gs
        popl %fs
        popl %es
        popl %ds
        popal
        iretl
done32: movl $LAPIC, %eax
        movl $0x10000, 0x320(%eax)
        movw $0x3f8, %dx
        movb $'K', %al
        outb %al, %dx
        movb $'\n', %al
        outb %al, %dx
        lock decl LEFT
        jnz 1f
        movl $1, %eax
        outl %eax, $0xf4
1:      cli
        hlt
        jmp 1b

        .globl skip32, skip32e, tick32, eoi32
skip32e: addl $4, %esp
skip32: pushl %ds
        pushl %eax
        pushl %ebx
        movl $0x10, %eax
        movl %eax, %ds
        movl $LAPIC, %eax
        movl 0x20(%eax), %ebx
        shrl $24, %ebx
        andl $7, %ebx
        decl SKIPS(,%ebx,4)
        js next32
        incl 12(%esp)
        popl %ebx
        popl %eax
        popl %ds
        iretl
tick32: pushl %ds
        pushl %eax
        pushl %ebx
        movl $0x10, %eax
        movl %eax, %ds
        movl $LAPIC, %eax
        movl $0, 0xb0(%eax)
        movl 0x20(%eax), %ebx
        shrl $24, %ebx
        andl $7, %ebx
        decl TICKS(,%ebx,4)
        js next32
        popl %ebx
        popl %eax
        popl %ds
        iretl
eoi32:  pushl %ds
        pushl %eax
        movl $0x10, %eax
        movl %eax, %ds
        movl $LAPIC, %eax
        movl $0, 0xb0(%eax)
        popl %eax
        popl %ds
        iretl

        /* FS keeps its limit of 4 GiB in real mode, by which handlers reach the local APIC. */
to16:   movl %eax, %fs
        ljmp $0x20, $(1f - base)
        .code16
1:      movl $0x28, %eax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        movw %ax, %gs
        movl %cr0, %eax
        andb $0xfe, %al
        movl %eax, %cr0
        ljmp $0x1000, $(next16 - base)

        .globl next16, skip16, tick16, eoi16
next16: cli
        xorw %ax, %ax
        movw %ax, %fs
        movl $LAPIC, %eax
        movl $0, %fs:0xb0(%eax)
        movl %fs:0x20(%eax), %ebx
        shrl $24, %ebx
        andl $7, %ebx
        movw $0x1300, %ax
        movw %ax, %ds
        movl COUNTS - DATA(,%ebx,4), %ecx
        cmpl NUMBER - DATA, %ecx
        jae done16
        incl COUNTS - DATA(,%ebx,4)
        movl TICKS_EACH - DATA, %eax
        movl %eax, TICKS - DATA(,%ebx,4)
        movl SKIPS_EACH - DATA, %eax
        movl %eax, SKIPS - DATA(,%ebx,4)
        imull SIZE - DATA, %ecx
        shll $11, %ebx
        addl $CASES >> 4, %ebx
        movw %bx, %ss
        movl %ecx, %esp
        popl %edi
        popl %esi
        popl %ebp
        popl %ebx
        popl %edx
        popl %ecx
        popl %eax
        popw %gs
        popw %fs
        popw %es
        popw %ds
        iretw
done16: movl $LAPIC, %eax
        movl $0x10000, %fs:0x320(%eax)
        movw $0x3f8, %dx
        movb $'K', %al
        outb %al, %dx
        movb $'\n', %al
        outb %al, %dx
        lock decl LEFT - DATA
        jnz 1f
        movl $1, %eax
        outl %eax, $0xf4
1:      cli
        hlt
        jmp 1b
skip16: pushw %ds
        pushw %fs
        pushl %eax
        pushl %ebx
        xorw %ax, %ax
        movw %ax, %fs
        movl $LAPIC, %eax
        movl %fs:0x20(%eax), %ebx
        shrl $24, %ebx
        andl $7, %ebx
        movw $0x1300, %ax
        movw %ax, %ds
        decl SKIPS - DATA(,%ebx,4)
        js next16
        movzwl %sp, %eax
        incw %ss:12(%eax)
        popl %ebx
        popl %eax
        popw %fs
        popw %ds
        iretw
tick16: pushw %ds
        pushw %fs
        pushl %eax
        pushl %ebx
        xorw %ax, %ax
        movw %ax, %fs
        movl $LAPIC, %eax
        movl $0, %fs:0xb0(%eax)
        movl %fs:0x20(%eax), %ebx
        shrl $24, %ebx
        andl $7, %ebx
        movw $0x1300, %ax
        movw %ax, %ds
        decl TICKS - DATA(,%ebx,4)
        js next16
        popl %ebx
        popl %eax
        popw %fs
        popw %ds
        iretw
eoi16:  pushw %fs
        pushl %eax
        xorw %ax, %ax
        movw %ax, %fs
        movl $LAPIC, %eax
        movl $0, %fs:0xb0(%eax)
        popl %eax
        popw %fs
        iretw

        .org 0x2000
        .code16
ap16:   cli
        movw %cs, %ax
        movw %ax, %ds
        lgdtl gdtr - ap16
        movl %cr0, %eax
        orb $1, %al
        movl %eax, %cr0
        ljmpl $0x08, $ap32

        .code32
ap32:   movl $0x10, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        jmp common
        .align 8
gdt:    .quad 0
        .quad 0x00cf9b000000ffff
        .quad 0x00cf93000000ffff
gdtr:   .word 23
        .long gdt
        .section .note.GNU-stack, "", @progbits
