/* String instructions: every width, both directions, page crossings, faults in the middle with exact
 * counters, counts of zero, overlap, and 32-bit addresses. Results are compared with plain loops. */
#include "lib/guest.h"

#define VA 0x8000000000ul /* two pages, then a hole */
#define HOLE (VA + 8192)

static u8 source[8192], wanted[8192], target[8192];
struct regs { u64 rax, rcx, rsi, rdi, flags; };

#define STRING_FN(name, insn) \
    static void name(struct regs *r, bool down) { \
        if (down) asm volatile("std" : : : "memory"); \
        asm volatile(insn "\n pushfq; pop %4; cld" : "+a"(r->rax), "+c"(r->rcx), "+S"(r->rsi), "+D"(r->rdi), "=r"(r->flags) : : "memory", "cc"); \
    }
#define WIDTHS(op) STRING_FN(rep_##op##b, "rep " #op "b") STRING_FN(rep_##op##w, "rep " #op "w") STRING_FN(rep_##op##l, "rep " #op "l") STRING_FN(rep_##op##q, "rep " #op "q")
WIDTHS(movs)
WIDTHS(stos)
WIDTHS(lods)
STRING_FN(repe_cmpsb, "repe cmpsb") STRING_FN(repe_cmpsw, "repe cmpsw") STRING_FN(repe_cmpsl, "repe cmpsl") STRING_FN(repe_cmpsq, "repe cmpsq")
STRING_FN(repne_scasb, "repne scasb") STRING_FN(repne_scasw, "repne scasw") STRING_FN(repne_scasl, "repne scasl") STRING_FN(repne_scasq, "repne scasq")
STRING_FN(repe_scasb, "repe scasb")
STRING_FN(one_movsb, "movsb")
STRING_FN(one_movsq, "movsq")
STRING_FN(one_lodsw, "lodsw")
STRING_FN(one_stosl, "stosl")
STRING_FN(movsb32, ".byte 0x67; rep movsb")
STRING_FN(stosq32, ".byte 0x67; rep stosq")
STRING_FN(scasb32, ".byte 0x67; repne scasb")
typedef void (*string_fn)(struct regs *, bool);

static void fill(void) {
    u32 x = 1;
    for (int i = 0; i < 8192; i++) {
        x = x * 1664525 + 1013904223;
        source[i] = (u8)(x >> 24);
        target[i] = wanted[i] = (u8)~i;
    }
}

static void moving(void) {
    static const string_fn movs[4] = {rep_movsb, rep_movsw, rep_movsl, rep_movsq}, stos[4] = {rep_stosb, rep_stosw, rep_stosl, rep_stosq},
                           lods[4] = {rep_lodsb, rep_lodsw, rep_lodsl, rep_lodsq};
    static const u32 counts[] = {0, 1, 2, 3, 7, 64, 500};
    for (int w = 0; w < 4; w++)
        for (u32 n = 0; n < sizeof counts / sizeof *counts; n++)
            for (int down = 0; down < 2; down++) {
                u64 size = 1ul << w, count = counts[n], bytes = size * count;
                u64 from = 3, to = down ? 61 : 4096 - bytes / 2 - 1; /* crosses a page when it can */
                fill();
                for (u64 i = 0; i < bytes; i++) wanted[to + i] = source[from + i];
                u64 last = down && count ? bytes - size : 0;
                struct regs r = {0, count, (u64)source + from + last, (u64)target + to + last, 0};
                u64 step = down ? 0 - bytes : bytes;
                movs[w](&r, down);
                check("rep movs moves", !memcmp(target, wanted, 8192));
                check_eq("rep movs rcx", r.rcx, 0);
                check_eq("rep movs rsi", r.rsi, (u64)source + from + last + step);
                check_eq("rep movs rdi", r.rdi, (u64)target + to + last + step);

                u64 value = 0x1122334455667788ul;
                for (u64 i = 0; i < bytes; i++) wanted[to + i] = (u8)(value >> 8 * (i % size));
                r = (struct regs){value, count, 5, (u64)target + to + last, 0};
                stos[w](&r, down);
                check("rep stos stores", !memcmp(target, wanted, 8192));
                check_eq("rep stos rdi", r.rdi, (u64)target + to + last + step);
                check_eq("rep stos rsi", r.rsi, 5);

                r = (struct regs){value, count, (u64)source + from + last, 7, 0};
                lods[w](&r, down);
                u64 want = value;
                if (count) {
                    u64 v = 0;
                    memcpy(&v, source + from + (down ? 0 : bytes - size), size);
                    want = w == 3 ? v : w == 2 ? v : (value & ~((1ul << 8 * size) - 1)) | v;
                }
                check_eq("rep lods rax", r.rax, want);
                check_eq("rep lods rsi", r.rsi, (u64)source + from + last + step);
            }
    /* Overlap: a forward byte copy one ahead spreads the first byte; wider ones keep a pattern. */
    fill();
    struct regs r = {0, 100, (u64)target, (u64)target + 1, 0};
    rep_movsb(&r, false);
    for (int i = 0; i < 100; i++) check_eq("overlapping bytes", target[i], 0xff);
    fill();
    r = (struct regs){0, 20, (u64)target, (u64)target + 3, 0};
    for (int i = 0; i < 20; i++) memcpy(wanted + 3 + 8 * i, (u8[8]){wanted[8*i], wanted[8*i+1], wanted[8*i+2], wanted[8*i+3], wanted[8*i+4], wanted[8*i+5], wanted[8*i+6], wanted[8*i+7]}, 8);
    rep_movsq(&r, false);
    check("overlapping quadwords", !memcmp(target, wanted, 8192));
    /* Without REP rcx is left alone. */
    r = (struct regs){0, 99, (u64)source, (u64)target, 0};
    one_movsb(&r, false);
    one_movsq(&r, false);
    one_lodsw(&r, false);
    one_stosl(&r, true);
    check_eq("single rcx", r.rcx, 99);
    check_eq("single rsi", r.rsi, (u64)source + 11);
    check_eq("single rdi", r.rdi, (u64)target + 5);
    check_eq("std shows", r.flags & FL_DF, FL_DF);
}

static void comparing(void) {
    static const string_fn cmps[4] = {repe_cmpsb, repe_cmpsw, repe_cmpsl, repe_cmpsq}, scas[4] = {repne_scasb, repne_scasw, repne_scasl, repne_scasq};
    for (int w = 0; w < 4; w++)
        for (u64 where = 0; where < 40; where++) {
            u64 size = 1ul << w;
            fill();
            memcpy(target, source, 8192);
            target[4000 + where * size] ^= 0x80;
            struct regs r = {0, 600, (u64)source + 4000, (u64)target + 4000, 0};
            cmps[w](&r, false);
            check_eq("repe cmps stops behind the difference", r.rcx, 600 - where - 1);
            check_eq("repe cmps rsi", r.rsi, (u64)source + 4000 + (where + 1) * size);
            check_eq("repe cmps ZF", r.flags & FL_ZF, 0);
            r = (struct regs){0, where, (u64)source + 4000, (u64)target + 4000, 0};
            u64 before = rdflags();
            cmps[w](&r, false);
            if (where) check_eq("repe cmps all equal", r.flags & (FL_ZF | FL_CF), FL_ZF);
            else check_eq("rcx=0 leaves rdi", r.rdi, (u64)target + 4000);
            (void)before;
            memset(target, 0, 8192);
            target[4090 + where * size] = 0x5a;
            r = (struct regs){0x5a, 600, 1, (u64)target + 4090, 0};
            scas[w](&r, false);
            check_eq("repne scas finds", r.rdi, (u64)target + 4090 + (where + 1) * size);
            check_eq("repne scas rcx", r.rcx, 600 - where - 1);
            check_eq("repne scas ZF", r.flags & FL_ZF, FL_ZF);
            r = (struct regs){0x5a, 600, 1, (u64)target + 4090 + 60 * size, 0};
            scas[w](&r, true);
            check_eq("repne scas backwards", r.rdi, (u64)target + 4090 + (where - 1) * size);
        }
    struct regs r = {0, 50, 1, (u64)target, 0};
    memset(target, 0, 50);
    repe_scasb(&r, false);
    check_eq("repe scas runs out", r.rcx, 0);
    /* A count of zero does not touch the flags. */
    u64 flags;
    asm volatile("xor %%ecx, %%ecx; mov $-1, %%eax; add $1, %%eax; stc; repne scasb; pushfq; pop %0" : "=r"(flags) : "D"(target) : "rax", "rcx", "cc", "memory");
    check_eq("rcx=0 keeps the flags", flags & (FL_CF | FL_ZF), FL_CF | FL_ZF);
}

/* Fault after 100 of 150 elements: what is done is done, and the counters say so. */
#define FAULTING(label, insn, element, init_rsi, init_rdi, write, dir) \
    do { \
        extern u8 label##_at[], label##_after[]; \
        u64 cx = 150, si = (init_rsi), di = (init_rdi); \
        expect_trap((u64)label##_after); \
        asm volatile(dir "\n.globl " #label "_at, " #label "_after\n" #label "_at: " insn "\n" #label "_after: cld" \
                     : "+c"(cx), "+S"(si), "+D"(di) : "a"(0x77) : "memory", "cc"); \
        check_eq(#label " trap", caught.count, 1); \
        check_eq(#label " vector", caught.f.vector, 14); \
        check_eq(#label " error", caught.f.error, write); \
        check_eq(#label " rip", caught.f.rip, (u64)label##_at); \
        check_eq(#label " rcx", caught.f.rcx, 50); \
    } while (0)

static void faulting(void) {
    u8 *end = (u8 *)HOLE;
    memset((u8 *)VA, 0, 8192);
    FAULTING(f0, "rep stosb", 1, 0, HOLE - 100, 2, "cld");
    check_eq("rep stosb rdi", caught.f.rdi, HOLE);
    check_eq("rep stosb cr2", caught.cr2, HOLE);
    check_eq("rep stosb first byte", end[-100], 0x77);
    check_eq("rep stosb last byte", end[-1], 0x77);
    FAULTING(f1, "rep movsb", 1, HOLE - 100, (u64)target, 0, "cld");
    check_eq("rep movsb rsi", caught.f.rsi, HOLE);
    check_eq("rep movsb rdi", caught.f.rdi, (u64)target + 100);
    FAULTING(f2, "rep movsq", 8, (u64)source, HOLE - 804, 2, "cld");
    check_eq("rep movsq rdi", caught.f.rdi, HOLE - 4);
    check_eq("rep movsq cr2", caught.cr2, HOLE);
    u32 tail;
    memcpy(&tail, end - 4, 4);
    check_eq("rep movsq no partial element", tail, 0x77777777);
    FAULTING(f3, "rep lodsl", 4, HOLE - 400, 0, 0, "cld");
    check_eq("rep lodsl rsi", caught.f.rsi, HOLE);
    memset((u8 *)VA, 0x77, 8192);
    FAULTING(f4, "repe cmpsb", 1, HOLE - 100, HOLE - 200, 0, "cld");
    check_eq("repe cmpsb rsi", caught.f.rsi, HOLE);
    FAULTING(f5, "repe scasb", 1, 0, HOLE - 100, 0, "cld");
    check_eq("repe scasb rdi", caught.f.rdi, HOLE);
    /* Downwards out of the first page. */
    FAULTING(f6, "rep stosb", 1, 0, VA + 99, 2, "std");
    check_eq("rep stosb down rdi", caught.f.rdi, VA - 1);
    check_eq("rep stosb down cr2", caught.cr2, VA - 1);
}

static void short_addresses(void) {
    fill();
    memcpy(wanted + 100, source, 50);
    struct regs r = {0, 0xdead00000000 | 50, 0xbeef00000000 | (u64)source, 0xcafe00000000 | (u64)(target + 100), 0};
    movsb32(&r, false);
    check("32-bit rep movsb", !memcmp(target, wanted, 8192));
    check_eq("32-bit rcx", r.rcx, 0);
    check_eq("32-bit rsi", r.rsi, (u64)source + 50);
    check_eq("32-bit rdi", r.rdi, (u64)target + 150);
    r = (struct regs){0x0101010101010101ul, 0xdead00000000 | 2, 1, 0xcafe00000000 | (u64)target, 0};
    stosq32(&r, false);
    check_eq("32-bit rep stosq rdi", r.rdi, (u64)target + 16);
    check_eq("32-bit rep stosq", *(u64 *)(target + 8), 0x0101010101010101ul);
    r = (struct regs){1, 0xdead00000000 | 9, 1, 0xcafe00000000 | (u64)target, 0};
    scasb32(&r, false);
    check_eq("32-bit scas rcx", r.rcx, 8);
}

void guest_main(void) {
    for (u64 o = 0; o < 8192; o += 4096) map_page(VA + o, (u64)page_alloc(), PTE_P | PTE_W);
    moving();
    comparing();
    memset(target, 0x77, 8192);
    memset(source, 0x11, 8192);
    faulting();
    short_addresses();
    finish("string");
}
