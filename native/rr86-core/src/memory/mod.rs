//! Guest memory: RAM, what is known of each page, and the software TLB in front of it.

pub mod image;
pub mod pages;
pub mod ram;
pub mod tlb;

/// log2 of the page size that everything here is counted in.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Bits of an address within its page.
pub const PAGE_MASK: u64 = PAGE_SIZE - 1;
