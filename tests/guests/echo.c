/* Reads lines from the serial port, interrupt-driven, and prints them reversed, until "quit". */
#include "lib/guest.h"

#define COM1 0x3f8
#define VEC_SERIAL 0x34

static volatile u8 ring[256];
static volatile u32 head, tail, interrupts;

static void on_serial(struct frame *f) {
    (void)f;
    interrupts++;
    /* IIR says why; read until it says nothing is pending, for the line is edge-triggered. */
    for (u8 why; !((why = inb(COM1 + 2)) & 1);) {
        if ((why & 0xe) == 0x4 || (why & 0xe) == 0xc)
            while (inb(COM1 + 5) & 1) ring[head++ % sizeof ring] = inb(COM1);
        else if ((why & 0xe) == 0x6) inb(COM1 + 5);
        else if ((why & 0xe) == 0) inb(COM1 + 6);
    }
    eoi();
}

static u8 next_byte(void) {
    cli();
    while (head == tail) sti_hlt_cli();
    u8 c = ring[tail++ % sizeof ring];
    sti();
    return c;
}

void guest_main(void) {
    platform_init(false);
    trap_handler[VEC_SERIAL] = on_serial;
    ioapic_route(4, VEC_SERIAL);
    outb(COM1 + 1, 0); /* IER */
    outb(COM1 + 3, 3); /* LCR: 8N1 */
    outb(COM1 + 2, 0); /* FCR: no FIFOs, and what has arrived already is kept */
    outb(COM1 + 4, 0xb); /* MCR: DTR, RTS, OUT2 (lets interrupts out) */
    say("echo: ready\n");
    outb(COM1 + 1, 1);
    char line[128];
    u32 lines = 0;
    for (;;) {
        u32 n = 0;
        for (u8 c; (c = next_byte()) != '\n' && c != '\r';)
            if (n < sizeof line - 1) line[n++] = (char)c;
        line[n] = 0;
        if (!n) continue;
        if (n == 4 && !memcmp(line, "quit", 4)) break;
        lines++;
        for (u32 i = 0; i < n / 2; i++) {
            char t = line[i];
            line[i] = line[n - 1 - i];
            line[n - 1 - i] = t;
        }
        say("> %s\n", line);
    }
    outb(COM1 + 1, 0);
    check("bytes came by interrupt", interrupts > 0);
    say("echo: %u lines\n", lines);
    finish("echo");
}
