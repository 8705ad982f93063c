/* Debug exceptions at the edges: held back by MOV SS, of INT1, of DR7.GD, single steps around software interrupts
 * and system calls. And what else an operating system may see of a processor that is rarely looked at: null
 * selectors after a return to ring 3, the bits of IA32_MISC_ENABLE. */
#include "lib/guest.h"

#define MSR_MISC_ENABLE 0x1a0
#define DR6_BD (1ul << 13)
#define DR6_BS (1ul << 14)
#define DR7_GD (1ul << 13)

static struct event { u64 vector, rip, dr6, dr7, flags; } events[32];
static u32 event_count, next_event;
static u8 user_stack[4096] __attribute__((aligned(16)));
static u8 kernel_stack[8192] __attribute__((aligned(16)));
static struct frame seen;
u64 kernel_rsp;
u16 stack_selector = SEL_KDATA;
extern const u8 trap_stubs[];

static void on_event(struct frame *f) {
    seen = *f;
    if (event_count < 32) events[event_count++] = (struct event){f->vector, f->rip, rddr6(), rddr7(), f->rflags};
    if (rddr6() & 15) f->rflags |= FL_RF; /* past an instruction breakpoint */
    wrdr6(0xffff0ff0);
}

void run_user(u64 rip, u64 cs, u64 ss, u64 rflags, u64 rsp);
asm(".globl run_user, back_to_kernel\n"
    "run_user: push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n mov %rsp, kernel_rsp\n"
    " push %rdx\n push %r8\n push %rcx\n push %rsi\n push %rdi\n iretq\n"
    "back_to_kernel: mov kernel_rsp, %rsp\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n"
    " mov $0x10, %eax\n mov %eax, %ds\n mov %eax, %es\n ret\n"
    ".macro STEP_ON\n pushfq\n orq $0x100, (%rsp)\n popfq\n.endm\n"
    ".macro STEP_OFF name\n pushfq\n\\name\\()_a: andq $~0x100, (%rsp)\n\\name\\()_b: popfq\n\\name\\()_c:\n.endm\n"
    "t_movss: mov %ss, %ecx\n STEP_ON\n nop\nt_movss_1: mov %ecx, %ss\n nop\nt_movss_2: STEP_OFF t_movss\n ret\n"
    "t_data: mov stack_selector, %ss\n nop\nt_data_1: nop\n ret\n"
    "t_dataint: mov stack_selector, %ss\n int $0x80\nt_dataint_1: nop\n ret\n"
    "t_code: mov %ss, %ecx\n mov %ecx, %ss\nt_code_1: nop\n ret\n"
    "t_plain: nop\nt_plain_1: nop\n ret\n"
    "t_int1: .byte 0xf1\nt_int1_1: ret\n"
    "t_detect: mov $0x1234, %eax\nt_detect_1: mov %rax, %dr1\nt_detect_2: ret\n"
    "t_int: STEP_ON\n nop\nt_int_1: int $0x81\nt_int_2: nop\nt_int_3: STEP_OFF t_int\n ret\n"
    "t_in: mov $0x608, %edx\n STEP_ON\n in %dx, %eax\nt_in_1: in %dx, %eax\nt_in_2: STEP_OFF t_in\n ret\n"
    "u_call: nop\nu_call_1: syscall\nu_call_2: nop\nu_call_3: int $0x82\nu_call_4:\n"
    "on_call: sysretq\n"
    "u_int1: .byte 0xf1\nu_int1_1: int $0x82\n"
    "u_null: mov %ds, %eax\n mov %es, %ebx\n mov %fs, %ecx\n mov %gs, %edx\n mov %fs:0, %rsi\n mov %gs:0, %rdi\n int $0x82\n");
extern u8 t_in_1[], t_in_2[], t_in_a[], t_in_b[], t_in_c[], back_to_kernel[], t_movss_1[], t_movss_2[], t_movss_a[], t_movss_b[], t_movss_c[], t_data_1[], t_dataint_1[],
    t_code_1[], t_plain_1[], t_int1_1[], t_detect_1[], t_int_1[], t_int_2[], t_int_3[], t_int_a[], t_int_b[], t_int_c[], u_call[],
    u_call_1[], u_call_2[], u_call_3[], u_call_4[], on_call[], u_int1[], u_int1_1[], u_null[];
void t_movss(void), t_data(void), t_dataint(void), t_code(void), t_plain(void), t_int1(void), t_detect(void), t_int(void), t_in(void);

static void on_exit(struct frame *f) {
    on_event(f);
    f->rip = (u64)back_to_kernel;
    f->cs = SEL_KCODE64;
    f->ss = SEL_KDATA;
    f->rflags = 2;
    f->rsp = kernel_rsp;
}

static void begin(u64 dr0, u64 dr7) {
    event_count = next_event = 0;
    wrdr6(0xffff0ff0);
    wrdr0(dr0);
    wrdr7(0x400 | dr7);
}

static void expect(const char *what, u64 vector, const void *rip, u64 dr6) {
    wrdr7(0x400);
    struct event *e = &events[next_event++];
    check(what, next_event <= event_count);
    check_eq(what, e->vector, vector);
    check_eq(what, e->rip, (u64)rip);
    check_eq(what, e->dr6 & 0xe00f, dr6);
}

static void no_more(const char *what) {
    wrdr7(0x400);
    check_eq(what, event_count, next_event);
}

static void user(const u8 *rip, u64 rflags) {
    run_user((u64)rip, SEL_UCODE64, SEL_UDATA, rflags, (u64)user_stack + sizeof user_stack);
}

static void stack_loads(void) {
    begin(0, 0);
    t_movss();
    expect("a step before MOV SS", 1, t_movss_1, DR6_BS);
    expect("MOV SS and the next instruction are one step", 1, t_movss_2, DR6_BS);
    expect("and steps go on", 1, t_movss_a, DR6_BS);
    expect("to the end", 1, t_movss_b, DR6_BS);
    expect("of TF", 1, t_movss_c, DR6_BS);
    no_more("steps around MOV SS");

    begin((u64)&stack_selector, 2 | 3ul << 16 | 1ul << 18);
    t_data();
    expect("a data breakpoint of MOV SS comes behind the next instruction", 1, t_data_1, 1);
    no_more("a data breakpoint of MOV SS");

    begin((u64)&stack_selector, 2 | 3ul << 16 | 1ul << 18);
    t_dataint();
    expect("and before the first of a handler that this one calls", 1, trap_stubs + 16 * 0x80, 1);
    expect("which then runs", 0x80, t_dataint_1, 0);
    no_more("a data breakpoint of MOV SS before INT");

    begin((u64)t_code_1, 2);
    t_code();
    no_more("no breakpoint matches behind MOV SS");
    begin((u64)t_plain_1, 2);
    t_plain();
    expect("elsewhere it does", 1, t_plain_1, 1);
    no_more("a breakpoint");
}

static void int1(void) {
    begin(0, 0);
    t_int1();
    expect("INT1 leaves DR6 alone", 1, t_int1_1, 0);
    check_eq("and is a trap", events[0].flags & FL_RF, 0);
    no_more("INT1");
    begin(0, 0);
    user(u_int1, 2);
    expect("INT1 in ring 3 asks no gate's DPL", 1, u_int1_1, 0);
    expect("and goes on", 0x82, u_int1_1 + 2, 0);
    no_more("INT1 in ring 3");
}

static void general_detect(void) {
    begin(0, DR7_GD);
    t_detect();
    check_eq("GD is off in the handler", events[0].dr7 & DR7_GD, 0);
    check_eq("a detected access is a fault", events[0].flags & FL_RF, FL_RF);
    expect("MOV to DR1 under GD", 1, t_detect_1, DR6_BD);
    no_more("general detect");
    check_eq("it then takes place", rddr1(), 0x1234);
}

static void calls(void) {
    begin(0, 0);
    t_int();
    expect("a step before INT", 1, t_int_1, DR6_BS);
    expect("no step into the handler", 0x81, t_int_2, 0);
    expect("a step behind it", 1, t_int_3, DR6_BS);
    expect("and on", 1, t_int_a, DR6_BS);
    expect("and on", 1, t_int_b, DR6_BS);
    expect("to the end", 1, t_int_c, DR6_BS);
    no_more("steps around INT");

    begin(0, 0);
    t_in();
    expect("a step over IN", 1, t_in_1, DR6_BS);
    expect("and another", 1, t_in_2, DR6_BS);
    expect("and on", 1, t_in_a, DR6_BS);
    expect("and on", 1, t_in_b, DR6_BS);
    expect("to the end", 1, t_in_c, DR6_BS);
    no_more("steps over IN");

    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1);
    wrmsr(MSR_STAR, (u64)(SEL_UCODE32) << 48 | (u64)SEL_KCODE64 << 32);
    wrmsr(MSR_LSTAR, (u64)on_call);
    wrmsr(MSR_SFMASK, FL_TF | FL_IF);
    begin(0, 0);
    user(u_call, 2 | FL_TF);
    expect("a step before SYSCALL", 1, u_call_1, DR6_BS);
    expect("the system call is one step", 1, u_call_2, DR6_BS);
    expect("then the next instruction", 1, u_call_3, DR6_BS);
    expect("INT", 0x82, u_call_4, 0);
    no_more("steps around SYSCALL");
}

static void null_selectors(void) {
    static u64 at_fs = 0x1122, at_gs = 0x3344;
    for (u32 selector = 0; selector < 4; selector++) {
        asm volatile("mov %0, %%ds; mov %0, %%es; mov %0, %%fs; mov %0, %%gs" : : "r"(selector));
        wrmsr(MSR_FS_BASE, (u64)&at_fs);
        wrmsr(MSR_GS_BASE, (u64)&at_gs);
        begin(0, 0);
        user(u_null, 2);
        check_eq("DS", seen.rax, 0);
        check_eq("ES", seen.rbx, 0);
        check_eq("FS", seen.rcx, 0);
        check_eq("GS", seen.rdx, 0);
        check_eq("at the base of FS", seen.rsi, 0x1122);
        check_eq("at the base of GS", seen.rdi, 0x3344);
    }
    asm volatile("mov %0, %%ds; mov %1, %%es" : : "r"(SEL_KDATA), "r"(SEL_UDATA));
    user(u_null, 2);
    check_eq("a segment of ring 0", seen.rax, 0);
    check_eq("a segment of ring 3", seen.rbx, SEL_UDATA);
    asm volatile("mov %0, %%fs; mov %0, %%gs" : : "r"(0));
}

static void misc_enable(void) {
    u64 before = rdmsr(MSR_MISC_ENABLE);
    u64 on = 1 | 1ul << 3 | 1ul << 16 | 1ul << 22 | 1ul << 23 | 1ul << 38;
    u32 r[4], most;
    cpuid(0, 0, r);
    most = r[0];
    wrmsr(MSR_MISC_ENABLE, before | on | 1ul << 7 | 1ul << 11 | 1ul << 12 | 1ul << 18 | 1ul << 34);
    check_eq("IA32_MISC_ENABLE keeps what it has", rdmsr(MSR_MISC_ENABLE), before | on);
    cpuid(0, 0, r);
    check_eq("its limit of CPUID", r[0], 2);
    wrmsr(MSR_MISC_ENABLE, 0);
    check_eq("and has the rest", rdmsr(MSR_MISC_ENABLE), before & ~on);
    cpuid(0, 0, r);
    check_eq("no limit of CPUID", r[0], most);
    wrmsr(MSR_MISC_ENABLE, before);
    extern u8 after_bad[];
    expect_trap((u64)after_bad);
    asm volatile("wrmsr; after_bad:" : : "c"(MSR_MISC_ENABLE), "a"(2), "d"(0) : "memory");
    check_eq("a reserved bit", caught.count, 1);
    check_eq("is #GP", caught.f.vector, 13);
}

void guest_main(void) {
    identity_for_user();
    tss[0].rsp[0] = (u64)kernel_stack + sizeof kernel_stack;
    set_gate(0x82, 3, 0);
    trap_handler[1] = trap_handler[0x80] = trap_handler[0x81] = on_event;
    trap_handler[0x82] = on_exit;
    stack_loads();
    int1();
    general_detect();
    calls();
    null_selectors();
    misc_enable();
    finish("debug");
}
