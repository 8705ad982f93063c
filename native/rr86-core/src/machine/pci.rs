//! The Q35 root bus: configuration access through ports 0xcf8/0xcfc and MMCONFIG, and the chipset's own
//! functions, the MCH host bridge (8086:29c0) and the ICH9 LPC bridge (8086:2918).
//!
//! Everything that the chipset registers decide (where MMCONFIG, the PM block and the chipset
//! configuration registers lie, where PIRQs go) is computed from the registers when asked. They start
//! as firmware leaves them: MMCONFIG at 0xb0000000 for 256 buses, PMBASE 0x600 with ACPI enabled, RCBA
//! at 0xfed1c000, PIRQs not routed to the 8259.
//!
//! Interface: [`Pci::io_read`], [`Pci::io_write`] with offset 0–7 from 0xcf8 and any width;
//! [`Pci::mmconfig_range`], [`Pci::mmconfig_read`], [`Pci::mmconfig_write`]; [`Pci::rcba_range`],
//! [`Pci::rcba_read`], [`Pci::rcba_write`]; [`Pci::pm_base`], [`Pci::pirq_route`], [`Pci::pirq_of`];
//! for further devices [`Pci::add`], [`Pci::function`], [`Pci::function_mut`], [`Pci::decode_io`],
//! [`Pci::decode_memory`].

use super::device::{LoadError, Reader, State, Writer};
use super::pci_function::{
    BarKind, PciFunction, COMMAND, COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY, CONFIG_SIZE,
};
use std::collections::BTreeMap;

/// Device × 8 + function of the host bridge.
pub const HOST_BRIDGE: u8 = 0x00;
/// Device × 8 + function of the LPC bridge.
pub const LPC_BRIDGE: u8 = 0xf8;

const ADDRESS_ENABLE: u32 = 1 << 31;
/// Offset of the data window from 0xcf8.
const DATA: u16 = 4;

/// Host bridge: PCI Express register range (Intel 3-series datasheet, §5.1.17).
const PCIEXBAR: usize = 0x60;
const PCIEXBAR_AT_RESET: u32 = 0xb000_0001;

/// LPC bridge registers (ICH9 datasheet, §13.1).
const PMBASE: usize = 0x40;
const PMBASE_AT_RESET: u32 = 0x0601;
const ACPI_CONTROL: usize = 0x44;
const ACPI_ENABLE: u8 = 1 << 7;
const GPIOBASE: usize = 0x48;
const PIRQ_A: usize = 0x60;
const PIRQ_E: usize = 0x68;
const PIRQ_NOT_ROUTED: u8 = 1 << 7;
const RCBA: usize = 0xf0;
const RCBA_AT_RESET: u32 = 0xfed1_c001;
const RCBA_SIZE: u64 = 0x4000;

/// The part of the chipset configuration registers that holds something: interrupt pins and routes
/// (0x3100–0x31ff), HPET configuration (0x3404), general control (0x3410).
const CHIPSET_FIRST: u64 = 0x3100;
const CHIPSET_SIZE: usize = 0x400;
/// Interrupt route registers of devices 31 down to 25, each with four bits for a pin.
const INTERRUPT_ROUTES: [(u8, u64); 7] = [
    (31, 0x3140),
    (30, 0x3142),
    (29, 0x3144),
    (28, 0x3146),
    (27, 0x3148),
    (26, 0x314c),
    (25, 0x3150),
];
/// INTA to PIRQA, INTB to PIRQB and so on.
const ROUTE_AT_RESET: u16 = 0x3210;
const HPET_CONFIGURATION: u64 = 0x3404;
const HPET_ENABLE: u8 = 1 << 7;

/// An access that a function's base address register claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarHit {
    /// Device × 8 + function.
    pub devfn: u8,
    /// Base address register, 0–5.
    pub bar: usize,
    /// Offset into its range.
    pub offset: u64,
}

/// The root bus with its functions.
pub struct Pci {
    /// Last double word written to 0xcf8.
    address: u32,
    functions: BTreeMap<u8, PciFunction>,
    chipset: Vec<u8>,
}

impl Default for Pci {
    fn default() -> Self {
        Self::new()
    }
}

impl Pci {
    /// The Q35 board's own functions, as firmware leaves them.
    #[must_use]
    pub fn new() -> Self {
        let mut this = Self {
            address: 0,
            functions: BTreeMap::new(),
            chipset: vec![0; CHIPSET_SIZE],
        };
        this.add(host_bridge());
        this.add(lpc_bridge());
        for (_, register) in INTERRUPT_ROUTES {
            let [low, high] = ROUTE_AT_RESET.to_le_bytes();
            this.set_chipset(register, low);
            this.set_chipset(register + 1, high);
        }
        this.set_chipset(HPET_CONFIGURATION, HPET_ENABLE);
        this
    }

    /// Plugs a function in; one at the same place is replaced.
    pub fn add(&mut self, function: PciFunction) {
        self.functions.insert(function.devfn(), function);
    }

    /// The function at `devfn` (device × 8 + function).
    #[must_use]
    pub fn function(&self, devfn: u8) -> Option<&PciFunction> {
        self.functions.get(&devfn)
    }

    /// The function at `devfn`, to be changed.
    pub fn function_mut(&mut self, devfn: u8) -> Option<&mut PciFunction> {
        self.functions.get_mut(&devfn)
    }

    /// Reads port 0xcf8 + `offset` (0–7), `size` 1, 2 or 4. The address register answers to whole
    /// double words only (PCI Local Bus 3.0, §3.2.2.3.2), other accesses to it find nothing.
    pub fn io_read(&mut self, offset: u16, size: usize, _now: u64) -> u32 {
        if offset == 0 && size == 4 {
            return self.address;
        }
        let mut bytes = [0xff; 4];
        if self.address & ADDRESS_ENABLE != 0 {
            for (port, byte) in (u64::from(offset)..).zip(bytes.iter_mut().take(size)) {
                if let Some((bus, devfn, register)) = self.selected(port) {
                    *byte = self.config_read(bus, devfn, register);
                }
            }
        }
        u32::from_le_bytes(bytes) & mask(size)
    }

    /// Writes port 0xcf8 + `offset` (0–7), `size` 1, 2 or 4.
    pub fn io_write(&mut self, offset: u16, size: usize, value: u32, _now: u64) {
        if offset == 0 && size == 4 {
            self.address = value;
        } else if self.address & ADDRESS_ENABLE != 0 {
            for (port, byte) in
                (u64::from(offset)..).zip(value.to_le_bytes().into_iter().take(size))
            {
                if let Some((bus, devfn, register)) = self.selected(port) {
                    self.config_write(bus, devfn, register, byte);
                }
            }
        }
    }

    /// Physical range (base, length) of MMCONFIG, if enabled.
    #[must_use]
    pub fn mmconfig_range(&self) -> Option<(u64, u64)> {
        let bridge = self.function(HOST_BRIDGE)?;
        let register = u64::from(bridge.u32(PCIEXBAR)) | u64::from(bridge.u32(PCIEXBAR + 4)) << 32;
        let length = match register >> 1 & 3 {
            0 => 256 << 20,
            1 => 128 << 20,
            2 => 64 << 20,
            _ => return None,
        };
        (register & 1 != 0).then_some((register & 0xf_ffff_ffff & !(length - 1), length))
    }

    /// Reads `size` bytes at `offset` into the MMCONFIG range.
    pub fn mmconfig_read(&mut self, offset: u64, size: usize, _now: u64) -> u64 {
        let mut bytes = [0; 8];
        for (at, byte) in (0..).zip(bytes.iter_mut().take(size)) {
            let (bus, devfn, register) = mmconfig_address(offset.wrapping_add(at));
            *byte = self.config_read(bus, devfn, register);
        }
        u64::from_le_bytes(bytes)
    }

    /// Writes `size` bytes at `offset` into the MMCONFIG range.
    pub fn mmconfig_write(&mut self, offset: u64, size: usize, value: u64, _now: u64) {
        for (at, byte) in (0..).zip(value.to_le_bytes().into_iter().take(size)) {
            let (bus, devfn, register) = mmconfig_address(offset.wrapping_add(at));
            self.config_write(bus, devfn, register, byte);
        }
    }

    /// Physical range (base, length) of the chipset configuration registers (RCBA), if enabled.
    #[must_use]
    pub fn rcba_range(&self) -> Option<(u64, u64)> {
        let register = self.function(LPC_BRIDGE)?.u32(RCBA);
        (register & 1 != 0).then_some((u64::from(register) & !(RCBA_SIZE - 1), RCBA_SIZE))
    }

    /// Reads `size` bytes at `offset` into the RCBA range. Reserved registers read zero.
    pub fn rcba_read(&mut self, offset: u64, size: usize, _now: u64) -> u64 {
        let mut bytes = [0; 8];
        for (at, byte) in (0..).zip(bytes.iter_mut().take(size)) {
            *byte = self.chipset(offset.wrapping_add(at));
        }
        u64::from_le_bytes(bytes)
    }

    /// Writes `size` bytes at `offset` into the RCBA range.
    pub fn rcba_write(&mut self, offset: u64, size: usize, value: u64, _now: u64) {
        for (at, byte) in (0..).zip(value.to_le_bytes().into_iter().take(size)) {
            self.set_chipset(offset.wrapping_add(at), byte);
        }
    }

    /// I/O base of the ACPI PM block (128 ports), if enabled.
    #[must_use]
    pub fn pm_base(&self) -> Option<u16> {
        let bridge = self.function(LPC_BRIDGE)?;
        (bridge.u8(ACPI_CONTROL) & ACPI_ENABLE != 0).then_some(bridge.u16(PMBASE) & 0xff80)
    }

    /// Where PIRQ `pirq` (0 = A … 7 = H) goes: (ISA IRQ for the 8259, if routed; IOAPIC pin).
    #[must_use]
    pub fn pirq_route(&self, pirq: usize) -> (Option<u8>, u8) {
        let pirq = pirq & 7;
        let register = if pirq < 4 {
            PIRQ_A + pirq
        } else {
            PIRQ_E + pirq - 4
        };
        let route = self
            .function(LPC_BRIDGE)
            .map_or(PIRQ_NOT_ROUTED, |bridge| bridge.u8(register));
        let isa = (route & PIRQ_NOT_ROUTED == 0).then_some(route & 0x0f);
        (isa, 16 + pirq as u8)
    }

    /// The PIRQ (0 = A … 7 = H) of interrupt pin `pin` (0 = INTA … 3 = INTD) of a function: chosen by
    /// the chipset for devices 25–31, and rotating over PIRQE–H for the slots below, as on QEMU's q35.
    #[must_use]
    pub fn pirq_of(&self, devfn: u8, pin: u8) -> usize {
        let (device, pin) = (devfn >> 3, pin & 3);
        match INTERRUPT_ROUTES.iter().find(|(at, _)| *at == device) {
            Some((_, register)) => {
                let byte = self.chipset(register + u64::from(pin >> 1));
                usize::from(byte >> (4 * (pin & 1)) & 7)
            }
            None => usize::from(4 + ((device + pin) & 3)),
        }
    }

    /// The base address register that claims I/O port `port`; the lowest function wins.
    #[must_use]
    pub fn decode_io(&self, port: u16) -> Option<BarHit> {
        self.decode(u64::from(port), true)
    }

    /// The base address register that claims physical address `address`; the lowest function wins.
    #[must_use]
    pub fn decode_memory(&self, address: u64) -> Option<BarHit> {
        self.decode(address, false)
    }

    fn decode(&self, address: u64, io: bool) -> Option<BarHit> {
        for (&devfn, function) in &self.functions {
            for bar in 0..6 {
                if let Some((kind, base, size)) = function.bar(bar) {
                    let offset = address.wrapping_sub(base);
                    // A register at zero was not assigned yet.
                    if (kind == BarKind::Io) == io && base != 0 && offset < size {
                        return Some(BarHit { devfn, bar, offset });
                    }
                }
            }
        }
        None
    }

    /// What port 0xcf8 + `port` selects: bus, device × 8 + function, register.
    fn selected(&self, port: u64) -> Option<(u8, u8, usize)> {
        let byte = usize::try_from(port.checked_sub(u64::from(DATA))?).ok()?;
        let [register, devfn, bus, _] = self.address.to_le_bytes();
        (byte < 4).then_some((bus, devfn, usize::from(register & 0xfc) + byte))
    }

    fn config_read(&self, bus: u8, devfn: u8, register: usize) -> u8 {
        match self.functions.get(&devfn) {
            Some(function) if bus == 0 => function.read(register),
            _ => 0xff,
        }
    }

    fn config_write(&mut self, bus: u8, devfn: u8, register: usize, value: u8) {
        if bus == 0 && register < CONFIG_SIZE {
            if let Some(function) = self.functions.get_mut(&devfn) {
                function.write(register, value);
            }
        }
    }

    fn chipset(&self, offset: u64) -> u8 {
        usize::try_from(offset.wrapping_sub(CHIPSET_FIRST))
            .ok()
            .and_then(|at| self.chipset.get(at))
            .copied()
            .unwrap_or(0)
    }

    fn set_chipset(&mut self, offset: u64, value: u8) {
        let at = usize::try_from(offset.wrapping_sub(CHIPSET_FIRST)).ok();
        if let Some(byte) = at.and_then(|at| self.chipset.get_mut(at)) {
            *byte = value;
        }
    }
}

fn mask(size: usize) -> u32 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        _ => u32::MAX,
    }
}

/// Bus, device × 8 + function, and register (0–4095) at an offset into MMCONFIG.
fn mmconfig_address(offset: u64) -> (u8, u8, usize) {
    let register = (offset & 0xfff) as usize;
    ((offset >> 20) as u8, (offset >> 12) as u8, register)
}

fn host_bridge() -> PciFunction {
    let mut bridge = PciFunction::new(0, 0, 0x8086, 0x29c0, 0x06_0000, 2);
    let command = COMMAND_MEMORY | COMMAND_MASTER;
    bridge.set(COMMAND, &command.to_le_bytes());
    bridge.set_u32(PCIEXBAR, PCIEXBAR_AT_RESET);
    // Base bits 35–26, length, enable.
    bridge.allow_writes(PCIEXBAR, &[0x07, 0, 0, 0xfc, 0x0f]);
    bridge
}

fn lpc_bridge() -> PciFunction {
    let mut bridge = PciFunction::new(31, 0, 0x8086, 0x2918, 0x06_0100, 2);
    bridge.set_multi_function();
    let command = COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER;
    bridge.set(COMMAND, &command.to_le_bytes());
    bridge.set_u32(PMBASE, PMBASE_AT_RESET);
    bridge.allow_writes(PMBASE, &[0x80, 0xff]);
    // The SCI stays on IRQ 9.
    bridge.set(ACPI_CONTROL, &[ACPI_ENABLE]);
    bridge.allow_writes(ACPI_CONTROL, &[ACPI_ENABLE]);
    // An I/O base without GPIOs behind it, switched off.
    bridge.set_u32(GPIOBASE, 1);
    for first in [PIRQ_A, PIRQ_E] {
        bridge.set(first, &[PIRQ_NOT_ROUTED; 4]);
        bridge.allow_writes(first, &[PIRQ_NOT_ROUTED | 0x0f; 4]);
    }
    bridge.set_u32(RCBA, RCBA_AT_RESET);
    bridge.allow_writes(RCBA, &[0x01, 0xc0, 0xff, 0xff]);
    bridge
}

impl State for Pci {
    fn save(&self, w: &mut Writer) {
        w.u32(self.address);
        for function in self.functions.values() {
            function.save(w);
        }
        w.bytes(&self.chipset);
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.address = r.u32()?;
        for function in self.functions.values_mut() {
            function.load(r)?;
        }
        let chipset = r.bytes()?;
        if chipset.len() != CHIPSET_SIZE {
            return Err(LoadError::BadValue {
                field: "chipset register size",
                value: chipset.len() as u64,
            });
        }
        self.chipset = chipset;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::pci_function::BAR0;
    use super::*;

    fn address(device: u32, register: u32) -> u32 {
        ADDRESS_ENABLE | device << 11 | register
    }

    fn config(pci: &mut Pci, device: u32, register: u32, size: usize) -> u32 {
        pci.io_write(0, 4, address(device, register & 0xfc), 0);
        pci.io_read(4 + (register & 3) as u16, size, 0)
    }

    #[test]
    fn linux_finds_mechanism_one_and_the_two_bridges() {
        let mut pci = Pci::new();
        pci.io_write(3, 1, 0x01, 0);
        pci.io_write(0, 4, 0x8000_0000, 0);
        assert_eq!(pci.io_read(0, 4, 0), 0x8000_0000);
        assert_eq!(config(&mut pci, 0, 0, 4), 0x29c0_8086);
        assert_eq!(config(&mut pci, 0, 0x0a, 2), 0x0600);
        assert_eq!(config(&mut pci, 31, 0, 4), 0x2918_8086);
        assert_eq!(config(&mut pci, 31, 0x0b, 1), 0x06);
        assert_eq!(config(&mut pci, 31, 0x0e, 1), 0x80);
        for device in 1..31 {
            assert_eq!(config(&mut pci, device, 0, 4), u32::MAX);
        }
        pci.io_write(0, 4, address(0, 0) | 1 << 16, 0);
        assert_eq!(pci.io_read(4, 4, 0), u32::MAX);
    }

    #[test]
    fn mmconfig_and_ports_show_the_same_registers() {
        let mut pci = Pci::new();
        assert_eq!(pci.mmconfig_range(), Some((0xb000_0000, 256 << 20)));
        assert_eq!(pci.mmconfig_read(31 << 15, 4, 0), 0x2918_8086);
        assert_eq!(pci.mmconfig_read(0x100, 4, 0), 0xffff_ffff);
        assert_eq!(pci.mmconfig_read(1 << 20, 4, 0), 0xffff_ffff);
        pci.mmconfig_write(31 << 15 | 0x3c, 1, 0x5a, 0);
        assert_eq!(config(&mut pci, 31, 0x3c, 1), 0x5a);
    }

    #[test]
    fn mmconfig_follows_pciexbar() {
        let mut pci = Pci::new();
        config(&mut pci, 0, 0x60, 4);
        pci.io_write(4, 4, 0xe000_0003, 0);
        assert_eq!(pci.mmconfig_range(), Some((0xe000_0000, 128 << 20)));
        pci.io_write(4, 4, 0xe000_0002, 0);
        assert_eq!(pci.mmconfig_range(), None);
    }

    #[test]
    fn the_pm_block_is_enabled_at_reset_and_can_be_moved() {
        let mut pci = Pci::new();
        assert_eq!(pci.pm_base(), Some(0x600));
        config(&mut pci, 31, 0x40, 4);
        pci.io_write(4, 4, 0xffff_b07f, 0);
        assert_eq!(pci.io_read(4, 4, 0), 0xb001);
        assert_eq!(pci.pm_base(), Some(0xb000));
        config(&mut pci, 31, 0x44, 1);
        pci.io_write(4, 1, 0, 0);
        assert_eq!(pci.pm_base(), None);
    }

    #[test]
    fn pirqs_go_to_fixed_ioapic_pins_and_where_the_guest_routes_them() {
        let mut pci = Pci::new();
        assert_eq!(pci.pirq_route(0), (None, 16));
        config(&mut pci, 31, 0x68, 1);
        pci.io_write(4, 1, 0x0b, 0);
        assert_eq!(pci.pirq_route(4), (Some(11), 20));
        assert_eq!(pci.pirq_of(3 << 3, 2), 5);
        assert_eq!(pci.pirq_of(LPC_BRIDGE, 3), 3);
    }

    #[test]
    fn chipset_registers_answer_at_rcba() {
        let mut pci = Pci::new();
        assert_eq!(pci.rcba_range(), Some((0xfed1_c000, 0x4000)));
        assert_eq!(pci.rcba_read(0x3404, 4, 0), 0x80);
        assert_eq!(pci.rcba_read(0x3140, 2, 0), 0x3210);
        pci.rcba_write(0x3140, 2, 0x3217, 0);
        assert_eq!(pci.pirq_of(LPC_BRIDGE, 0), 7);
        assert_eq!(pci.rcba_read(u64::MAX, 8, 0), 0);
    }

    #[test]
    fn an_added_function_is_decoded_by_its_base_address() {
        let mut pci = Pci::new();
        let mut function = PciFunction::new(2, 0, 0x1af4, 0x1042, 0x01_0000, 1);
        assert!(function.add_bar(0, BarKind::Memory32, 0x1000));
        pci.add(function);
        config(&mut pci, 2, BAR0 as u32, 4);
        pci.io_write(4, 4, 0xfebd_0000, 0);
        assert_eq!(pci.decode_memory(0xfebd_0010), None);
        config(&mut pci, 2, COMMAND as u32, 4);
        pci.io_write(4, 2, u32::from(COMMAND_MEMORY), 0);
        let hit = BarHit {
            devfn: 2 << 3,
            bar: 0,
            offset: 0x10,
        };
        assert_eq!(pci.decode_memory(0xfebd_0010), Some(hit));
        assert_eq!(pci.decode_memory(0xfebd_1000), None);
        assert_eq!(pci.decode_io(0x10), None);
    }
}
