/* The only other program of the benchmark's guest, and its first.
 *
 * Runs what /run.list names, one "NAME COUNT" a line, and says on the serial port where each begins and
 * ends. It drives the port itself, because the kernel's driver would send a line long after it was written.
 * Nothing is mounted: the programs need none of it. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/io.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

enum { COM1 = 0x3f8, LINE_STATUS = 5, TRANSMITTER_EMPTY = 0x20 };

static void say(const char *text) {
    for (; *text; text++) {
        while (!(inb(COM1 + LINE_STATUS) & TRANSMITTER_EMPTY))
            ;
        outb((unsigned char)*text, COM1);
    }
}

/* Runs the program, keeps the line that it prints, and returns the status of wait. */
static int run(const char *name, const char *count, char *answer, size_t size) {
    char path[64];
    int ends[2], status = -1;
    size_t length = 0;
    snprintf(path, sizeof path, "/%s", name);
    if (pipe(ends) != 0)
        return -1;
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        close(ends[0]);
        close(ends[1]);
        execl(path, path, count, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    for (ssize_t got; length + 1 < size && (got = read(ends[0], answer + length, size - 1 - length)) > 0;)
        length += (size_t)got;
    answer[length] = 0;
    answer[strcspn(answer, "\r\n]")] = 0;
    close(ends[0]);
    if (child > 0)
        waitpid(child, &status, 0);
    return status;
}

int main(void) {
    char name[32], count[32], line[160], answer[100];
    mknod("/null", S_IFCHR | 0600, makedev(1, 3));
    while (open("/null", O_RDWR) < 2)
        ;
    ioperm(COM1, 8, 1);
    FILE *list = fopen("/run.list", "r");
    while (list && fscanf(list, "%31s %31s", name, count) == 2) {
        snprintf(line, sizeof line, "\n[bench %s begin]", name);
        say(line);
        int status = run(name, count, answer, sizeof answer);
        snprintf(line, sizeof line, "\n[bench %s end %d %s]\n", name, status, answer);
        say(line);
    }
    say("\n[bench over]\n");
    reboot(RB_POWER_OFF);
    return 1;
}
