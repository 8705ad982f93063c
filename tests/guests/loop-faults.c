/* Loops with SSE instructions that fault before the first of these: the handler must see the FPU as it was, down to
 * the pointers of the last x87 instruction, however often the loop has run before and however it ended. */
#include "lib/guest.h"

#define VA 0x8000000000ul
#define PAGES 4

static u8 image[512] __attribute__((aligned(64))), seen[512] __attribute__((aligned(64)));
static u8 pages[PAGES][4096] __attribute__((aligned(4096))), out[PAGES * 4096 + 64] __attribute__((aligned(64)));
static volatile u32 faults;
static u32 wrong, mask_wrong;

static void on_page_fault(struct frame *f) {
    (void)f;
    u64 page = (rdcr2() - VA) / 4096;
    asm volatile("fxsave64 (%0)" : : "r"(seen) : "memory");
    /* Only the first fault of a loop comes before its first SSE instruction. */
    if (!faults) {
        wrong += memcmp(seen + 6, image + 6, 18) != 0;
        mask_wrong += seen[28] != 0xff || seen[29] != 0xff || seen[30] || seen[31];
    }
    faults++;
    map_page(VA + page * 4096, (u64)pages[page], 3);
}

static void unmap(void) {
    for (u64 n = 0; n < PAGES; n++) {
        map_page(VA + n * 4096, 0, 0);
        invlpg((void *)(VA + n * 4096));
    }
    faults = 0;
}

/* The integer load comes first, so that the fault does. The jump makes the loop a block of its own from its first turn. */
static u64 run(u64 from, void *to, u64 turns) {
    u64 sum = 0;
    asm volatile("jmp 1f\n1: add (%1), %0\n movdqu (%1), %%xmm2\n paddd %%xmm2, %%xmm3\n movdqu %%xmm3, (%2)\n"
                 " add $16, %1\n add $16, %2\n sub $1, %3\n jnz 1b"
                 : "+b"(sum), "+S"(from), "+D"(to), "+c"(turns) : : "memory", "cc");
    return sum;
}

void guest_main(void) {
    wrcr4(rdcr4() | CR4_OSFXSR | CR4_OSXMMEXCPT);
    trap_handler[14] = on_page_fault;
    for (u32 n = 0; n < sizeof pages; n++) (&pages[0][0])[n] = (u8)(n * 13 + (n >> 8));
    map_page(VA, (u64)pages[0], 3);
    asm volatile("fninit; fxsave64 (%0)" : : "r"(image) : "memory");
    for (int n = 6; n < 24; n++) image[n] = (u8)(0x21 + n);
    image[7] &= 7; /* the opcode has 11 bits */
    image[14] = image[15] = image[22] = image[23] = 0; /* canonical, and what an image without REX.W has too */
    static const u16 turns[] = {1, 2, 5, 9, 40, 200, 255, 300, 700, 1000};
    u64 total = 0, expected = 0, rounds = option("rounds", 400);
    for (u64 round = 0; round < rounds; round++) {
        u64 count = turns[(round * 7 + round / 11) % 10], offset = (round * 48) % 256;
        if (offset + count * 16 > sizeof pages) count = 900;
        unmap();
        asm volatile("fxrstor64 (%0)" : : "r"(image) : "memory");
        total += run(VA + offset, out + round % 3, count);
        expected += (offset + count * 16 + 4095) / 4096;
        total += faults;
        for (u64 n = 0; n < count; n++) expected += *(u64 *)(&pages[0][0] + offset + n * 16);
        if (round % 5 == 0) /* loops whose pages are at hand */
            run(VA + offset, out, count);
    }
    check_eq("sums and faults", total, expected);
    check_eq("pointers seen in the handler", wrong, 0);
    check_eq("MXCSR_MASK seen in the handler", mask_wrong, 0);
    finish("loop-faults");
}
