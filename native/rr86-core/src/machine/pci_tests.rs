//! The root bus as guests use it, through ports and memory.

use super::super::bus::Bus;
use super::super::interrupts::Interrupts;
use super::*;

/// A bus with nothing but the root bus.
struct Chipset(Bus);

impl Chipset {
    fn new() -> Self {
        Self(Bus::new(Interrupts::new(1), vec![Box::new(Pci::new())]))
    }

    fn pci(&self) -> &Pci {
        self.0.get(self.0.others().start)
    }

    fn io_read(&mut self, offset: u16, size: usize) -> u32 {
        let mut out = Outbox::default();
        self.0.io_read(0xcf8 + offset, size, 0, &mut out)
    }

    fn io_write(&mut self, offset: u16, size: usize, value: u32) {
        let mut out = Outbox::default();
        self.0.io_write(0xcf8 + offset, size, value, 0, &mut out);
        if out.moved {
            self.0.remap();
        }
    }

    fn read(&mut self, paddr: u64, size: usize) -> u64 {
        let mut out = Outbox::default();
        self.0.memory_read(0, paddr, size, 0, &mut out)
    }

    fn write(&mut self, paddr: u64, size: usize, value: u64) {
        let mut out = Outbox::default();
        self.0.memory_write(0, paddr, size, value, 0, &mut out);
    }

    fn config(&mut self, device: u32, register: u32, size: usize) -> u32 {
        self.io_write(0, 4, address(device, register & 0xfc));
        self.io_read(4 + (register & 3) as u16, size)
    }
}

const MMCONFIG_BASE: u64 = 0xb000_0000;
const RCBA_BASE: u64 = 0xfed1_c000;

fn address(device: u32, register: u32) -> u32 {
    ADDRESS_ENABLE | device << 11 | register
}

#[test]
fn linux_finds_mechanism_one_and_the_two_bridges() {
    let mut pci = Chipset::new();
    pci.io_write(3, 1, 0x01);
    pci.io_write(0, 4, 0x8000_0000);
    assert_eq!(pci.io_read(0, 4), 0x8000_0000);
    assert_eq!(pci.config(0, 0, 4), 0x29c0_8086);
    assert_eq!(pci.config(0, 0x0a, 2), 0x0600);
    assert_eq!(pci.config(31, 0, 4), 0x2918_8086);
    assert_eq!(pci.config(31, 0x0b, 1), 0x06);
    assert_eq!(pci.config(31, 0x0e, 1), 0x80);
    for device in 1..31 {
        assert_eq!(pci.config(device, 0, 4), u32::MAX);
    }
    pci.io_write(0, 4, address(0, 0) | 1 << 16);
    assert_eq!(pci.io_read(4, 4), u32::MAX);
}

#[test]
fn mmconfig_and_ports_show_the_same_registers() {
    let mut pci = Chipset::new();
    assert_eq!(pci.pci().mmconfig_range(), Some((0xb000_0000, 256 << 20)));
    assert_eq!(pci.read(MMCONFIG_BASE + (31 << 15), 4), 0x2918_8086);
    assert_eq!(pci.read(MMCONFIG_BASE + (0x100), 4), 0xffff_ffff);
    assert_eq!(pci.read(MMCONFIG_BASE + (1 << 20), 4), 0xffff_ffff);
    pci.write(MMCONFIG_BASE + (31 << 15 | 0x3c), 1, 0x5a);
    assert_eq!(pci.config(31, 0x3c, 1), 0x5a);
}

#[test]
fn mmconfig_follows_pciexbar() {
    let mut pci = Chipset::new();
    pci.config(0, 0x60, 4);
    pci.io_write(4, 4, 0xe000_0003);
    assert_eq!(pci.pci().mmconfig_range(), Some((0xe000_0000, 128 << 20)));
    pci.io_write(4, 4, 0xe000_0002);
    assert_eq!(pci.pci().mmconfig_range(), None);
}

#[test]
fn the_pm_block_is_enabled_at_reset_and_can_be_moved() {
    let mut pci = Chipset::new();
    assert_eq!(pci.pci().pm_base(), Some(0x600));
    pci.config(31, 0x40, 4);
    pci.io_write(4, 4, 0xffff_b07f);
    assert_eq!(pci.io_read(4, 4), 0xb001);
    assert_eq!(pci.pci().pm_base(), Some(0xb000));
    pci.config(31, 0x44, 1);
    pci.io_write(4, 1, 0);
    assert_eq!(pci.pci().pm_base(), None);
}

#[test]
fn pirqs_go_to_fixed_ioapic_pins_and_where_the_guest_routes_them() {
    let mut pci = Chipset::new();
    assert_eq!(pci.pci().pirq_route(0), (None, 16));
    pci.config(31, 0x68, 1);
    pci.io_write(4, 1, 0x0b);
    assert_eq!(pci.pci().pirq_route(4), (Some(11), 20));
    assert_eq!(pci.pci().pirq_of(3 << 3, 2), 5);
    assert_eq!(pci.pci().pirq_of(LPC_BRIDGE, 3), 3);
}

#[test]
fn chipset_registers_answer_at_rcba() {
    let mut pci = Chipset::new();
    assert_eq!(pci.pci().rcba_range(), Some((0xfed1_c000, 0x4000)));
    assert_eq!(pci.read(RCBA_BASE + 0x3404, 4), 0x80);
    assert_eq!(pci.read(RCBA_BASE + 0x3140, 2), 0x3210);
    pci.write(RCBA_BASE + 0x3140, 2, 0x3217);
    assert_eq!(pci.pci().pirq_of(LPC_BRIDGE, 0), 7);
    assert_eq!(pci.read(RCBA_BASE + 0x3ffc, 8), u64::MAX);
}
