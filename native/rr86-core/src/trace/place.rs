//! Where a trace is written. One that takes another's place has no name at first, and gets it when a replay could begin:
//! until then what was there before stays, whatever becomes of the recorder.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::error::TraceError;

/// A file without a name, for the folder of `target`. File systems that have none exist.
pub(super) fn unnamed(target: &Path, mode: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).mode(mode & 0o777);
    options.custom_flags(libc::O_TMPFILE).open(folder(target))
}

fn folder(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Gives a file without a name that of `target`, in place of what has it.
pub(super) fn name(file: &File, target: &Path) -> io::Result<()> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut between = std::ffi::OsString::from(".");
    between.push(target.file_name().unwrap_or_default());
    between.push(format!(".{}.{number}.new", std::process::id()));
    let between = folder(target).join(between);
    let source = std::ffi::CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let link = std::ffi::CString::new(between.as_os_str().as_bytes())?;
    // SAFETY: both are strings with their ends, and the call touches no other memory.
    let linked = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            source.as_ptr(),
            libc::AT_FDCWD,
            link.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    if linked != 0 {
        return Err(io::Error::last_os_error());
    }
    std::fs::rename(&between, target).inspect_err(|_| {
        let _ = std::fs::remove_file(&between);
    })
}

/// A file that no other recorder writes to, and that is going to have a name.
pub(super) struct Place {
    pub file: File,
    /// The trace whose name it takes, locked until then.
    pub replaced: Option<Replaced>,
}

pub(super) struct Replaced {
    _old: File,
    /// Without symbolic links.
    pub target: PathBuf,
    pub mode: u32,
}

impl Place {
    /// A new file at a path, or one that takes the place of the file there.
    ///
    /// # Errors
    /// When another recorder writes to it, or it cannot be written.
    pub fn take(path: &Path) -> Result<Self, TraceError> {
        let io = |e| TraceError::io(path, e);
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false);
        let file = options.open(path).map_err(io)?;
        lock(&file, path)?;
        let known = file.metadata().map_err(io)?;
        if known.is_file() && known.len() > 0 {
            if let Ok(target) = path.canonicalize() {
                if let Ok(new) = unnamed(&target, known.mode()) {
                    lock(&new, path)?;
                    let replaced = Replaced {
                        _old: file,
                        target,
                        mode: known.mode(),
                    };
                    return Ok(Self {
                        file: new,
                        replaced: Some(replaced),
                    });
                }
            }
        }
        file.set_len(0).map_err(io)?;
        Ok(Self {
            file,
            replaced: None,
        })
    }
}

/// Keeps other recorders from a file as long as this one has it open.
fn lock(file: &File, path: &Path) -> Result<(), TraceError> {
    // SAFETY: the descriptor is that of `file`, which is open, and no memory is passed.
    let locked = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    let error = io::Error::last_os_error();
    // File systems without locks exist; there it is up to the user.
    if locked != 0 && error.kind() == io::ErrorKind::WouldBlock {
        return Err(TraceError::InUse {
            path: path.to_owned(),
        });
    }
    Ok(())
}
