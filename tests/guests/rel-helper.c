/* Code patched by string instructions and by atomics, each of which is a way of its own through a
 * machine: one that forgets to look for code there runs the old bytes. Same vCPU, same address. */
#include "lib/stale.h"

/* Sixteen aligned bytes a function, the immediate at 4: mov $imm, %eax; ret. One page for each, so
 * that no case keeps another's page guarded. */
asm(".data\n.balign 4096\nhelper_code:\n"
    ".rept 10\n"
    ".byte 0x66, 0x66, 0x90, 0xb8\n .long 0x11111111\n ret\n .balign 4096, 0xcc\n"
    ".endr\n"
    ".text\n");
extern u8 helper_code[];

enum { MOVSB, STOSB, MOVSL, CMPXCHG, XCHG, XADD, OR, CMPXCHG8B, CMPXCHG16B, KINDS };
static const char *const names[KINDS] = {"movsb", "stosb", "movsl", "cmpxchg", "xchg", "xadd", "or", "cmpxchg8b", "cmpxchg16b"};

static u32 write(int kind, struct store *s, u8 *code, u32 round) {
    u64 p = (u64)code + 4;
    u32 new = value_of(round), old = *(volatile u32 *)p;
    u8 image[16] __attribute__((aligned(16)));
    copy_bytes(image, (u64)code, 16);
    if (kind == STOSB) new = (u8)new * 0x01010101u;
    if (kind == OR) new = old | 1u << round % 32;
    *(u32 *)(image + 4) = new;
    const u64 *wide = (const u64 *)image;
    bool all = kind == CMPXCHG16B, half = kind == CMPXCHG8B;
    store_begins(s, names[kind], all || half ? (u64)code : p, all || half ? (u64)code : p, all ? 16 : half ? 8 : 4);
    u64 d = p, from = (u64)&new, n = 4, lo, hi;
    switch (kind) {
    case MOVSB: asm volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(n) : : "memory"); break;
    case STOSB: asm volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(new) : "memory"); break;
    case MOVSL: n = 1; asm volatile("rep movsl" : "+D"(d), "+S"(from), "+c"(n) : : "memory"); break;
    case CMPXCHG: asm volatile("lock cmpxchg %2, (%1)" : "+a"(old) : "r"(d), "r"(new) : "memory", "cc"); break;
    case XCHG: n = new; asm volatile("xchg %k0, (%1)" : "+r"(n) : "r"(d) : "memory"); break;
    case XADD: n = new - old; asm volatile("lock xadd %k0, (%1)" : "+r"(n) : "r"(d) : "memory", "cc"); break;
    case OR: asm volatile("lock or %1, (%0)" : : "r"(d), "r"(new) : "memory", "cc"); break;
    case CMPXCHG8B:
        lo = *(volatile u32 *)code, hi = *(volatile u32 *)(code + 4);
        asm volatile("lock cmpxchg8b (%2)" : "+a"(lo), "+d"(hi) : "r"(code), "b"((u32)wide[0]), "c"(wide[0] >> 32) : "memory", "cc");
        break;
    default:
        lo = *(volatile u64 *)code, hi = *(volatile u64 *)(code + 8);
        asm volatile("lock cmpxchg16b (%2)" : "+a"(lo), "+d"(hi) : "r"(code), "b"(wide[0]), "c"(wide[1]) : "memory", "cc");
    }
    store_ends(s);
    return new;
}

static void test(int kind) {
    u8 *code = helper_code + 4096 * kind;
    u64 (*fn)(void) = (u64(*)(void))code;
    struct store s;
    cases_done++;
    if (kind == OR) *(volatile u32 *)(code + 4) = 0; /* not executed yet */
    for (u32 round = 0; round < rounds_option(); round++) {
        for (int i = 0; i < 3; i++) fn();
        u32 want = write(kind, &s, code, round);
        forget_jumps();
        if (stale(&s, names[kind], round, (u64)code, fn(), want)) return;
    }
}

void guest_main(void) {
    for (int kind = 0; kind < KINDS; kind++)
        if (kind != CMPXCHG16B || cpu_has(1, 2, 13)) test(kind);
    verdict("rel-helper");
}
