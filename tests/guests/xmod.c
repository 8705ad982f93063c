/* Cross-modifying code on two vCPUs, by the protocol of the SDM (Vol. 3A, "Handling Self- and
 * Cross-Modifying Code"): vCPU 0 patches the immediate of a function that vCPU 1 runs all the time,
 * then raises a flag; vCPU 1 sees it, serialises with CPUID, calls the function once more and must
 * get what was written last. Before the flag it may get anything that ever was there.
 *
 * Every round has a page of its own, which has never been code, so that no round suffers from what an
 * earlier one left behind. It stores twice: the first store removes the function's block, so that
 * vCPU 1 has to fetch it anew, and the second comes a short, varying time later, when that may just be
 * under way. The value counts up, so a stale one names the first store that was missed.
 *
 * Command line: rounds=N (default 1000; each takes 4 KiB of RAM above 16 MiB), variant=alone|shared
 * (whether another function that runs lives on the page), alias=1 (store through a second mapping),
 * kind=0..3 (MOV, XCHG, LOCK CMPXCHG, MOVS), gap=N (up to 2 to the N turns of a loop between the two
 * stores, default 14), log=N (stale rounds to print, default 1000). */
#include "lib/stale.h"

#define ALIAS 0x8000000000ul
#define PAGES 0x1000000ul
#define IMMEDIATE 4
#define NEIGHBOUR 64

/* A page's content: mov $imm, %eax; ret, and in the shared variant lea 1(%rdi), %eax; ret. */
static const u8 function[] = {0x66, 0x66, 0x90, 0xb8, 0, 0, 0, 0, 0xc3};
static const u8 neighbour[] = {0x8d, 0x47, 0x01, 0xc3};

static const char *const kinds[] = {"mov", "xchg", "cmpxchg", "movs"};
static volatile u64 page;
static u64 through;
static u32 rounds, kind, shared, alias, stale_rounds, log_left;
static volatile u32 ready, checked, value;
static volatile u64 calls;
static struct store stores[2]; /* of this round */

static void serialise(void) {
    u32 r[4];
    cpuid(0, 0, r);
}

static void patch(struct store *s) {
    u32 old = value, new = old + 1;
    u64 at = through, from = (u64)&new, n = 1;
    store_begins(s, kinds[kind], through, page + IMMEDIATE, 4);
    switch (kind) {
    case 0: *(volatile u32 *)at = new; break;
    case 1: n = new; asm volatile("xchg %k0, (%1)" : "+r"(n) : "r"(at) : "memory"); break;
    case 2: asm volatile("lock cmpxchg %2, (%1)" : "+a"(old) : "r"(at), "r"(new) : "memory", "cc"); break;
    default: asm volatile("rep movsl" : "+D"(at), "+S"(from), "+c"(n) : : "memory");
    }
    store_ends(s);
    value = new;
}

static u32 run(u64 at, u32 argument) { return (u32)((u64(*)(u64))at)(argument); }

/* vCPU 1. */
static void runner(int cpu) {
    const char *name = shared ? "shared" : "alone";
    for (u32 round = 1; round <= rounds; round++) {
        while (ready != round) {
            u64 at = page;
            if (at) run(at, 0);
            if (at && shared) run(at + NEIGHBOUR, round);
            /* Where one host thread runs all vCPUs, let vCPU 0 go on. */
            if (!(++calls & 15)) pause();
        }
        serialise();
        u32 got = run(page, 0), want = value;
        if (got != want) {
            u64 now = rdtsc();
            stale_rounds++;
            if (log_left) {
                log_left--;
                guilty(&stores[got == want - 1], name, round);
                debug_say("STALE vcpu=%d pc=%lx got=%x want=%x tsc=%lu case=%s round=%u\n", cpu, page, got, want, now,
                          name, round);
            }
        }
        checked = round;
    }
}

/* A page that has not been executed from yet. */
static void new_page(u32 round) {
    u8 *at = (u8 *)(PAGES + round * PAGE_SIZE);
    memset(at, 0xcc, PAGE_SIZE);
    memcpy(at, function, sizeof function);
    if (shared) memcpy(at + NEIGHBOUR, neighbour, sizeof neighbour);
    value = 0x01000000u + 4 * round;
    memcpy(at + IMMEDIATE, (const void *)&value, 4);
    if (alias) map_page(ALIAS, (u64)at, PTE_P | PTE_W);
    through = (alias ? ALIAS : (u64)at) + IMMEDIATE;
    page = (u64)at;
}

static void run_rounds(u32 gap) {
    u32 random = 1;
    for (u32 round = 1; round <= rounds; round++) {
        new_page(round - 1);
        u64 before = calls;
        WAIT_FOR(calls - before > 2); /* vCPU 1 runs the function */
        random = random * 1664525u + 1013904223u;
        patch(&stores[0]);
        /* One PAUSE lets vCPU 1 begin where all share a host thread; more would let it finish. */
        pause();
        u32 turns = random >> 8 & ((1u << (random >> 24) % (gap + 1)) - 1);
        while (turns--) barrier();
        patch(&stores[1]);
        ready = round;
        WAIT_FOR(checked == round);
    }
}

static u64 ram_size(void) {
    u64 size = 0;
    outw(0x510, 3);
    for (int i = 0; i < 8; i++) size |= (u64)inb(0x511) << 8 * i;
    return size;
}

void guest_main(void) {
    rounds = (u32)option("rounds", 1000);
    kind = (u32)option("kind", 0) % 4;
    log_left = (u32)option("log", 1000);
    for (const char *p = command_line(); *p; p++) shared |= !memcmp(p, "variant=shared", 14);
    alias = option("alias", 0) != 0;
    platform_init(false);
    say("xmod: %d vCPUs, %u rounds, %s, %s%s\n", cpu_count, rounds, shared ? "shared" : "alone", kinds[kind],
        alias ? " through an alias" : "");
    if (cpu_count != 2 || PAGES + rounds * PAGE_SIZE > ram_size()) {
        say("xmod: needs two vCPUs, and 16 MiB and 4 KiB a round of RAM\n");
        debug_exit(EXIT_FAIL);
    }
    smp_start(runner);
    run_rounds((u32)option("gap", 14) % 24);
    debug_say("xmod: %u rounds, %u stale\n", rounds, stale_rounds);
    say("xmod: %u rounds, %u stale\n", rounds, stale_rounds);
    debug_exit(stale_rounds ? EXIT_STALE : EXIT_PASS);
}
