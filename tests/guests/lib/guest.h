/* What every test guest shares: printing, checks, traps, paging, APICs, timers, vCPU bring-up.
 *
 * A guest defines guest_main(). It runs in long mode on vCPU 0 with interrupts off, identity-mapped
 * up to 4 GiB, with an IDT that dumps unexpected exceptions and ends the run as failed. */
#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define MAX_CPUS 16
#define PAGE_SIZE 4096ul

/* Selectors; the order from user code32 on is what SYSRET and SYSEXIT demand. */
#define SEL_KCODE64 0x08
#define SEL_KDATA 0x10
#define SEL_UCODE32 0x1b
#define SEL_UDATA 0x23
#define SEL_UCODE64 0x2b
#define SEL_UDATA64 0x33 /* the SS that a 64-bit SYSEXIT loads */
#define SEL_KCODE32 0x38
#define SEL_KCODE16 0x40
#define SEL_FREE0 0x48 /* five descriptors for a guest to fill */
#define GDT_FREE0 9
#define GDT_FREE_COUNT 5
#define GDT_TSS0 14
#define SEL_TSS0 (GDT_TSS0 * 8)

/* ---- ports and privileged instructions ---- */
static inline void outb(u16 port, u8 v) { asm volatile("outb %0, %1" : : "a"(v), "Nd"(port) : "memory"); }
static inline void outw(u16 port, u16 v) { asm volatile("outw %0, %1" : : "a"(v), "Nd"(port) : "memory"); }
static inline void outl(u16 port, u32 v) { asm volatile("outl %0, %1" : : "a"(v), "Nd"(port) : "memory"); }
static inline u8 inb(u16 port) { u8 v; asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port) : "memory"); return v; }
static inline u16 inw(u16 port) { u16 v; asm volatile("inw %1, %0" : "=a"(v) : "Nd"(port) : "memory"); return v; }
static inline u32 inl(u16 port) { u32 v; asm volatile("inl %1, %0" : "=a"(v) : "Nd"(port) : "memory"); return v; }
static inline u64 rdmsr(u32 n) { u32 a, d; asm volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(n) : "memory"); return (u64)d << 32 | a; }
static inline void wrmsr(u32 n, u64 v) { asm volatile("wrmsr" : : "c"(n), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline u64 rdtsc(void) { u32 a, d; asm volatile("rdtsc" : "=a"(a), "=d"(d) : : "memory"); return (u64)d << 32 | a; }
static inline void pause(void) { asm volatile("pause" : : : "memory"); }
static inline void cli(void) { asm volatile("cli" : : : "memory"); }
static inline void sti(void) { asm volatile("sti" : : : "memory"); }
/* STI's shadow makes the pair atomic: an interrupt can only arrive in HLT. */
static inline void sti_hlt_cli(void) { asm volatile("sti; hlt; cli" : : : "memory"); }
static inline void barrier(void) { asm volatile("" : : : "memory"); }
static inline u64 rdflags(void) { u64 v; asm volatile("pushfq; pop %0" : "=r"(v)); return v; }
static inline void invlpg(const void *p) { asm volatile("invlpg (%0)" : : "r"(p) : "memory"); }

#define DEFINE_CR(n) \
    static inline u64 rdcr##n(void) { u64 v; asm volatile("mov %%cr" #n ", %0" : "=r"(v) : : "memory"); return v; } \
    static inline void wrcr##n(u64 v) { asm volatile("mov %0, %%cr" #n : : "r"(v) : "memory"); }
DEFINE_CR(0)
DEFINE_CR(2)
DEFINE_CR(3)
DEFINE_CR(4)

#define DEFINE_DR(n) \
    static inline u64 rddr##n(void) { u64 v; asm volatile("mov %%dr" #n ", %0" : "=r"(v) : : "memory"); return v; } \
    static inline void wrdr##n(u64 v) { asm volatile("mov %0, %%dr" #n : : "r"(v) : "memory"); }
DEFINE_DR(0)
DEFINE_DR(1)
DEFINE_DR(6)
DEFINE_DR(7)

static inline void cpuid(u32 leaf, u32 sub, u32 r[4]) {
    asm volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub) : "memory");
}
/* One feature bit; `reg` 0..3 is eax..edx. A leaf beyond the maximum counts as absent. */
bool cpu_has(u32 leaf, int reg, int bit);
bool cpu_is_intel(void);
/* QEMU's TCG says so in CPUID; a few checks are known not to hold there and are left out. */
bool on_tcg(void);

#define CR0_MP (1ul << 1)
#define CR0_EM (1ul << 2)
#define CR0_TS (1ul << 3)
#define CR0_NE (1ul << 5)
#define CR0_WP (1ul << 16)
#define CR0_AM (1ul << 18)
#define CR0_PG (1ul << 31)
#define CR4_PGE (1ul << 7)
#define CR4_OSFXSR (1ul << 9)
#define CR4_OSXMMEXCPT (1ul << 10)
#define CR4_FSGSBASE (1ul << 16)
#define CR4_OSXSAVE (1ul << 18)
#define CR4_SMEP (1ul << 20)
#define CR4_SMAP (1ul << 21)
#define FL_CF 0x1ul
#define FL_PF 0x4ul
#define FL_AF 0x10ul
#define FL_ZF 0x40ul
#define FL_SF 0x80ul
#define FL_TF 0x100ul
#define FL_IF 0x200ul
#define FL_DF 0x400ul
#define FL_OF 0x800ul
#define FL_RF 0x10000ul
#define FL_AC 0x40000ul
#define FL_ARITH 0x8d5ul
#define MSR_APIC_BASE 0x1b
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_CSTAR 0xc0000083
#define MSR_SFMASK 0xc0000084
#define MSR_FS_BASE 0xc0000100
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102

/* ---- printing and ending ---- */
void putch(char c);
void puts_raw(const char *s);
/* %d %u %x %lu %ld %lx %s %c %%, width and zero fill. One call prints one whole piece. */
void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same to the debug console (port 0xe9). */
void debug_say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void format(char *out, size_t size, const char *fmt, va_list ap);
void debug_exit(u32 code) __attribute__((noreturn));
void power_off(void) __attribute__((noreturn));
#define EXIT_PASS 0x10
#define EXIT_FAIL 0x11
#define EXIT_TRAP 0x12
#define EXIT_TIMEOUT 0x13

/* ---- checks: every failure is printed, `finish` counts them and ends the run ---- */
extern u32 checks_done, checks_failed;
void check(const char *what, bool ok);
void check_eq(const char *what, u64 got, u64 want);
void finish(const char *guest) __attribute__((noreturn));

/* ---- memory and strings ---- */
void *memcpy(void *d, const void *s, size_t n);
void *memset(void *d, int c, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);

/* ---- multiboot ---- */
extern u32 multiboot_magic, multiboot_info;
const char *command_line(void);
/* The number after "name=" on the command line. */
u64 option(const char *name, u64 fallback);

/* ---- traps ---- */
struct frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    u64 vector, error, rip, cs, rflags, rsp, ss;
};
typedef void (*trap_fn)(struct frame *f);
extern trap_fn trap_handler[256];
void set_gate(int vector, int dpl, int ist);
void traps_init_cpu(int cpu);

/* Catching an expected exception: `expect_trap` arms this vCPU's catcher, which keeps the frame and
 * CR2 and goes on at `resume`. Only one exception is caught per arming. */
extern volatile struct caught {
    struct frame f;
    u64 cr2, dr6;
    u32 count;
    u64 resume;
} caught;
void expect_trap(u64 resume);

struct tss {
    u32 reserved0;
    u64 rsp[3];
    u64 reserved1;
    u64 ist[7];
    u64 reserved2;
    u16 reserved3, iomap_base;
    u8 iomap[8192 + 1];
} __attribute__((packed));
extern struct tss tss[MAX_CPUS];
extern u64 gdt[];

/* The index of the executing vCPU, read from TR, so that FS and GS stay free for tests. */
static inline int this_cpu(void) { u16 tr; asm volatile("str %0" : "=r"(tr)); return (tr - SEL_TSS0) / 16; }

/* ---- paging: 4-level, identity 4 GiB in 2 MiB pages without U ---- */
#define PTE_P 0x1ul
#define PTE_W 0x2ul
#define PTE_U 0x4ul
#define PTE_PWT 0x8ul
#define PTE_PCD 0x10ul
#define PTE_A 0x20ul
#define PTE_D 0x40ul
#define PTE_PS 0x80ul
#define PTE_G 0x100ul
#define PTE_NX (1ul << 63)
#define PTE_ADDR 0x000ffffffffff000ul
extern u64 boot_pml4[512], boot_pd[2048];
void *page_alloc(void);
/* The entry that maps `va` at `level` (1: 4 KiB, 2: 2 MiB, 3: 1 GiB), making tables as needed. */
u64 *pte_at(u64 *pml4, u64 va, int level);
/* Map one 4 KiB page in the current tables; tables above are P|W|U. */
void map_page(u64 va, u64 pa, u64 flags);
/* Make the identity-mapped 2 MiB pages that hold the guest reachable from ring 3. */
void identity_for_user(void);

/* ---- spinlocks and time-outs ---- */
typedef struct { volatile u32 v; } spinlock;
static inline void lock(spinlock *l) { while (__atomic_exchange_n(&l->v, 1, __ATOMIC_ACQUIRE)) while (l->v) pause(); }
static inline void unlock(spinlock *l) { __atomic_store_n(&l->v, 0, __ATOMIC_RELEASE); }

/* Longer than any correct machine needs for any single wait, in TSC ticks. */
#define WAIT_LIMIT 20000000000ul
void timed_out(const char *what, int line) __attribute__((noreturn));
#define WAIT_FOR(cond) \
    do { \
        u64 wait_start_ = rdtsc(); \
        while (!(cond)) { \
            pause(); \
            if (rdtsc() - wait_start_ > WAIT_LIMIT) timed_out(#cond, __LINE__); \
        } \
    } while (0)
static inline void delay(u64 ticks) { u64 t = rdtsc(); while (rdtsc() - t < ticks) pause(); }

/* ---- ACPI, APICs, vCPUs ---- */
const u8 *acpi_table(const char *signature);
extern int cpu_count; /* usable after platform_init */
extern u32 cpu_apic_id[MAX_CPUS];
extern volatile u32 cpus_online;
/* Read the MADT, mask the PIC, enable this vCPU's LAPIC (as x2APIC if asked). */
void platform_init(bool x2apic);
extern bool lapic_x2;
u32 lapic_read(u32 reg);
void lapic_write(u32 reg, u32 v);
void lapic_enable(void);
static inline void eoi(void) { lapic_write(0xb0, 0); }
/* Send the ICR's low half to one APIC id (ignored with a shorthand in `low`). */
void ipi(u32 apic_id, u32 low);
#define ICR_NMI 0x400u
#define ICR_INIT 0x4500u
#define ICR_SIPI 0x4600u
#define ICR_SELF 0x40000u
#define ICR_ALL 0x80000u
#define ICR_OTHERS 0xc0000u
/* Start every other vCPU; each runs `fn(index)` with interrupts off, then halts for good. */
void smp_start(void (*fn)(int cpu));

/* One-shot and periodic LAPIC timer, divided by 1. */
#define LAPIC_TIMER_PERIODIC 0x20000u
#define LAPIC_TIMER_DEADLINE 0x40000u
void lapic_timer(u32 vector_and_mode, u32 count);

u32 ioapic_read(u32 reg);
void ioapic_write(u32 reg, u32 v);
/* Route an ISA interrupt (through the MADT's overrides) as edge, fixed, to this vCPU. */
void ioapic_route(int isa_irq, u8 vector);
void ioapic_mask(int isa_irq);
void pic_init(u8 base_vector, u16 mask);
void pit_periodic(u32 hz);
void pit_stop(void);
