/* The library's memcpy of 64 bytes, called through a pointer. One iteration = 1,000 copies. */
#include "bench.h"

static uint8_t from[4096 + 64], to[4096 + 64];

int main(int argc, char **argv) {
    uint64_t count = count_of(argc, argv), state = 5, sum = 0;
    void *(*copy)(void *, const void *, size_t) = memcpy;
    OPAQUE(copy);
    for (size_t i = 0; i < sizeof from; i++)
        from[i] = (uint8_t)next_random(&state);
    for (uint64_t i = 0; i < count; i++) {
        for (size_t n = 0; n < 1000; n++)
            copy(to + n * 72 % 4096, from + n * 24 % 4096, 64);
        sum = mix(sum, to[i % 4096]);
        from[i % 4096]++;
    }
    return answer(sum);
}
