/* What the guests share that patch code and find out whether old code ran (xmod, rel-*).
 *
 * Each guest notes every store into code at the moment of the store, in memory: printing then would
 * run other code between the store and its effect. When an old value comes back, the store that
 * should have removed it is printed to the debug console, in one format for all guests:
 *
 *   GUILTY paddr=HEX old=BYTES new=BYTES vcpu=N|device tsc=N until=N va=HEX how=NAME case=NAME round=N
 *   STALE vcpu=N pc=HEX got=HEX want=HEX tsc=N case=NAME round=N
 *
 * BYTES are in memory order, and TSC readings on both sides of the store enclose its moment. A case
 * ends with its first stale round. The guest ends with EXIT_PASS or EXIT_STALE. */
#pragma once

#include "guest.h"

#define EXIT_STALE 0x11
#define BY_DEVICE 0xffffffffu

struct store {
    u64 paddr, va, tsc, until;
    u8 old[16], new[16];
    u32 length, vcpu;
    const char *how;
};

/* The bytes at a physical address; everything is identity-mapped. */
static inline void copy_bytes(u8 *to, u64 paddr, u32 n) {
    for (u32 i = 0; i < n; i++) to[i] = ((volatile u8 *)paddr)[i];
}

/* Between these two there is nothing but the store, made through `va`. */
static inline void store_begins(struct store *s, const char *how, u64 va, u64 paddr, u32 length) {
    s->how = how;
    s->va = va;
    s->paddr = paddr;
    s->length = length;
    s->vcpu = (u32)this_cpu();
    copy_bytes(s->old, paddr, length);
    s->tsc = rdtsc();
}

static inline void store_ends(struct store *s) {
    s->until = rdtsc();
    copy_bytes(s->new, s->paddr, s->length);
}

static inline void hex_bytes(char *out, const u8 *bytes, u32 n) {
    for (u32 i = 0; i < n; i++) {
        *out++ = "0123456789abcdef"[bytes[i] >> 4];
        *out++ = "0123456789abcdef"[bytes[i] & 15];
    }
    *out = 0;
}

static inline void guilty(const struct store *s, const char *name, u32 round) {
    char old[40], new[40], by[8] = "device";
    hex_bytes(old, s->old, s->length);
    hex_bytes(new, s->new, s->length);
    if (s->vcpu != BY_DEVICE) by[0] = (char)('0' + s->vcpu % 10), by[1] = 0;
    debug_say("GUILTY paddr=%lx old=%s new=%s vcpu=%s tsc=%lu until=%lu va=%lx how=%s case=%s round=%u\n", s->paddr, old,
              new, by, s->tsc, s->until, s->va, s->how, name, round);
}

/* Drops what a vCPU caches by virtual address, jump caches included, so that the next indirect call
 * has to look its target up. Only rel-chain goes without. */
static inline void forget_jumps(void) { wrcr3(rdcr3()); }

static u32 stale_cases, cases_done;

/* Whether old code ran. `s` is the store that should have prevented it. */
static inline bool stale(const struct store *s, const char *name, u32 round, u64 pc, u64 got, u64 want) {
    if (got == want) return false;
    u64 now = rdtsc();
    guilty(s, name, round);
    debug_say("STALE vcpu=%d pc=%lx got=%lx want=%lx tsc=%lu case=%s round=%u\n", this_cpu(), pc, got, want, now, name, round);
    stale_cases++;
    return true;
}

static inline u32 rounds_option(void) { return (u32)option("rounds", 20); }

/* A value whose bytes all differ from those of the rounds before it. */
static inline u32 value_of(u32 round) { return 0x10213243u + round * 0x01010101u; }

__attribute__((noreturn)) static inline void verdict(const char *guest) {
    debug_say("%s: %u cases, %u stale\n", guest, cases_done, stale_cases);
    say("%s: %u cases, %u stale\n", guest, cases_done, stale_cases);
    debug_exit(stale_cases ? EXIT_STALE : EXIT_PASS);
}
