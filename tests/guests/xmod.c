/* Cross-modifying code on two vCPUs, by the protocol of the SDM (Vol. 3A, "Handling Self- and
 * Cross-Modifying Code"): vCPU 0 patches the immediate of a function that vCPU 1 runs all the time,
 * then raises a flag; vCPU 1 sees it, serialises with CPUID, calls the function once more and must
 * get what was written last. Before the flag it may get anything that ever was there.
 *
 * Every round stores twice. The first store removes the function's block, so that vCPU 1 has to fetch
 * it anew; the second comes a short, varying time later, when that may just be under way. Values count
 * up by one a store, so a stale value v names the store that was missed: the one of v + 1.
 *
 * Command line: rounds=N (default 1000), variant=alone|shared (whether another function that runs
 * lives on the page), alias=1 (store through a second mapping), kind=0..3 (MOV, XCHG, LOCK CMPXCHG,
 * MOVS), gap=N (most PAUSEs between the two stores, default 40), flush=0 (keep vCPU 0's TLB between
 * rounds), log=N (stale rounds to print, default 1000). */
#include "lib/stale.h"

#define ALIAS 0x8000000000ul
#define HISTORY 4096 /* stores remembered; more than a stale block is ever behind */
#define FIRST 0x01000000u

asm(".section .text.patched, \"ax\"\n"
    ".balign 4096, 0xcc\n"
    "alone_code: .byte 0x66, 0x66, 0x90, 0xb8\n .long 0x01000000\n ret\n"
    ".balign 4096, 0xcc\n"
    "shared_code: .byte 0x66, 0x66, 0x90, 0xb8\n .long 0x01000000\n ret\n"
    ".balign 64, 0xcc\n"
    "neighbour: lea 1(%rdi), %eax\n ret\n"
    ".balign 4096, 0xcc\n"
    ".text\n");
extern u8 alone_code[], shared_code[];
extern u64 neighbour(u64);

static const char *const kinds[] = {"mov", "xchg", "cmpxchg", "movs"};
static u8 *code;
static u64 through;
static u32 rounds, kind, shared, stale_rounds, log_left;
static volatile u32 ready, checked, value = FIRST;
static volatile u64 calls;
static struct store history[HISTORY];

static void serialise(void) {
    u32 r[4];
    cpuid(0, 0, r);
}

static void patch(void) {
    u32 new = value + 1, old = value;
    struct store *s = &history[new % HISTORY];
    u64 at = through, from = (u64)&new, n = 1;
    store_begins(s, kinds[kind], through, (u64)code + 4, 4);
    switch (kind) {
    case 0: *(volatile u32 *)at = new; break;
    case 1: n = new; asm volatile("xchg %k0, (%1)" : "+r"(n) : "r"(at) : "memory"); break;
    case 2: asm volatile("lock cmpxchg %2, (%1)" : "+a"(old) : "r"(at), "r"(new) : "memory", "cc"); break;
    default: asm volatile("rep movsl" : "+D"(at), "+S"(from), "+c"(n) : : "memory");
    }
    store_ends(s);
    value = new;
}

/* vCPU 1. */
static void runner(int cpu) {
    u64 (*fn)(void) = (u64(*)(void))code;
    for (u32 round = 1; round <= rounds; round++) {
        while (ready != round) {
            fn();
            if (shared) neighbour(round);
            /* Where one host thread runs all vCPUs, let vCPU 0 go on. */
            if (!(++calls & 15)) pause();
        }
        serialise();
        u32 got = (u32)fn(), want = value;
        if (got != want) {
            u64 now = rdtsc();
            const struct store *missed = &history[(got + 1) % HISTORY];
            stale_rounds++;
            if (log_left) {
                log_left--;
                guilty(missed, shared ? "shared" : "alone", round);
                debug_say("STALE vcpu=%d pc=%lx got=%x want=%x tsc=%lu case=%s round=%u\n", cpu, (u64)code, got, want,
                          now, shared ? "shared" : "alone", round);
            }
        }
        checked = round;
    }
}

static void run_rounds(u32 gap, bool flush) {
    u32 random = 1;
    for (u32 round = 1; round <= rounds; round++) {
        if (flush) forget_jumps();
        random = random * 1664525u + 1013904223u;
        u64 before = calls;
        WAIT_FOR(calls != before); /* vCPU 1 runs the function again */
        patch();
        for (u32 n = (random >> 16) % (gap + 1); n; n--) pause();
        patch();
        ready = round;
        WAIT_FOR(checked == round);
    }
}

void guest_main(void) {
    rounds = (u32)option("rounds", 1000);
    kind = (u32)option("kind", 0) % 4;
    log_left = (u32)option("log", 1000);
    for (const char *p = command_line(); *p; p++) shared |= !memcmp(p, "variant=shared", 14);
    code = shared ? shared_code : alone_code;
    through = (u64)code + 4;
    if (option("alias", 0)) {
        map_page(ALIAS, (u64)code, PTE_P | PTE_W);
        through = ALIAS + 4;
    }
    platform_init(false);
    say("xmod: %d vCPUs, %u rounds, %s, %s%s\n", cpu_count, rounds, shared ? "shared" : "alone", kinds[kind],
        through == (u64)code + 4 ? "" : " through an alias");
    if (cpu_count != 2) {
        say("xmod: needs two vCPUs\n");
        debug_exit(EXIT_FAIL);
    }
    smp_start(runner);
    run_rounds((u32)option("gap", 40), option("flush", 1));
    debug_say("xmod: %u rounds, %u stale\n", rounds, stale_rounds);
    say("xmod: %u rounds, %u stale\n", rounds, stale_rounds);
    debug_exit(stale_rounds ? EXIT_STALE : EXIT_PASS);
}
