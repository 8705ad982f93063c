//! Guest RAM as one host mapping.
//!
//! RAM lies at [0, low) and [4 GiB, 4 GiB + high), with low = min(size, 2 GiB), as on Q35; the gap
//! holds MMCONFIG, the APICs and PCI windows. Pages are numbered without the gap ("page index").

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::{PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};

/// End of low RAM at most; everything between this and 4 GiB is device space.
pub const LOW_RAM_MAX: u64 = 0x8000_0000;
const HIGH_RAM_BASE: u64 = 1 << 32;

/// Places for the mapping that are tried: the first, their distance, their number.
const FIRST_PLACE: usize = 16 << 40;
const PLACES_APART: usize = 1 << 40;
const PLACES: usize = 100;
/// log2 of the bytes whose stores share a mark.
pub const LINE_SHIFT: u32 = 6;
const LINES_IN_PAGE: usize = 1 << (PAGE_SHIFT - LINE_SHIFT);

/// The guest's RAM, and a mark for each of its 64-byte lines that is set when the line is written. Host
/// memory is taken from the host only as the guest touches it.
///
/// The mark of the byte at host address `a` lies at `a >> 6`, so that translated code sets it with a
/// shift and a store. That is why the mapping's place is chosen, and not left to the host.
pub struct GuestRam {
    base: *mut u8,
    size: u64,
    mapping: Arc<Mapping>,
    /// Takes memory from the host ahead of the guest.
    ahead: Option<Ahead>,
}

/// Bytes of guest RAM that are taken from the host at once, ahead of the guest.
pub const REGION: usize = 2 << 20;
/// Most regions that are taken ahead, whatever a trace says.
const MOST_AHEAD: usize = 512;

/// A thread that takes memory from the host.
struct Ahead {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// The mappings of RAM and of its marks, as long as anybody uses them.
struct Mapping {
    base: usize,
    size: usize,
    /// Under Miri the marks lie where the allocator has put them.
    #[cfg(miri)]
    marks: usize,
}

impl Mapping {
    /// Where the mark of the byte at a host address in RAM lies.
    #[inline]
    fn mark(&self, host: *const u8) -> *mut u8 {
        #[cfg(miri)]
        return (self.marks + ((host as usize - self.base) >> LINE_SHIFT)) as *mut u8;
        #[cfg(not(miri))]
        return (host as usize >> LINE_SHIFT) as *mut u8;
    }
}

#[cfg(not(miri))]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: both mappings were made in `GuestRam::new` with these sizes, and nothing refers to them any
        // more.
        unsafe {
            libc::munmap(self.base as *mut libc::c_void, self.size);
            let marks = (self.base >> LINE_SHIFT) as *mut libc::c_void;
            libc::munmap(marks, self.size >> LINE_SHIFT);
        }
    }
}

#[cfg(miri)]
mod plain {
    //! RAM from the allocator, for Miri, which maps nothing at chosen addresses.

    use super::{Mapping, LINE_SHIFT, PAGE_SIZE};
    use std::alloc::{alloc_zeroed, dealloc, Layout};

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, PAGE_SIZE as usize).expect("a size")
    }

    impl Mapping {
        pub fn plain(size: usize) -> Self {
            // SAFETY: neither size is zero.
            let [base, marks] = [size, size >> LINE_SHIFT]
                .map(|size| unsafe { alloc_zeroed(layout(size)) }.expose_provenance());
            Self { base, size, marks }
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            for (at, size) in [
                (self.base, self.size),
                (self.marks, self.size >> LINE_SHIFT),
            ] {
                // SAFETY: made by `plain` with this size, and freed only here.
                unsafe { dealloc(at as *mut u8, layout(size)) };
            }
        }
    }
}

/// Looks into RAM from another thread while the guest runs.
pub struct RamReader {
    mapping: Arc<Mapping>,
}

impl RamReader {
    /// Copies the bytes at `paddr`, or says that they are not all in RAM. The guest may be writing them: what
    /// comes out may be of any moment, and different bytes of different moments.
    pub fn read(&self, paddr: u64, out: &mut [u8]) -> bool {
        let size = self.mapping.size as u64;
        let last = paddr.saturating_add(out.len().max(1) as u64 - 1);
        let (Some(page), Some(end)) = (page_index(size, paddr), page_index(size, last)) else {
            return false;
        };
        if end - page != (last >> PAGE_SHIFT) as usize - (paddr >> PAGE_SHIFT) as usize {
            return false;
        }
        let at = self.mapping.base + (page << PAGE_SHIFT) + (paddr & PAGE_MASK) as usize;
        for (n, byte) in out.iter_mut().enumerate() {
            // SAFETY: the byte is inside the mapping, which this object keeps. No reference is made. The guest's
            // thread may be writing the byte, so any value can come out, and callers believe none that they do not
            // compare: formally a race, for which Rust has no operation on memory that others use as plain bytes.
            *byte = unsafe { ((at + n) as *const u8).read_volatile() };
        }
        true
    }
}

/// Index of the page that holds `paddr` in so much RAM.
#[inline]
fn page_index(size: u64, paddr: u64) -> Option<usize> {
    let low = size.min(LOW_RAM_MAX);
    if paddr < low {
        Some((paddr >> PAGE_SHIFT) as usize)
    } else if paddr >= HIGH_RAM_BASE && paddr - HIGH_RAM_BASE < size - low {
        Some(((paddr - HIGH_RAM_BASE + low) >> PAGE_SHIFT) as usize)
    } else {
        None
    }
}

/// Maps `len` bytes at exactly this address, or fails.
#[cfg(not(miri))]
fn map_at(address: usize, len: usize) -> io::Result<*mut u8> {
    // SAFETY: a fresh anonymous mapping that replaces none that exists.
    let base = unsafe {
        libc::mmap(
            address as *mut libc::c_void,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE
                | libc::MAP_ANONYMOUS
                | libc::MAP_NORESERVE
                | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    if base as usize != address {
        // A host older than the flag takes the address as a hint.
        // SAFETY: the mapping was just made, and nothing refers to it.
        unsafe { libc::munmap(base, len) };
        return Err(io::ErrorKind::AddrInUse.into());
    }
    Ok(base.cast())
}

// SAFETY: the mapping outlives this object. Other threads only take memory for it from the host, or read single bytes
// through raw pointers (`RamReader`).
unsafe impl Send for GuestRam {}

impl GuestRam {
    /// Maps `size` bytes (a multiple of the page size) of zeroed RAM.
    ///
    /// # Errors
    /// The host's error when it refuses the mapping.
    pub fn new(size: u64) -> io::Result<Self> {
        assert_eq!(size & PAGE_MASK, 0, "RAM is a whole number of pages");
        let len = usize::try_from(size).map_err(io::Error::other)?;
        let mapping = Self::map(len)?;
        Ok(Self {
            base: mapping.base as *mut u8,
            size,
            mapping: Arc::new(mapping),
            ahead: None,
        })
    }

    #[cfg(miri)]
    fn map(len: usize) -> io::Result<Mapping> {
        Ok(Mapping::plain(len))
    }

    #[cfg(not(miri))]
    fn map(len: usize) -> io::Result<Mapping> {
        if len > PLACES_APART {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let mut error = io::Error::from(io::ErrorKind::AddrInUse);
        for place in 0..PLACES {
            let at = FIRST_PLACE + place * PLACES_APART;
            let base = match map_at(at, len) {
                Ok(base) => base,
                Err(refused) => {
                    error = refused;
                    continue;
                }
            };
            match map_at(at >> LINE_SHIFT, len >> LINE_SHIFT) {
                Ok(_) => {
                    // SAFETY: `base` and `len` are the mapping just made. Huge pages are only a hint, so the
                    // result does not matter.
                    unsafe { libc::madvise(base.cast(), len, libc::MADV_HUGEPAGE) };
                    return Ok(Mapping {
                        base: at,
                        size: len,
                    });
                }
                Err(refused) => {
                    error = refused;
                    // SAFETY: the mapping was just made, and nothing refers to it.
                    unsafe { libc::munmap(base.cast(), len) };
                }
            }
        }
        Err(error)
    }

    /// Marks the lines of `len` bytes from the host address `at` as written.
    ///
    /// # Panics
    /// If the bytes are not all RAM.
    #[inline]
    pub fn mark_lines(&mut self, at: *const u8, len: usize) {
        let offset = (at as usize).wrapping_sub(self.base as usize);
        assert!(offset < self.size as usize && len <= self.size as usize - offset);
        let first = self.mapping.mark(at);
        let last = self.mapping.mark(at.wrapping_add(len.max(1) - 1));
        for n in 0..=last as usize - first as usize {
            // SAFETY: the marks of all of RAM are mapped, and written only here and by translated code,
            // which does not run now.
            unsafe { *first.add(n) = 1 };
        }
    }

    fn marks(&mut self, page: usize) -> &mut [u8; LINES_IN_PAGE] {
        let at = self.mapping.mark(self.page_pointer(page));
        // SAFETY: the marks of a page are mapped, and `&mut self` makes the borrow unique.
        unsafe { &mut *at.cast::<[u8; LINES_IN_PAGE]>() }
    }

    /// Which lines of a page have been written since this was last asked; bit n is line n.
    pub fn take_lines(&mut self, page: usize) -> u64 {
        let lines = self.lines(page);
        self.marks(page).fill(0);
        lines
    }

    /// The same, without asking.
    pub fn lines(&self, page: usize) -> u64 {
        let at = self.mapping.mark(self.page_pointer(page));
        // SAFETY: the marks of a page are mapped, and nothing writes them while this borrow lives.
        let marks = unsafe { &*at.cast::<[u8; LINES_IN_PAGE]>() };
        // Eight marks of one bit each become eight neighbouring bits.
        marks
            .chunks_exact(8)
            .enumerate()
            .fold(0, |lines, (n, eight)| {
                let word = u64::from_le_bytes(eight.try_into().expect("eight bytes"));
                lines | (word.wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * n)
            })
    }

    /// Sets the marks of a page, as `take_lines` gives them.
    pub fn set_lines(&mut self, page: usize, lines: u64) {
        for (n, mark) in self.marks(page).iter_mut().enumerate() {
            *mark = (lines >> n & 1) as u8;
        }
    }

    /// Takes regions of RAM from the host on a thread of its own, in their order, so that the guest need not
    /// wait while the host clears them. What the guest sees does not change, and a host that cannot do it does
    /// not.
    pub fn take_ahead(&mut self, regions: impl Iterator<Item = usize>) {
        let last = self.size as usize / REGION;
        let regions: Vec<usize> = regions.filter(|&r| r < last).take(MOST_AHEAD).collect();
        if self.ahead.is_some() || regions.is_empty() {
            return;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (base, stopped) = (self.base as usize, stop.clone());
        let take = move || {
            for region in regions {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let at = (base + region * REGION) as *mut libc::c_void;
                // SAFETY: the region is inside the mapping, which lives until this thread has been joined
                // (see `drop`); populating it changes no byte.
                if unsafe { libc::madvise(at, REGION, libc::MADV_POPULATE_WRITE) } != 0 {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("rr86-ram".into());
        // Without the thread, the guest waits.
        self.ahead = thread.spawn(take).ok().map(|thread| Ahead { stop, thread });
    }

    /// Whether a thread takes memory from the host.
    pub(super) fn is_taken_ahead(&self) -> bool {
        self.ahead.is_some()
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
        page_index(self.size, paddr)
    }

    /// For another thread, to look into RAM.
    pub fn reader(&self) -> RamReader {
        RamReader {
            mapping: self.mapping.clone(),
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

    /// Writes bytes of one page while the guest runs; returns their host address. For the one write function.
    ///
    /// # Panics
    /// If they do not fit the page.
    pub fn write(&mut self, index: usize, offset: usize, data: &[u8]) -> *const u8 {
        assert!(offset + data.len() <= PAGE_SIZE as usize);
        // SAFETY: the bytes are inside the page, and `&mut self` keeps references to RAM away. Another thread may read
        // them (`RamReader`), through raw pointers, too.
        unsafe {
            let at = self.page_pointer(index).add(offset);
            std::ptr::copy_nonoverlapping(data.as_ptr(), at, data.len());
            at
        }
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
        if let Some(Ahead { stop, thread }) = self.ahead.take() {
            stop.store(true, Ordering::Relaxed);
            // A panic over there has nothing to say about this RAM.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "Miri allocates all of it")]
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

    #[test]
    fn lines_are_marked_where_bytes_are_written_and_told_once() {
        let mut ram = GuestRam::new(8192).unwrap();
        let page = ram.page_pointer(1);
        ram.mark_lines(page, 1);
        ram.mark_lines(page.wrapping_add(127), 2);
        ram.mark_lines(page.wrapping_add(4088), 8);
        assert_eq!(ram.take_lines(0), 0);
        assert_eq!(ram.take_lines(1), 1 << 63 | 0b111);
        assert_eq!(ram.take_lines(1), 0);
        ram.set_lines(1, 0x8000_0000_dead_beef);
        assert_eq!(ram.take_lines(1), 0x8000_0000_dead_beef);
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no madvise")]
    fn taking_memory_ahead_changes_nothing_and_may_be_cut_short() {
        let mut ram = GuestRam::new(16 << 20).unwrap();
        ram.page_mut(0)[0] = 7;
        ram.take_ahead([0, 3, 7, 8, 1 << 40].into_iter());
        ram.page_mut(1)[0] = 8;
        assert_eq!(
            (ram.page(0)[0], ram.page(1)[0], ram.page(1500)[9]),
            (7, 8, 0)
        );
    }

    #[test]
    fn machines_live_side_by_side() {
        let all: Vec<_> = (0..8).map(|_| GuestRam::new(1 << 20).unwrap()).collect();
        assert!(all.windows(2).all(|w| w[0].base != w[1].base));
    }
}
