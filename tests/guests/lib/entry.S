/* From the multiboot entry (32-bit, paging off) to guest_main in long mode; the trap stubs; and the
 * real-mode trampoline that brings up the other vCPUs. */
#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 3
#define TRAMPOLINE 0x8000
#define CR0_BITS 0x80010033     /* PG, WP, NE, ET, MP, PE */
#define CR4_BITS 0xa0           /* PGE, PAE */

        .section .multiboot, "a"
        .align 4
        .long MULTIBOOT_MAGIC, MULTIBOOT_FLAGS, -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

        .text
        .code32
        .globl _start
_start:
        cli
        cld
        movl %eax, multiboot_magic
        movl %ebx, multiboot_info
        movl $boot_stack_top, %esp

        movl $boot_pdpt + 7, boot_pml4
        movl $boot_pd + 7, %eax
        movl $boot_pdpt, %edi
        movl $4, %ecx
1:      movl %eax, (%edi)
        addl $4096, %eax
        addl $8, %edi
        loop 1b

        /* 2048 large pages; the last GiB is device memory and uncached. */
        movl $boot_pd, %edi
        movl $0x83, %eax
        xorl %ecx, %ecx
2:      movl %eax, (%edi)
        cmpl $0x600, %ecx
        jb 3f
        orl $0x10, (%edi)
3:      addl $0x200000, %eax
        addl $8, %edi
        incl %ecx
        cmpl $2048, %ecx
        jb 2b

        movl $CR4_BITS, %eax
        movl %eax, %cr4
        movl $boot_pml4, %eax
        movl %eax, %cr3
        movl $0xc0000080, %ecx
        rdmsr
        orl $0x900, %eax        /* LME, NXE */
        wrmsr
        movl $CR0_BITS, %eax
        movl %eax, %cr0
        lgdt gdt_pointer
        ljmp $0x08, $1f

        .code64
1:      movl $0x10, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        xorl %eax, %eax
        movl %eax, %fs
        movl %eax, %gs
        movq $boot_stack_top, %rsp
        xorl %ebp, %ebp
        call start_c
        ud2

        .globl gdt_pointer
gdt_pointer:
        .word 46 * 8 - 1
        .quad gdt

        .data
        .align 16
        .globl gdt
gdt:    .quad 0
        .quad 0x00af9b000000ffff        /* 0x08 kernel code, 64 bit */
        .quad 0x00cf93000000ffff        /* 0x10 kernel data */
        .quad 0x00cffb000000ffff        /* 0x18 user code, 32 bit */
        .quad 0x00cff3000000ffff        /* 0x20 user data */
        .quad 0x00affb000000ffff        /* 0x28 user code, 64 bit */
        .quad 0x00cff3000000ffff        /* 0x30 user data for SYSEXIT */
        .quad 0x00cf9b000000ffff        /* 0x38 kernel code, 32 bit */
        .quad 0x008f9b000000ffff        /* 0x40 kernel code, 16 bit, limit 4 GiB */
        .fill 5, 8, 0                   /* free for guests */
        .fill 32, 8, 0                  /* one TSS descriptor for each of 16 vCPUs */

        .globl multiboot_magic, multiboot_info
multiboot_magic: .long 0
multiboot_info:  .long 0

        .bss
        .align 4096
        .globl boot_pml4, boot_pdpt, boot_pd
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd:   .skip 16384
boot_stack: .skip 32768
        .globl boot_stack_top
boot_stack_top:

/* ---- trap stubs: 16 bytes each; vectors without an error code push 0 ---- */
        .text
        .code64
        .align 16
        .globl trap_stubs
trap_stubs:
        .set n, 0
        .rept 256
        .align 16
        .if !(n == 8 || (n >= 10 && n <= 14) || n == 17 || n == 21)
        pushq $0
        .endif
        pushq $n
        jmp trap_common
        .set n, n + 1
        .endr
        .align 16
trap_common:
        pushq %rax
        pushq %rbx
        pushq %rcx
        pushq %rdx
        pushq %rsi
        pushq %rdi
        pushq %rbp
        pushq %r8
        pushq %r9
        pushq %r10
        pushq %r11
        pushq %r12
        pushq %r13
        pushq %r14
        pushq %r15
        cld
        movq %rsp, %rdi
        movq %rsp, %rbp
        andq $-16, %rsp
        call trap_dispatch
        movq %rbp, %rsp
        .globl trap_return
trap_return:
        popq %r15
        popq %r14
        popq %r13
        popq %r12
        popq %r11
        popq %r10
        popq %r9
        popq %r8
        popq %rbp
        popq %rdi
        popq %rsi
        popq %rdx
        popq %rcx
        popq %rbx
        popq %rax
        addq $16, %rsp
        iretq

/* ---- the trampoline: copied to TRAMPOLINE, entered in real mode by a SIPI ---- */
#define AT(label) (TRAMPOLINE + label - ap_trampoline)
        .globl ap_trampoline, ap_trampoline_end
        .align 16
        .code16
ap_trampoline:
        cli
        cld
        xorw %ax, %ax
        movw %ax, %ds
        lgdtl AT(ap_gdt_pointer)
        movl %cr0, %eax
        orb $1, %al
        movl %eax, %cr0
        ljmpl $0x08, $AT(ap_protected)
        .code32
ap_protected:
        movl $0x10, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        movl $CR4_BITS, %eax
        movl %eax, %cr4
        movl $boot_pml4, %eax
        movl %eax, %cr3
        movl $0xc0000080, %ecx
        rdmsr
        orl $0x900, %eax
        wrmsr
        movl $CR0_BITS, %eax
        movl %eax, %cr0
        ljmp $0x18, $ap_long
        .align 8
ap_gdt: .quad 0
        .quad 0x00cf9b000000ffff
        .quad 0x00cf93000000ffff
        .quad 0x00af9b000000ffff
ap_gdt_pointer:
        .word 31
        .long AT(ap_gdt)
ap_trampoline_end:

        .code64
ap_long:
        lgdt gdt_pointer
        movl $0x10, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        xorl %eax, %eax
        movl %eax, %fs
        movl %eax, %gs
        movq ap_stack, %rsp
        pushq $0x08
        pushq $1f
        lretq
1:      movl ap_index, %edi
        call ap_start_c
        ud2
        .section .note.GNU-stack, "", @progbits
