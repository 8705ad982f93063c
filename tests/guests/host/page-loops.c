/* The host's side of ../page-loops.c. */
#include <stdio.h>
#define say printf

#include "../page-loops.h"

int main(void) {
    all_loops();
    return 0;
}
