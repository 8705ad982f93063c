/* One physical page at two linear pages in a row, with an instruction that crosses from the first into the second:
 * its end lies in the page that it begins in. Each of its parts is patched, through each of the addresses. */
#include "lib/guest.h"

#define FIRST 0x40000000000ul
#define CROSSES 4093u /* B8 and two bytes of the number, then two more at the page's start, then RET */

void guest_main(void) {
    u8 *page = page_alloc();
    u64 places[] = {(u64)page, FIRST, FIRST + PAGE_SIZE};
    map_page(FIRST, (u64)page, PTE_P | PTE_W);
    map_page(FIRST + PAGE_SIZE, (u64)page, PTE_P | PTE_W);
    u32 (*run)(void) = (u32(*)(void))(FIRST + CROSSES);
    page[CROSSES] = 0xb8;
    page[2] = 0xc3;
    u8 number[4] = {0x11, 0x22, 0x33, 0x44};
    u32 offsets[4] = {CROSSES + 1, CROSSES + 2, 0, 1};
    for (int i = 0; i < 4; i++) page[offsets[i]] = number[i];
    for (u32 round = 0; round < 3; round++) {
        for (int part = 0; part < 4; part++) {
            for (int place = 0; place < 3; place++) {
                for (int i = 0; i < 3; i++) run();
                number[part] += 1;
                *(volatile u8 *)(places[place] + offsets[part]) = number[part];
                u32 want;
                memcpy(&want, number, 4);
                check_eq("the patched number", run(), want);
            }
        }
    }
    finish("own-alias");
}
