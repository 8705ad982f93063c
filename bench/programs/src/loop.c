/* Registers only: shifts, multiplications and a branch that depends on the data. One iteration = one round. */
#include "bench.h"

int main(int argc, char **argv) {
    uint64_t count = count_of(argc, argv), state = 88172645463325252u, sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t x = next_random(&state);
        if (x & 0x10)
            sum += x * 3 + i;
        else
            sum ^= x >> 5;
    }
    return answer(sum);
}
