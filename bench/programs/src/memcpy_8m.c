/* The library's memcpy of 8 MiB, to and fro. One iteration = one copy. */
#include "bench.h"

enum { SIZE = 8 << 20 };

int main(int argc, char **argv) {
    uint64_t count = count_of(argc, argv), state = 3, sum = 0;
    uint8_t *from = malloc(SIZE), *to = malloc(SIZE);
    NEED(from && to);
    for (size_t i = 0; i < SIZE; i += 8) {
        uint64_t value = next_random(&state);
        memcpy(from + i, &value, 8);
    }
    for (uint64_t i = 0; i < count; i++) {
        memcpy(to, from, SIZE);
        OPAQUE(to);
        sum = mix(sum, to[i * 4099 % SIZE]);
        to[i * 8191 % SIZE] ^= 1;
        uint8_t *kept = from;
        from = to;
        to = kept;
    }
    return answer(sum);
}
