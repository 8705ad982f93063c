/* Timers that are due at once, or within the next few instructions, on all vCPUs: TSC deadlines in the past, of
 * this very moment and shortly after, APIC timer counts of a few ticks, HPET comparators that the counter has
 * reached or is about to, the PIT's shortest one-shots, the RTC at its fastest, the PM timer's overflow. Each is
 * armed before code of another kind: spinning, PAUSE, STI, HLT, POPF, an interrupt window at a block's end.
 * Every interrupt is counted and must come, and none must come twice. */
#include "lib/guest.h"

#define VEC_APIC 0x41
#define VEC_HPET 0x52
#define VEC_PIT 0x33
#define VEC_RTC 0x64
#define VEC_PM 0x35
#define VEC_SELF 0x76
#define KINDS 8

static volatile u32 count[MAX_CPUS][256];
static u32 draws[MAX_CPUS], rounds;
static volatile u32 done, boards_turn;
static volatile u64 *const hpet = (u64 *)0xfed00000;

static u32 draw(void) {
    u32 *state = &draws[this_cpu()];
    *state = *state * 1664525 + 1013904223;
    return *state >> 8;
}

static void on_timer(struct frame *f) {
    count[this_cpu()][f->vector]++;
    eoi();
}

static void on_rtc(struct frame *f) {
    outb(0x70, 0x0c);
    inb(0x71);
    on_timer(f);
}

static void on_pm(struct frame *f) {
    outw(0x600, 1);
    on_timer(f);
}

/* What runs right behind the instruction that arms the timer; `tail` of these ends with interrupts on. */
#define TAILS 9
#define AFTER(arm, tail) \
    switch (tail) { \
    case 0: asm volatile(arm "; nop; nop; nop" ARGS); break; \
    case 1: asm volatile(arm "; pause" ARGS); break; \
    case 2: asm volatile("cli; " arm "; sti; pause" ARGS); break; \
    case 3: asm volatile("cli; " arm "; sti; hlt" ARGS); break; \
    case 4: asm volatile("cli; " arm "; pushfq; orq $0x200, (%%rsp); popfq; pause" ARGS); break; \
    case 5: asm volatile("cli; " arm "; sti; nop; nop" ARGS); break; \
    case 6: asm volatile(arm "; jmp 1f; 1: jmp 1f; 1: pause; pause" ARGS); break; \
    case 7: asm volatile("cli; " arm "; sti; mov %%ss, %%r8d; mov %%r8d, %%ss; nop" ARGS); break; \
    default: asm volatile(arm ARGS); break; \
    }

static void arm_msr(u32 msr, u64 value, u32 tail) {
    u32 low = (u32)value, high = (u32)(value >> 32);
#define ARGS : : "c"(msr), "a"(low), "d"(high) : "memory", "cc", "r8"
    AFTER("wrmsr", tail)
#undef ARGS
}

static void arm_word(volatile void *at, u32 value, u32 tail) {
#define ARGS : : "r"(at), "a"(value) : "memory", "cc", "r8"
    AFTER("movl %%eax, (%0)", tail)
#undef ARGS
}

static void arm_port(u16 port, u8 value, u32 tail) {
#define ARGS : : "d"(port), "a"(value) : "memory", "cc", "r8"
    AFTER("outb %%al, %%dx", tail)
#undef ARGS
}

static void arm_count(u32 value, u32 tail) {
    if (lapic_x2) arm_msr(0x838, value, tail);
    else arm_word((volatile void *)0xfee00380ul, value, tail);
}

static void expect(u8 vector, u32 before) {
    WAIT_FOR(count[this_cpu()][vector] != before);
    for (u32 n = 0; n < 40; n++) barrier();
    check_eq("it comes once", count[this_cpu()][vector], before + 1);
}

/* The pin sends to this vCPU. */
static void claim(u32 pin, u32 entry) {
    ioapic_write(0x11 + 2 * pin, cpu_apic_id[this_cpu()] << 24);
    ioapic_write(0x10 + 2 * pin, entry);
}

static void own_timer(u32 kind, u32 tail) {
    u32 before = count[this_cpu()][VEC_APIC];
    if (kind < 4) {
        lapic_write(0x320, LAPIC_TIMER_DEADLINE | VEC_APIC);
        asm volatile("mfence" : : : "memory");
        switch (kind) {
        case 0: arm_msr(MSR_TSC_DEADLINE, 1 + draw() % 1000, tail); break;
        case 1: arm_msr(MSR_TSC_DEADLINE, rdtsc() + draw() % 4, tail); break;
        case 2: arm_msr(MSR_TSC_DEADLINE, rdtsc() + draw() % 48, tail); break;
        default: arm_msr(MSR_TSC_DEADLINE, rdtsc() + draw() % 3000, tail); break;
        }
        expect(VEC_APIC, before);
        check_eq("the deadline is over", rdmsr(MSR_TSC_DEADLINE), 0);
    } else if (kind < 6) {
        lapic_timer(VEC_APIC, 0);
        arm_count(1 + draw() % (kind == 4 ? 4 : 60), tail);
        expect(VEC_APIC, before);
    } else if (kind == 6) {
        lapic_timer(LAPIC_TIMER_PERIODIC | VEC_APIC, 0);
        arm_count(1500 + draw() % 100, tail);
        WAIT_FOR(count[this_cpu()][VEC_APIC] >= before + 3);
        lapic_write(0x380, 0);
    } else {
        before = count[this_cpu()][VEC_SELF];
        if (lapic_x2) arm_msr(0x83f, VEC_SELF, tail);
        else arm_word((volatile void *)0xfee00300ul, ICR_SELF | VEC_SELF, tail);
        expect(VEC_SELF, before);
    }
}

/* The board's timers, of which one vCPU at a time has the use. */
static void board_timer(u32 kind, u32 tail) {
    u32 before;
    switch (kind) {
    case 0: /* a comparator that the counter has passed matches after it went round: 32 bits, 43 seconds */
    case 1:
    case 2:
        before = count[this_cpu()][VEC_HPET];
        claim(20, VEC_HPET);
        hpet[0x10 / 8] = 1;
        hpet[0x100 / 8] = 20ul << 9 | 4 | (kind == 0 ? 0x100 : 0);
        u32 counter = (u32)hpet[0xf0 / 8];
        hpet[0x10c / 4 / 2] = ~0ul;
        ((volatile u32 *)hpet)[0x10c / 4] = 0;
        arm_word((volatile u32 *)hpet + 0x108 / 4, counter + (kind == 1 ? 0 : kind == 2 ? 1 + draw() % 9 : (u32)-1), tail);
        if (kind == 2) {
            expect(VEC_HPET, before);
        } else {
            /* It may have matched right away, or be 43 seconds off: stop it. */
            for (u32 n = 0; n < 200; n++) barrier();
            hpet[0x100 / 8] = 20ul << 9;
        }
        hpet[0x100 / 8] = 20ul << 9;
        claim(20, 0x10000);
        break;
    case 3:
    case 4:
        before = count[this_cpu()][VEC_PIT];
        /* Mode 0 and mode 4, both bytes; the latter's output goes up at once, so the pin comes after. */
        outb(0x43, kind == 3 ? 0x30 : 0x38);
        claim(2, VEC_PIT);
        outb(0x40, (u8)(1 + draw() % 3));
        arm_port(0x40, 0, tail);
        expect(VEC_PIT, before);
        pit_stop();
        claim(2, 0x10000);
        break;
    case 5:
        before = count[this_cpu()][VEC_RTC];
        outb(0x70, 0x0a);
        outb(0x71, 0x23); /* 8192 Hz */
        outb(0x70, 0x0c);
        inb(0x71);
        claim(8, VEC_RTC);
        outb(0x70, 0x0b);
        arm_port(0x71, 0x42, tail);
        WAIT_FOR(count[this_cpu()][VEC_RTC] != before);
        cli();
        outb(0x70, 0x0b);
        outb(0x71, 0x02);
        outb(0x70, 0x0c);
        inb(0x71);
        claim(8, 0x10000);
        sti();
        break;
    default:
        before = count[this_cpu()][VEC_PM];
        cli();
        claim(9, 0x8000 | VEC_PM);
        outw(0x600, 1);
        outw(0x602, 1);
        /* The others halt or spin; if they halt, the overflow is one jump of time away. */
        if (tail == 3) {
            while (count[this_cpu()][VEC_PM] == before) sti_hlt_cli();
        }
        outw(0x602, 0);
        outw(0x600, 1);
        claim(9, 0x10000);
        sti();
        break;
    }
}

static void work(int cpu) {
    draws[cpu] = (u32)option("seed", 1) * 77 + (u32)cpu * 12345;
    for (u32 round = 0; round < rounds; round++) {
        u32 tail = draw() % TAILS;
        sti();
        own_timer(draw() % KINDS, tail);
        if (__atomic_exchange_n(&boards_turn, 1, __ATOMIC_ACQUIRE) == 0) {
            u32 kind = draw() % 7;
            sti();
            board_timer(kind, kind == 6 && done + 1 < (u32)cpu_count ? 0 : draw() % TAILS);
            __atomic_store_n(&boards_turn, 0, __ATOMIC_RELEASE);
        }
        cli();
    }
    lapic_write(0x320, 0x10000);
    __atomic_fetch_add(&done, 1, __ATOMIC_SEQ_CST);
}

void guest_main(void) {
    platform_init(option("x2apic", 0));
    rounds = (u32)option("rounds", 20);
    trap_handler[VEC_APIC] = trap_handler[VEC_HPET] = trap_handler[VEC_PIT] = trap_handler[VEC_SELF] = on_timer;
    trap_handler[VEC_RTC] = on_rtc;
    trap_handler[VEC_PM] = on_pm;
    pit_stop();
    say("deadlines: %d vCPUs, %s\n", cpu_count, lapic_x2 ? "x2APIC" : "xAPIC");
    smp_start(work);
    work(0);
    WAIT_FOR(done == (u32)cpu_count);
    finish("deadlines");
}
