/* Calls through a table of functions, as an interpreter makes them. One iteration = 1,024 calls. */
#include "bench.h"

typedef uint64_t (*operation)(uint64_t, uint64_t);

static uint64_t op_add(uint64_t a, uint64_t b) { return a + b; }
static uint64_t op_xor(uint64_t a, uint64_t b) { return a ^ b; }
static uint64_t op_sub(uint64_t a, uint64_t b) { return a - b; }
static uint64_t op_mul(uint64_t a, uint64_t b) { return a * (b | 1); }
static uint64_t op_rotate(uint64_t a, uint64_t b) { return (a << 7 | a >> 57) ^ b; }
static uint64_t op_not(uint64_t a, uint64_t b) { return ~a - b; }
static uint64_t op_shift(uint64_t a, uint64_t b) { return (a >> 3) + b; }
static uint64_t op_or(uint64_t a, uint64_t b) { return (a | b) + 1; }

static operation operations[8] = {op_add, op_xor, op_sub, op_mul, op_rotate, op_not, op_shift, op_or};
static uint8_t program[1024];

int main(int argc, char **argv) {
    uint64_t count = count_of(argc, argv), state = 11, sum = 1;
    for (size_t i = 0; i < sizeof program; i++)
        program[i] = next_random(&state) >> 20 & 7;
    for (uint64_t i = 0; i < count; i++) {
        const uint8_t *at = program;
        OPAQUE(at);
        for (size_t n = 0; n < sizeof program; n++)
            sum = operations[at[n]](sum, i + n);
    }
    return answer(sum);
}
