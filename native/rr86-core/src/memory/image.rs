//! The RAM of a moment, for any number of machines: each sees it as its own, and gets a copy of the pages that it
//! writes. The host's memory management does that, so a machine costs what it changes.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use super::ram::GuestRam;
use super::PAGE_SHIFT;

/// RAM as it was at a moment. It never changes.
pub struct RamImage {
    file: File,
    size: u64,
    /// The pages that are not zero, ascending.
    pages: Vec<usize>,
}

impl RamImage {
    /// Copies the named pages of RAM, ascending, and takes all others for zero.
    ///
    /// # Errors
    /// The host's error when it refuses the memory.
    pub fn of(ram: &GuestRam, pages: Vec<usize>) -> io::Result<Self> {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: the name is a string with its end, and no other memory is passed.
        let fd = unsafe { libc::memfd_create(c"rr86-ram".as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and nothing else has it.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(ram.size())?;
        for &page in &pages {
            file.write_all_at(ram.page(page), (page as u64) << PAGE_SHIFT)?;
        }
        let seals =
            libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: the descriptor is open, and no memory is passed.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let size = ram.size();
        Ok(Self { file, size, pages })
    }

    /// The pages that are not zero.
    pub fn pages(&self) -> &[usize] {
        &self.pages
    }

    /// Puts this content in the place of all that RAM holds. Marks of lines stay as they are. After an error the RAM
    /// must not be used.
    ///
    /// # Errors
    /// When the sizes differ, or the host refuses the mapping.
    pub fn show(&self, ram: &mut GuestRam) -> io::Result<()> {
        if ram.size() != self.size || ram.is_taken_ahead() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: all of RAM's mapping is replaced, and nothing but that: `GuestRam` made it at this address and with
        // this size. `&mut` keeps references into it away, and raw readers (`RamReader`) may see either content. The
        // file is sealed, so it has its full length and its bytes as long as it is mapped.
        let base = unsafe {
            libc::mmap(
                ram.page_pointer(0).cast(),
                self.size as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                self.file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> RamImage {
        let mut ram = GuestRam::new(1 << 20).unwrap();
        ram.page_mut(3)[7] = 9;
        ram.page_mut(4)[7] = 8;
        RamImage::of(&ram, vec![3]).unwrap()
    }

    #[test]
    fn machines_see_one_image_and_not_what_others_write() {
        let image = image();
        let mut rams: Vec<_> = (0..3).map(|_| GuestRam::new(1 << 20).unwrap()).collect();
        for ram in &mut rams {
            ram.page_mut(200)[0] = 1;
            image.show(ram).unwrap();
        }
        rams[1].page_mut(3)[7] = 1;
        rams[2].page_mut(0)[0] = 2;
        let seen = |ram: &GuestRam| {
            [
                ram.page(3)[7],
                ram.page(4)[7],
                ram.page(0)[0],
                ram.page(200)[0],
            ]
        };
        let all: Vec<_> = rams.iter().map(seen).collect();
        assert_eq!(all, [[9, 0, 0, 0], [1, 0, 0, 0], [9, 0, 2, 0]]);
        let mut later = GuestRam::new(1 << 20).unwrap();
        image.show(&mut later).unwrap();
        assert_eq!(later.page(3)[7], 9);
    }

    #[test]
    fn ram_of_another_size_is_refused() {
        let mut ram = GuestRam::new(2 << 20).unwrap();
        assert!(image().show(&mut ram).is_err());
    }
}
