/* Calls and returns: Fibonacci the slow way. One iteration = fib(20), about 22,000 calls. */
#include "bench.h"

static __attribute__((noinline, noclone, optimize("no-optimize-sibling-calls"))) uint64_t fib(uint64_t n) {
    __asm__ volatile("" : "+r"(n));
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

int main(int argc, char **argv) {
    uint64_t count = count_of(argc, argv), sum = 0;
    for (uint64_t i = 0; i < count; i++)
        sum = mix(sum, fib(20) + i);
    return answer(sum);
}
