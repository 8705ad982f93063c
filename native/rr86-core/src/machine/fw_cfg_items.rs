//! The items of the firmware configuration device, and where the guest stands in them.
//!
//! Keys and the file directory follow QEMU's `docs/specs/fw_cfg`. Items are read-only and part of the board's
//! configuration, so the state is the selected key and the position only.

use super::device::{LoadError, Reader, State, Writer};
use crate::contents::Contents;
use std::collections::BTreeMap;

const KEY_SIGNATURE: u16 = 0x00;
const KEY_ID: u16 = 0x01;
const KEY_RAM_SIZE: u16 = 0x03;
const KEY_NB_CPUS: u16 = 0x05;
const KEY_MAX_CPUS: u16 = 0x0f;
const KEY_FILE_DIR: u16 = 0x19;
/// First key of named files.
const KEY_FILE_FIRST: u16 = 0x20;
/// Key bits: the write channel (0x4000) selects nothing of its own.
const KEY_MASK: u16 = 0xbfff;
/// Keys of one space, without the architecture bit.
const KEY_SPACE_END: u16 = 0x4000;

/// Interface id: the traditional interface (bit 0) and DMA (bit 1).
const INTERFACES: u32 = 3;
/// Room for a file's name in the directory, with its final zero.
const FILE_NAME_SIZE: usize = 56;

/// All items, of which one is selected.
pub struct Items {
    items: BTreeMap<u16, Contents>,
    selector: u16,
    position: u32,
}

impl Items {
    /// The items that describe the board (`vcpus`, `memory` in bytes), `items` by key
    /// (these may replace the board's own) and `files` by name. Files get keys from 0x20 in the order
    /// of their names; of two with the same name the last counts.
    #[must_use]
    pub fn new(
        vcpus: usize,
        memory: u64,
        items: &[(u16, Contents)],
        files: &[(String, Vec<u8>)],
    ) -> Self {
        let cpus = u16::try_from(vcpus).unwrap_or(u16::MAX).to_le_bytes();
        let mut map = BTreeMap::new();
        map.insert(KEY_SIGNATURE, b"QEMU".into());
        map.insert(KEY_ID, INTERFACES.to_le_bytes().into());
        map.insert(KEY_RAM_SIZE, memory.to_le_bytes().into());
        map.insert(KEY_NB_CPUS, cpus.into());
        map.insert(KEY_MAX_CPUS, cpus.into());

        let named: BTreeMap<&str, &Vec<u8>> = files
            .iter()
            .map(|(name, content)| (name.as_str(), content))
            .collect();
        let mut entries = Vec::new();
        let mut count: u32 = 0;
        for (key, (name, content)) in (KEY_FILE_FIRST..KEY_SPACE_END).zip(&named) {
            let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
            entries.extend_from_slice(&size.to_be_bytes());
            entries.extend_from_slice(&key.to_be_bytes());
            entries.extend_from_slice(&[0, 0]);
            let mut field = [0; FILE_NAME_SIZE];
            for (to, from) in field[..FILE_NAME_SIZE - 1].iter_mut().zip(name.bytes()) {
                *to = from;
            }
            entries.extend_from_slice(&field);
            map.insert(key, content.as_slice().into());
            count += 1;
        }
        let mut directory = count.to_be_bytes().to_vec();
        directory.append(&mut entries);
        map.insert(KEY_FILE_DIR, directory.into());

        for (key, content) in items {
            map.insert(key & KEY_MASK, content.clone());
        }
        Self {
            items: map,
            selector: KEY_SIGNATURE,
            position: 0,
        }
    }

    /// Selects what is selected after power-on.
    pub fn reset(&mut self) {
        self.select(KEY_SIGNATURE);
    }

    /// Selects an item, from its beginning.
    pub fn select(&mut self, key: u16) {
        self.selector = key & KEY_MASK;
        self.position = 0;
    }

    /// The item's bytes from the position on.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        self.items
            .get(&self.selector)
            .and_then(|item| item.get(usize::try_from(self.position).ok()?..))
            .unwrap_or(&[])
    }

    /// Moves on by `count` bytes, at most to the item's end.
    pub fn skip(&mut self, count: u32) {
        let left = u32::try_from(self.rest().len()).unwrap_or(u32::MAX);
        self.position = self.position.saturating_add(count.min(left));
    }

    /// The byte at the position, which moves on. Behind the end there are zeros.
    pub fn next_byte(&mut self) -> u8 {
        let byte = self.rest().first().copied();
        self.skip(1);
        byte.unwrap_or(0)
    }
}

impl State for Items {
    fn save(&self, w: &mut Writer) {
        w.u16(self.selector);
        w.u32(self.position);
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.selector = r.u16()?;
        self.position = r.u32()?;
        Ok(())
    }
}
