/* Quicksort of 16 Ki numbers: branches that cannot be predicted, recursion. One iteration = one sort. */
#include "bench.h"

enum { SIZE = 1 << 14 };
static uint64_t values[SIZE];

static void quicksort(uint64_t *low, uint64_t *high) {
    while (low < high) {
        uint64_t pivot = low[(high - low) / 2], *i = low, *j = high;
        while (i <= j) {
            while (*i < pivot)
                i++;
            while (*j > pivot)
                j--;
            if (i <= j) {
                uint64_t kept = *i;
                *i++ = *j;
                *j-- = kept;
            }
        }
        quicksort(low, j);
        low = i;
    }
}

int main(int argc, char **argv) {
    uint64_t count = count_of(argc, argv), state = 42, sum = 0;
    for (uint64_t round = 0; round < count; round++) {
        for (size_t i = 0; i < SIZE; i++)
            values[i] = next_random(&state);
        quicksort(values, values + SIZE - 1);
        for (size_t i = 1; i < SIZE; i++)
            NEED(values[i - 1] <= values[i]);
        sum = mix(sum, values[round % SIZE]);
    }
    return answer(sum);
}
