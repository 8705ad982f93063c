/* Eight processes that sort and sum up at the same time. One iteration = eight small sorts. */
#include "bench.h"

#include <sys/wait.h>
#include <unistd.h>

enum { WORKERS = 8, SIZE = 1 << 12 };
static uint32_t values[SIZE];

static uint64_t work(uint64_t count, uint64_t state) {
    uint64_t sum = 0;
    for (uint64_t round = 0; round < count; round++) {
        for (size_t i = 0; i < SIZE; i++)
            values[i] = (uint32_t)next_random(&state);
        /* A shell sort: no calls, loads and stores over 16 KiB. */
        for (size_t gap = SIZE / 2; gap > 0; gap /= 2)
            for (size_t i = gap; i < SIZE; i++) {
                uint32_t value = values[i];
                size_t at = i;
                for (; at >= gap && values[at - gap] > value; at -= gap)
                    values[at] = values[at - gap];
                values[at] = value;
            }
        sum = mix(sum, values[round % SIZE]);
    }
    return sum;
}

int main(int argc, char **argv) {
    uint64_t count = count_of(argc, argv), sum = 0;
    int ends[2];
    NEED(pipe(ends) == 0);
    for (uint64_t worker = 0; worker < WORKERS; worker++) {
        pid_t child = fork();
        NEED(child >= 0);
        if (child == 0) {
            uint64_t part = work(count, worker + 1);
            NEED(write(ends[1], &part, sizeof part) == sizeof part);
            _exit(0);
        }
    }
    for (int worker = 0; worker < WORKERS; worker++) {
        uint64_t part;
        int result;
        NEED(read(ends[0], &part, sizeof part) == sizeof part);
        NEED(wait(&result) > 0 && result == 0);
        sum += part; /* in whatever order they come */
    }
    return answer(sum);
}
