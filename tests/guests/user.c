/* Ring 3: ways in (iretq, sysret, sysexit), ways out (int 0x80, syscall, sysenter, faults, the timer),
 * what it may not do, 32-bit code, I/O permission, FS and GS bases, swapgs. */
#include "lib/guest.h"

#define VEC_TIMER 0x40
#define MSR_SYSENTER_CS 0x174
#define MSR_SYSENTER_ESP 0x175
#define MSR_SYSENTER_EIP 0x176

static struct frame seen;
static u64 seen_cr2;
volatile u32 ticks;
static volatile u32 ticks_from_user;
static u8 user_stack[4096] __attribute__((aligned(4096)));
static u8 kernel_stack[8192] __attribute__((aligned(16)));
static u64 user_data[16];
u64 kernel_rsp, syscall_rip, syscall_flags, syscall_rsp, syscall_rax;

/* run_user saves where it was and leaves by IRET (or jumps to `how`); back_to_kernel returns from it. */
void run_user(u64 rip, u64 cs, u64 ss, u64 rflags, u64 rsp);
void run_user_jump(u64 rip, void (*how)(void), u64 rflags, u64 rsp);
asm(".globl run_user, run_user_jump, back_to_kernel, by_sysret, by_sysret32, by_sysexit, on_syscall, on_sysenter\n"
    ".macro SAVE\n push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n mov %rsp, kernel_rsp\n.endm\n"
    "run_user: SAVE\n push %rdx\n push %r8\n push %rcx\n push %rsi\n push %rdi\n iretq\n"
    "run_user_jump: SAVE\n mov %rdx, %r11\n mov %rcx, %r8\n mov %rdi, %rcx\n jmp *%rsi\n"
    "by_sysret: mov %r8, %rsp\n sysretq\n"
    "by_sysret32: mov %r8, %rsp\n sysretl\n"
    "by_sysexit: push %r11\n popfq\n mov %rcx, %rdx\n mov %r8, %rcx\n .byte 0x48\n sysexit\n"
    "back_to_kernel: mov kernel_rsp, %rsp\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n"
    "on_syscall: mov %rcx, syscall_rip\n mov %r11, syscall_flags\n mov %rsp, syscall_rsp\n mov %rax, syscall_rax\n"
    " mov kernel_rsp, %rsp\n jmp back_to_kernel\n"
    "on_sysenter: mov %rsp, syscall_rsp\n mov %rcx, syscall_rip\n mov %rax, syscall_rax\n jmp back_to_kernel\n"
    /* what runs in ring 3 */
    ".globl u_int80, u_syscall, u_cli, u_hlt, u_in, u_out, u_read, u_write, u_cr, u_spin, u_code32, u_int3, u_int20, u_sysenter, u_fsgs, u_swapgs, u_popf, u_div\n"
    "u_int80: mov $0x1234, %eax\n mov %cs, %ebx\n mov %ss, %ecx\n int $0x80\n"
    "u_syscall: mov $0x77, %eax\n stc\n syscall\nu_after_syscall: int $0x80\n"
    "u_cli: cli\n int $0x80\n"
    "u_hlt: hlt\n"
    "u_in: mov $0x3fd, %edx\n in %dx, %al\n int $0x80\n"
    "u_out: mov $0x80, %edx\n out %eax, %dx\n int $0x80\n"
    "u_read: mov (%rsi), %rax\n int $0x80\n"
    "u_write: mov %rax, (%rsi)\n int $0x80\n"
    "u_cr: mov %cr0, %rax\n"
    "u_spin: mov ticks_wanted, %eax\n1: pause\n cmp %eax, ticks\n jb 1b\n int $0x80\n"
    "u_int3: int3\n"
    "u_div: xor %ecx, %ecx\n xor %edx, %edx\n div %ecx\n"
    "u_int20: int $0x20\n"
    "u_sysenter: mov $0x99, %eax\n mov %rsp, %rcx\n sysenter\n"
    "u_fsgs: mov %fs:8, %rax\n mov %gs:16, %rbx\n mov $0x23, %ecx\n int $0x80\n"
    "u_swapgs: swapgs\n"
    "u_popf: pushfq\n orl $0x3200, (%rsp)\n andl $~0x200, (%rsp)\n popfq\n pushfq\n pop %rax\n int $0x80\n"
    ".code32\n"
    "u_code32: mov %ss, %ecx\n mov %ecx, %ds\n" /* the way to ring 3 took the kernel's DS away */
    " push $0x11223344\n pop %eax\n inc %eax\n mov $u_word, %ecx\n .byte 0x48\n" /* dec %eax, not REX */
    " add (%ecx), %eax\n call 1f\n1: pop %edx\n mov %cs, %ebx\n int $0x80\n"
    ".code64\n.data\n.globl u_word\nu_word: .long 0x1000\n.text\n");
extern u8 u_int80[], u_syscall[], u_after_syscall[], u_cli[], u_hlt[], u_in[], u_out[], u_read[], u_write[], u_cr[], u_spin[], u_code32[],
    u_int3[], u_int20[], u_sysenter[], u_fsgs[], u_swapgs[], u_popf[], u_div[];
extern void back_to_kernel(void), by_sysret(void), by_sysret32(void), by_sysexit(void), on_syscall(void), on_sysenter(void);
u32 ticks_wanted;

static void on_trap(struct frame *f) {
    seen = *f;
    seen_cr2 = rdcr2();
    if (!(f->cs & 3)) {
        say("trap %lu in ring 0 at %lx\n", f->vector, f->rip);
        debug_exit(EXIT_TRAP);
    }
    check("frame on the stack of the TSS", (u64)f == tss[0].rsp[0] - sizeof *f);
    f->rip = (u64)back_to_kernel;
    f->cs = SEL_KCODE64;
    f->ss = SEL_KDATA;
    f->rflags = 2;
    f->rsp = kernel_rsp;
}

static void on_timer(struct frame *f) {
    if (f->cs & 3) ticks_from_user++;
    ticks++;
    eoi();
}

#define STACK ((u64)user_stack + sizeof user_stack - 64)

static void user64(u8 *at, u64 rflags) { run_user((u64)at, SEL_UCODE64, SEL_UDATA, rflags | 2, STACK); }

static void expect(const char *what, u64 vector, u64 error, u64 rip) {
    check_eq(what, seen.vector, vector);
    check_eq(what, seen.error, error);
    check_eq(what, seen.rip, rip);
    check_eq(what, seen.cs, SEL_UCODE64);
    check_eq(what, seen.ss, SEL_UDATA);
}

void guest_main(void) {
    identity_for_user();
    tss[0].rsp[0] = (u64)kernel_stack + sizeof kernel_stack;
    for (int v = 0; v < 32; v++) trap_handler[v] = on_trap;
    trap_handler[0x80] = on_trap;
    trap_handler[VEC_TIMER] = on_timer;
    set_gate(0x80, 3, 0);
    set_gate(3, 3, 0);

    user64(u_int80, 0);
    expect("int 0x80", 0x80, 0, (u64)u_int80 + 5 + 2 + 2 + 2);
    check_eq("rax through int 0x80", seen.rax, 0x1234);
    check_eq("cs in ring 3", seen.rbx, SEL_UCODE64);
    check_eq("ss in ring 3", seen.rcx, SEL_UDATA);
    check_eq("rsp in ring 3", seen.rsp, STACK);
    user64(u_int3, 0);
    expect("int3 from ring 3", 3, 0, (u64)u_int3 + 1);
    user64(u_int20, 0);
    expect("int to a gate of DPL 0", 13, on_tcg() ? 0x202 /* it scales by 16 */ : 0x102, (u64)u_int20);
    user64(u_div, 0);
    expect("#DE in ring 3", 0, 0, (u64)u_div + 4);
    user64(u_cli, 0);
    expect("cli in ring 3", 13, 0, (u64)u_cli);
    user64(u_cli, 0x3000);
    expect("cli with IOPL 3", 0x80, 0, (u64)u_cli + 3);
    user64(u_hlt, 0x3000);
    expect("hlt in ring 3", 13, 0, (u64)u_hlt);
    user64(u_cr, 0);
    expect("mov from cr0 in ring 3", 13, 0, (u64)u_cr);
    user64(u_swapgs, 0);
    expect("swapgs in ring 3", 13, 0, (u64)u_swapgs);
    user64(u_popf, FL_IF);
    check_eq("popf in ring 3 keeps IF and IOPL", seen.rax & 0x3200, FL_IF);

    user64(u_in, 0);
    expect("in without permission", 13, 0, (u64)u_in + 5);
    user64(u_in, 0x3000);
    expect("in with IOPL 3", 0x80, 0, (u64)u_in + 8);
    tss[0].iomap_base = (u16)__builtin_offsetof(struct tss, iomap);
    memset(tss[0].iomap, 0xff, sizeof tss[0].iomap);
    tss[0].iomap[0x3fd / 8] &= (u8) ~(1 << (0x3fd % 8));
    user64(u_in, 0);
    expect("in with its bit clear", 0x80, 0, (u64)u_in + 8);
    tss[0].iomap[0x80 / 8] = 0xf8;
    user64(u_out, 0);
    expect("out of 4 ports with 3 bits clear", 13, 0, (u64)u_out + 5);
    tss[0].iomap[0x80 / 8] = 0xf0;
    user64(u_out, 0);
    expect("out of 4 ports with 4 bits clear", 0x80, 0, (u64)u_out + 8);

    u64 hole = 0x8000000000ul, kernel_only = 0x9000000000ul;
    map_page(kernel_only, (u64)page_alloc(), PTE_P | PTE_W);
    struct { u8 *at; u64 address, error; } faults[] = {{u_read, hole, 4}, {u_write, hole, 6}, {u_read, kernel_only, 5}, {u_write, kernel_only, 7}};
    for (int i = 0; i < 4; i++) {
        static u8 stub[32];
        stub[0] = 0x48;
        stub[1] = 0xbe; /* movabs $address, %rsi; then the access */
        memcpy(stub + 2, &faults[i].address, 8);
        memcpy(stub + 10, faults[i].at, 5);
        user64(stub, 0);
        expect("#PF in ring 3", 14, faults[i].error, (u64)stub + 10);
        check_eq("CR2 in ring 3", seen_cr2, faults[i].address);
    }
    run_user(kernel_only, SEL_UCODE64, SEL_UDATA, 2, STACK);
    check_eq("fetch from a supervisor page", seen.error, cpu_has(0x80000001, 3, 20) ? 0x15 : 5);

    run_user((u64)u_code32, SEL_UCODE32, SEL_UDATA, 2, STACK);
    check_eq("32-bit code", seen.vector, 0x80);
    check_eq("32-bit result", seen.rax, 0x11224344);
    check_eq("32-bit cs", seen.cs, SEL_UCODE32);
    check_eq("32-bit return address", seen.rdx >> 32, 0);

    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1);
    wrmsr(MSR_STAR, (u64)SEL_KCODE64 << 32 | (u64)SEL_UCODE32 << 48);
    wrmsr(MSR_LSTAR, (u64)on_syscall);
    wrmsr(MSR_SFMASK, FL_IF | FL_DF);
    user64(u_syscall, FL_DF);
    check_eq("syscall rip", syscall_rip, (u64)u_after_syscall);
    check_eq("syscall rflags", syscall_flags & (FL_DF | FL_CF | FL_IF), FL_DF | FL_CF);
    check_eq("SFMASK cleared DF", rdflags() & FL_DF, 0);
    check_eq("syscall keeps rsp", syscall_rsp, STACK);
    check_eq("syscall rax", syscall_rax, 0x77);
    run_user_jump((u64)u_int80, by_sysret, 2 | FL_CF, STACK - 64);
    expect("sysretq", 0x80, 0, (u64)u_int80 + 11);
    check_eq("sysretq rsp", seen.rsp, STACK - 64);
    check_eq("sysretq rflags", seen.rflags & (FL_CF | FL_IF), FL_CF);
    run_user_jump((u64)u_code32, by_sysret32, 2, STACK);
    check_eq("sysretl cs", seen.cs, SEL_UCODE32);
    check_eq("sysretl result", seen.rax, 0x11224344);

    if (cpu_is_intel()) { /* other makers have no SYSENTER in long mode */
        wrmsr(MSR_SYSENTER_CS, SEL_KCODE64);
        wrmsr(MSR_SYSENTER_ESP, (u64)kernel_stack + 4096);
        wrmsr(MSR_SYSENTER_EIP, (u64)on_sysenter);
        user64(u_sysenter, 0);
        check_eq("sysenter rsp", syscall_rsp, (u64)kernel_stack + 4096);
        check_eq("sysenter rax", syscall_rax, 0x99);
        check_eq("rsp before sysenter", syscall_rip, STACK);
        run_user_jump((u64)u_int80, by_sysexit, 2, STACK);
        check_eq("sysexit cs", seen.cs, SEL_UCODE64);
        check_eq("sysexit ss", seen.ss, SEL_UDATA64);
        check_eq("sysexit ran", seen.rax, 0x1234);
    }

    user_data[1] = 0xf5f5;
    user_data[2] = 0x6565;
    wrmsr(MSR_FS_BASE, (u64)user_data);
    wrmsr(MSR_KERNEL_GS_BASE, (u64)user_data);
    wrmsr(MSR_GS_BASE, 0x123000);
    asm volatile("swapgs");
    check_eq("swapgs", rdmsr(MSR_GS_BASE), (u64)user_data);
    check_eq("swapgs, the other way", rdmsr(MSR_KERNEL_GS_BASE), 0x123000);
    user64(u_fsgs, 0);
    check_eq("fs base", seen.rax, 0xf5f5);
    check_eq("gs base", seen.rbx, 0x6565);
    if (cpu_has(7, 1, 0)) {
        wrcr4(rdcr4() | CR4_FSGSBASE);
        u64 fs, gs;
        asm volatile("rdfsbase %0; rdgsbase %1; wrfsbase %2" : "=&r"(fs), "=&r"(gs) : "r"(0x7777ul));
        check_eq("rdfsbase", fs, (u64)user_data);
        check_eq("rdgsbase", gs, (u64)user_data);
        check_eq("wrfsbase", rdmsr(MSR_FS_BASE), 0x7777);
    }

    platform_init(false);
    lapic_timer(LAPIC_TIMER_PERIODIC | VEC_TIMER, 2000000);
    ticks_wanted = ticks + 10;
    user64(u_spin, FL_IF);
    lapic_write(0x380, 0);
    check_eq("left the loop by itself", seen.vector, 0x80);
    check("timer interrupts from ring 3", ticks_from_user >= 9);
    finish("user");
}
