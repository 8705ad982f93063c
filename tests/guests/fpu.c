/* x87, MMX and SSE state: kept across interrupts and switches by FXSAVE and XSAVE, lazily by CR0.TS and
 * #NM, in the formats of FNSAVE and FNSTENV; control words and MXCSR; results of SSE..SSE4.2. */
#include "lib/guest.h"

#define VEC_TIMER 0x40

static u8 area[2][4096] __attribute__((aligned(64)));
static u8 clean[512] __attribute__((aligned(64)));
static volatile u32 ticks, switches;
static int owner;

static void fxsave(void *p) { asm volatile("fxsave64 (%0)" : : "r"(p) : "memory"); }
static void fxrstor(const void *p) { asm volatile("fxrstor64 (%0)" : : "r"(p) : "memory"); }

/* Fill all registers with a pattern made from `seed`. */
static void load_pattern(u32 seed) {
    static u32 xmm[16][4] __attribute__((aligned(16)));
    for (u32 i = 0; i < 16; i++)
        for (u32 j = 0; j < 4; j++) xmm[i][j] = seed * 1000003u + i * 101u + j;
    u64 x87 = seed * 3 + 1;
    u16 cw = 0x37f;
    u32 mxcsr = 0x1f80 | (seed & 3) << 13;
#define X(n) "movdqa " #n "*16(%0), %%xmm" #n "\n"
    asm volatile(X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
                 "fninit; fldcw %1; fildll %2; fld1; fldpi; faddp; ldmxcsr %3"
                 : : "r"(xmm), "m"(cw), "m"(x87), "m"(mxcsr) : "memory");
}

static void check_pattern(const char *what, u32 seed) {
    static u8 image[512] __attribute__((aligned(64)));
    fxsave(image);
    u32 bad = 0;
    for (u32 i = 0; i < 16; i++)
        for (u32 j = 0; j < 4; j++) {
            u32 v;
            memcpy(&v, image + 160 + 16 * i + 4 * j, 4);
            bad += v != seed * 1000003u + i * 101u + j;
        }
    check_eq(what, bad, 0);
    check_eq(what, image[24] | image[25] << 8, 0x1f80 | (seed & 3) << 13);
    u64 st0, st1;
    memcpy(&st0, image + 32, 8);
    memcpy(&st1, image + 48, 8);
    check_eq(what, st0, 0x8487ed5110b4611aul); /* pi + 1, rounded to nearest */
    (void)st1;
    check_eq(what, image[4], 0xc0); /* abridged tag word: registers 6 and 7 */
    check_eq(what, image[2] | image[3] << 8, 6 << 11 | (image[2] & 0x3f) | (image[3] & 0xc7) << 8);
}

static void on_timer(struct frame *f) {
    (void)f;
    static u8 mine[512] __attribute__((aligned(64)));
    fxsave(mine);
    fxrstor(clean);
    asm volatile("pxor %%xmm0, %%xmm0; pxor %%xmm15, %%xmm15; fldz; fldz; fldz" : : : "memory");
    fxrstor(mine);
    ticks++;
    eoi();
}

/* Lazy switching: the first use after a switch comes here. */
static void on_nm(struct frame *f) {
    (void)f;
    asm volatile("clts");
    fxsave(area[owner]);
    owner ^= 1;
    fxrstor(area[owner]);
    switches++;
}

static void formats(void) {
    struct { u32 cw, sw, tw, ip, cs, dp, ds; u8 st[80]; } __attribute__((packed)) env;
    asm volatile("fninit; fld1; fldz; fldpi; fnstenv %0" : "=m"(env));
    check_eq("fnstenv control word", env.cw & 0xffff, 0x37f);
    check_eq("fnstenv status word", env.sw & 0xffff, 5 << 11);
    check_eq("tag of st(0), valid", env.tw >> 10 & 3, 0);
    check_eq("tag of st(1), zero", env.tw >> 12 & 3, 1);
    check_eq("tag of st(2), valid", env.tw >> 14 & 3, 0);
    check_eq("tags of the empty ones", env.tw & 0x3ff, 0x3ff);
    u16 cw = 0x27f;
    asm volatile("fldcw %1; fnsave %0" : "=m"(env) : "m"(cw));
    check_eq("fnsave control word", env.cw & 0xffff, 0x27f);
    u64 mantissa;
    memcpy(&mantissa, env.st, 8);
    check_eq("fnsave st(0) is pi", mantissa, 0xc90fdaa22168c235ul);
    check_eq("fnsave exponent", env.st[8] | env.st[9] << 8, 0x4000);
    u16 sw;
    asm volatile("fnstcw %0; fnstsw %1" : "=m"(cw), "=m"(sw));
    check_eq("fnsave initialises: control", cw, 0x37f);
    check_eq("fnsave initialises: status", sw, 0);
    asm volatile("frstor %0; fnstsw %1" : : "m"(env), "m"(sw));
    asm volatile("fnstsw %0" : "=m"(sw));
    check_eq("frstor status", sw & 0x3800, 5 << 11);
    /* Rounding control: 1/3 upwards and downwards. */
    u64 up, down;
    u16 rc_up = 0xb7f, rc_down = 0x77f;
    u32 three = 3;
    asm volatile("fninit; fldcw %2; fld1; fidivl %4; fstpl %0; fldcw %3; fld1; fidivl %4; fstpl %1"
                 : "=m"(up), "=m"(down) : "m"(rc_up), "m"(rc_down), "m"(three));
    check_eq("1/3 rounded up", up, 0x3fd5555555555556ul);
    check_eq("1/3 rounded down", down, 0x3fd5555555555555ul);
    /* MMX shares the x87 registers: EMMS empties the tags. */
    u64 mmx = 0x0102030405060708ul, sum;
    asm volatile("fninit; movq %1, %%mm3; paddb %%mm3, %%mm3; movq %%mm3, %0; fnstenv %2" : "=m"(sum), "+m"(mmx), "=m"(env));
    check_eq("paddb", sum, 0x020406080a0c0e10ul);
    for (int i = 0; i < 16; i += 2) check("MMX marks every register used", (env.tw >> i & 3) != 3);
    asm volatile("emms; fnstenv %0" : "=m"(env));
    check_eq("emms", env.tw & 0xffff, 0xffff);
}

static void sse_results(void) {
    u32 a[4] __attribute__((aligned(16))) = {0x3f800000, 0x40000000, 0x40400000, 0x40800000}; /* 1 2 3 4 */
    u32 r[4] __attribute__((aligned(16)));
    asm volatile("movaps %1, %%xmm1; addps %%xmm1, %%xmm1; mulps %1, %%xmm1; movaps %%xmm1, %0" : "=m"(r) : "m"(a));
    check_eq("2*3*3 in single", r[2], 0x41900000);
    u64 d;
    asm volatile("cvtss2sd %1, %%xmm2; sqrtsd %%xmm2, %%xmm2; movq %%xmm2, %0" : "=r"(d) : "m"(a[1]));
    check_eq("square root of 2", d, 0x3ff6a09e667f3bcdul);
    asm volatile("movaps %1, %%xmm3; pshufd $0x1b, %%xmm3, %%xmm3; movaps %%xmm3, %0" : "=m"(r) : "m"(a));
    check_eq("pshufd", r[0], 0x40800000);
    if (cpu_has(1, 2, 0)) {
        asm volatile("movaps %1, %%xmm3; haddps %%xmm3, %%xmm3; movaps %%xmm3, %0" : "=m"(r) : "m"(a));
        check_eq("SSE3 haddps", r[1], 0x40e00000);
    }
    if (cpu_has(1, 2, 9)) {
        u8 mask[16] __attribute__((aligned(16))) = {15, 14, 13, 12, 0x80};
        asm volatile("movaps %1, %%xmm3; pshufb %2, %%xmm3; movaps %%xmm3, %0" : "=m"(r) : "m"(a), "m"(mask));
        check_eq("SSSE3 pshufb", r[0], 0x00008040);
    }
    if (cpu_has(1, 2, 19)) {
        u32 lane;
        asm volatile("movaps %1, %%xmm3; pmulld %%xmm3, %%xmm3; pextrd $1, %%xmm3, %0" : "=r"(lane) : "m"(a));
        check_eq("SSE4.1 pmulld, pextrd", lane, 0);
        asm volatile("ptest %%xmm3, %%xmm3; setnz %b0" : "=r"(lane) : "0"(0));
    }
    if (cpu_has(1, 2, 20)) {
        u64 crc = 0xffffffff;
        asm volatile("crc32q %1, %0" : "+r"(crc) : "r"(0x3837363534333231ul));
        crc = (u32)crc;
        u8 nine = '9';
        asm volatile("crc32b %1, %k0" : "+r"(crc) : "m"(nine));
        check_eq("SSE4.2 crc32 of 123456789", (u32)~crc, 0xe3069283);
        u64 index;
        char text[16] __attribute__((aligned(16))) = "find the x here";
        asm volatile("movaps %1, %%xmm3; mov $'x', %%eax; movd %%eax, %%xmm4; pcmpistri $0, %%xmm3, %%xmm4" : "=c"(index) : "m"(text) : "rax", "cc");
        check_eq("SSE4.2 pcmpistri", index, 9);
    }
    /* MXCSR collects flags, and flush-to-zero works. */
    u32 mx = 0x1f80, tiny = 0x00800000, half = 0x3f000000, out;
    asm volatile("ldmxcsr %1; movd %2, %%xmm0; movd %3, %%xmm1; mulss %%xmm1, %%xmm0; movd %%xmm0, %0; stmxcsr %1"
                 : "=r"(out), "+m"(mx) : "r"(tiny), "r"(half));
    check_eq("denormal result", out, 0x00400000);
    mx = 0x9fc0;
    asm volatile("ldmxcsr %1; movd %2, %%xmm0; mulss %%xmm1, %%xmm0; movd %%xmm0, %0; stmxcsr %1" : "=r"(out), "+m"(mx) : "r"(tiny));
    check_eq("flushed to zero", out, 0);
    check_eq("underflow flag", mx & 0x10, 0x10);
    mx = 0x1f80;
    asm volatile("ldmxcsr %0" : : "m"(mx));
}

static void xsave_states(void) {
    if (!cpu_has(1, 2, 26)) return;
    wrcr4(rdcr4() | CR4_OSXSAVE);
    asm volatile("xsetbv" : : "a"(3), "d"(0), "c"(0));
    u32 low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    check_eq("XCR0", low, 3);
    for (u32 i = 0; i < 8; i++) {
        memset(area[0], 0, 1024);
        load_pattern(i);
        asm volatile("xsave64 (%0)" : : "r"(area[0]), "a"(3), "d"(0) : "memory");
        check_eq("XSTATE_BV", area[0][512], 3);
        load_pattern(i + 77);
        asm volatile("xrstor64 (%0)" : : "r"(area[0]), "a"(3), "d"(0) : "memory");
        check_pattern("xsave, xrstor", i);
    }
    u32 r[4];
    cpuid(0xd, 1, r);
    if (r[0] & 1) {
        memset(area[1], 0, 1024);
        load_pattern(5);
        asm volatile("xsaveopt64 (%0)" : : "r"(area[1]), "a"(3), "d"(0) : "memory");
        load_pattern(6);
        asm volatile("xrstor64 (%0)" : : "r"(area[1]), "a"(3), "d"(0) : "memory");
        check_pattern("xsaveopt, xrstor", 5);
    }
    /* A component whose bit is clear in XSTATE_BV is set to its initial state. */
    load_pattern(9);
    area[0][512] = 1;
    asm volatile("xrstor64 (%0)" : : "r"(area[0]), "a"(3), "d"(0) : "memory");
    u64 x;
    asm volatile("movq %%xmm7, %0" : "=r"(x));
    check_eq("xrstor of the initial SSE state", x, 0);
    area[0][512] = 3;
    area[0][520] = 1; /* XCOMP_BV must be 0 in the standard form */
    extern u8 xr_after[];
    expect_trap((u64)xr_after);
    asm volatile("xrstor64 (%0)\n.globl xr_after\nxr_after:" : : "r"(area[0]), "a"(3), "d"(0) : "memory");
    caught.resume = 0;
    if (!on_tcg()) check_eq("#GP for a bad XSAVE header", caught.f.vector, 13);
}

void guest_main(void) {
    wrcr4(rdcr4() | CR4_OSFXSR | CR4_OSXMMEXCPT);
    wrcr0((rdcr0() | CR0_MP) & ~(CR0_EM | CR0_TS));
    asm volatile("fninit");
    fxsave(clean);
    formats();
    sse_results();
    for (u32 i = 0; i < 8; i++) {
        load_pattern(i);
        fxsave(area[0]);
        load_pattern(i + 50);
        check_pattern("loaded", i + 50);
        fxrstor(area[0]);
        check_pattern("fxsave, fxrstor", i);
    }
    xsave_states();

    platform_init(false);
    trap_handler[VEC_TIMER] = on_timer;
    lapic_timer(LAPIC_TIMER_PERIODIC | VEC_TIMER, 300000);
    load_pattern(42);
    sti();
    WAIT_FOR(ticks >= 20);
    cli();
    lapic_write(0x380, 0);
    check_pattern("across interrupts", 42);

    trap_handler[7] = on_nm;
    load_pattern(2);
    fxsave(area[1]);
    load_pattern(1);
    for (u32 i = 0; i < 20; i++) {
        u32 mine = i & 1 ? 1 : 2;
        wrcr0(rdcr0() | CR0_TS);
        check_pattern("lazily switched", mine);
        check_eq("one #NM for each switch", switches, i + 1);
    }
    finish("fpu");
}
