/* Byte stores at growing strides: the primes below 256 Ki. One iteration = one sieve. */
#include "bench.h"

enum { SIZE = 1 << 18 };
static uint8_t composite[SIZE];

int main(int argc, char **argv) {
    uint64_t count = count_of(argc, argv), sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        memset(composite, 0, sizeof composite);
        for (uint32_t p = 2; p * p < SIZE; p++)
            if (!composite[p])
                for (uint32_t m = p * p; m < SIZE; m += p)
                    composite[m] = 1;
        uint64_t primes = 0;
        for (uint32_t p = 2; p < SIZE; p++)
            primes += !composite[p];
        sum = mix(sum, primes + i);
    }
    return answer(sum);
}
