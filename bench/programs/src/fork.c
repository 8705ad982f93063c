/* fork, exit, wait, with 1 MiB of written pages to share. One iteration = one child. */
#include "bench.h"

#include <sys/wait.h>
#include <unistd.h>

enum { SIZE = 1 << 20 };

int main(int argc, char **argv) {
    uint64_t count = count_of(argc, argv), sum = 0;
    char *memory = malloc(SIZE);
    NEED(memory);
    memset(memory, 1, SIZE);
    OPAQUE(memory);
    for (uint64_t i = 0; i < count; i++) {
        pid_t child = fork();
        NEED(child >= 0);
        if (child == 0)
            _exit(memory[i % SIZE] + (int)(i & 63));
        int result;
        NEED(waitpid(child, &result, 0) == child && WIFEXITED(result));
        sum = mix(sum, (uint64_t)WEXITSTATUS(result));
    }
    return answer(sum);
}
