/* Product of two 96 x 96 matrices of floats, in packed SSE. One iteration = one product. */
#include "bench.h"

enum { SIZE = 96 };
static float a[SIZE][SIZE], b[SIZE][SIZE], c[SIZE][SIZE];

static __attribute__((noinline, optimize("O3"))) void multiply(void) {
    memset(c, 0, sizeof c);
    for (int i = 0; i < SIZE; i++)
        for (int k = 0; k < SIZE; k++) {
            float factor = a[i][k];
            for (int j = 0; j < SIZE; j++)
                c[i][j] += factor * b[k][j];
        }
}

int main(int argc, char **argv) {
    uint64_t count = count_of(argc, argv), sum = 0;
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < SIZE; j++) {
            a[i][j] = (float)(i * 7 + j * 3 % 11) * 0.01f;
            b[i][j] = (float)(i * 5 % 13 - j) * 0.02f;
        }
    for (uint64_t round = 0; round < count; round++) {
        a[round % SIZE][round / SIZE % SIZE] += 1;
        multiply();
        sum = mix(sum, bits_of(c[round * 5 % SIZE][round * 17 % SIZE]));
    }
    return answer(sum);
}
