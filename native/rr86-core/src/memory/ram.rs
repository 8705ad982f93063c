//! Guest RAM as one host mapping.
//!
//! RAM lies at [0, low) and [4 GiB, 4 GiB + high), with low = min(size, 2 GiB), as on Q35; the gap
//! holds MMCONFIG, the APICs and PCI windows. Pages are numbered without the gap ("page index").

use std::io;

use super::{PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};

/// End of low RAM at most; everything between this and 4 GiB is device space.
pub const LOW_RAM_MAX: u64 = 0x8000_0000;
const HIGH_RAM_BASE: u64 = 1 << 32;

/// The guest's RAM. Host memory is taken from the host only as the guest touches it.
pub struct GuestRam {
    base: *mut u8,
    size: u64,
}

// SAFETY: the mapping belongs to this object alone, and all access goes through `&mut` owners.
unsafe impl Send for GuestRam {}

impl GuestRam {
    /// Maps `size` bytes (a multiple of the page size) of zeroed RAM.
    ///
    /// # Errors
    /// The host's error when it refuses the mapping.
    pub fn new(size: u64) -> io::Result<Self> {
        assert_eq!(size & PAGE_MASK, 0, "RAM is a whole number of pages");
        let len = usize::try_from(size).map_err(io::Error::other)?;
        // SAFETY: a fresh anonymous mapping; no existing memory is affected.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `base` and `len` are the mapping just made. Huge pages are only a hint, so the
        // result does not matter.
        unsafe { libc::madvise(base, len, libc::MADV_HUGEPAGE) };
        Ok(Self {
            base: base.cast(),
            size,
        })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        (self.size >> PAGE_SHIFT) as usize
    }

    /// Index of the page that holds `paddr`, or `None` where there is no RAM.
    #[inline]
    pub fn page_index(&self, paddr: u64) -> Option<usize> {
        let low = self.size.min(LOW_RAM_MAX);
        if paddr < low {
            Some((paddr >> PAGE_SHIFT) as usize)
        } else if paddr >= HIGH_RAM_BASE && paddr - HIGH_RAM_BASE < self.size - low {
            Some(((paddr - HIGH_RAM_BASE + low) >> PAGE_SHIFT) as usize)
        } else {
            None
        }
    }

    /// Physical address of the page with this index.
    pub fn page_address(&self, index: usize) -> u64 {
        let offset = (index as u64) << PAGE_SHIFT;
        let low = self.size.min(LOW_RAM_MAX);
        if offset < low {
            offset
        } else {
            offset - low + HIGH_RAM_BASE
        }
    }

    /// Host address of a page.
    #[inline]
    pub fn page_pointer(&self, index: usize) -> *mut u8 {
        assert!(index < self.pages());
        // SAFETY: the index is inside the mapping.
        unsafe { self.base.add(index << PAGE_SHIFT) }
    }

    /// The bytes of a page.
    pub fn page(&self, index: usize) -> &[u8] {
        // SAFETY: the page is inside the mapping; translated code does not run while this borrow
        // lives, because it needs `&mut` of the owner.
        unsafe { std::slice::from_raw_parts(self.page_pointer(index), PAGE_SIZE as usize) }
    }

    /// The bytes of a page, to be changed by the one write function.
    pub fn page_mut(&mut self, index: usize) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.page_pointer(index), PAGE_SIZE as usize) }
    }

    /// Copies RAM at `paddr` into `out`; absent bytes read as all ones.
    pub fn read(&self, paddr: u64, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let at = paddr.wrapping_add(done as u64);
            let offset = (at & PAGE_MASK) as usize;
            let n = (out.len() - done).min(PAGE_SIZE as usize - offset);
            match self.page_index(at) {
                Some(index) => {
                    out[done..done + n].copy_from_slice(&self.page(index)[offset..offset + n]);
                }
                None => out[done..done + n].fill(0xff),
            }
            done += n;
        }
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this size, and nothing refers to it any more.
        unsafe { libc::munmap(self.base.cast(), self.size as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_above_two_gib_continues_at_four_gib() {
        let ram = GuestRam::new(3 << 30).unwrap();
        assert_eq!(ram.page_index(LOW_RAM_MAX - 1), Some(0x7ffff));
        assert_eq!(ram.page_index(LOW_RAM_MAX), None);
        assert_eq!(ram.page_index(HIGH_RAM_BASE), Some(0x80000));
        assert_eq!(ram.page_index(HIGH_RAM_BASE + (1 << 30)), None);
        assert_eq!(ram.page_address(0x80000), HIGH_RAM_BASE);
    }

    #[test]
    fn absent_memory_reads_as_ones_and_a_read_may_straddle_the_edge() {
        let mut ram = GuestRam::new(8192).unwrap();
        ram.page_mut(1)[4095] = 7;
        let mut out = [0; 3];
        ram.read(8191, &mut out);
        assert_eq!(out, [7, 0xff, 0xff]);
    }
}
