//! DMA of the firmware configuration device (QEMU's `docs/specs/fw_cfg`, "Guest-side DMA Interface").
//!
//! A descriptor lies in guest memory, all fields big-endian: control (32 bits), length (32), address
//! (64). Control asks for an optional selection of the item in its upper half, then for a read or a
//! skip; when all is done it is overwritten with 0, or with the error bit. Devices have no way to guest
//! memory of their own: the transfer is a chain of [`DmaAccess`]es that the machine makes, one after
//! another, through the one function for writes. It is served before the next instruction, so the
//! guest always finds it done.

use super::device::{LoadError, Reader, State, Writer};
use super::dma::DmaAccess;
use super::fw_cfg_items::Items;
use crate::memory::{PAGE_MASK, PAGE_SIZE};

const CONTROL_ERROR: u32 = 1 << 0;
const CONTROL_READ: u32 = 1 << 1;
const CONTROL_SKIP: u32 = 1 << 2;
const CONTROL_SELECT: u32 = 1 << 3;
const CONTROL_WRITE: u32 = 1 << 4;

/// Size in bytes of a descriptor.
const DESCRIPTOR_SIZE: usize = 16;

/// How far a transfer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    /// The descriptor is still to be read.
    Descriptor,
    /// This many bytes are still to go to `address`.
    Data { address: u64, left: u32 },
    /// The descriptor's control field is to be set to this.
    Status(u32),
}

/// The DMA address register and the transfer under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dma {
    /// Upper half of the descriptor's address, as written last.
    high: u32,
    descriptor: u64,
    phase: Phase,
}

impl Dma {
    pub fn write_high(&mut self, value: u32) {
        self.high = value;
    }

    /// The lower half starts the transfer. The register is empty afterwards.
    pub fn write_low(&mut self, value: u32) {
        self.descriptor = u64::from(self.high) << 32 | u64::from(value);
        self.high = 0;
        self.phase = Phase::Descriptor;
    }

    /// Whether a transfer waits for an access.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.phase != Phase::Idle
    }

    /// The access to guest memory that the transfer under way needs next. Tell the outcome with
    /// [`Dma::done`]. No access crosses a page, but for those to the descriptor.
    #[must_use]
    pub fn access(&self, items: &Items) -> Option<DmaAccess> {
        match self.phase {
            Phase::Idle => None,
            Phase::Descriptor => Some(DmaAccess::Read {
                paddr: self.descriptor,
                length: DESCRIPTOR_SIZE,
            }),
            Phase::Data { address, left } => {
                let room = (PAGE_SIZE - (address & PAGE_MASK)) as usize;
                let length = room.min(left as usize);
                let mut data: Vec<u8> = items.rest().iter().copied().take(length).collect();
                data.resize(length, 0);
                Some(DmaAccess::Write {
                    paddr: address,
                    data,
                })
            }
            Phase::Status(value) => Some(DmaAccess::Write {
                paddr: self.descriptor,
                data: value.to_be_bytes().to_vec(),
            }),
        }
    }

    /// The access has been made; of a read, these are the bytes. `None` says that there is no RAM.
    pub fn done(&mut self, items: &mut Items, bytes: Option<&[u8]>) {
        self.phase = match (self.phase, bytes) {
            (Phase::Idle | Phase::Status(_), _) => Phase::Idle,
            (_, None) => Phase::Status(CONTROL_ERROR),
            (Phase::Descriptor, Some(bytes)) => begin(items, bytes),
            (Phase::Data { address, left }, Some(_)) => {
                let done = (PAGE_SIZE - (address & PAGE_MASK)).min(u64::from(left)) as u32;
                items.skip(done);
                data(address.wrapping_add(u64::from(done)), left - done)
            }
        };
    }
}

/// The big-endian number in four bytes of a descriptor.
fn word(descriptor: &[u8], at: usize) -> u32 {
    descriptor
        .iter()
        .skip(at)
        .take(4)
        .fold(0, |value, &byte| value << 8 | u32::from(byte))
}

/// Does what a descriptor asks for, as far as that needs no memory.
fn begin(items: &mut Items, descriptor: &[u8]) -> Phase {
    let control = word(descriptor, 0);
    let length = word(descriptor, 4);
    let address = u64::from(word(descriptor, 8)) << 32 | u64::from(word(descriptor, 12));
    if control & CONTROL_SELECT != 0 {
        items.select((control >> 16) as u16);
    }
    if control & CONTROL_READ != 0 {
        data(address, length)
    } else if control & CONTROL_WRITE != 0 {
        // Items are read-only.
        Phase::Status(if length == 0 { 0 } else { CONTROL_ERROR })
    } else {
        if control & CONTROL_SKIP != 0 {
            items.skip(length);
        }
        Phase::Status(0)
    }
}

fn data(address: u64, left: u32) -> Phase {
    if left == 0 {
        Phase::Status(0)
    } else {
        Phase::Data { address, left }
    }
}

impl State for Dma {
    fn save(&self, w: &mut Writer) {
        let (tag, address, number) = match self.phase {
            Phase::Idle => (0, 0, 0),
            Phase::Descriptor => (1, 0, 0),
            Phase::Data { address, left } => (2, address, left),
            Phase::Status(value) => (3, 0, value),
        };
        w.u32(self.high);
        w.u64(self.descriptor);
        w.u8(tag);
        w.u64(address);
        w.u32(number);
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.high = r.u32()?;
        self.descriptor = r.u64()?;
        let (tag, address, number) = (r.u8()?, r.u64()?, r.u32()?);
        self.phase = match tag {
            0 => Phase::Idle,
            1 => Phase::Descriptor,
            2 => Phase::Data {
                address,
                left: number,
            },
            3 => Phase::Status(number),
            _ => {
                return Err(LoadError::BadValue {
                    field: "phase of the fw_cfg DMA",
                    value: u64::from(tag),
                })
            }
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::device::{load_from_bytes, save_to_bytes, Device, Outbox};
    use super::super::fw_cfg::FwCfg;
    use super::*;

    const RAM: usize = 0x4000;

    fn device() -> FwCfg {
        let long: Vec<u8> = (0..5000u32).map(|n| n as u8 | 1).collect();
        FwCfg::new(2, 64 << 20, &[], &[("opt/long".to_string(), long)])
    }

    fn descriptor(ram: &mut [u8], control: u32, length: u32, address: u64) {
        ram[0x100..0x104].copy_from_slice(&control.to_be_bytes());
        ram[0x104..0x108].copy_from_slice(&length.to_be_bytes());
        ram[0x108..0x110].copy_from_slice(&address.to_be_bytes());
    }

    /// Makes one access, as the machine does.
    fn step(device: &mut FwCfg, ram: &mut [u8]) -> bool {
        let Some(access) = device.dma_access() else {
            return false;
        };
        match access {
            DmaAccess::Read { paddr, length } => {
                let at = paddr as usize;
                let bytes = ram.get(at..at.saturating_add(length)).map(<[u8]>::to_vec);
                device.dma_done(bytes.as_deref(), 0, &mut Outbox::default());
            }
            DmaAccess::Write { paddr, data } => {
                let ends = (paddr & PAGE_MASK) + data.len() as u64;
                assert!(ends <= PAGE_SIZE || data.len() == 4);
                let at = paddr as usize;
                match ram.get_mut(at..at.saturating_add(data.len())) {
                    Some(to) => {
                        to.copy_from_slice(&data);
                        device.dma_done(Some(&[]), 0, &mut Outbox::default());
                    }
                    None => device.dma_done(None, 0, &mut Outbox::default()),
                }
            }
        }
        true
    }

    /// Runs a transfer and returns what the control field became.
    fn run(device: &mut FwCfg, ram: &mut [u8], control: u32, length: u32, address: u64) -> u32 {
        descriptor(ram, control, length, address);
        device.write(4, 4, 0, 0);
        device.write(8, 4, 0x100u32.swap_bytes(), 0);
        while step(device, ram) {}
        word(ram, 0x100)
    }

    #[test]
    fn the_address_register_shows_the_signature() {
        let mut d = device();
        assert_eq!(d.read(4, 4, 0), u32::from_le_bytes(*b"QEMU"));
        assert_eq!(d.read(8, 4, 0), u32::from_le_bytes(*b" CFG"));
        assert_eq!(d.read(5, 1, 0), u32::from(b'E'));
        assert_eq!(d.read(11, 2, 0), 0xff00 | u32::from(b'G'));
    }

    #[test]
    fn a_selected_item_is_read_over_pages_with_zeros_behind_its_end() {
        let (mut d, mut ram) = (device(), vec![0xee; RAM]);
        assert_eq!(run(&mut d, &mut ram, 0x0020_000a, 5003, 0xff0), 0);
        let expected: Vec<u8> = (0..5000u32).map(|n| n as u8 | 1).collect();
        assert_eq!(ram[0xff0..0xff0 + 5000], expected);
        assert_eq!(ram[0xff0 + 5000..0xff0 + 5004], [0, 0, 0, 0xee]);
        assert!(!d.wants_dma());
    }

    #[test]
    fn skips_and_reads_share_the_position_with_the_data_port() {
        let (mut d, mut ram) = (device(), vec![0; RAM]);
        assert_eq!(
            run(&mut d, &mut ram, CONTROL_SELECT | CONTROL_SKIP, 1, 0),
            0
        );
        assert_eq!(run(&mut d, &mut ram, CONTROL_READ, 2, 0x200), 0);
        assert_eq!(&ram[0x200..0x203], b"EM\0");
        assert_eq!(d.read(1, 1, 0), u32::from(b'U'));
    }

    #[test]
    fn writes_to_items_and_transfers_outside_of_memory_are_errors() {
        let (mut d, mut ram) = (device(), vec![0; RAM]);
        let select = CONTROL_SELECT;
        assert_eq!(run(&mut d, &mut ram, select | CONTROL_WRITE, 4, 0x200), 1);
        assert_eq!(run(&mut d, &mut ram, select | CONTROL_READ, 4, u64::MAX), 1);
        assert_eq!(
            run(&mut d, &mut ram, select | CONTROL_READ, 4, RAM as u64),
            1
        );
        d.write(4, 4, u32::MAX, 0);
        d.write(8, 4, u32::MAX, 0);
        while step(&mut d, &mut ram) {}
        assert!(!d.wants_dma());
    }

    #[test]
    fn a_saved_transfer_goes_on_in_another_device() {
        let (mut d, mut ram) = (device(), vec![0; RAM]);
        descriptor(&mut ram, 0x0020_000a, 4200, 0x800);
        d.write(8, 4, 0x100u32.swap_bytes(), 0);
        let mut steps = 0;
        loop {
            let mut other = device();
            load_from_bytes(&mut other, &save_to_bytes(&d)).unwrap();
            assert_eq!(save_to_bytes(&other), save_to_bytes(&d));
            d = other;
            if !step(&mut d, &mut ram) {
                break;
            }
            steps += 1;
        }
        // The descriptor, data on two pages, the status.
        assert_eq!(steps, 4);
        assert_eq!((ram[0x800], ram[0x800 + 4199]), (1, 4199u32 as u8 | 1));
    }
}
