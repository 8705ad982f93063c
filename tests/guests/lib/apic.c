/* ACPI's MADT, LAPIC in both modes, IOAPIC, PIC, PIT, and INIT/SIPI bring-up. */
#include "guest.h"

#define TRAMPOLINE 0x8000ul

int cpu_count;
u32 cpu_apic_id[MAX_CPUS];
volatile u32 cpus_online = 1;
bool lapic_x2;
static volatile u32 *ioapic = (volatile u32 *)0xfec00000;
static u32 isa_gsi[16];
static u8 ap_stacks[MAX_CPUS][16384] __attribute__((aligned(16)));
u64 ap_stack;
u32 ap_index;
static void (*ap_fn)(int);
void ap_start_c(int cpu);

static const u8 *scan_rsdp(u64 from, u64 to) {
    for (u64 p = from; p < to; p += 16) {
        const u8 *b = (const u8 *)p;
        if (memcmp(b, "RSD PTR ", 8)) continue;
        u8 sum = 0;
        for (int i = 0; i < 20; i++) sum += b[i];
        if (!sum) return b;
    }
    return NULL;
}

const u8 *acpi_table(const char *signature) {
    u64 ebda = (u64) * (volatile u16 *)(0x40e) << 4;
    const u8 *rsdp = ebda >= 0x400 && ebda < 0xa0000 ? scan_rsdp(ebda, ebda + 1024) : NULL;
    if (!rsdp) rsdp = scan_rsdp(0xe0000, 0x100000);
    if (!rsdp) return NULL;
    u64 xsdt = 0;
    if (rsdp[15] >= 2) memcpy(&xsdt, rsdp + 24, 8);
    u32 rsdt;
    memcpy(&rsdt, rsdp + 16, 4);
    const u8 *root = (const u8 *)(xsdt ? xsdt : rsdt);
    u32 length, step = xsdt ? 8 : 4;
    memcpy(&length, root + 4, 4);
    for (u32 o = 36; o + step <= length; o += step) {
        u64 at = 0;
        memcpy(&at, root + o, step);
        if (!memcmp((const u8 *)at, signature, 4)) return (const u8 *)at;
    }
    return NULL;
}

static void read_madt(void) {
    for (u32 i = 0; i < 16; i++) isa_gsi[i] = i;
    const u8 *madt = acpi_table("APIC");
    if (!madt) { /* no ACPI: as many vCPUs as fw_cfg says, numbered from 0 */
        outw(0x510, 5);
        cpu_count = inb(0x511);
        if (cpu_count < 1 || cpu_count > MAX_CPUS) cpu_count = 1;
        for (int i = 0; i < cpu_count; i++) cpu_apic_id[i] = (u32)i;
        isa_gsi[0] = 2;
        return;
    }
    u32 self = lapic_x2 ? lapic_read(0x20) : lapic_read(0x20) >> 24;
    cpu_apic_id[cpu_count++] = self;
    u32 length, id, flags;
    memcpy(&length, madt + 4, 4);
    for (u32 o = 44; o + 2 <= length && madt[o + 1]; o += madt[o + 1]) {
        const u8 *e = madt + o;
        if (e[0] == 0 || e[0] == 9) {
            if (e[0] == 0) id = e[3], memcpy(&flags, e + 4, 4);
            else memcpy(&id, e + 4, 4), memcpy(&flags, e + 8, 4);
            if ((flags & 1) && id != self && cpu_count < MAX_CPUS) cpu_apic_id[cpu_count++] = id;
        } else if (e[0] == 1) {
            u32 at;
            memcpy(&at, e + 4, 4);
            ioapic = (volatile u32 *)(u64)at;
        } else if (e[0] == 2 && e[3] < 16) {
            memcpy(&isa_gsi[e[3]], e + 4, 4);
        }
    }
}

u32 lapic_read(u32 reg) {
    if (lapic_x2) return (u32)rdmsr(0x800 + (reg >> 4));
    return *(volatile u32 *)(0xfee00000ul + reg);
}

void lapic_write(u32 reg, u32 v) {
    if (lapic_x2) wrmsr(0x800 + (reg >> 4), v);
    else *(volatile u32 *)(0xfee00000ul + reg) = v;
}

void ipi(u32 apic_id, u32 low) {
    if (lapic_x2) {
        asm volatile("mfence" : : : "memory"); /* x2APIC writes do not wait for earlier stores */
        wrmsr(0x830, (u64)apic_id << 32 | low);
        return;
    }
    u64 flags = rdflags();
    cli();
    lapic_write(0x310, apic_id << 24);
    lapic_write(0x300, low);
    while (lapic_read(0x300) & 0x1000) pause();
    if (flags & FL_IF) sti();
}

void lapic_enable(void) {
    if (lapic_x2) wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | 0xc00);
    lapic_write(0x80, 0);
    lapic_write(0xf0, 0x1ff);
}

static void spurious(struct frame *f) { (void)f; }

void platform_init(bool x2apic) {
    lapic_x2 = x2apic && cpu_has(1, 2, 21);
    trap_handler[0xff] = spurious;
    pic_init(0xe8, 0xffff);
    lapic_enable();
    lapic_write(0x350, 0x10000); /* LINT0 */
    read_madt();
}

void ap_start_c(int cpu) {
    traps_init_cpu(cpu);
    lapic_enable();
    __atomic_fetch_add(&cpus_online, 1, __ATOMIC_SEQ_CST);
    ap_fn(cpu);
    for (;;) asm volatile("cli; hlt");
}

void smp_start(void (*fn)(int cpu)) {
    extern const u8 ap_trampoline[], ap_trampoline_end[];
    memcpy((void *)TRAMPOLINE, ap_trampoline, (size_t)(ap_trampoline_end - ap_trampoline));
    ap_fn = fn;
    for (int i = 1; i < cpu_count; i++) {
        ap_index = (u32)i;
        ap_stack = (u64)ap_stacks[i] + sizeof ap_stacks[i];
        u32 before = cpus_online;
        ipi(cpu_apic_id[i], ICR_INIT);
        delay(200000);
        ipi(cpu_apic_id[i], ICR_SIPI | TRAMPOLINE >> 12);
        WAIT_FOR(cpus_online != before);
    }
}

void lapic_timer(u32 vector_and_mode, u32 count) {
    lapic_write(0x3e0, 0xb);
    lapic_write(0x320, vector_and_mode);
    lapic_write(0x380, count);
}

u32 ioapic_read(u32 reg) {
    ioapic[0] = reg;
    return ioapic[4];
}

void ioapic_write(u32 reg, u32 v) {
    ioapic[0] = reg;
    ioapic[4] = v;
}

void ioapic_route(int isa_irq, u8 vector) {
    u32 pin = isa_gsi[isa_irq];
    u32 id = cpu_apic_id[this_cpu()];
    ioapic_write(0x11 + 2 * pin, id << 24);
    ioapic_write(0x10 + 2 * pin, vector);
}

void ioapic_mask(int isa_irq) { ioapic_write(0x10 + 2 * isa_gsi[isa_irq], 0x10000); }

void pic_init(u8 base_vector, u16 mask) {
    outb(0x20, 0x11);
    outb(0xa0, 0x11);
    outb(0x21, base_vector);
    outb(0xa1, base_vector + 8);
    outb(0x21, 4);
    outb(0xa1, 2);
    outb(0x21, 1);
    outb(0xa1, 1);
    outb(0x21, (u8)mask);
    outb(0xa1, (u8)(mask >> 8));
}

void pit_periodic(u32 hz) {
    u32 divisor = 1193182 / hz;
    outb(0x43, 0x34);
    outb(0x40, (u8)divisor);
    outb(0x40, (u8)(divisor >> 8));
}

/* Mode 0 without a count: OUT stays low until one is written, so no interrupt comes. */
void pit_stop(void) { outb(0x43, 0x30); }
