/* The board's devices by their registers: fw_cfg, PCI by both mechanisms, RTC, PM timer, 16550, absent ports. */
#include "lib/guest.h"

#define COM1 0x3f8
#define VEC_SERIAL 0x34

static u32 pci(u32 bdf, u32 reg) {
    outl(0xcf8, 0x80000000 | bdf << 8 | reg);
    return inl(0xcfc);
}

static volatile u32 sent, thr_interrupts;
static const char message[] = "  this line was sent by interrupts\n";

static void on_serial(struct frame *f) {
    (void)f;
    for (u8 why; !((why = inb(COM1 + 2)) & 1);) {
        if ((why & 0xe) != 2) continue;
        thr_interrupts++;
        if (sent < sizeof message - 1) outb(COM1, (u8)message[sent++]);
        else outb(COM1 + 1, 0);
    }
    eoi();
}

static u8 rtc(u8 reg) {
    outb(0x70, reg);
    return inb(0x71);
}

void guest_main(void) {
    platform_init(false);

    outw(0x510, 0);
    char signature[5] = {0};
    for (int i = 0; i < 4; i++) signature[i] = (char)inb(0x511);
    check("fw_cfg signature", !memcmp(signature, "QEMU", 4));
    check_eq("fw_cfg reads 0 beyond the end", inb(0x511), 0);
    outw(0x510, 5);
    u32 cpus = inb(0x511);
    cpus |= (u32)inb(0x511) << 8;
    check_eq("fw_cfg nb_cpus", cpus, (u32)cpu_count);
    outw(0x510, 0x19);
    u32 files = 0;
    for (int i = 0; i < 4; i++) files = files << 8 | inb(0x511);
    say("  fw_cfg: %s, %u vCPUs, %u files\n", signature, cpus, files);
    outw(0x510, 0x7eef);
    check_eq("fw_cfg unknown key", inb(0x511), 0);

    check_eq("debug console answers", inb(0xe9), 0xe9);
    debug_say("io: over the debug console\n");

    u32 host = pci(0, 0), lpc = pci(31 << 3, 0);
    check_eq("host bridge", host, 0x29c08086);
    check_eq("LPC bridge", lpc, 0x29188086);
    check_eq("class of the LPC bridge", pci(31 << 3, 8) >> 16, 0x0601);
    check_eq("LPC is multi-function", pci(31 << 3, 12) >> 16 & 0x80, 0x80);
    check_eq("absent device", pci(30 << 3, 0), 0xffffffff);
    check_eq("absent bus", pci(0x4200, 0), 0xffffffff);
    outl(0xcf8, 0x80000000 | 31 << 11);
    check_eq("config byte access", inb(0xcfe), 0x18);
    check_eq("config word access", inw(0xcfc), 0x8086);
    check_eq("CF8 reads back", inl(0xcf8), 0x80000000 | 31 << 11);
    outl(0xcf8, 0);
    check_eq("CFC without the enable bit", inl(0xcfc), 0xffffffff);
    const u8 *mcfg = acpi_table("MCFG");
    if (mcfg) {
        u64 base;
        memcpy(&base, mcfg + 44, 8);
        say("  MMCONFIG at %lx\n", base);
        check_eq("MMCONFIG host bridge", *(volatile u32 *)base, host);
        check_eq("MMCONFIG LPC bridge", *(volatile u32 *)(base + (31ul << 15)), lpc);
        check_eq("MMCONFIG absent", *(volatile u32 *)(base + (30ul << 15)), 0xffffffff);
        check_eq("MMCONFIG byte", *(volatile u8 *)(base + (31ul << 15) + 3), 0x29);
    } else {
        check("MCFG table", false);
    }

    u8 month = rtc(8), day = rtc(7), hour = rtc(4);
    check("RTC month in BCD", month >= 1 && month <= 0x12 && (month & 15) < 10);
    check("RTC day", day >= 1 && day <= 0x31);
    check("RTC hour", (hour & 0x7f) <= 0x23);
    check_eq("RTC has power", rtc(13) & 0x80, 0x80);
    outb(0x70, 0x50);
    u8 kept = inb(0x71);
    outb(0x71, (u8)~kept);
    check_eq("CMOS byte", rtc(0x50), (u8)~kept);
    outb(0x71, kept);

    u32 before = inl(0x608), same = 0;
    for (int i = 0; i < 1000000 && inl(0x608) == before; i++) same++;
    check("PM timer advances", inl(0x608) != before);
    u32 a = inl(0x608) & 0xffffff;
    delay(10000000);
    u32 passed = ((inl(0x608) & 0xffffff) - a) & 0xffffff;
    check("PM timer advances with the TSC", passed > 1000);

    for (u16 port = 0x280; port < 0x2a0; port++) check_eq("absent port, byte", inb(port), 0xff);
    check_eq("absent port, word", inw(0x290), 0xffff);
    check_eq("absent port, doubleword", inl(0x290), 0xffffffff);
    outl(0x290, 1234);
    outb(0x80, 0x55); /* the POST port swallows everything */

    /* 16550: scratch, divisor latch, loopback, then transmission by interrupts. */
    while (!(inb(COM1 + 5) & 0x40)) pause();
    outb(COM1 + 7, 0xa5);
    check_eq("scratch register", inb(COM1 + 7), 0xa5);
    u8 lcr = inb(COM1 + 3);
    outb(COM1 + 3, 0x83);
    u8 low = inb(COM1), high = inb(COM1 + 1);
    outb(COM1, 0x34);
    outb(COM1 + 1, 0x12);
    check_eq("divisor low", inb(COM1), 0x34);
    check_eq("divisor high", inb(COM1 + 1), 0x12);
    outb(COM1, low ? low : 1);
    outb(COM1 + 1, high);
    outb(COM1 + 3, lcr);
    outb(COM1 + 4, 0x10);
    check_eq("loopback modem lines low", inb(COM1 + 6) & 0xf0, 0);
    outb(COM1 + 4, 0x1f);
    check_eq("loopback modem lines high", inb(COM1 + 6) & 0xf0, 0xf0);
    outb(COM1 + 4, 0x10);
    for (u8 c = 0x20; c < 0x40; c++) {
        outb(COM1, c);
        WAIT_FOR(inb(COM1 + 5) & 1);
        check_eq("loopback byte", inb(COM1), c);
    }
    check_eq("loopback drained", inb(COM1 + 5) & 1, 0);
    outb(COM1 + 4, 0x0b);
    trap_handler[VEC_SERIAL] = on_serial;
    ioapic_route(4, VEC_SERIAL);
    outb(COM1 + 1, 2);
    cli();
    while (inb(COM1 + 1) & 2) sti_hlt_cli();
    check("one interrupt or more for each byte", thr_interrupts >= sizeof message - 1);
    check_eq("all bytes sent", sent, sizeof message - 1);
    finish("io");
}
