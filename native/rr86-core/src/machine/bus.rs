//! The bus: the list of all devices, and which of them answers at a port or at an address.
//!
//! Interrupt controllers are its first devices, in the order of [`Interrupts`]; then come those of the board's list, then
//! what was plugged in. A device's number is its place in that order, which is also the order in which components are
//! saved.

use std::any::Any;
use std::collections::BTreeMap;

use super::address_map::{AddressMap, Hit};
use super::device::{Access, ConfigCycle, Device, Outbox};
use super::interrupts::Interrupts;
use super::range::{Range, Space, Takes};

/// All devices of a board, by address.
pub struct Bus {
    pub interrupts: Interrupts,
    devices: Vec<Box<dyn Device>>,
    ports: AddressMap,
    memory: AddressMap,
    /// For each processor, the range that only it sees.
    local: Vec<AddressMap>,
    /// PCI functions: device × 8 + function, and the number of the device.
    functions: BTreeMap<u8, usize>,
    /// Devices whose state accesses may have changed, until the board has looked at them.
    touched: Vec<usize>,
}

impl Bus {
    /// A bus with these devices.
    #[must_use]
    pub fn new(interrupts: Interrupts, devices: Vec<Box<dyn Device>>) -> Self {
        let mut bus = Self {
            local: vec![AddressMap::default(); interrupts.lapics.len()],
            interrupts,
            devices,
            ports: AddressMap::default(),
            memory: AddressMap::default(),
            functions: BTreeMap::new(),
            touched: Vec::new(),
        };
        bus.remap();
        bus
    }

    // --- Devices ------------------------------------------------------------------------------

    /// How many devices there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.interrupts.count() + self.devices.len()
    }

    /// The numbers of the devices that are no interrupt controllers.
    pub fn others(&self) -> std::ops::Range<usize> {
        self.interrupts.count()..self.count()
    }

    /// A device by number.
    #[must_use]
    pub fn device(&self, number: usize) -> &dyn Device {
        match number.checked_sub(self.interrupts.count()) {
            None => self.interrupts.device(number),
            Some(index) => self.devices[index].as_ref(),
        }
    }

    /// A device by number, to be changed.
    pub fn device_mut(&mut self, number: usize) -> &mut dyn Device {
        match number.checked_sub(self.interrupts.count()) {
            None => self.interrupts.device_mut(number),
            Some(index) => self.devices[index].as_mut(),
        }
    }

    /// A device by number, which is known to be a `D`.
    ///
    /// # Panics
    /// If it is something else.
    #[must_use]
    pub fn get<D: Device>(&self, number: usize) -> &D {
        let device: &dyn Any = self.device(number);
        device.downcast_ref().expect("the board knows its devices")
    }

    /// A device by number, which is known to be a `D`, to be changed.
    ///
    /// # Panics
    /// If it is something else.
    pub fn get_mut<D: Device>(&mut self, number: usize) -> &mut D {
        let device: &mut dyn Any = self.device_mut(number);
        device.downcast_mut().expect("the board knows its devices")
    }

    /// The number of the first device that is a `D`.
    #[must_use]
    pub fn find<D: Device>(&self) -> Option<usize> {
        (0..self.count()).find(|&number| {
            let device: &dyn Any = self.device(number);
            device.is::<D>()
        })
    }

    /// All devices of the list that are a `D`.
    pub fn devices_of<D: Device>(&mut self) -> impl Iterator<Item = &mut D> {
        self.devices.iter_mut().filter_map(|device| {
            let device: &mut dyn Any = device.as_mut();
            device.downcast_mut()
        })
    }

    /// Adds a device behind all others.
    pub fn add(&mut self, device: Box<dyn Device>) {
        self.devices.push(device);
        self.remap();
    }

    /// Puts another device in the place of one that is no interrupt controller.
    pub fn replace(&mut self, number: usize, device: Box<dyn Device>) {
        let index = number - self.interrupts.count();
        self.devices[index] = device;
    }

    /// The device that is a PCI function.
    #[must_use]
    pub fn function(&self, devfn: u8) -> Option<usize> {
        self.functions.get(&devfn).copied()
    }

    /// Whether something answers in a range already.
    #[must_use]
    pub fn is_taken(&self, range: &Range) -> bool {
        match range.space {
            Space::Ports => self.ports.covers_any(range),
            Space::Memory => {
                self.memory.covers_any(range) || self.local.iter().any(|map| map.covers_any(range))
            }
        }
    }

    /// Asks all devices anew where they answer.
    pub fn remap(&mut self) {
        let mut ranges: Vec<(usize, Range)> = Vec::new();
        let mut names = BTreeMap::new();
        self.functions.clear();
        for number in 0..self.count() {
            names.insert(self.device(number).name(), number);
            for devfn in self.device(number).functions() {
                self.functions.entry(devfn).or_insert(number);
            }
        }
        for number in 0..self.count() {
            for range in self.device(number).ranges() {
                let other = range.answers.as_ref();
                let owner = other.map_or(Some(number), |name| names.get(name).copied());
                ranges.extend(owner.map(|owner| (owner, range)));
            }
        }
        let map = |wanted: &dyn Fn(&Range) -> bool| {
            let ranges = ranges.iter().filter(|(_, range)| wanted(range));
            AddressMap::new(ranges.map(|(number, range)| (*number, range)))
        };
        self.ports = map(&|range| range.space == Space::Ports);
        self.memory = map(&|range| range.space == Space::Memory && range.seen_by.is_none());
        for (vcpu, local) in self.local.iter_mut().enumerate() {
            *local = map(&|range| range.seen_by == Some(vcpu));
        }
    }

    // --- Accesses -----------------------------------------------------------------------------

    /// Reads a port. What no device answers reads as ones.
    pub fn io_read(&mut self, port: u16, size: usize, now: u64, out: &mut Outbox) -> u32 {
        match self.ports.find(port.into(), size) {
            Some(hit) => self.read(hit, size, now, out) as u32,
            None if size <= 1 => 0xff,
            None => (0..size.min(4)).fold(0, |value, index| {
                let byte = self.io_read(port.wrapping_add(index as u16), 1, now, out) & 0xff;
                value | byte << (8 * index)
            }),
        }
    }

    /// Writes a port.
    pub fn io_write(&mut self, port: u16, size: usize, value: u32, now: u64, out: &mut Outbox) {
        match self.ports.find(port.into(), size) {
            Some(hit) => self.write(hit, size, value.into(), now, out),
            None if size <= 1 => {}
            None => {
                for index in 0..size.min(4) {
                    let byte = value >> (8 * index) & 0xff;
                    self.io_write(port.wrapping_add(index as u16), 1, byte, now, out);
                }
            }
        }
    }

    fn find_memory(&mut self, vcpu: usize, paddr: u64, size: usize) -> Option<Hit> {
        match self.local[vcpu].find(paddr, size) {
            None => self.memory.find(paddr, size),
            hit => hit,
        }
    }

    /// Reads physical memory that is not RAM, for a processor. What no device answers reads as ones.
    pub fn memory_read(
        &mut self,
        vcpu: usize,
        paddr: u64,
        size: usize,
        now: u64,
        out: &mut Outbox,
    ) -> u64 {
        match self.find_memory(vcpu, paddr, size) {
            Some(hit) => self.read(hit, size, now, out),
            None => truncate(u64::MAX, size),
        }
    }

    /// Writes physical memory that is not RAM, for a processor.
    pub fn memory_write(
        &mut self,
        vcpu: usize,
        paddr: u64,
        size: usize,
        value: u64,
        now: u64,
        out: &mut Outbox,
    ) {
        if let Some(hit) = self.find_memory(vcpu, paddr, size) {
            self.write(hit, size, value, now, out);
        }
    }

    fn read(&mut self, hit: Hit, size: usize, now: u64, out: &mut Outbox) -> u64 {
        if hit.takes == Takes::Configuration {
            if let Some(value) = self.config_read(hit, size) {
                return value;
            }
        }
        if !hit.quiet {
            self.touched.push(hit.device);
        }
        self.device_mut(hit.device)
            .read(access(hit, size, now), out)
    }

    fn write(&mut self, hit: Hit, size: usize, value: u64, now: u64, out: &mut Outbox) {
        if hit.takes == Takes::Configuration && self.config_write(hit, size, value, now, out) {
            return;
        }
        self.touched.push(hit.device);
        self.device_mut(hit.device)
            .write(access(hit, size, now), value, out);
    }

    /// A device that accesses may have changed, each once for each access. Their order says nothing.
    pub fn pop_touched(&mut self) -> Option<usize> {
        self.touched.pop()
    }

    // --- PCI configuration cycles ---------------------------------------------------------------

    fn config_cycle(&self, hit: Hit, byte: usize) -> Option<ConfigCycle> {
        let offset = hit.offset.wrapping_add(byte as u64);
        self.device(hit.device).config_cycle(hit.region, offset)
    }

    /// Reads bytes of configuration space. `None` if the access is the bridge's own.
    fn config_read(&mut self, hit: Hit, size: usize) -> Option<u64> {
        let mut bytes = [0; 8];
        let mut any = false;
        for (index, byte) in bytes.iter_mut().enumerate().take(size) {
            let cycle = self.config_cycle(hit, index);
            any |= cycle.is_some();
            let device = cycle.and_then(|cycle| Some((cycle, self.function(cycle.devfn)?)));
            *byte = device.map_or(0xff, |(cycle, number)| {
                self.device(number).config_read(cycle)
            });
        }
        any.then(|| u64::from_le_bytes(bytes))
    }

    /// Writes bytes of configuration space. False if the access is the bridge's own.
    fn config_write(
        &mut self,
        hit: Hit,
        size: usize,
        value: u64,
        now: u64,
        out: &mut Outbox,
    ) -> bool {
        let mut any = false;
        for (index, byte) in value.to_le_bytes().into_iter().enumerate().take(size) {
            let Some(cycle) = self.config_cycle(hit, index) else {
                continue;
            };
            any = true;
            if let Some(number) = self.function(cycle.devfn) {
                self.touched.push(number);
                self.device_mut(number).config_write(cycle, byte, now, out);
            }
        }
        any
    }
}

fn access(hit: Hit, size: usize, now: u64) -> Access {
    Access {
        region: hit.region,
        offset: hit.offset,
        size,
        now,
    }
}

/// The lowest `size` bytes of a value.
#[must_use]
pub fn truncate(value: u64, size: usize) -> u64 {
    if size >= 8 {
        value
    } else {
        value & ((1 << (8 * size)) - 1)
    }
}
