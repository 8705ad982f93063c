/* Two processes that hand one byte to and fro through two pipes. */
#ifndef PINGPONG_H
#define PINGPONG_H

#define _GNU_SOURCE
#include <sched.h>

#include "bench.h"

#include <sys/wait.h>
#include <unistd.h>

static void pin_to(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    NEED(sched_setaffinity(0, sizeof set, &set) == 0);
}

static int pingpong(uint64_t count, int mine, int other) {
    int there[2], back[2];
    uint8_t byte = 1;
    uint64_t sum = 0;
    NEED(pipe(there) == 0 && pipe(back) == 0);
    pid_t child = fork();
    NEED(child >= 0);
    if (child == 0) {
        pin_to(other);
        for (uint64_t i = 0; i < count; i++) {
            NEED(read(there[0], &byte, 1) == 1);
            byte = (uint8_t)(byte * 5 + 1);
            NEED(write(back[1], &byte, 1) == 1);
        }
        _exit(0);
    }
    pin_to(mine);
    for (uint64_t i = 0; i < count; i++) {
        NEED(write(there[1], &byte, 1) == 1);
        NEED(read(back[0], &byte, 1) == 1);
        sum = mix(sum, byte);
    }
    int result;
    NEED(waitpid(child, &result, 0) == child && result == 0);
    return answer(sum);
}

#endif
