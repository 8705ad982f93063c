//! The Q35 root bus: configuration access through ports 0xcf8/0xcfc and MMCONFIG, and the chipset's own
//! functions, the MCH host bridge (8086:29c0) and the ICH9 LPC bridge (8086:2918).
//!
//! Everything that the chipset registers decide (where MMCONFIG, the PM block and the chipset
//! configuration registers lie, where PIRQs go) is computed from the registers when asked. They start
//! as firmware leaves them: MMCONFIG at 0xb0000000 for 256 buses, PMBASE 0x600 with ACPI enabled, RCBA
//! at 0xfed1c000, PIRQs not routed to the 8259.
//!
//! The chipset decodes addresses for others: the PM block answers where PMBASE says. Configuration cycles go to
//! whichever device is the function; the chipset's own functions are this device's.

use super::device::{Access, ConfigCycle, Device, LoadError, Outbox, Reader, State, Writer};
use super::pci_config::{ConfigSpace, COMMAND, COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY};
use super::pm::{PM_BLOCK, PM_SIZE};
use super::range::{Range, Takes};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Device × 8 + function of the host bridge.
pub const HOST_BRIDGE: u8 = 0x00;
/// Device × 8 + function of the LPC bridge.
pub const LPC_BRIDGE: u8 = 0xf8;

/// Regions: ports 0xcf8 to 0xcff, MMCONFIG, and the chipset configuration registers.
const PORTS: u8 = 0;
const MMCONFIG: u8 = 1;
const CHIPSET: u8 = 2;

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

/// The root bus with its functions.
pub struct Pci {
    /// Last double word written to 0xcf8.
    address: u32,
    functions: BTreeMap<u8, ConfigSpace>,
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

    fn add(&mut self, function: ConfigSpace) {
        self.functions.insert(function.devfn(), function);
    }

    fn function(&self, devfn: u8) -> Option<&ConfigSpace> {
        self.functions.get(&devfn)
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

    /// Physical range (base, length) of the chipset configuration registers (RCBA), if enabled.
    #[must_use]
    pub fn rcba_range(&self) -> Option<(u64, u64)> {
        let register = self.function(LPC_BRIDGE)?.u32(RCBA);
        (register & 1 != 0).then_some((u64::from(register) & !(RCBA_SIZE - 1), RCBA_SIZE))
    }

    /// Reads `size` bytes at `offset` into the RCBA range. Reserved registers read zero.
    fn rcba_read(&self, offset: u64, size: usize) -> u64 {
        let mut bytes = [0; 8];
        for (at, byte) in (0..).zip(bytes.iter_mut().take(size)) {
            *byte = self.chipset(offset.wrapping_add(at));
        }
        u64::from_le_bytes(bytes)
    }

    /// Writes `size` bytes at `offset` into the RCBA range.
    fn rcba_write(&mut self, offset: u64, size: usize, value: u64) {
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

    /// What port 0xcf8 + `port` selects: bus, device × 8 + function, register.
    fn selected(&self, port: u64) -> Option<(u8, u8, usize)> {
        let byte = usize::try_from(port.checked_sub(u64::from(DATA))?).ok()?;
        let [register, devfn, bus, _] = self.address.to_le_bytes();
        let enabled = self.address & ADDRESS_ENABLE != 0;
        (enabled && byte < 4).then_some((bus, devfn, usize::from(register & 0xfc) + byte))
    }

    /// Everything that decides where devices answer.
    fn decoding(&self) -> (Option<u16>, [Option<(u64, u64)>; 2]) {
        let ranges = [self.mmconfig_range(), self.rcba_range()];
        (self.pm_base(), ranges)
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

/// Bus, device × 8 + function, and register (0–4095) at an offset into MMCONFIG.
fn mmconfig_address(offset: u64) -> (u8, u8, usize) {
    let register = (offset & 0xfff) as usize;
    ((offset >> 20) as u8, (offset >> 12) as u8, register)
}

fn host_bridge() -> ConfigSpace {
    let mut bridge = ConfigSpace::new(0, 0, 0x8086, 0x29c0, 0x06_0000, 2);
    let command = COMMAND_MEMORY | COMMAND_MASTER;
    bridge.set(COMMAND, &command.to_le_bytes());
    bridge.set_u32(PCIEXBAR, PCIEXBAR_AT_RESET);
    // Base bits 35–26, length, enable.
    bridge.allow_writes(PCIEXBAR, &[0x07, 0, 0, 0xfc, 0x0f]);
    bridge
}

fn lpc_bridge() -> ConfigSpace {
    let mut bridge = ConfigSpace::new(31, 0, 0x8086, 0x2918, 0x06_0100, 2);
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

impl Device for Pci {
    fn name(&self) -> Cow<'static, str> {
        "pci".into()
    }

    fn reset(&mut self) {
        *self = Self::new();
    }

    fn ranges(&self) -> Vec<Range> {
        let pm = |base| Range::ports(base, PM_SIZE, PM_BLOCK).quiet();
        let mmconfig =
            |(base, length)| Range::memory(base, length, MMCONFIG).taking(Takes::Configuration);
        let rcba = |(base, length)| Range::memory(base, length, CHIPSET);
        let mechanism_1 = Range::ports(0xcf8, 8, PORTS).taking(Takes::Configuration);
        [
            self.pm_base().map(pm).map(|range| range.answered_by("pm")),
            Some(mechanism_1),
            self.mmconfig_range().map(mmconfig),
            self.rcba_range().map(rcba),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The address register answers to whole double words only (PCI Local Bus 3.0, §3.2.2.3.2). What is no
    /// configuration cycle reads as ones.
    fn read(&mut self, at: Access, _out: &mut Outbox) -> u64 {
        match (at.region, at.offset, at.size) {
            (PORTS, 0, 4) => self.address.into(),
            (CHIPSET, _, _) => self.rcba_read(at.offset, at.size),
            _ => u64::MAX >> (64 - 8 * at.size.clamp(1, 8)),
        }
    }

    fn write(&mut self, at: Access, value: u64, _out: &mut Outbox) {
        match (at.region, at.offset, at.size) {
            (PORTS, 0, 4) => self.address = value as u32,
            (CHIPSET, _, _) => self.rcba_write(at.offset, at.size, value),
            _ => {}
        }
    }

    /// There is one bus only.
    fn config_cycle(&self, region: u8, offset: u64) -> Option<ConfigCycle> {
        let (bus, devfn, register) = match region {
            PORTS => self.selected(offset)?,
            MMCONFIG => mmconfig_address(offset),
            _ => return None,
        };
        (bus == 0).then_some(ConfigCycle { devfn, register })
    }

    fn functions(&self) -> Vec<u8> {
        self.functions.keys().copied().collect()
    }

    fn config_read(&self, cycle: ConfigCycle) -> u8 {
        let function = self.function(cycle.devfn);
        function.map_or(0xff, |function| function.read(cycle.register))
    }

    fn config_write(&mut self, cycle: ConfigCycle, value: u8, _now: u64, out: &mut Outbox) {
        let before = self.decoding();
        if let Some(function) = self.functions.get_mut(&cycle.devfn) {
            function.write(cycle.register, value);
        }
        out.moved |= self.decoding() != before;
    }
}

#[cfg(test)]
#[path = "pci_tests.rs"]
mod tests;
