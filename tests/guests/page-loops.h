/* What `page-loops-code.S` has, and what is done with it: the same in the guest and on the host, given a `say`. */
#pragma once

#define SIZE 9000u /* of an array: more than two pages, at an odd offset */

#define PLACED(X, bits, left) \
    X(copy1_##bits##_##left, 1) X(copy4_##bits##_##left, 4) X(copy8_##bits##_##left, 8) X(sum1_##bits##_##left, 1) \
    X(sum4_##bits##_##left, 4) X(sum8_##bits##_##left, 8) X(fill1_##bits##_##left, 1) X(fill4_##bits##_##left, 4) X(fill8_##bits##_##left, 8)
#define DECLARE(name, step) extern unsigned char name[];
PLACED(DECLARE, 64, 0) PLACED(DECLARE, 64, 1) PLACED(DECLARE, 32, 0) PLACED(DECLARE, 32, 1)

unsigned run64(void *code, void *source, void *target, unsigned turns);
unsigned run32(void *code, void *source, void *target, unsigned turns);

static unsigned char source[SIZE + 64], target[SIZE + 64];

static unsigned hash(const unsigned char *bytes, unsigned size) {
    unsigned h = 2166136261u;
    for (unsigned i = 0; i < size; i++) h = (h ^ bytes[i]) * 16777619u;
    return h;
}

static void one(const char *name, unsigned (*run)(void *, void *, void *, unsigned), void *code, unsigned step) {
    static const unsigned turns[] = {1, 2, 7, 40, 1100};
    unsigned all = 0;
    for (unsigned n = 0; n < sizeof turns / sizeof *turns; n++)
        for (unsigned offset = 0; offset < 4; offset += 3) {
            for (unsigned i = 0; i < sizeof source; i++) {
                source[i] = (unsigned char)(i * 7 + (i >> 8) + n);
                target[i] = (unsigned char)~i;
            }
            unsigned sum = run(code, source + offset, target + offset, step == 8 && turns[n] > 1000 ? 1000 : turns[n]);
            all = all * 31 + sum;
            all = all * 31 + hash(target, sizeof target);
        }
    say("%s: %x\n", name, all);
}

static void all_loops(void) {
#define RUN64(name, step) one(#name, run64, name, step);
#define RUN32(name, step) one(#name, run32, name, step);
    PLACED(RUN64, 64, 0) PLACED(RUN64, 64, 1) PLACED(RUN32, 32, 0) PLACED(RUN32, 32, 1)
}
