/* Context switches on one CPU: a byte to and fro. One iteration = two switches. */
#include "pingpong.h"

int main(int argc, char **argv) {
    return pingpong(count_of(argc, argv), 0, 0);
}
