//! The whole machine at a moment between two slices, as bytes, and back.
//!
//! RAM is apart: whoever keeps a checkpoint keeps the pages that changed since the one before
//! ([`Machine::take_changed_pages`]). Everything else is written in full.

use thiserror::Error;

use super::machine::Machine;
use crate::machine::Signal;
use crate::memory::image::RamImage;
use crate::memory::PAGE_SIZE;
use crate::runtime::checkpoint::Blocks;
use crate::saved::{LoadError, Reader, Writer};

/// The first byte of a state: how the rest is laid out. A state of another layout is refused.
const LAYOUT: u8 = 1;

/// A checkpoint that cannot be made or restored.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CheckpointError {
    #[error("no checkpoints can be made: {0}")]
    Impossible(&'static str),
    #[error("the checkpoint cannot be restored: {0}")]
    State(#[from] LoadError),
    #[error("the checkpoint has layout {0}, which this version of rr86 does not know")]
    Layout(u8),
    #[error("the checkpoint cannot be restored: page {0:#x} is no RAM")]
    Page(usize),
    #[error("the memory of a moment cannot be put in: {0}")]
    Memory(String),
    #[error("the checkpoint cannot be restored: its state is of another moment")]
    Moment,
    #[error("the checkpoint cannot be restored: {0} does not have the digest that it had")]
    Digest(String),
}

fn save_signal(w: &mut Writer, signal: Signal) {
    let (kind, vcpu, value) = match signal {
        Signal::Init(v) => (0, v, 0),
        Signal::Sipi(v, page) => (1, v, u32::from(page)),
        Signal::Nmi(v) => (2, v, 0),
        Signal::Interrupt(v) => (3, v, 0),
        Signal::PowerOff => (4, 0, 0),
        Signal::Reset => (5, 0, 0),
        Signal::DebugExit(code) => (6, 0, code),
        Signal::DeadlineChanged => (7, 0, 0),
        // Nothing goes on from here, so this is never loaded.
        Signal::DeviceFailed => (8, 0, 0),
    };
    w.u8(kind);
    w.varint(vcpu as u64);
    w.u32(value);
}

fn load_signal(r: &mut Reader<'_>, vcpus: usize) -> Result<Signal, LoadError> {
    let kind = r.u8()?;
    let vcpu = r.index("vCPU of a signal", vcpus)?;
    let value = r.u32()?;
    Ok(match kind {
        0 => Signal::Init(vcpu),
        1 => Signal::Sipi(vcpu, value as u8),
        2 => Signal::Nmi(vcpu),
        3 => Signal::Interrupt(vcpu),
        4 => Signal::PowerOff,
        5 => Signal::Reset,
        6 => Signal::DebugExit(value),
        7 => Signal::DeadlineChanged,
        other => {
            return Err(LoadError::BadValue {
                field: "signal",
                value: other.into(),
            })
        }
    })
}

impl Machine {
    /// From now on notes which pages change, so that checkpoints can be made.
    ///
    /// # Errors
    /// When this machine has state that checkpoints do not hold.
    pub fn allow_checkpoints(&mut self) -> Result<(), CheckpointError> {
        if let Some(why) = self.engine.keeps_more() {
            return Err(CheckpointError::Impossible(why));
        }
        self.engine.memory.pages.note_changes();
        Ok(())
    }

    /// The pages that changed since the last checkpoint; each with whether it is zero now. Digests
    /// have just been taken.
    pub fn take_changed_pages(&mut self) -> Vec<(usize, bool)> {
        let pages = &mut self.engine.memory.pages;
        let changed = pages.take_changed();
        changed
            .into_iter()
            .map(|page| (page, pages.is_zero(page)))
            .collect()
    }

    /// Everything but RAM. The machine stands between two slices, and `digests` are those of now.
    pub fn save(&mut self, digests: &[(String, u64)]) -> Vec<u8> {
        let mut w = Writer::new();
        w.u8(LAYOUT);
        w.varint(self.engine.vcpu_count() as u64);
        w.varint(self.engine.memory.ram.pages() as u64);
        w.varint(digests.len() as u64);
        for (name, value) in digests {
            w.bytes(name.as_bytes());
            w.u64(*value);
        }
        self.engine.save(&mut w);
        let parts = self.board().save();
        w.varint(parts.len() as u64);
        for (name, bytes) in &parts {
            w.bytes(name.as_bytes());
            w.bytes(bytes);
        }
        let signals = self.board().signals().to_vec();
        w.varint(signals.len() as u64);
        for signal in signals {
            save_signal(&mut w, signal);
        }
        w.into_bytes()
    }

    /// Zeroes RAM, before the pages of a checkpoint are put in.
    pub fn wipe(&mut self) {
        let engine = &mut *self.engine;
        engine.memory.pages.wipe(&mut engine.memory.ram);
    }

    /// Puts a page of a checkpoint in.
    ///
    /// # Errors
    /// When there is no such page.
    pub fn set_page(
        &mut self,
        page: usize,
        bytes: &[u8; PAGE_SIZE as usize],
    ) -> Result<(), CheckpointError> {
        if page >= self.engine.memory.ram.pages() {
            return Err(CheckpointError::Page(page));
        }
        self.engine.memory.pages.mark_dirty(page);
        self.engine.memory.ram.page_mut(page).copy_from_slice(bytes);
        Ok(())
    }

    /// Puts an image in the place of all of RAM.
    ///
    /// # Errors
    /// When it is of another size or the host refuses it; then the machine must not run.
    pub fn show(&mut self, image: &RamImage) -> Result<(), CheckpointError> {
        let memory = &mut self.engine.memory;
        let shown = memory.pages.show(&mut memory.ram, image);
        shown.map_err(|error| CheckpointError::Memory(error.to_string()))
    }

    /// Takes over a saved state; RAM has its content already. After an error the machine must not run.
    ///
    /// # Errors
    /// When the state is not one of a machine like this.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), CheckpointError> {
        let digests = self.load_state(state, Blocks::Anew)?;
        self.compare(&digests)
    }

    /// The same for a state that this machine has been in, at which it is now again: blocks that exist here and there
    /// keep their host code.
    ///
    /// # Errors
    /// As `restore`.
    pub fn rewind(&mut self, state: &[u8]) -> Result<(), CheckpointError> {
        let digests = self.load_state(state, Blocks::Kept)?;
        self.compare(&digests)
    }

    fn compare(&mut self, digests: &[(Vec<u8>, u64)]) -> Result<(), CheckpointError> {
        for (name, value) in self.digests() {
            let saved = digests.iter().find(|(n, _)| *n == name.as_bytes());
            if saved.is_none_or(|(_, digest)| *digest != value) {
                return Err(CheckpointError::Digest(name));
            }
        }
        Ok(())
    }

    /// The part of `restore` that makes the machine safe to run; gives the digests to compare with.
    fn load_state(
        &mut self,
        state: &[u8],
        blocks: Blocks,
    ) -> Result<Vec<(Vec<u8>, u64)>, CheckpointError> {
        let mut r = Reader::new(state);
        let layout = r.u8()?;
        if layout != LAYOUT {
            return Err(CheckpointError::Layout(layout));
        }
        let vcpus = self.engine.vcpu_count();
        for (field, own) in [
            ("number of vCPUs", vcpus),
            ("size of RAM", self.engine.memory.ram.pages()),
        ] {
            let value = r.varint()?;
            if value != own as u64 {
                return Err(LoadError::BadValue { field, value }.into());
            }
        }
        let mut digests = Vec::new();
        for _ in 0..r.count("number of digests", 4096)? {
            digests.push((r.bytes()?, r.u64()?));
        }
        // The pages that were put in count as written until now.
        self.engine.ram_digest();
        self.engine.restore(&mut r, blocks)?;
        let mut parts = Vec::new();
        for _ in 0..r.count("number of devices", 4096)? {
            let name = String::from_utf8_lossy(&r.bytes()?).into_owned();
            parts.push((name, r.bytes()?));
        }
        self.board().load(&parts)?;
        let mut signals = Vec::new();
        for _ in 0..r.count("number of signals", 1 << 20)? {
            signals.push(load_signal(&mut r, vcpus)?);
        }
        self.board().set_signals(signals);
        r.finish()?;
        self.forget_slice();
        Ok(digests)
    }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
