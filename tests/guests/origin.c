/* Values on their way: copied through registers, memory, vCPUs, an interrupt, string instructions and XMM
 * registers, computed, and read from devices. Every instruction of a value's way has a name of its own, so
 * that a test can tell whether the way back leads past all of them. */
#include "lib/guest.h"

#define VEC_IRQ 0x40
#define ALIAS 0x8000000000ul
#define AT(name) ".globl " name "\n" name ": "

volatile u64 place_a __attribute__((aligned(4096))) = 1;
static u8 padding[4096 - 8] __attribute__((used));
volatile u64 place_b, place_d, place_e, place_final;
volatile u64 from_array[3], to_array[3];
volatile u64 in_a = 5, in_b = 7, sum, constant_place, zeroed = 9;
volatile u8 byte_place = 0xc3;
volatile u64 widened, mixed, faulted, from_port, from_mmio, from_tsc, from_cpuid, from_image, partial;
volatile u64 loaded_place = 0xabcdef;
static volatile u32 passed, done;

static void on_irq(struct frame *f) {
    (void)f;
    eoi();
}

static void start(void) {
    /* Constant, stack, memory. */
    asm volatile(
        AT("way_constant") "movabsq $0x1122334455667788, %%r9\n"
        AT("way_push") "pushq %%r9\n"
        AT("way_pop") "popq %%r10\n"
        AT("way_store") "movq %%r10, place_a\n"
        : : : "r9", "r10", "memory");
}

/* On vCPU 1, through another linear address. */
static void other(int cpu) {
    (void)cpu;
    wrcr0((rdcr0() & ~(CR0_EM | CR0_TS)) | CR0_MP);
    wrcr4(rdcr4() | CR4_OSFXSR);
    WAIT_FOR(passed == 1);
    asm volatile(
        AT("way_alias_load") "movq (%0), %%rax\n"
        AT("way_to_xmm") "movq %%rax, %%xmm3\n"
        AT("way_xmm") "movdqa %%xmm3, %%xmm7\n"
        AT("way_from_xmm") "movq %%xmm7, place_b\n"
        : : "r"(ALIAS) : "rax", "memory"); /* no C code here uses XMM registers */
    passed = 2;
    WAIT_FOR(done);
}

static void strings(void) {
    u64 count = 3;
    const volatile void *s = from_array;
    volatile void *d = to_array;
    asm volatile(
        AT("way_array_load") "movq place_b, %%rdx\n"
        AT("way_array_store") "movq %%rdx, from_array + 8\n"
        AT("way_rep_movs") "rep movsq\n"
        : "+c"(count), "+S"(s), "+D"(d) : : "rdx", "memory");
}

static void interrupted(void) {
    ipi(0, ICR_SELF | VEC_IRQ);
    asm volatile(
        AT("way_before_irq") "movq to_array + 8, %%r12\n"
        "sti\n"
        "nop\n"
        "nop\n"
        "cli\n"
        AT("way_xchg") "xchgq %%r12, place_d\n"
        : : : "r12", "memory");
}

static void exchanged(void) {
    asm volatile(
        AT("way_cas_load") "movq place_d, %%rcx\n"
        "xorl %%eax, %%eax\n"
        AT("way_cas") "lock cmpxchgq %%rcx, place_e\n"
        "movl $1, %%eax\n"
        "movl $2, %%edx\n"
        AT("way_failed_cas") "lock cmpxchgq %%rdx, place_e\n"
        AT("way_bswap") "bswapq %%rax\n"
        AT("way_bswap_back") "bswapq %%rax\n"
        "xorl %%esi, %%esi\n"
        "cmpl $1, %%esi\n"
        AT("way_not_taken") "cmoveq %%rdx, %%rax\n"
        AT("way_taken") "cmovneq %%rax, %%rbx\n"
        AT("way_final") "movq %%rbx, place_final\n"
        : : : "rax", "rbx", "rcx", "rdx", "rsi", "memory", "cc");
}

static void others(void) {
    asm volatile(
        "movq in_a, %%rax\n"
        AT("sum_add") "addq in_b, %%rax\n"
        AT("sum_store") "movq %%rax, sum\n"
        AT("constant_store") "movq $0x1234567, constant_place\n"
        AT("zero_xor") "xorl %%eax, %%eax\n"
        AT("zero_store") "movq %%rax, zeroed\n"
        AT("wide_load") "movzbl byte_place, %%eax\n"
        AT("wide_store") "movq %%rax, widened\n"
        AT("mix_low") "movl $0x55667788, mixed\n"
        AT("mix_load") "movl in_a, %%ecx\n"
        AT("mix_high") "movl %%ecx, mixed + 4\n"
        AT("partial_whole") "movabsq $0x1122334455667788, %%rax\n"
        AT("partial_byte") "movb byte_place, %%ah\n"
        AT("partial_store") "movq %%rax, partial\n"
        AT("port_in") "inb $0x71, %%al\n"
        AT("port_store") "movb %%al, from_port\n"
        AT("mmio_load") "movl 0xfee00030, %%eax\n"
        AT("mmio_store") "movl %%eax, from_mmio\n"
        AT("tsc_read") "rdtsc\n"
        AT("tsc_store") "movl %%eax, from_tsc\n"
        "xorl %%eax, %%eax\n"
        "xorl %%ecx, %%ecx\n"
        AT("cpuid_ask") "cpuid\n"
        AT("cpuid_store") "movl %%ebx, from_cpuid\n"
        AT("image_load") "movq loaded_place, %%rax\n"
        AT("image_store") "movq %%rax, from_image\n"
        : : : "rax", "rbx", "rcx", "rdx", "memory", "cc");
}

static void fault(void) {
    u64 resume;
    asm volatile("leaq fault_resume(%%rip), %0" : "=r"(resume));
    expect_trap(resume);
    asm volatile(
        AT("fault_constant") "movl $0x77, %%ebx\n"
        AT("fault_load") "movq (%0), %%rbx\n"
        AT("fault_resume") "nop\n"
        : : "r"(0x700000000000ul) : "rbx", "memory");
    asm volatile(
        AT("fault_read") "movq %0, %%rax\n"
        AT("fault_store") "movq %%rax, faulted\n"
        : : "m"(caught.f.rbx) : "rax", "memory");
}

void guest_main(void) {
    platform_init(false);
    trap_handler[VEC_IRQ] = on_irq;
    map_page(ALIAS, (u64)&place_a, PTE_P | PTE_W);
    smp_start(other);
    start();
    passed = 1;
    WAIT_FOR(passed == 2);
    strings();
    interrupted();
    exchanged();
    others();
    fault();
    done = 1;
    check_eq("the value at the end of its way", place_final, 0x1122334455667788ul);
    check_eq("sum", sum, 12);
    check_eq("widened", widened, 0xc3);
    check_eq("mixed", mixed, 0x0000000555667788ul);
    check_eq("partial", partial, 0x112233445566c388ul);
    check_eq("faulted", faulted, 0x77);
    check_eq("image", from_image, 0xabcdef);
    say("origin: %d vCPUs\n", cpu_count);
    finish("origin");
}
