/* Code that a device overwrites: the firmware configuration device reads an item into a code page by
 * DMA (QEMU's docs/specs/fw_cfg). A machine whose DMA does not look for code, or does so only in the
 * transfer's first page, runs the old bytes. */
#include "lib/stale.h"

#define FW_CFG_DMA 0x514
#define DMA_ERROR 1u
#define DMA_READ 2u
#define DMA_SKIP 4u
#define DMA_SELECT 8u
#define KEY_SIGNATURE 0u /* the item "QEMU"; behind its end a transfer gives zeros */

static struct { u32 control, length; u64 address; } descriptor __attribute__((aligned(16)));

asm(".data\n.balign 4096\n"
    "dma_code: .byte 0x66, 0x66, 0x90, 0xb8\n .long 0x11111111\n ret\n .balign 4096, 0xcc\n"
    /* the transfer begins on this page, which is no code ... */
    "dma_before: .skip 4096, 0xcc\n"
    /* ... and ends here: a two-byte NOP becomes 00 00, which is add %al, (%rax); rax is the argument */
    "dma_second: xchg %ax, %ax\n movzbl (%rdi), %eax\n ret\n .balign 4096, 0xcc\n"
    ".text\n");
extern u8 dma_code[], dma_second[];

static void dma(u32 control, u32 length, u64 address) {
    volatile u32 *status = &descriptor.control;
    descriptor.length = __builtin_bswap32(length);
    descriptor.address = __builtin_bswap64(address);
    *status = __builtin_bswap32(control);
    barrier();
    outl(FW_CFG_DMA, 0);
    outl(FW_CFG_DMA + 4, __builtin_bswap32((u32)(u64)&descriptor));
    WAIT_FOR(!(__builtin_bswap32(*status) & ~DMA_ERROR));
    check_eq("DMA status", *status, 0);
}

/* The immediate becomes the signature without its first `skip` bytes. */
static void immediate(void) {
    u64 (*fn)(void) = (u64(*)(void))dma_code;
    struct store s;
    cases_done++;
    for (u32 round = 0; round < rounds_option(); round++) {
        for (int i = 0; i < 3; i++) fn();
        u32 skip = round % 4, want = 0x554d4551u >> 8 * skip;
        dma(KEY_SIGNATURE << 16 | DMA_SELECT | DMA_SKIP, skip, 0);
        u64 p = (u64)dma_code + 4;
        store_begins(&s, "dma", 0, p, 4);
        s.vcpu = BY_DEVICE;
        dma(DMA_READ, 4, p);
        store_ends(&s);
        forget_jumps();
        if (stale(&s, "immediate", round, (u64)dma_code, fn(), want)) return;
    }
}

/* A transfer that only begins on another page. */
static void second_page(void) {
    static u8 cell[16] __attribute__((aligned(256)));
    struct store s;
    u64 p = (u64)dma_second;
    cases_done++;
    for (u32 round = 0; round < rounds_option(); round++) {
        u64 got, argument;
        *(volatile u16 *)p = 0x9066; /* xchg %ax, %ax */
        forget_jumps();
        for (int i = 0; i < 4; i++) {
            if (i == 3) {
                dma(KEY_SIGNATURE << 16 | DMA_SELECT | DMA_SKIP, 0, 0);
                store_begins(&s, "dma", 0, p, 2);
                s.vcpu = BY_DEVICE;
                dma(DMA_READ, 6, p - 4);
                store_ends(&s);
                forget_jumps();
            }
            /* al is 7 when rax points 7 bytes behind a multiple of 256, so that the cell grows by 7. */
            argument = (u64)cell + 7;
            *(volatile u8 *)argument = 0;
            asm volatile("call *%2" : "=a"(got), "+D"(argument) : "r"(p), "a"(argument) : "memory", "cc");
        }
        if (stale(&s, "second-page", round, p, got, 7)) return;
    }
}

void guest_main(void) {
    outw(0x510, 1);
    u32 interfaces = inb(0x511);
    check_eq("the DMA interface is there", interfaces & 2, 2);
    check_eq("its signature", inl(FW_CFG_DMA), 0x554d4551);
    check_eq("its signature's other half", inl(FW_CFG_DMA + 4), 0x47464320);
    if (checks_failed) finish("rel-dma");
    immediate();
    second_page();
    if (checks_failed) finish("rel-dma");
    verdict("rel-dma");
}
