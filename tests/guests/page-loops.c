/* Loops that end at a page's last byte, and one byte before it. `test_page_loops.py` compares what is printed with what
 * the host prints for the same code. */
#include "lib/guest.h"

#include "page-loops.h"

void guest_main(void) {
    wrcr4(rdcr4() | CR4_OSFXSR | CR4_OSXMMEXCPT);
    all_loops();
    say("page-loops: 36 loops done\n");
    debug_exit(EXIT_PASS);
}
