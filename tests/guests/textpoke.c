/* Patches running code from every vCPU, by the protocol of Linux's text_poke_bp:
 *   INT3 over the first byte (through an alias mapping in page tables of its own), serialise all,
 *   then the tail, serialise all, then the first byte, serialise all.
 * A vCPU that runs into the INT3 emulates the new instruction while the patcher holds the breakpoint
 * count; a #BP after that means that a machine executed bytes which are no longer in memory.
 * Command line: rounds=N (default 1000), log=0 to silence the debug console. */
#include "lib/guest.h"

#define VEC_SYNC 0x40
#define POKE_VA 0x8000000000ul
#define SITES 6
#define EXIT_STRAY_INT3 0x21
#define EXIT_STALE_CODE 0x22

/* Each function returns 1 with its site "off" and 2 with it "on". Off is a 5-byte NOP (on: JMP), or
 * for the two call sites one of two callees. Sites cross a cache line and pages at several offsets. */
asm(".section .text.sites, \"ax\"\n"
    ".macro SITE_JMP n\n"
    "fn\\n: xor %eax, %eax\n"
    "site\\n: .byte 0x0f, 0x1f, 0x44, 0x00, 0x00\n"
    "mov $1, %eax\n ret\n"
    "on\\n: mov $2, %eax\n ret\n"
    ".endm\n"
    ".macro SITE_CALL n\n"
    "fn\\n: sub $8, %rsp\n"
    "site\\n: call off\\n\n"
    "add $8, %rsp\n ret\n"
    "off\\n: mov $1, %eax\n ret\n"
    "on\\n: mov $2, %eax\n ret\n"
    ".endm\n"
    ".balign 4096\n"
    "text_start:\n"
    "SITE_JMP 0\n"
    ".org text_start + 60, 0xcc\n SITE_JMP 1\n"        /* 62: crosses a line */
    ".org text_start + 4092, 0xcc\n SITE_JMP 2\n"      /* 4094: crosses a page */
    ".org text_start + 8187, 0xcc\n SITE_CALL 3\n"     /* 8191: only the opcode on the first page */
    ".org text_start + 8320, 0xcc\n"
    "fn4: mov $5, %ecx\n"
    "0: dec %ecx\n jz 1f\n"
    "site4: .byte 0x0f, 0x1f, 0x44, 0x00, 0x00\n"      /* in a loop: hit several times a call */
    "mov $1, %eax\n jmp 0b\n"
    "on4: mov $2, %eax\n jmp 0b\n"
    "1: ret\n"
    ".org text_start + 8448, 0xcc\n SITE_CALL 5\n"
    ".text\n");
extern u8 site0[], site1[], site2[], site3[], site4[], site5[];
extern u8 on0[], on1[], on2[], on3[], on4[], on5[], off3[], off5[];
extern int fn0(void), fn1(void), fn2(void), fn3(void), fn4(void), fn5(void);

static struct {
    u8 *at, *on, *off; /* `off` is NULL for NOP sites */
    int (*fn)(void);
    volatile u32 sequence; /* odd while being patched */
    volatile int value;
} site[SITES];

static spinlock text_mutex;
static volatile u32 rounds_done, rounds, quiet, stop, all_up;
static volatile u64 emulated, calls[MAX_CPUS];
static u64 *poking_tables, *poking_pte[2];

/* What the #BP handler may emulate, valid while `refs` is not 0. */
static struct { u8 *at, *target; bool is_call; } poke;
static volatile u32 refs, sync_acks;

/* IRET to the next instruction: serialises, as Linux's sync_core does. */
static void sync_core(void) {
    asm volatile("mov %%ss, %%eax; push %%rax; lea 8(%%rsp), %%rax; push %%rax; pushfq\n"
                 "mov %%cs, %%eax; push %%rax; lea 1f(%%rip), %%rax; push %%rax; iretq; 1:"
                 : : : "rax", "memory", "cc");
}

static void on_sync(struct frame *f) {
    (void)f;
    sync_core();
    __atomic_fetch_add(&sync_acks, 1, __ATOMIC_SEQ_CST);
    eoi();
}

static void hex(char *out, const u8 *b) {
    for (int i = 0; i < 5; i++) {
        *out++ = "0123456789abcdef"[b[i] >> 4];
        *out++ = "0123456789abcdef"[b[i] & 15];
    }
    *out = 0;
}

static void on_int3(struct frame *f) {
    u32 n = refs;
    /* Take a reference unless the patcher has already dropped the last one. */
    while (n && !__atomic_compare_exchange_n(&refs, &n, n + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) pause();
    if (!n || (u8 *)(f->rip - 1) != poke.at) {
        char bytes[12];
        hex(bytes, (u8 *)(f->rip - 1));
        say("STRAY INT3 on vCPU %d at %lx after %u rounds; bytes in memory: %s\n", this_cpu(), f->rip - 1, rounds_done, bytes);
        debug_say("stray int3 vcpu=%d at=%lx bytes=%s tsc=%lu\n", this_cpu(), f->rip - 1, bytes, rdtsc());
        debug_exit(EXIT_STRAY_INT3);
    }
    __atomic_fetch_add(&emulated, 1, __ATOMIC_RELAXED);
    if (poke.is_call) {
        /* #BP has a stack of its own, so the interrupted one is free below rsp. */
        f->rsp -= 8;
        *(u64 *)f->rsp = f->rip + 4;
        f->rip = (u64)poke.target;
    } else {
        f->rip = poke.target ? (u64)poke.target : f->rip + 4;
    }
    __atomic_fetch_sub(&refs, 1, __ATOMIC_SEQ_CST);
}

/* Write code through the poking tables, where the text's pages are mapped a second time. */
static void text_poke(u8 *at, const u8 *bytes, u32 length) {
    u64 first = (u64)at & ~(PAGE_SIZE - 1);
    cli();
    *poking_pte[0] = first | PTE_P | PTE_W;
    *poking_pte[1] = (first + PAGE_SIZE) | PTE_P | PTE_W;
    u64 cr3 = rdcr3();
    wrcr3((u64)poking_tables);
    memcpy((void *)(POKE_VA + ((u64)at & (PAGE_SIZE - 1))), bytes, length);
    *poking_pte[0] = *poking_pte[1] = 0;
    invlpg((void *)POKE_VA);
    invlpg((void *)(POKE_VA + PAGE_SIZE));
    wrcr3(cr3);
    sti();
    if (memcmp(at, bytes, length)) {
        say("text at %lx does not read back as written\n", (u64)at);
        debug_exit(EXIT_FAIL);
    }
}

static void serialise_all(void) {
    sync_acks = 0;
    ipi(0, ICR_OTHERS | VEC_SYNC);
    sync_core();
    WAIT_FOR(sync_acks == (u32)cpu_count - 1);
}

static void put_rel32(u8 *out, u8 opcode, const u8 *at, const u8 *target) {
    u32 rel = (u32)(target - (at + 5));
    out[0] = opcode;
    memcpy(out + 1, &rel, 4);
}

static void poke_site(int n) {
    static const u8 nop5[5] = {0x0f, 0x1f, 0x44, 0x00, 0x00}, int3 = 0xcc;
    u8 old[5], new[5];
    u8 *at = site[n].at;
    bool turn_on = site[n].value == 1;
    memcpy(old, at, 5);
    poke.at = at;
    poke.is_call = site[n].off != NULL;
    poke.target = turn_on ? site[n].on : site[n].off;
    if (poke.is_call) put_rel32(new, 0xe8, at, poke.target);
    else if (turn_on) put_rel32(new, 0xe9, at, poke.target);
    else memcpy(new, nop5, 5);

    site[n].sequence++;
    u64 t0 = rdtsc();
    __atomic_store_n(&refs, 1, __ATOMIC_SEQ_CST);
    text_poke(at, &int3, 1);
    serialise_all();
    u64 t1 = rdtsc();
    text_poke(at + 1, new + 1, 4);
    serialise_all();
    u64 t2 = rdtsc();
    text_poke(at, new, 1);
    serialise_all();
    __atomic_fetch_sub(&refs, 1, __ATOMIC_SEQ_CST);
    WAIT_FOR(refs == 0);
    site[n].value = turn_on ? 2 : 1;
    barrier();
    site[n].sequence++;
    if (!quiet) {
        char a[12], b[12];
        hex(a, old);
        hex(b, new);
        debug_say("round=%u vcpu=%d site=%d at=%lx old=%s new=%s int3=%lu tail=%lu first=%lu\n", rounds_done,
                  this_cpu(), n, (u64)at, a, b, t0, t1, t2);
    }
}

static void call_site(int cpu, int n) {
    u32 before = site[n].sequence;
    int want = site[n].value;
    int got = site[n].fn();
    calls[cpu]++;
    /* If nothing was patched meanwhile, only the current code may have run. */
    barrier();
    bool quiet_meanwhile = !(before & 1) && site[n].sequence == before;
    if ((got == 1 || got == 2) && (!quiet_meanwhile || got == want)) return;
    char bytes[12];
    hex(bytes, site[n].at);
    say("STALE CODE on vCPU %d: site %d returned %d, want %d; bytes in memory: %s\n", cpu, n, got, want, bytes);
    debug_say("stale code vcpu=%d site=%d at=%lx got=%d want=%d bytes=%s tsc=%lu\n", cpu, n, (u64)site[n].at, got, want, bytes, rdtsc());
    debug_exit(EXIT_STALE_CODE);
}

static void work(int cpu) {
    u32 random = 12345u + (u32)cpu * 7919u;
    while (!stop) {
        random = random * 1664525u + 1013904223u;
        u32 passes = 1 + (random >> 26);
        for (u32 i = 0; i < passes; i++)
            for (int n = 0; n < SITES; n++) call_site(cpu, n);
        pause();
        if (__atomic_exchange_n(&text_mutex.v, 1, __ATOMIC_ACQUIRE)) continue;
        if (rounds_done < rounds) {
            poke_site((int)((random >> 8) % SITES));
            rounds_done++;
        } else {
            stop = 1;
        }
        unlock(&text_mutex);
    }
}

static void ap(int cpu) {
    sti();
    WAIT_FOR(all_up); /* before that, no vCPU could wait for every vCPU to serialise */
    work(cpu);
    /* Keep answering until vCPU 0 ends the run. */
    for (;;) asm volatile("sti; hlt");
}

void guest_main(void) {
    rounds = (u32)option("rounds", 1000);
    quiet = !option("log", 1);
#define SITE(n, o) site[n].at = site##n; site[n].on = on##n; site[n].off = o; site[n].fn = fn##n; site[n].value = 1
    SITE(0, NULL);
    SITE(1, NULL);
    SITE(2, NULL);
    SITE(3, off3);
    SITE(4, NULL);
    SITE(5, off5);
    poking_tables = page_alloc();
    poking_tables[0] = boot_pml4[0];
    poking_pte[0] = pte_at(poking_tables, POKE_VA, 1);
    poking_pte[1] = pte_at(poking_tables, POKE_VA + PAGE_SIZE, 1);
    set_gate(3, 0, 2);
    trap_handler[3] = on_int3;
    trap_handler[VEC_SYNC] = on_sync;
    platform_init(option("x2apic", 1));
    say("textpoke: %d vCPUs, %u rounds\n", cpu_count, rounds);
    smp_start(ap);
    sti();
    all_up = 1;
    work(0);
    u64 total = 0;
    for (int c = 0; c < cpu_count; c++) total += calls[c];
    say("textpoke: %u rounds done, %lu calls, %lu breakpoints emulated\n", rounds_done, total, emulated);
    check_eq("rounds", rounds_done, rounds);
    finish("textpoke");
}
