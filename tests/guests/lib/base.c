/* Printing, checks, memory functions, the command line and the ends of a run. */
#include "guest.h"

#define COM1 0x3f8

u32 checks_done, checks_failed;
static spinlock print_lock;

void putch(char c) {
    while (!(inb(COM1 + 5) & 0x20)) pause();
    outb(COM1, (u8)c);
}

void puts_raw(const char *s) {
    for (; *s; s++) putch(*s);
}

struct sink { char *out; size_t left; };

static void emit(struct sink *s, char c) {
    if (s->left > 1) {
        *s->out++ = c;
        s->left--;
    }
}

static void number(struct sink *s, u64 v, u32 base, int width, char fill, bool minus) {
    char digits[24];
    int n = 0;
    do digits[n++] = "0123456789abcdef"[v % base]; while (v /= base);
    if (minus) digits[n++] = '-';
    for (int i = n; i < width; i++) emit(s, fill);
    while (n) emit(s, digits[--n]);
}

void format(char *out, size_t size, const char *fmt, va_list ap) {
    struct sink s = {out, size};
    for (; *fmt; fmt++) {
        if (*fmt != '%') {
            emit(&s, *fmt);
            continue;
        }
        fmt++;
        char fill = ' ';
        int width = 0;
        bool wide = false;
        if (*fmt == '0') fill = '0', fmt++;
        while (*fmt >= '0' && *fmt <= '9') width = width * 10 + *fmt++ - '0';
        while (*fmt == 'l') wide = true, fmt++;
        if (*fmt == 's') {
            const char *p = va_arg(ap, const char *);
            for (; *p; p++, width--) emit(&s, *p);
            for (; width > 0; width--) emit(&s, ' ');
        } else if (*fmt == 'c') {
            emit(&s, (char)va_arg(ap, int));
        } else if (*fmt == 'd') {
            long v = wide ? va_arg(ap, long) : va_arg(ap, int);
            number(&s, v < 0 ? 0 - (u64)v : (u64)v, 10, width, fill, v < 0);
        } else if (*fmt == 'u' || *fmt == 'x') {
            u64 v = wide ? va_arg(ap, u64) : va_arg(ap, u32);
            number(&s, v, *fmt == 'x' ? 16 : 10, width, fill, false);
        } else {
            emit(&s, *fmt);
        }
    }
    *s.out = 0;
}

void say(const char *fmt, ...) {
    char line[256];
    va_list ap;
    va_start(ap, fmt);
    format(line, sizeof line, fmt, ap);
    va_end(ap);
    /* An interrupt handler that prints must not find the lock held by its own vCPU. */
    u64 flags = rdflags();
    cli();
    lock(&print_lock);
    puts_raw(line);
    unlock(&print_lock);
    if (flags & FL_IF) sti();
}

void debug_say(const char *fmt, ...) {
    char line[256];
    va_list ap;
    va_start(ap, fmt);
    format(line, sizeof line, fmt, ap);
    va_end(ap);
    u64 flags = rdflags();
    cli();
    lock(&print_lock);
    for (const char *p = line; *p; p++) outb(0xe9, (u8)*p);
    unlock(&print_lock);
    if (flags & FL_IF) sti();
}

void debug_exit(u32 code) {
    outl(0xf4, code);
    for (;;) asm volatile("cli; hlt");
}

void power_off(void) {
    outw(0x604, 0x2000); /* PM1a_CNT: SLP_EN with SLP_TYP 0, the S5 of this board */
    for (;;) asm volatile("cli; hlt");
}

void check(const char *what, bool ok) {
    __atomic_fetch_add(&checks_done, 1, __ATOMIC_RELAXED);
    if (ok) return;
    __atomic_fetch_add(&checks_failed, 1, __ATOMIC_RELAXED);
    say("FAIL %s\n", what);
}

void check_eq(const char *what, u64 got, u64 want) {
    __atomic_fetch_add(&checks_done, 1, __ATOMIC_RELAXED);
    if (got == want) return;
    __atomic_fetch_add(&checks_failed, 1, __ATOMIC_RELAXED);
    say("FAIL %s: got %lx, want %lx\n", what, got, want);
}

void finish(const char *guest) {
    say("%s: %u checks, %u failed\n", guest, checks_done, checks_failed);
    debug_exit(checks_failed ? EXIT_FAIL : EXIT_PASS);
}

void timed_out(const char *what, int line) {
    say("TIMEOUT line %d: %s\n", line, what);
    debug_exit(EXIT_TIMEOUT);
}

void *memcpy(void *d, const void *s, size_t n) {
    void *r = d;
    asm volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
    return r;
}

void *memset(void *d, int c, size_t n) {
    void *r = d;
    asm volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
    return r;
}

int memcmp(const void *a, const void *b, size_t n) {
    const u8 *p = a, *q = b;
    for (; n; n--, p++, q++)
        if (*p != *q) return *p - *q;
    return 0;
}

size_t strlen(const char *s) {
    size_t n = 0;
    while (s[n]) n++;
    return n;
}

const char *command_line(void) {
    const u32 *mbi = (const u32 *)(u64)multiboot_info;
    if (multiboot_magic != 0x2badb002 || !(mbi[0] & 4)) return "";
    return (const char *)(u64)mbi[4];
}

u64 option(const char *name, u64 fallback) {
    size_t n = strlen(name);
    for (const char *p = command_line(); *p; p++) {
        if (memcmp(p, name, n) || p[n] != '=') continue;
        u64 v = 0;
        for (p += n + 1; *p >= '0' && *p <= '9'; p++) v = v * 10 + (u64)(*p - '0');
        return v;
    }
    return fallback;
}

bool cpu_has(u32 leaf, int reg, int bit) {
    u32 r[4];
    cpuid(leaf & 0x80000000, 0, r);
    if (r[0] < leaf) return false;
    cpuid(leaf, 0, r);
    return r[reg] >> bit & 1;
}

bool cpu_is_intel(void) {
    u32 r[4];
    cpuid(0, 0, r);
    return r[1] == 0x756e6547;
}

bool on_tcg(void) {
    u32 r[4];
    cpuid(0x40000000, 0, r);
    return cpu_has(1, 2, 31) && r[1] == 0x54474354;
}
