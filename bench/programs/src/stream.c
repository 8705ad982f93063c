/* a[i] = b[i] + k * c[i] over three arrays of 64 Ki doubles. One iteration = one pass. */
#include "bench.h"

enum { SIZE = 1 << 16 };
static double a[SIZE], b[SIZE], c[SIZE];

int main(int argc, char **argv) {
    uint64_t count = count_of(argc, argv), sum = 0;
    double *pa = a, *pb = b, *pc = c;
    for (int i = 0; i < SIZE; i++) {
        b[i] = i * 0.5;
        c[i] = 1.0 / (i + 1);
    }
    for (uint64_t round = 0; round < count; round++) {
        OPAQUE(pa);
        for (int i = 0; i < SIZE; i++)
            pa[i] = pb[i] + 0.25 * pc[i];
        sum = mix(sum, bits_of(pa[round * 31 % SIZE]));
        double *kept = pc;
        pc = pa;
        pa = kept;
    }
    return answer(sum);
}
