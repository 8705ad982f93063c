//! QEMU's firmware configuration device (ports 0x510/0x511, DMA at 0x514 to 0x51b).
//!
//! The guest writes a 16-bit key to port 0x510 and reads that item's bytes one after another from
//! port 0x511; behind the end it reads zeros. Or it gives the device the address of a descriptor (in
//! [`fw_cfg_dma`](super::fw_cfg_dma)) through the DMA address register, big-endian like everything of
//! the DMA interface; the write of the lower half starts the transfer. Keys and the file directory
//! follow QEMU's `docs/specs/fw_cfg`. Items are read-only and part of the board's configuration, so
//! the state is only the selected key, the position and a transfer under way.
//!
//! Accesses come whole, never split into bytes, since the selector is 16 bits wide and overlaps the data
//! port.

use super::device::{Access, Device, LoadError, Outbox, Reader, State, Writer};
use super::dma::DmaAccess;
use super::fw_cfg_dma::Dma;
use super::fw_cfg_items::Items;
use super::range::{Range, Takes};
use crate::contents::Contents;
use std::borrow::Cow;

/// Offset of the DMA address register from the selector.
const DMA_ADDRESS: u16 = 4;
/// What the DMA address register reads as.
const DMA_SIGNATURE: &[u8; 8] = b"QEMU CFG";
/// The selector's port.
const BASE: u16 = 0x510;

/// The fw_cfg device.
pub struct FwCfg {
    items: Items,
    dma: Dma,
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
        Self {
            items: Items::new(vcpus, memory, items, files),
            dma: Dma::default(),
        }
    }

    /// Reads port 0x510 + `offset`. The selector reads as zero; each read at offset 1 takes one byte
    /// of the item, and further bytes of a wide access belong to ports that do not exist. The DMA
    /// address register reads as the device's signature.
    pub fn read(&mut self, offset: u16, size: usize, _now: u64) -> u32 {
        match (offset, size) {
            (0, 1) => 0,
            (0, _) => 0xffff_0000 | u32::from(self.items.next_byte()) << 8,
            (1, 1) => u32::from(self.items.next_byte()),
            (1, _) => 0xffff_ff00 | u32::from(self.items.next_byte()),
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
            (0, 2..) => self.items.select(value as u16),
            (DMA_ADDRESS, 4) => self.dma.write_high(value.swap_bytes()),
            (8, 4) => self.dma.write_low(value.swap_bytes()),
            _ => {}
        }
    }
}

impl State for FwCfg {
    fn save(&self, w: &mut Writer) {
        self.items.save(w);
        self.dma.save(w);
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.items.load(r)?;
        self.dma.load(r)
    }
}

impl Device for FwCfg {
    fn name(&self) -> Cow<'static, str> {
        "fw_cfg".into()
    }

    fn reset(&mut self) {
        self.items.reset();
        self.dma = Dma::default();
    }

    fn ranges(&self) -> Vec<Range> {
        [(0, 2), (DMA_ADDRESS, 8)]
            .map(|(at, length)| Range::ports(BASE + at, length, at as u8).taking(Takes::Beginning))
            .into()
    }

    fn read(&mut self, at: Access, _out: &mut Outbox) -> u64 {
        FwCfg::read(self, offset(at), at.size, at.now).into()
    }

    fn write(&mut self, at: Access, value: u64, _out: &mut Outbox) {
        FwCfg::write(self, offset(at), at.size, value as u32, at.now);
    }

    fn wants_dma(&self) -> bool {
        self.dma.busy()
    }

    fn dma_access(&self) -> Option<DmaAccess> {
        self.dma.access(&self.items)
    }

    fn dma_done(&mut self, bytes: Option<&[u8]>, _now: u64, _out: &mut Outbox) {
        self.dma.done(&mut self.items, bytes);
    }
}

/// Offset from the selector.
fn offset(at: Access) -> u16 {
    u16::from(at.region) + at.offset as u16
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
