/* From the loader (32-bit, paging off) to long mode, the same for the other vCPUs from real mode, the
 * entry points of the interrupts that the demo takes, and the code that it patches. */
#define TRAMPOLINE 0x8000

        .section .multiboot, "a"
        .align 4
        .long 0x1badb002, 3, -(0x1badb002 + 3)

        .text
        .code32
        .globl _start
_start: cli
        movl $boot_stack_top, %esp
        /* Identity-map 4 GiB with 2 MiB pages: one top table, one of four directories, those four. The
         * second entry of the top table maps the same again, 512 GiB higher: code is patched there. */
        movl $pdpt + 3, pml4
        movl $pdpt + 3, pml4 + 8
        movl $pd + 3, %eax
        xorl %ecx, %ecx
1:      movl %eax, pdpt(, %ecx, 8)
        addl $4096, %eax
        incl %ecx
        cmpl $4, %ecx
        jb 1b
        movl $0x83, %eax
        xorl %ecx, %ecx
2:      movl %eax, pd(, %ecx, 8)
        addl $0x200000, %eax
        incl %ecx
        cmpl $2048, %ecx
        jb 2b
        call paging_on
        lgdt gdt_pointer
        ljmp $0x08, $1f
        .code64
1:      movq $boot_stack_top, %rsp
        call load_segments
        call demo_main
        ud2

        .code32
paging_on:
        movl $0xa0, %eax                /* PGE, PAE */
        movl %eax, %cr4
        movl $pml4, %eax
        movl %eax, %cr3
        movl $0xc0000080, %ecx          /* EFER */
        rdmsr
        orl $0x100, %eax                /* LME */
        wrmsr
        movl $0x80010033, %eax          /* PG, WP, NE, ET, MP, PE */
        movl %eax, %cr0
        ret

        .code64
load_segments:
        movl $0x10, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        xorl %eax, %eax
        movl %eax, %fs
        movl %eax, %gs
        ret

/* Copied to TRAMPOLINE; a start-up IPI sends each other vCPU there in real mode. */
#define AT(label) (TRAMPOLINE + label - trampoline)
        .globl trampoline, trampoline_end
        .align 16
        .code16
trampoline:
        cli
        xorw %ax, %ax
        movw %ax, %ds
        lgdtl AT(low_gdt_pointer)
        movl %cr0, %eax
        orb $1, %al
        movl %eax, %cr0
        ljmpl $0x18, $AT(low32)
        .code32
low32:  movl $0x10, %eax
        movl %eax, %ds
        movl %eax, %ss
        movl next_stack, %esp
        movl $paging_on, %eax
        call *%eax
        ljmp $0x08, $1f
        .align 8
low_gdt_pointer:
        .word 31
        .long gdt
trampoline_end:
        .code64
1:      lgdt gdt_pointer
        call load_segments
        movl next_stack, %esp
        movl next_index, %edi
        call other_main
        ud2

/* Interrupt entries: save what C may change, call the handler, return. */
        .macro ENTRY name, handler
        .globl \name
\name:  pushq %rax
        pushq %rcx
        pushq %rdx
        pushq %rsi
        pushq %rdi
        pushq %r8
        pushq %r9
        pushq %r10
        pushq %r11
        cld
        leaq 72(%rsp), %rdi             /* what the processor has pushed: rip, cs, rflags, rsp, ss */
        call \handler
        popq %r11
        popq %r10
        popq %r9
        popq %r8
        popq %rdi
        popq %rsi
        popq %rdx
        popq %rcx
        popq %rax
        iretq
        .endm
        ENTRY timer_entry, on_timer
        ENTRY ipi_entry, on_ipi
        ENTRY sync_entry, on_sync
        ENTRY int3_entry, on_int3
        .globl fault_entry, spurious_entry
fault_entry:
        andq $-16, %rsp
        call on_fault
spurious_entry:
        iretq

/* Sixteen functions that return 1, or 2 when the NOP is a jump. vCPU 0 turns the one into the other and
 * back, in a random order, while the other vCPUs call them. */
        .balign 4096, 0xcc
        .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        .type job\n, @function
job\n:  xorl %eax, %eax
site\n: .byte 0x0f, 0x1f, 0x44, 0x00, 0x00
        movl $1, %eax
        ret
on\n:   movl $2, %eax
        ret
        .size job\n, . - job\n
        .balign 32, 0xcc
        .endr

        .section .rodata
        .globl jobs
        .align 8
jobs:
        .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        .quad job\n, site\n, on\n
        .endr

        .data
        .align 16
gdt:    .quad 0
        .quad 0x00af9b000000ffff        /* 0x08 code, 64 bit */
        .quad 0x00cf93000000ffff        /* 0x10 data */
        .quad 0x00cf9b000000ffff        /* 0x18 code, 32 bit */
gdt_pointer:
        .word 31
        .quad gdt

        .bss
        .align 4096
pml4:   .skip 4096
pdpt:   .skip 4096
pd:     .skip 16384
boot_stack: .skip 16384
boot_stack_top:
        .section .note.GNU-stack, "", @progbits
