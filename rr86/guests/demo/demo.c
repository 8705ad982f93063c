/* The demo guest: a few vCPUs that talk to each other, interrupt each other, and rewrite code that
 * the others are running, the way Linux does it. It prints what it saw and powers off.
 *
 * What it counts depends on how the vCPUs were interleaved, as in any parallel program: record it
 * twice with different seeds and the numbers differ; replay a recording and they are the same. */
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define MAX_CPUS 16
#define MESSAGES 200u
#define PATCHES 2500u
#define ADDITIONS 50000u
#define TICKS 20u
#define VEC_TIMER 0x40
#define VEC_IPI 0x41
#define VEC_SYNC 0x42
#define VEC_INT3 3
#define VEC_SPURIOUS 0xff
#define TRAMPOLINE 0x8000ul

static inline void outb(u16 port, u8 v) { asm volatile("outb %0, %1" : : "a"(v), "Nd"(port) : "memory"); }
static inline void outw(u16 port, u16 v) { asm volatile("outw %0, %1" : : "a"(v), "Nd"(port) : "memory"); }
static inline u8 inb(u16 port) { u8 v; asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port) : "memory"); return v; }
static inline void pause(void) { asm volatile("pause" : : : "memory"); }
static inline u64 rdtsc(void) { u32 a, d; asm volatile("rdtsc" : "=a"(a), "=d"(d) : : "memory"); return (u64)d << 32 | a; }

/* ---- printing ---- */
static void put(char c) {
    while (!(inb(0x3f8 + 5) & 0x20)) pause();
    outb(0x3f8, (u8)c);
}

/* %u, %x and %s only. */
static void say(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    for (; *fmt; fmt++) {
        if (*fmt != '%') {
            put(*fmt);
        } else if (*++fmt == 's') {
            for (const char *s = va_arg(ap, const char *); *s; s++) put(*s);
        } else {
            char digits[12];
            int n = 0;
            u32 v = va_arg(ap, u32), base = *fmt == 'x' ? 16 : 10;
            do digits[n++] = "0123456789abcdef"[v % base]; while (v /= base);
            while (n) put(digits[--n]);
        }
    }
    va_end(ap);
}

static void power_off(void) {
    outw(0x604, 0x2000); /* ACPI: SLP_EN with the sleep type of S5 */
    for (;;) asm volatile("cli; hlt");
}

/* ---- interrupts ---- */
extern const u8 timer_entry[], ipi_entry[], sync_entry[], int3_entry[], fault_entry[], spurious_entry[];
extern const u8 trampoline[], trampoline_end[];
static struct { u64 low, high; } idt[256] __attribute__((aligned(16)));
static volatile u32 *const lapic = (volatile u32 *)0xfee00000;
static u32 cpu_count = 1, apic_id[MAX_CPUS];
static volatile u32 ticks[MAX_CPUS], ipis[MAX_CPUS];
u32 next_stack, next_index;
static volatile u32 online = 1, messages_done;
void demo_main(void);
void other_main(u32 index);
struct frame { u64 rip, cs, rflags, rsp, ss; };
void on_timer(void);
void on_ipi(void);
void on_sync(void);
void on_int3(struct frame *f);
void on_fault(void);

static void set_gate(int vector, const u8 *entry) {
    u64 at = (u64)entry;
    idt[vector].low = (at & 0xffff) | 0x8ul << 16 | 0x8e00ul << 32 | (at >> 16 & 0xffff) << 48;
    idt[vector].high = at >> 32;
}

static u32 this_cpu(void) {
    u32 id = lapic[0x20 / 4] >> 24;
    for (u32 i = 0; i < cpu_count; i++)
        if (apic_id[i] == id) return i;
    return 0;
}

void on_timer(void) {
    ticks[this_cpu()]++;
    lapic[0xb0 / 4] = 0;
}

void on_ipi(void) {
    ipis[this_cpu()]++;
    lapic[0xb0 / 4] = 0;
}

void on_fault(void) {
    say("demo: unexpected exception\n");
    power_off();
}

static void interrupts_on(void) {
    struct { u16 limit; u64 base; } __attribute__((packed)) p = {sizeof idt - 1, (u64)idt};
    asm volatile("lidt %0" : : "m"(p));
    lapic[0xf0 / 4] = 0x100 | VEC_SPURIOUS;
    lapic[0x3e0 / 4] = 0x3;                /* timer: divide by 16 */
    lapic[0x320 / 4] = 0x20000 | VEC_TIMER; /* periodic */
    lapic[0x380 / 4] = 20000;
    asm volatile("sti" : : : "memory");
}

static void send(u32 target, u32 what) {
    asm volatile("cli" : : : "memory");
    lapic[0x310 / 4] = apic_id[target] << 24;
    lapic[0x300 / 4] = what;
    while (lapic[0x300 / 4] & 0x1000) pause();
    asm volatile("sti" : : : "memory");
}

/* ---- the work ---- */

/* A message goes round the ring of vCPUs, one added at each. */
static volatile u32 mailbox[MAX_CPUS];

static void pass_messages(u32 me) {
    u32 next = (me + 1) % cpu_count;
    for (u32 n = 1; n <= MESSAGES; n++) {
        if (me == 0) mailbox[next] = n * MAX_CPUS;
        while (!mailbox[me]) pause();
        u32 m = mailbox[me];
        mailbox[me] = 0;
        if (me != 0) mailbox[next] = m + 1;
        else if (m == n * MAX_CPUS + cpu_count - 1) messages_done++;
    }
}

/* vCPU 0 patches code that the other vCPUs run, by the protocol of Linux's text_poke_bp: INT3 over the
 * first byte of the instruction, then its tail, then its first byte, each through a second mapping of
 * the page, and after each of the three every vCPU serialises. Whoever runs into the INT3 meanwhile does
 * what the new instruction does. Afterwards no vCPU can meet it any more. */
#define SITES 16u
#define ALIAS 0x8000000000ul
static const u8 nop[5] = {0x0f, 0x1f, 0x44, 0x00, 0x00}, int3 = 0xcc;
extern const struct { u32 (*run)(void); u8 *site, *on; } jobs[SITES];
static volatile u32 answer[SITES]; /* what each job returns; 0 while it is patched */
static volatile u32 patching, acknowledged, emulated, calls, stale, patcher_done, given_up;
static u8 *volatile patched_at;
static u8 *volatile jumps_to;

static void serialise(void) {
    u32 a = 0, b, c = 0, d;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d) : : "memory");
}

void on_sync(void) {
    serialise();
    __atomic_fetch_add(&acknowledged, 1, __ATOMIC_SEQ_CST);
    lapic[0xb0 / 4] = 0;
}

static __attribute__((noinline)) void serialise_all(void) {
    acknowledged = 0;
    send(0, 0xc0000 | VEC_SYNC); /* to all others */
    serialise();
    while (acknowledged != cpu_count - 1) pause();
}

void on_int3(struct frame *f) {
    u8 *at = (u8 *)f->rip - 1;
    u32 n = patching;
    /* The patcher must not finish meanwhile. */
    while (n && !__atomic_compare_exchange_n(&patching, &n, n + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) pause();
    if (n && at == patched_at) {
        f->rip = (u64)jumps_to;
        __atomic_fetch_add(&emulated, 1, __ATOMIC_RELAXED);
        __atomic_fetch_sub(&patching, 1, __ATOMIC_SEQ_CST);
        return;
    }
    if (!__atomic_exchange_n(&given_up, 1, __ATOMIC_SEQ_CST)) {
        say("  int3 on vCPU %u at 0x%x: nobody is patching there, and memory holds %x, not cc\n",
            this_cpu(), (u32)(u64)at, *(volatile u8 *)at);
        say("Something is wrong. Powering off.\n");
        power_off();
    }
    for (;;) asm volatile("cli; hlt");
}

static __attribute__((noinline)) void poke(u8 *at, const u8 *bytes, u64 length) {
    u64 to = (u64)at + ALIAS;
    asm volatile("rep movsb" : "+D"(to), "+S"(bytes), "+c"(length) : : "memory");
    serialise_all();
}

static u32 random(u32 *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 16;
}

static __attribute__((noinline)) void patch(void) {
    u32 state = 1;
    for (u32 n = 0; n < PATCHES; n++) {
        u32 job = random(&state) % SITES, next = 3 - answer[job];
        u8 *at = jobs[job].site, *target = next == 2 ? jobs[job].on : at + 5, code[5];
        u32 distance = (u32)(target - (at + 5));
        for (int i = 0; i < 5; i++) code[i] = next == 2 ? (u8)(i ? distance >> 8 * (i - 1) : 0xe9) : nop[i];
        answer[job] = 0;
        patched_at = at;
        jumps_to = target;
        __atomic_store_n(&patching, 1, __ATOMIC_SEQ_CST);
        poke(at, &int3, 1);
        poke(at + 1, code + 1, 4);
        poke(at, code, 1);
        __atomic_fetch_sub(&patching, 1, __ATOMIC_SEQ_CST);
        while (patching) pause();
        answer[job] = next;
    }
    patcher_done = 1;
}

static __attribute__((noinline)) void run_jobs(u32 me) {
    u32 state = me;
    while (!patcher_done) {
        u32 job = random(&state) % SITES, want = answer[job], got = jobs[job].run();
        __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
        /* Not patched meanwhile: then it is known what has to come. */
        if (want && want == answer[job] && got != want) __atomic_fetch_add(&stale, 1, __ATOMIC_RELAXED);
        pause();
    }
}

/* Each vCPU adds to one counter under contention. */
static volatile u32 counter;

static void count(void) {
    for (u32 i = 0; i < ADDITIONS; i++) __atomic_fetch_add(&counter, 1, __ATOMIC_SEQ_CST);
}

static volatile u32 arrived;
static void meet(u32 times) {
    __atomic_fetch_add(&arrived, 1, __ATOMIC_SEQ_CST);
    while (arrived < times * cpu_count) pause();
}

static void work(u32 me) {
    meet(1);
    if (cpu_count > 1) pass_messages(me);
    count();
    meet(2);
    if (me != 0) run_jobs(me);
    else if (cpu_count > 1) patch();
    meet(3);
    send((me + 1) % cpu_count, VEC_IPI);
    while (ticks[me] < TICKS || !ipis[me]) asm volatile("hlt" : : : "memory"); /* the timer wakes it */
    meet(4);
}

void other_main(u32 index) {
    online = index + 1;
    interrupts_on();
    work(index);
    for (;;) asm volatile("cli; hlt");
}

/* ---- finding and starting the other vCPUs ---- */
static bool same(const u8 *p, const char *s) {
    for (; *s; s++, p++)
        if (*p != (u8)*s) return false;
    return true;
}

static u32 get32(const u8 *p) { return (u32)p[0] | (u32)p[1] << 8 | (u32)p[2] << 16 | (u32)p[3] << 24; }

/* ACPI: the root pointer in the BIOS area leads to the root table, and that to the MADT. */
static void find_cpus(void) {
    apic_id[0] = lapic[0x20 / 4] >> 24;
    const u8 *root = 0, *madt = 0;
    u32 step = 4;
    for (u64 p = 0xe0000; p < 0x100000 && !root; p += 16) {
        const u8 *rsdp = (const u8 *)p;
        if (!same(rsdp, "RSD PTR ")) continue;
        if (rsdp[15] >= 2 && get32(rsdp + 24)) step = 8;
        root = (const u8 *)(u64)get32(rsdp + (step == 8 ? 24 : 16));
    }
    if (!root) return;
    for (u32 o = 36; o + step <= get32(root + 4) && !madt; o += step) {
        const u8 *table = (const u8 *)(u64)get32(root + o);
        if (same(table, "APIC")) madt = table;
    }
    if (!madt) return;
    for (u32 o = 44; o + 8 <= get32(madt + 4) && madt[o + 1]; o += madt[o + 1]) {
        const u8 *e = madt + o;
        if (e[0] == 0 && (e[4] & 1) && e[3] != apic_id[0] && cpu_count < MAX_CPUS) apic_id[cpu_count++] = e[3];
    }
}

static void start_others(void) {
    static u8 stacks[MAX_CPUS][8192] __attribute__((aligned(16)));
    for (u32 i = 0; i < (u32)(trampoline_end - trampoline); i++) ((volatile u8 *)TRAMPOLINE)[i] = trampoline[i];
    for (u32 i = 1; i < cpu_count; i++) {
        next_index = i;
        next_stack = (u32)(u64)stacks[i] + sizeof stacks[i];
        send(i, 0x4500); /* INIT */
        for (u64 t = rdtsc(); rdtsc() - t < 100000;) pause();
        send(i, 0x4600 | TRAMPOLINE >> 12); /* start-up */
        while (online != i + 1) pause();
    }
}

void demo_main(void) {
    say("\nHello from the rr86 demo guest.\n");
    for (int v = 0; v < 32; v++) set_gate(v, fault_entry);
    set_gate(VEC_TIMER, timer_entry);
    set_gate(VEC_IPI, ipi_entry);
    set_gate(VEC_SYNC, sync_entry);
    set_gate(VEC_INT3, int3_entry);
    set_gate(VEC_SPURIOUS, spurious_entry);
    outb(0x21, 0xff); /* the old interrupt controllers stay silent */
    outb(0xa1, 0xff);
    find_cpus();
    interrupts_on();
    start_others();
    for (u32 i = 0; i < SITES; i++) answer[i] = 1;
    say("  vCPUs running:           %u\n", cpu_count);
    work(0);
    if (cpu_count > 1) {
        say("  messages round the ring: %u of %u\n", messages_done, MESSAGES);
        say("  code patched:            %u times by vCPU 0, under the others' feet\n", PATCHES);
        say("  calls of that code:      %u, which met an INT3 %u times\n", calls, emulated);
    }
    say("  shared counter:          %u\n", counter);
    for (u32 i = 0; i < cpu_count; i++) say("  vCPU %u:                  %u timer interrupts, %u IPI\n", i, ticks[i], ipis[i]);
    if (stale) say("  calls of code that was no longer there: %u\n", stale);
    bool good = counter == ADDITIONS * cpu_count && !stale && (cpu_count == 1 || messages_done == MESSAGES);
    say(good ? "All is well. Powering off.\n" : "Something is wrong. Powering off.\n");
    power_off();
}
