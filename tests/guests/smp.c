/* All vCPUs at once: atomics, a message ring, IPIs of each kind, wake-up from HLT, TLB shootdown.
 * Every count is exact; nothing depends on how the vCPUs are interleaved. */
#include "lib/guest.h"

#define ADDS 20000u
#define LAPS 50u
#define VEC_FIXED 0x40
#define VEC_BROADCAST 0x41
#define VEC_ALL 0x42
#define VEC_WAKE 0x43
#define VEC_FLUSH 0x44
#define WINDOW 0x8000000000ul

static volatile u32 arrived, generation;
static volatile u64 xadd_total, cas_total, locked_total, unlocked_by_lock;
static spinlock total_lock;
static volatile u32 seen[256][MAX_CPUS];
static volatile u32 mailbox[MAX_CPUS];
static volatile u32 stop_waiting, flush_acks;
static volatile u64 window_value[MAX_CPUS];
static volatile u32 in_hlt[MAX_CPUS], woken[MAX_CPUS], go_on;
static volatile u64 top; /* of a lock-free stack: (version << 32) | index + 1 */
static volatile u32 next_node[MAX_CPUS * 64], node_seen[MAX_CPUS * 64];

/* All vCPUs meet here; a generation counter makes it reusable. */
static void meet(void) {
    u32 g = generation;
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST) == (u32)cpu_count) {
        arrived = 0;
        __atomic_fetch_add(&generation, 1, __ATOMIC_SEQ_CST);
    } else {
        WAIT_FOR(generation != g);
    }
}

static void on_ipi(struct frame *f) {
    seen[f->vector][this_cpu()]++;
    eoi();
}

static void on_nmi(struct frame *f) { seen[f->vector][this_cpu()]++; }

static void on_flush(struct frame *f) {
    (void)f;
    invlpg((void *)WINDOW);
    __atomic_fetch_add(&flush_acks, 1, __ATOMIC_SEQ_CST);
    eoi();
}

static void counting(int cpu) {
    for (u32 i = 0; i < ADDS; i++) {
        u64 one = 1;
        asm volatile("lock xadd %0, %1" : "+r"(one), "+m"(xadd_total) : : "memory", "cc");
        u64 old = cas_total;
        while (!__atomic_compare_exchange_n(&cas_total, &old, old + 3, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) pause();
        if (i % 16 == 0) {
            lock(&total_lock);
            unlocked_by_lock = unlocked_by_lock + 1; /* not atomic by itself */
            unlock(&total_lock);
        }
        asm volatile("lock incq %0" : "+m"(locked_total) : : "memory", "cc");
    }
    meet();
    /* A stack with a version against ABA: each vCPU pushes 64 nodes, then all pop until empty. */
    for (u32 i = 0; i < 64; i++) {
        u32 node = (u32)cpu * 64 + i;
        u64 old = top;
        do next_node[node] = (u32)old;
        while (!__atomic_compare_exchange_n(&top, &old, ((old >> 32) + 1) << 32 | (node + 1), false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    }
    meet();
    for (;;) {
        u64 old = top;
        while ((u32)old && !__atomic_compare_exchange_n(&top, &old, ((old >> 32) + 1) << 32 | next_node[(u32)old - 1], false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) pause();
        if (!(u32)old) break;
        __atomic_fetch_add(&node_seen[(u32)old - 1], 1, __ATOMIC_RELAXED);
    }
    meet();
}

static void ring(int cpu) {
    u32 next = (u32)(cpu + 1) % (u32)cpu_count;
    for (u32 lap = 0; lap < LAPS; lap++) {
        if (cpu == 0) {
            mailbox[next] = lap * 1000 + 1;
            WAIT_FOR(mailbox[0]);
            check_eq("ring message after a lap", mailbox[0], lap * 1000 + (u32)cpu_count);
            mailbox[0] = 0;
        } else {
            WAIT_FOR(mailbox[cpu]);
            u32 m = mailbox[cpu];
            mailbox[cpu] = 0;
            mailbox[next] = m + 1;
        }
    }
    meet();
}

static void ap(int cpu) {
    counting(cpu);
    if (cpu_count > 1) ring(cpu);
    sti();
    meet();
    WAIT_FOR(stop_waiting == 1);
    cli();
    /* Sleep until vCPU 0's wake-up; other wake-ups go back to sleep. */
    in_hlt[cpu] = 1;
    while (!seen[VEC_WAKE][cpu]) sti_hlt_cli();
    woken[cpu] = 1;
    sti();
    WAIT_FOR(stop_waiting == 2);
    window_value[cpu] = *(volatile u64 *)WINDOW; /* fills this vCPU's TLB */
    meet();
    WAIT_FOR(go_on);
    window_value[cpu] = *(volatile u64 *)WINDOW;
    meet();
    cli();
}

static void bsp_ipis(void) {
    for (int c = 1; c < cpu_count; c++)
        for (u32 i = 1; i <= 20; i++) {
            ipi(cpu_apic_id[c], VEC_FIXED);
            WAIT_FOR(seen[VEC_FIXED][c] == i);
        }
    for (u32 i = 1; i <= 10; i++) {
        ipi(0, ICR_OTHERS | VEC_BROADCAST);
        for (int c = 1; c < cpu_count; c++) WAIT_FOR(seen[VEC_BROADCAST][c] == i);
        ipi(0, ICR_ALL | VEC_ALL);
        for (int c = 0; c < cpu_count; c++) WAIT_FOR(seen[VEC_ALL][c] == i);
        ipi(0, ICR_SELF | VEC_FIXED);
        WAIT_FOR(seen[VEC_FIXED][0] == i);
        for (int c = 1; c < cpu_count; c++) {
            ipi(cpu_apic_id[c], ICR_NMI);
            WAIT_FOR(seen[2][c] == i);
        }
    }
    check_eq("broadcast to others spares the sender", seen[VEC_BROADCAST][0], 0);
    check_eq("NMIs at the sender", seen[2][0], 0);
    /* An IPI to oneself with IF=0 stays pending, and two of them are one. */
    cli();
    u32 before = seen[VEC_FIXED][0];
    ipi(0, ICR_SELF | VEC_FIXED);
    ipi(0, ICR_SELF | VEC_FIXED);
    delay(1000);
    check_eq("self-IPI waits for IF", seen[VEC_FIXED][0], before);
    sti();
    WAIT_FOR(seen[VEC_FIXED][0] != before);
    delay(1000);
    check_eq("pending IPIs of one vector merge", seen[VEC_FIXED][0], before + 1);
}

void guest_main(void) {
    platform_init(option("x2apic", 0));
    say("smp: %d vCPUs, %s\n", cpu_count, lapic_x2 ? "x2APIC" : "xAPIC");
    for (int v = VEC_FIXED; v <= VEC_WAKE; v++) trap_handler[v] = on_ipi;
    trap_handler[VEC_FLUSH] = on_flush;
    trap_handler[2] = on_nmi;
    smp_start(ap);
    check_eq("vCPUs online", cpus_online, (u32)cpu_count);

    counting(0);
    u64 n = (u64)cpu_count;
    check_eq("lock xadd total", xadd_total, n * ADDS);
    check_eq("lock cmpxchg total", cas_total, n * ADDS * 3);
    check_eq("lock inc total", locked_total, n * ADDS);
    check_eq("total under a spinlock", unlocked_by_lock, n * (ADDS / 16));
    for (u32 i = 0; i < n * 64; i++) check_eq("node popped once", node_seen[i], 1);
    if (cpu_count > 1) ring(0);
    say("smp: counts exact, ring of %u laps done\n", LAPS);

    sti();
    meet();
    bsp_ipis();
    say("smp: fixed, broadcast, self and NMI IPIs done\n");

    stop_waiting = 1;
    for (int c = 1; c < cpu_count; c++) WAIT_FOR(in_hlt[c]);
    delay(500000);
    for (int c = 1; c < cpu_count; c++) check_eq("asleep before the wake-up", woken[c], 0);
    for (int c = 1; c < cpu_count; c++) ipi(cpu_apic_id[c], VEC_WAKE);
    for (int c = 1; c < cpu_count; c++) WAIT_FOR(woken[c]);
    say("smp: woken from HLT\n");

    volatile u64 *old_page = page_alloc(), *new_page = page_alloc();
    *old_page = 0x01d;
    *new_page = 0x4e3;
    map_page(WINDOW, (u64)old_page, PTE_P | PTE_W);
    stop_waiting = 2;
    window_value[0] = *(volatile u64 *)WINDOW;
    meet();
    for (int c = 0; c < cpu_count; c++) check_eq("value before the shootdown", window_value[c], 0x01d);
    map_page(WINDOW, (u64)new_page, PTE_P | PTE_W);
    ipi(0, ICR_OTHERS | VEC_FLUSH);
    WAIT_FOR(flush_acks == (u32)cpu_count - 1);
    go_on = 1;
    window_value[0] = *(volatile u64 *)WINDOW;
    meet();
    for (int c = 0; c < cpu_count; c++) check_eq("value after the shootdown", window_value[c], 0x4e3);
    for (int c = 1; c < cpu_count; c++) {
        check_eq("fixed IPIs", seen[VEC_FIXED][c], 20);
        check_eq("broadcast IPIs", seen[VEC_BROADCAST][c], 10);
        check_eq("NMIs", seen[2][c], 10);
    }
    say("smp: TLB shootdown done\n");
    finish("smp");
}
