/* Every timer of the board delivers its interrupts, as many and as far apart as programmed, measured
 * against the PM timer (3.579545 MHz). Bounds are wide above, for hosts that stall, and exact below. */
#include "lib/guest.h"

#define VEC_PIT 0x30
#define VEC_APIC 0x31
#define VEC_HPET 0x32
#define VEC_RTC 0x38
#define VEC_PIC 0x50

static volatile u32 count[256];
static volatile u64 first_tsc[256], last_tsc[256];
static u64 tsc_hz;
static volatile u64 *const hpet = (u64 *)0xfed00000;

static void note(struct frame *f) {
    u64 now = rdtsc();
    u64 v = f->vector;
    check("TSC goes up from interrupt to interrupt", now > last_tsc[v]);
    if (!count[v]++) first_tsc[v] = now;
    last_tsc[v] = now;
}
static void on_apic(struct frame *f) { note(f); eoi(); }
static void on_pic(struct frame *f) { note(f); outb(0x20, 0x20); }
static bool rtc_enabled;
static void on_rtc(struct frame *f) {
    note(f);
    outb(0x70, 0x0c); /* reading register C lets the next one come */
    u8 c = inb(0x71);
    check("RTC register C says periodic", !rtc_enabled || (c & 0xc0) == 0xc0);
    eoi();
}

static u32 pm_now(void) { return inl(0x608) & 0xffffff; }

/* TSC ticks that pass in `us` microseconds of the PM timer. */
static u64 measure_tsc(u32 us) {
    u32 want = (u32)((u64)us * 3579545 / 1000000), start = pm_now();
    u64 t = rdtsc();
    WAIT_FOR(((pm_now() - start) & 0xffffff) >= want);
    return rdtsc() - t;
}

/* Wait in HLT for `n` interrupts; return how long it took in microseconds. */
static u64 wait_count(u8 vector, u32 n) {
    u64 start = rdtsc();
    cli();
    while (count[vector] < n) sti_hlt_cli();
    sti();
    return (rdtsc() - start) * 1000000 / tsc_hz;
}

static void expect_us(const char *what, u64 us, u64 least) {
    say("  %s: %lu us\n", what, us);
    check(what, us >= least - least / 8 && us < least * 4 + 2000000);
}

static void expect_silence(const char *what, u8 vector) {
    u32 before = count[vector];
    delay(tsc_hz / 200);
    check(what, count[vector] - before <= 1); /* one may have been under way */
    before = count[vector];
    delay(tsc_hz / 200);
    check_eq(what, count[vector], before);
}

void guest_main(void) {
    platform_init(false);
    trap_handler[VEC_PIT] = trap_handler[VEC_APIC] = trap_handler[VEC_HPET] = on_apic;
    trap_handler[VEC_RTC] = on_rtc;
    trap_handler[VEC_PIC] = on_pic;
    pit_stop();
    tsc_hz = measure_tsc(20000) * 50;
    say("timers: TSC %lu MHz by the PM timer\n", tsc_hz / 1000000);
    sti();

    ioapic_route(0, VEC_PIT);
    pit_periodic(1000);
    expect_us("PIT through the IOAPIC, 20 at 1 kHz", wait_count(VEC_PIT, 20), 18000);
    pit_stop();
    expect_silence("PIT stopped", VEC_PIT);
    outb(0x43, 0x30); /* one shot: 11932 counts are 10 ms */
    u32 before = count[VEC_PIT];
    outb(0x40, 11932 & 0xff);
    outb(0x40, 11932 >> 8);
    expect_us("PIT one-shot", wait_count(VEC_PIT, before + 1), 10000);
    expect_silence("PIT one-shot comes once", VEC_PIT);
    ioapic_mask(0);

    pic_init(VEC_PIC, 0xfffe);
    lapic_write(0x350, 0x700); /* LINT0 as ExtINT: the PIC's virtual wire */
    pit_periodic(1000);
    expect_us("PIT through the PIC, 10 at 1 kHz", wait_count(VEC_PIC, 10), 8000);
    pit_stop();
    expect_silence("PIC silent", VEC_PIC);
    outb(0x21, 0xff);
    lapic_write(0x350, 0x10000);

    /* The LAPIC timer: its frequency by the TSC, then one-shot and periodic by it. */
    lapic_timer(0x10000 | VEC_APIC, 0xffffffff);
    delay(tsc_hz / 100);
    u32 hundredth = 0xffffffff - lapic_read(0x390);
    check("LAPIC timer counts down", hundredth > 1000);
    lapic_timer(VEC_APIC, hundredth / 2);
    expect_us("LAPIC one-shot", wait_count(VEC_APIC, 1), 5000);
    check_eq("LAPIC one-shot ends at 0", lapic_read(0x390), 0);
    expect_silence("LAPIC one-shot comes once", VEC_APIC);
    lapic_timer(LAPIC_TIMER_PERIODIC | VEC_APIC, hundredth / 10);
    expect_us("LAPIC periodic, 10 at 1 kHz", wait_count(VEC_APIC, 11), 9000);
    lapic_write(0x380, 0);
    expect_silence("LAPIC timer stopped", VEC_APIC);
    if (cpu_has(1, 2, 24)) {
        lapic_write(0x320, LAPIC_TIMER_DEADLINE | VEC_APIC);
        before = count[VEC_APIC];
        u64 deadline = rdtsc() + tsc_hz / 200;
        asm volatile("mfence" : : : "memory");
        wrmsr(MSR_TSC_DEADLINE, deadline);
        check_eq("deadline reads back", rdmsr(MSR_TSC_DEADLINE), deadline);
        expect_us("TSC deadline", wait_count(VEC_APIC, before + 1), 5000);
        check("not before the deadline", last_tsc[VEC_APIC] >= deadline);
        check_eq("deadline disarmed", rdmsr(MSR_TSC_DEADLINE), 0);
        wrmsr(MSR_TSC_DEADLINE, 1);
        wait_count(VEC_APIC, before + 2);
        expect_silence("a deadline comes once", VEC_APIC);
    }
    lapic_write(0x320, 0x10000);

    u64 period = hpet[0] >> 32; /* femtoseconds */
    check("HPET is there", period > 100000 && period <= 100000000 && (hpet[0] & 0xff));
    hpet[0x10 / 8] = 0;
    hpet[0xf0 / 8] = 0;
    ioapic_write(0x11 + 2 * 20, cpu_apic_id[0] << 24);
    ioapic_write(0x10 + 2 * 20, VEC_HPET);
    u64 ms = 1000000000000ul / period;
    check("HPET comparator can reach pin 20", hpet[0x100 / 8] >> 52 & 1);
    hpet[0x100 / 8] = 20ul << 9 | 4; /* one-shot, edge, enabled */
    hpet[0x108 / 8] = 5 * ms;
    hpet[0x10 / 8] = 1;
    expect_us("HPET one-shot", wait_count(VEC_HPET, 1), 5000);
    check("HPET counter is past the comparator", hpet[0xf0 / 8] >= 5 * ms);
    expect_silence("HPET comparator comes once", VEC_HPET);
    if (hpet[0x100 / 8] & 0x10) {
        hpet[0x10 / 8] = 0;
        hpet[0xf0 / 8] = 0;
        hpet[0x100 / 8] = 20ul << 9 | 4 | 0x48; /* periodic; the next write sets the period */
        hpet[0x108 / 8] = ms;
        hpet[0x108 / 8] = ms;
        hpet[0x10 / 8] = 1;
        expect_us("HPET periodic, 10 at 1 kHz", wait_count(VEC_HPET, 11), 9000);
    }
    hpet[0x100 / 8] = 0;
    hpet[0x10 / 8] = 0;
    expect_silence("HPET stopped", VEC_HPET);

    ioapic_route(8, VEC_RTC);
    cli(); /* the handler uses the index register as well */
    outb(0x70, 0x0a);
    outb(0x71, 0x26); /* 1024 Hz */
    /* The periodic flag comes on whether or not it may interrupt; what is old must not. */
    outb(0x70, 0x0c);
    inb(0x71);
    rtc_enabled = true;
    outb(0x70, 0x0b);
    outb(0x71, 0x42); /* 24 hours, periodic interrupt */
    expect_us("RTC periodic, 16 at 1024 Hz", wait_count(VEC_RTC, 17), 15000);
    cli();
    rtc_enabled = false; /* one may be under way whose flag is about to be read away */
    outb(0x70, 0x0b);
    outb(0x71, 0x02);
    outb(0x70, 0x0c);
    inb(0x71);
    sti();
    expect_silence("RTC stopped", VEC_RTC);

    u64 last = 0;
    for (int i = 0; i < 10000; i++) {
        u64 t = rdtsc();
        if (t < last) check("TSC is monotonic", false);
        last = t;
    }
    finish("timers");
}
