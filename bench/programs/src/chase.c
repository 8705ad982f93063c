/* A chain of pointers through 256 KiB in random order: latency of one load. One iteration = 1,000 loads. */
#include "bench.h"

enum { SIZE = 1 << 15 };
static void *chain[SIZE];

int main(int argc, char **argv) {
    uint64_t count = count_of(argc, argv), state = 7;
    /* Sattolo's shuffle: a single cycle through all of them. */
    for (size_t i = 0; i < SIZE; i++)
        chain[i] = &chain[i];
    for (size_t i = SIZE - 1; i > 0; i--) {
        size_t other = next_random(&state) % i;
        void *kept = chain[i];
        chain[i] = chain[other];
        chain[other] = kept;
    }
    void **at = chain;
    for (uint64_t i = 0; i < count; i++)
        for (int step = 0; step < 1000; step++)
            at = *at;
    return answer((uint64_t)(at - chain));
}
