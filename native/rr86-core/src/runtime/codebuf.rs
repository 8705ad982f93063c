//! The buffer that holds translated code: one memory object, mapped twice. The executable mapping
//! is never writable and the writable one never executable.

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::io;

use crate::translate::code::BlockId;
use crate::translate::encode::asm::Asm;

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
    /// Code was written since the processor was last serialised; see [`CodeBuffer::settle`].
    unsettled: bool,
    /// The host has the instruction that does nothing else than serialise.
    serialize: bool,
}

/// Bytes for which the host is asked at once: it gives them page by page otherwise, and an interruption for
/// each page costs more than the page.
const ASKED_AT_ONCE: usize = 256 << 10;

/// What is kept free for code that is made while other code runs, when nothing can be dropped: see
/// [`CodeBuffer::append_reserved`].
const RESERVE: usize = 8 << 20;

/// The place of a code buffer, for another thread.
pub struct Mapping {
    write: usize,
    size: usize,
}

impl Mapping {
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
                unsettled: true,
                serialize: has_serialize(),
            })
        }
    }

    /// Appends code; `None` when the buffer is full but for its reserve. Returns its offset.
    pub fn append(&mut self, code: &[u8]) -> Option<usize> {
        let room = (self.size - self.reserve()).checked_sub(self.used)?;
        (code.len() <= room).then(|| self.append_reserved(code))?
    }

    #[inline]
    fn reserve(&self) -> usize {
        RESERVE.min(self.size / 8)
    }

    /// Whether the reserve is in use, so that code has to be dropped before more is made.
    #[inline]
    pub fn uses_reserve(&self) -> bool {
        self.used > self.size - self.reserve()
    }

    /// Appends code that replaces other code while that may run, and so must not be dropped; `None` when not even the
    /// reserve has room. Returns its offset.
    pub fn append_reserved(&mut self, code: &[u8]) -> Option<usize> {
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
        self.unsettled = true;
        Some(at)
    }

    /// To be called between writing code and running it. A processor looks whether code that it fetches is being
    /// written at the address that the code runs at, and this one is written through another. So it may run
    /// what was there before, long after the store: it does, where a block's code is so long that it is copied
    /// with REP MOVSB, once in some millions. What helps is to serialise (SDM vol. 3A, section "Self-Modifying
    /// Code").
    #[inline]
    pub fn settle(&mut self) {
        if std::mem::take(&mut self.unsettled) {
            serialise(self.serialize);
        }
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
    pub fn mapping(&self) -> Mapping {
        Mapping {
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
        self.unsettled = true;
    }

    /// Overwrites the code at `at` with a jump to `target` (both offsets).
    pub fn patch_jump(&mut self, at: usize, target: usize) {
        assert!(at + 5 <= self.used);
        // SAFETY: the byte is inside the used part of the writable mapping. Code of this thread may have called Rust out
        // of this block; it goes on behind the block's first five bytes.
        unsafe { self.write.add(at).write(0xe9) };
        self.patch_rel32(at + 1, target);
    }

    /// Bytes of code in use.
    pub fn used(&self) -> usize {
        self.used
    }
}

/// Whether the host has SERIALIZE.
#[allow(unused_unsafe, reason = "older compilers call reading CPUID unsafe")]
fn has_serialize() -> bool {
    // SAFETY: every x86-64 processor has CPUID.
    unsafe { __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx >> 14 & 1 != 0 }
}

/// Has the processor finish what it has begun and fetch anew what comes next.
fn serialise(has_serialize: bool) {
    if has_serialize {
        // SAFETY: SERIALIZE changes nothing that a program sees.
        unsafe { std::arch::asm!(".byte 0x0f, 0x01, 0xe8") };
    } else {
        // CPUID would do too, but takes microseconds in a virtual machine.
        // SAFETY: IRETQ to the next instruction, with the flags, stack and segments that there are.
        unsafe {
            std::arch::asm!(
                "mov {t:e}, ss",
                "push {t}",
                "lea {t}, [rsp + 8]",
                "push {t}",
                "pushfq",
                "mov {t:e}, cs",
                "push {t}",
                "lea {t}, [rip + 2f]",
                "push {t}",
                "iretq",
                "2:",
                t = out(reg) _,
            );
        }
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

    /// The code there belongs to no block any more.
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

    /// Reads here and there, so that the processor has to wait.
    extern "C" fn read_around(words: *const u64) -> u64 {
        // SAFETY: the test gives it an array of this length.
        let words = unsafe { std::slice::from_raw_parts(words, 1 << 17) };
        (1..=8).fold(0, |at, n| words[(at as usize + n * 16411) % (1 << 17)])
    }

    /// Code that adds `value` up from one cache line to the next, many times, with calls in between.
    fn adding_up(value: u32) -> Vec<u8> {
        // push rbx; push r12; push r12; mov r12, rdi; xor ebx, ebx
        let mut code = vec![0x53, 0x41, 0x54, 0x41, 0x54, 0x49, 0x89, 0xfc, 0x31, 0xdb];
        for line in 0..13 {
            // add ebx, value
            code.extend([0x81, 0xc3]);
            code.extend(value.to_le_bytes());
            if line % 6 == 3 {
                // mov rax, read_around; mov rdi, r12; call rax
                code.extend([0x48, 0xb8]);
                code.extend((read_around as *const () as u64).to_le_bytes());
                code.extend([0x4c, 0x89, 0xe7, 0xff, 0xd0]);
            }
            // jmp over as many int3
            let skipped = 40 + (value >> 28) as u8;
            code.extend([0xeb, skipped]);
            code.resize(code.len() + usize::from(skipped), 0xcc);
        }
        // mov eax, ebx; pop r12; pop r12; pop rbx; ret
        code.extend([0x89, 0xd8, 0x41, 0x5c, 0x41, 0x5c, 0x5b, 0xc3]);
        code
    }

    /// Runs newly written code, many times; without `settle` this dies on the hosts that need it.
    fn what_was_written_runs(serialize: bool) {
        let words: Vec<u64> = (0..1 << 17).map(|n: u64| n.wrapping_mul(40_503)).collect();
        let fresh = || {
            let mut buffer = CodeBuffer::new(1 << 20).unwrap();
            buffer.serialize = serialize;
            buffer
        };
        let mut buffer = fresh();
        let mut value = 1u32;
        for _ in 0..250_000 {
            value = value.wrapping_mul(0x9e37_79b1).wrapping_add(1);
            let mut code = adding_up(value);
            code.resize(1024, 0xcc);
            if buffer.used + code.len() > buffer.size {
                buffer = fresh();
            }
            // As `append` does it, but always in the way that it takes with long code only, and that processors
            // take longest to notice.
            let at = buffer.used;
            // SAFETY: the range is inside the writable mapping.
            unsafe {
                std::arch::asm!("rep movsq", inout("rcx") code.len() / 8 => _,
                    inout("rsi") code.as_ptr() => _, inout("rdi") buffer.write.add(at) => _);
            }
            buffer.used += code.len();
            buffer.unsettled = true;
            buffer.settle();
            // SAFETY: the code is a function of this type.
            let function: extern "C" fn(*const u64) -> u32 =
                unsafe { std::mem::transmute(buffer.address(at)) };
            assert_eq!(function(words.as_ptr()), value.wrapping_mul(13));
        }
    }

    #[test]
    fn code_that_replaces_other_code_has_room_where_new_code_has_none() {
        let mut buffer = CodeBuffer::new(1 << 20).unwrap();
        let code = [0x90; 1000];
        while buffer.append(&code).is_some() {}
        assert!(!buffer.uses_reserve());
        assert!(buffer.append_reserved(&code).is_some());
        assert!(buffer.uses_reserve());
        assert!(buffer.append(&code).is_none());
        while buffer.append_reserved(&code).is_some() {}
        buffer.clear();
        assert!(!buffer.uses_reserve() && buffer.append(&code).is_some());
    }

    #[test]
    fn what_was_written_is_what_runs() {
        what_was_written_runs(has_serialize());
    }

    #[test]
    fn what_was_written_is_what_runs_on_a_host_without_serialize() {
        what_was_written_runs(false);
    }

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
