/* mmap of 64 pages, one store to each, munmap. One iteration = 64 faults. */
#include "bench.h"

#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 64 };

int main(int argc, char **argv) {
    uint64_t count = count_of(argc, argv), sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint8_t *memory =
            mmap(NULL, PAGE * PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        NEED(memory != MAP_FAILED);
        for (size_t page = 0; page < PAGES; page++)
            memory[page * PAGE] = (uint8_t)(i + page);
        sum = mix(sum, memory[i % PAGES * PAGE]);
        NEED(munmap(memory, PAGE * PAGES) == 0);
    }
    return answer(sum);
}
