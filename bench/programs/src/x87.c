/* long double: a continued sum with divisions and square roots on the x87 stack. One iteration = one term. */
#include "bench.h"

int main(int argc, char **argv) {
    uint64_t count = count_of(argc, argv), sum = 0;
    long double total = 0, term = 1;
    for (uint64_t i = 1; i <= count; i++) {
        long double root = __builtin_sqrtl(term + (long double)i);
        total += term / (root + 1.0L) - 0.25L * term;
        term = term * 0.75L + 0.3L;
    }
    uint64_t mantissa;
    memcpy(&mantissa, &total, sizeof mantissa);
    return answer(mix(sum, mantissa));
}
