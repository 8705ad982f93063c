//! QEMU's firmware configuration device (ports 0x510/0x511, DMA at 0x514 to 0x51b).
//!
//! The guest writes a 16-bit key to port 0x510 and reads that item's bytes one after another from
//! port 0x511; behind the end it reads zeros. Or it gives the device the address of a descriptor (in
//! [`fw_cfg_dma`](super::fw_cfg_dma)) through the DMA address register, big-endian like everything of
//! the DMA interface; the write of the lower half starts the transfer. Keys and the file directory
//! follow QEMU's `docs/specs/fw_cfg`. Items are read-only and part of the board's configuration, so
//! the state is only the selected key, the position and a transfer under way.
//!
//! Interface: [`FwCfg::read`] and [`FwCfg::write`] with the offset from 0x510, whole accesses (the
//! caller must not split them into bytes, since the selector is 16 bits wide and overlaps the data
//! port); [`FwCfg::dma`], which the machine serves between two blocks; [`FwCfg::reset`].

use super::device::{LoadError, Reader, State, Writer};
use super::fw_cfg_dma::Dma;
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
/// Offset of the DMA address register from the selector.
const DMA_ADDRESS: u16 = 4;
/// What the DMA address register reads as.
const DMA_SIGNATURE: &[u8; 8] = b"QEMU CFG";
/// Room for a file's name in the directory, with its final zero.
const FILE_NAME_SIZE: usize = 56;

/// The fw_cfg device.
pub struct FwCfg {
    items: BTreeMap<u16, Contents>,
    selector: u16,
    position: u32,
    pub(super) dma: Dma,
}

impl FwCfg {
    /// A device with the items that describe the board (`vcpus`, `memory` in bytes), `items` by key
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
            dma: Dma::default(),
        }
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        self.select(KEY_SIGNATURE);
        self.dma = Dma::default();
    }

    /// Reads port 0x510 + `offset`. The selector reads as zero; each read at offset 1 takes one byte
    /// of the item, and further bytes of a wide access belong to ports that do not exist. The DMA
    /// address register reads as the device's signature.
    pub fn read(&mut self, offset: u16, size: usize, _now: u64) -> u32 {
        match (offset, size) {
            (0, 1) => 0,
            (0, _) => 0xffff_0000 | u32::from(self.next_byte()) << 8,
            (1, 1) => u32::from(self.next_byte()),
            (1, _) => 0xffff_ff00 | u32::from(self.next_byte()),
            (DMA_ADDRESS.., _) => (0..size.min(4)).fold(0, |value, index| {
                let byte = DMA_SIGNATURE.get(usize::from(offset - DMA_ADDRESS) + index);
                value | u32::from(*byte.unwrap_or(&0xff)) << (8 * index)
            }),
            _ => u32::MAX,
        }
    }

    /// Writes port 0x510 + `offset`: a write of two bytes at offset 0 selects an item, four bytes go
    /// to a half of the DMA address register, others do nothing (items are read-only).
    pub fn write(&mut self, offset: u16, size: usize, value: u32, _now: u64) {
        match (offset, size) {
            (0, 2..) => self.select(value as u16),
            (DMA_ADDRESS, 4) => self.dma.write_high(value.swap_bytes()),
            (8, 4) => self.dma.write_low(value.swap_bytes()),
            _ => {}
        }
    }

    /// Selects an item, from its beginning.
    pub(super) fn select(&mut self, key: u16) {
        self.selector = key & KEY_MASK;
        self.position = 0;
    }

    /// The item's bytes from the position on.
    pub(super) fn rest(&self) -> &[u8] {
        self.items
            .get(&self.selector)
            .and_then(|item| item.get(usize::try_from(self.position).ok()?..))
            .unwrap_or(&[])
    }

    /// Moves on by `count` bytes, at most to the item's end.
    pub(super) fn skip(&mut self, count: u32) {
        let left = u32::try_from(self.rest().len()).unwrap_or(u32::MAX);
        self.position = self.position.saturating_add(count.min(left));
    }

    fn next_byte(&mut self) -> u8 {
        let byte = self.rest().first().copied();
        self.skip(1);
        byte.unwrap_or(0)
    }
}

impl State for FwCfg {
    fn save(&self, w: &mut Writer) {
        w.u16(self.selector);
        w.u32(self.position);
        self.dma.save(w);
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.selector = r.u16()?;
        self.position = r.u32()?;
        self.dma.load(r)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(device: &mut FwCfg, key: u16, length: usize) -> Vec<u8> {
        device.write(0, 2, u32::from(key), 0);
        (0..length).map(|_| device.read(1, 1, 0) as u8).collect()
    }

    fn device() -> FwCfg {
        FwCfg::new(
            4,
            512 << 20,
            &[(0x8003, [7, 8].into())],
            &[
                ("opt/b".to_string(), b"bb".to_vec()),
                ("etc/a".to_string(), b"aaa".to_vec()),
            ],
        )
    }

    #[test]
    fn the_board_is_described() {
        let mut d = device();
        assert_eq!(item(&mut d, 0x00, 4), b"QEMU");
        assert_eq!(item(&mut d, 0x01, 4), [3, 0, 0, 0]);
        assert_eq!(item(&mut d, 0x03, 8), (512u64 << 20).to_le_bytes());
        assert_eq!(item(&mut d, 0x05, 2), [4, 0]);
        assert_eq!(item(&mut d, 0x0f, 2), [4, 0]);
        assert_eq!(item(&mut d, 0x8003, 2), [7, 8]);
    }

    #[test]
    fn behind_the_end_and_for_unknown_keys_zeros_are_read() {
        let mut d = device();
        assert_eq!(item(&mut d, 0x05, 4), [4, 0, 0, 0]);
        assert_eq!(item(&mut d, 0x1234, 2), [0, 0]);
    }

    #[test]
    fn the_directory_lists_files_by_name_with_their_keys() {
        let mut d = device();
        let directory = item(&mut d, 0x19, 4 + 2 * 64);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        assert_eq!(directory[4..12], [0, 0, 0, 3, 0, 0x20, 0, 0]);
        assert_eq!(&directory[12..18], b"etc/a\0");
        assert_eq!(directory[68..76], [0, 0, 0, 2, 0, 0x21, 0, 0]);
        assert_eq!(item(&mut d, 0x21, 3), b"bb\0");
    }

    #[test]
    fn a_saved_position_continues_in_the_middle_of_an_item() {
        let mut d = device();
        item(&mut d, 0x00, 2);
        let mut w = Writer::new();
        d.save(&mut w);
        let bytes = w.into_bytes();
        let mut other = device();
        assert!(other.load(&mut Reader::new(&bytes)).is_ok());
        assert_eq!(other.read(1, 1, 0), u32::from(b'M'));
    }
}
