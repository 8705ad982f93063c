/* A system call that does next to nothing. One iteration = one call. */
#include "bench.h"

#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
    uint64_t count = count_of(argc, argv), same = 0;
    long parent = syscall(SYS_getppid);
    for (uint64_t i = 0; i < count; i++)
        same += syscall(SYS_getppid) == parent;
    return answer(same);
}
