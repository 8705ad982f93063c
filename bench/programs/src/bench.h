/* What every benchmark program shares: the count it is asked for, and how it answers.
 *
 * A program takes one argument, its number of iterations, and prints one line: a checksum that depends
 * on the work alone. It is the same natively, in rr86 and in QEMU, or one of them computes wrongly. */
#ifndef BENCH_H
#define BENCH_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Not inlined, so that the compiler sees no constant to fold the work with. */
static __attribute__((noinline)) uint64_t count_of(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s COUNT\n", argv[0]);
        exit(2);
    }
    return strtoull(argv[1], NULL, 10);
}

static inline uint64_t next_random(uint64_t *state) {
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

static inline uint64_t mix(uint64_t sum, uint64_t value) {
    return (sum ^ value) * 0x100000001b3u;
}

static inline uint64_t bits_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static int answer(uint64_t sum) {
    printf("%016llx\n", (unsigned long long)sum);
    return 0;
}

/* Keeps the compiler from seeing through a pointer, and memory as it is at this point. */
#define OPAQUE(pointer) __asm__ volatile("" : "+r"(pointer) : : "memory")

/* For what a program cannot go on without. */
#define NEED(condition)                                                                                    \
    do {                                                                                                   \
        if (!(condition)) {                                                                                \
            perror(#condition);                                                                            \
            exit(1);                                                                                       \
        }                                                                                                  \
    } while (0)

#endif
