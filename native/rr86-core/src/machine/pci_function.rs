//! A PCI function to build devices on.
//!
//! [`Card`] is what all functions have: configuration space with base address registers and capabilities, the interrupt
//! pin, MSI-X. A device writes a [`Function`] for what is its own, the registers behind the base address registers, and
//! [`PciDevice`] makes a [`Device`] of both. The guest sizes and moves the registers in configuration space; the bus maps
//! them anew after each such write.

use std::borrow::Cow;

use super::device::{Access, ConfigCycle, Device, Lines, LoadError, Outbox, Reader, State, Writer};
use super::dma::DmaAccess;
use super::msix::Msix;
use super::pci_config::{
    BarKind, ConfigSpace, COMMAND, COMMAND_INTX_DISABLE, CONFIG_SIZE, INTERRUPT_PIN,
};
use super::range::{Range, Rank, Space};

/// The part of a function that is the same for all.
pub struct Card {
    config: ConfigSpace,
    msix: Option<Msix>,
    /// The function asks for attention by its interrupt pin.
    intx: bool,
    at_power_on: ConfigSpace,
}

impl Card {
    /// A card with this configuration space.
    #[must_use]
    pub fn new(config: ConfigSpace) -> Self {
        Self {
            at_power_on: config.clone(),
            config,
            msix: None,
            intx: false,
        }
    }

    /// A card that has MSI-X with `vectors` vectors, too, in base address register `bar`. `None` where register
    /// or capability does not fit.
    #[must_use]
    pub fn with_msix(mut config: ConfigSpace, bar: usize, vectors: usize) -> Option<Self> {
        let msix = Msix::new(&mut config, bar, vectors)?;
        Some(Self {
            msix: Some(msix),
            ..Self::new(config)
        })
    }

    /// The configuration space.
    #[must_use]
    pub fn config(&self) -> &ConfigSpace {
        &self.config
    }

    /// The configuration space, for the device's own registers in it.
    pub fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    /// Whether the driver wants messages. The interrupt pin is dead then.
    #[must_use]
    pub fn uses_msix(&self) -> bool {
        (self.msix.as_ref()).is_some_and(|msix| msix.enabled(&self.config))
    }

    /// Asks for attention by the interrupt pin, or ceases to.
    pub fn set_intx(&mut self, level: bool) {
        self.intx = level;
        self.config.set_interrupt_status(level);
    }

    /// Sends the message of an MSI-X vector, now or when it is unmasked.
    pub fn notify(&mut self, vector: usize, out: &mut Outbox) {
        if let Some(msix) = &mut self.msix {
            msix.notify(&self.config, vector, out);
        }
    }

    /// The event of an MSI-X vector was dealt with before its message could be sent.
    pub fn withdraw(&mut self, vector: usize) {
        if let Some(msix) = &mut self.msix {
            msix.withdraw(vector);
        }
    }

    fn reset(&mut self) {
        self.config = self.at_power_on.clone();
        self.intx = false;
        if let Some(msix) = &mut self.msix {
            msix.reset();
        }
    }

    fn ranges(&self) -> Vec<Range> {
        let range = |bar: usize| {
            let (kind, base, size) = self.config.bar(bar)?;
            let space = match kind {
                BarKind::Io => Space::Ports,
                BarKind::Memory32 | BarKind::Memory64 => Space::Memory,
            };
            // A register at zero was not assigned yet.
            (base != 0).then(|| Range::new(space, base, size, bar as u8).ranked(Rank::Plugged))
        };
        (0..6).filter_map(range).collect()
    }

    fn lines(&self) -> Lines {
        let pin = self.config.u8(INTERRUPT_PIN).checked_sub(1);
        let off = self.config.u16(COMMAND) & COMMAND_INTX_DISABLE != 0 || self.uses_msix();
        let high = self.intx && !off;
        Lines {
            intx: pin.filter(|_| high).map(|pin| (self.config.devfn(), pin)),
            ..Lines::default()
        }
    }

    /// The table, if this is its register.
    fn table(&mut self, bar: usize) -> Option<(&mut Msix, &ConfigSpace)> {
        let config = &self.config;
        let msix = self.msix.as_mut().filter(|msix| msix.bar() == bar)?;
        Some((msix, config))
    }
}

impl State for Card {
    fn save(&self, w: &mut Writer) {
        self.config.save(w);
        w.bool(self.intx);
        if let Some(msix) = &self.msix {
            msix.save(w);
        }
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.config.load(r)?;
        self.intx = r.bool()?;
        match &mut self.msix {
            Some(msix) => msix.load(r),
            None => Ok(()),
        }
    }
}

/// What a PCI device does by itself. `at.region` of an access is the number of the base address register.
pub trait Function: State + Send + 'static {
    /// The component's name; see [`Device::name`].
    fn name(&self) -> Cow<'static, str>;

    /// Back to the state after power-on.
    fn reset(&mut self);

    /// Reads behind a base address register.
    fn read(&mut self, card: &mut Card, at: Access, out: &mut Outbox) -> u64;

    /// Writes behind a base address register.
    fn write(&mut self, card: &mut Card, at: Access, value: u64, out: &mut Outbox);

    /// The guest has written a byte of configuration space.
    fn config_written(&mut self, card: &mut Card, register: usize, now: u64, out: &mut Outbox) {
        let _ = (card, register, now, out);
    }

    /// See [`Device::next_deadline`].
    fn next_deadline(&self) -> Option<u64> {
        None
    }

    /// See [`Device::advance`].
    fn advance(&mut self, card: &mut Card, deadline: u64, now: u64, out: &mut Outbox) {
        let _ = (card, deadline, now, out);
    }

    /// The access to guest memory that it waits for. It is made only while the driver allows bus mastering.
    fn dma_access(&self) -> Option<DmaAccess> {
        None
    }

    /// Whether it waits for an access to guest memory.
    fn wants_dma(&self) -> bool {
        self.dma_access().is_some()
    }

    /// See [`Device::dma_done`].
    fn dma_done(&mut self, card: &mut Card, bytes: Option<&[u8]>, now: u64, out: &mut Outbox) {
        let _ = (card, bytes, now, out);
    }
}

/// A function on its card, as a device of the board.
pub struct PciDevice<F> {
    card: Card,
    function: F,
}

impl<F: Function> PciDevice<F> {
    #[must_use]
    pub fn new(card: Card, function: F) -> Self {
        Self { card, function }
    }
}

impl<F: Function> State for PciDevice<F> {
    fn save(&self, w: &mut Writer) {
        self.card.save(w);
        self.function.save(w);
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.card.load(r)?;
        self.function.load(r)
    }
}

impl<F: Function> Device for PciDevice<F> {
    fn name(&self) -> Cow<'static, str> {
        self.function.name()
    }

    fn reset(&mut self) {
        self.card.reset();
        self.function.reset();
    }

    fn ranges(&self) -> Vec<Range> {
        self.card.ranges()
    }

    fn read(&mut self, at: Access, out: &mut Outbox) -> u64 {
        match self.card.table(at.region.into()) {
            Some((msix, _)) => msix.read(at.offset, at.size),
            None => self.function.read(&mut self.card, at, out),
        }
    }

    fn write(&mut self, at: Access, value: u64, out: &mut Outbox) {
        match self.card.table(at.region.into()) {
            Some((msix, config)) => msix.write(config, at.offset, at.size, value, out),
            None => self.function.write(&mut self.card, at, value, out),
        }
    }

    fn lines(&self) -> Lines {
        self.card.lines()
    }

    fn next_deadline(&self) -> Option<u64> {
        self.function.next_deadline()
    }

    fn advance(&mut self, deadline: u64, now: u64, out: &mut Outbox) {
        self.function.advance(&mut self.card, deadline, now, out);
    }

    fn wants_dma(&self) -> bool {
        self.card.config.may_master() && self.function.wants_dma()
    }

    fn dma_access(&self) -> Option<DmaAccess> {
        self.function.dma_access()
    }

    fn dma_done(&mut self, bytes: Option<&[u8]>, now: u64, out: &mut Outbox) {
        self.function.dma_done(&mut self.card, bytes, now, out);
    }

    fn functions(&self) -> Vec<u8> {
        vec![self.card.config.devfn()]
    }

    fn config_read(&self, cycle: ConfigCycle) -> u8 {
        self.card.config.read(cycle.register)
    }

    fn config_write(&mut self, cycle: ConfigCycle, value: u8, now: u64, out: &mut Outbox) {
        if cycle.register >= CONFIG_SIZE {
            return;
        }
        let before = self.card.ranges();
        self.card.config.write(cycle.register, value);
        out.moved |= self.card.ranges() != before;
        if let Some(msix) = &mut self.card.msix {
            msix.send_pending(&self.card.config, out);
        }
        self.function
            .config_written(&mut self.card, cycle.register, now, out);
    }
}

#[cfg(test)]
#[path = "pci_function_tests.rs"]
mod tests;
