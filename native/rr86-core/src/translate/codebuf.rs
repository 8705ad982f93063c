//! The buffer that holds translated code: one memory object, mapped twice. The executable mapping
//! is never writable and the writable one never executable.

use std::io;

use super::asm::Asm;
use super::cache::BlockId;

/// Translated code and the stubs it shares.
pub struct CodeBuffer {
    write: *mut u8,
    exec: *mut u8,
    size: usize,
    used: usize,
    /// Where blocks start; the stubs lie below and stay.
    floor: usize,
    /// Up to here the host has been asked for memory.
    asked: usize,
}

/// Bytes for which the host is asked at once: it gives them page by page otherwise, and an interruption for
/// each page costs more than the page.
const ASKED_AT_ONCE: usize = 256 << 10;

/// The place of a code buffer, for another thread.
pub struct Room {
    write: usize,
    size: usize,
}

impl Room {
    /// Has the host give memory for so much from an offset on, before code is appended there. It changes no
    /// byte, and a host that cannot do it does not.
    pub fn populate(&self, from: usize, len: usize) {
        let from = from & !0xfff;
        let Some(left) = self.size.checked_sub(from) else {
            return;
        };
        let at = (self.write + from) as *mut libc::c_void;
        // SAFETY: this changes the content of no memory, whatever is mapped there.
        unsafe { libc::madvise(at, len.min(left), libc::MADV_POPULATE_WRITE) };
    }
}

// SAFETY: both mappings belong to this object alone.
unsafe impl Send for CodeBuffer {}

impl CodeBuffer {
    /// Maps `size` bytes twice.
    ///
    /// # Errors
    /// The host's error when memory or executable mappings are refused.
    pub fn new(size: usize) -> io::Result<Self> {
        // SAFETY: plain system calls on a fresh descriptor; the name is a C string literal.
        unsafe {
            let fd = libc::memfd_create(c"rr86-code".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let map = |prot| libc::mmap(std::ptr::null_mut(), size, prot, libc::MAP_SHARED, fd, 0);
            let ready = libc::ftruncate(fd, size as libc::off_t) == 0;
            let write = if ready {
                map(libc::PROT_READ | libc::PROT_WRITE)
            } else {
                libc::MAP_FAILED
            };
            let exec = if ready {
                map(libc::PROT_READ | libc::PROT_EXEC)
            } else {
                libc::MAP_FAILED
            };
            let error = io::Error::last_os_error();
            libc::close(fd);
            if write == libc::MAP_FAILED || exec == libc::MAP_FAILED {
                for p in [write, exec] {
                    if p != libc::MAP_FAILED {
                        libc::munmap(p, size);
                    }
                }
                return Err(error);
            }
            Ok(Self {
                write: write.cast(),
                exec: exec.cast(),
                size,
                used: 0,
                floor: 0,
                asked: 0,
            })
        }
    }

    /// Appends code; `None` when the buffer is full. Returns its offset.
    pub fn append(&mut self, code: &[u8]) -> Option<usize> {
        let at = self.used;
        if code.len() > self.size - at {
            return None;
        }
        if at + code.len() > self.asked {
            self.ask_for_memory();
        }
        // SAFETY: [at, at + len) is inside the writable mapping, and no reference to it exists.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.write.add(at), code.len()) };
        self.used = (at + code.len() + 15) & !15;
        self.used = self.used.min(self.size);
        Some(at)
    }

    /// Asks the host for the memory that code needs next.
    fn ask_for_memory(&mut self) {
        let at = self.asked;
        let len = ASKED_AT_ONCE.min(self.size - at);
        // SAFETY: the range lies inside both mappings. A host that does not know the request gives the
        // memory when it is touched, so that the results do not matter.
        unsafe {
            libc::madvise(self.write.add(at).cast(), len, libc::MADV_POPULATE_WRITE);
            libc::madvise(self.exec.add(at).cast(), len, libc::MADV_POPULATE_READ);
        }
        self.asked += len;
    }

    /// Appends the shared stubs and makes them permanent.
    pub fn append_stubs(&mut self, asm: &Asm) -> usize {
        let at = self
            .append(&asm.bytes)
            .expect("the stubs fit an empty buffer");
        self.floor = self.used;
        at
    }

    /// For another thread, to take memory for code from the host.
    pub fn room(&self) -> Room {
        Room {
            write: self.write as usize,
            size: self.size,
        }
    }

    /// Drops all blocks' code.
    pub fn clear(&mut self) {
        self.used = self.floor;
    }

    /// Address at which the code with this offset runs.
    pub fn address(&self, offset: usize) -> u64 {
        self.exec as u64 + offset as u64
    }

    /// Address that the next appended code will have.
    pub fn next_address(&self) -> u64 {
        self.address(self.used)
    }

    /// Offset of an address that may lie in this buffer.
    pub fn offset_of(&self, address: u64) -> Option<usize> {
        let offset = address.wrapping_sub(self.exec as u64);
        (offset < self.used as u64).then_some(offset as usize)
    }

    /// Bounds of the executable mapping.
    pub fn range(&self) -> (u64, u64) {
        (self.exec as u64, self.exec as u64 + self.size as u64)
    }

    /// Makes the rel32 at `at` lead to `target` (both offsets).
    pub fn patch_rel32(&mut self, at: usize, target: usize) {
        assert!(at + 4 <= self.used && target < self.used);
        let rel = (target as i64 - (at as i64 + 4)) as i32;
        // SAFETY: the four bytes are inside the used part of the writable mapping. The code runs on
        // this thread only, so it is not executing them now.
        unsafe { self.write.add(at).cast::<i32>().write_unaligned(rel) };
    }

    /// Overwrites the code at `at` with a jump to `target` (both offsets).
    pub fn patch_jump(&mut self, at: usize, target: usize) {
        assert!(at + 5 <= self.used);
        // SAFETY: the byte is inside the used part of the writable mapping, and the code is not running.
        unsafe { self.write.add(at).write(0xe9) };
        self.patch_rel32(at + 1, target);
    }

    /// Bytes of code in use.
    pub fn used(&self) -> usize {
        self.used
    }
}

/// Which block the code at an offset belongs to. Code is appended, so the entries are in order.
#[derive(Default)]
pub struct CodeMap {
    entries: Vec<(usize, Option<BlockId>)>,
}

impl CodeMap {
    /// Notes a block's code.
    pub fn insert(&mut self, offset: usize, id: BlockId) {
        match self.entries.last() {
            Some(&(last, _)) if last >= offset => match self.place(offset) {
                Ok(at) => self.entries[at].1 = Some(id),
                Err(at) => self.entries.insert(at, (offset, Some(id))),
            },
            _ => self.entries.push((offset, Some(id))),
        }
    }

    fn place(&self, offset: usize) -> Result<usize, usize> {
        self.entries.binary_search_by_key(&offset, |&(at, _)| at)
    }

    /// The block whose code starts there.
    pub fn get(&self, offset: usize) -> Option<BlockId> {
        self.entries[self.place(offset).ok()?].1
    }

    /// The code that an offset lies in, if it is anywhere: where it starts, and whose it is.
    pub fn find(&self, offset: usize) -> Option<(usize, BlockId)> {
        let after = self.entries.partition_point(|&(at, _)| at <= offset);
        let (start, id) = self.entries[after.checked_sub(1)?];
        Some((start, id?))
    }

    /// The code there is nobody's any more.
    pub fn remove(&mut self, offset: usize) {
        if let Ok(at) = self.place(offset) {
            self.entries[at].1 = None;
        }
    }

    pub fn clear(&mut self) {
        self.entries.clear();
    }
}

impl Drop for CodeBuffer {
    fn drop(&mut self) {
        // SAFETY: both mappings were made in `new` with this size.
        unsafe {
            libc::munmap(self.write.cast(), self.size);
            libc::munmap(self.exec.cast(), self.size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_found_in_the_code_that_starts_before_it() {
        let mut map = CodeMap::default();
        assert_eq!(map.find(5), None);
        map.insert(16, 7);
        map.insert(48, 3);
        map.insert(96, 5);
        assert_eq!(map.find(15), None);
        assert_eq!(map.find(16), Some((16, 7)));
        assert_eq!(map.find(95), Some((48, 3)));
        map.remove(48);
        assert_eq!((map.find(50), map.get(48)), (None, None));
        map.insert(48, 9);
        map.insert(64, 1);
        assert_eq!(map.find(63), Some((48, 9)));
        assert_eq!(map.find(4096), Some((96, 5)));
        assert_eq!(map.get(64), Some(1));
    }
}
