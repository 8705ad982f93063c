/* Wake-ups across CPUs: a byte to and fro between CPU 0 and 1. One iteration = two of them. */
#include "pingpong.h"

int main(int argc, char **argv) {
    return pingpong(count_of(argc, argv), 0, 1);
}
