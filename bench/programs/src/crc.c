/* CRC-32 by table over 64 KiB: a load that depends on the load before. One iteration = one pass. */
#include "bench.h"

static uint32_t table[256];
static uint8_t data[1 << 16];

int main(int argc, char **argv) {
    uint64_t count = count_of(argc, argv), state = 1;
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t value = byte;
        for (int bit = 0; bit < 8; bit++)
            value = value & 1 ? value >> 1 ^ 0xedb88320u : value >> 1;
        table[byte] = value;
    }
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)next_random(&state);
    uint32_t crc = ~0u;
    for (uint64_t i = 0; i < count; i++)
        for (size_t at = 0; at < sizeof data; at++)
            crc = crc >> 8 ^ table[(crc ^ data[at]) & 0xff];
    return answer(crc);
}
