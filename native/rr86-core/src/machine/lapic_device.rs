//! The local APIC as a device of the board: its register page, which its own processor sees, and its timer.

use std::borrow::Cow;

use super::device::{Access, Device, Outbox, Trial};
use super::lapic::Lapic;
use super::range::{Range, Takes};

impl Device for Lapic {
    fn name(&self) -> Cow<'static, str> {
        format!("lapic{}", self.id).into()
    }

    fn reset(&mut self) {
        *self = Self::new(self.id);
    }

    /// Each processor sees its own local APIC only.
    fn ranges(&self) -> Vec<Range> {
        let range = |page| Range::memory(page, 0x1000, 0).taking(Takes::Beginning);
        let page = self.mmio_page().map(range);
        page.map(|range| range.seen_by(self.id as usize))
            .into_iter()
            .collect()
    }

    fn read(&mut self, at: Access, _out: &mut Outbox) -> u64 {
        self.mmio_read(at.offset, at.size, at.now)
    }

    fn write(&mut self, at: Access, value: u64, out: &mut Outbox) {
        self.mmio_write(at.offset, at.size, value, at.now).send(out);
    }

    fn next_deadline(&self) -> Option<u64> {
        Lapic::next_deadline(self)
    }

    fn advance(&mut self, _deadline: u64, now: u64, _out: &mut Outbox) {
        Lapic::advance(self, now);
    }

    fn trial(&mut self) -> Option<&mut dyn Trial> {
        Some(self)
    }
}

impl Trial for Lapic {
    fn copy(&self) -> Box<dyn Device> {
        Box::new(self.clone())
    }

    fn deadlines(&self) -> Vec<Option<u64>> {
        vec![Lapic::next_deadline(self)]
    }

    fn fire(&mut self, _timer: usize, at: u64) {
        Lapic::advance(self, at);
    }
}
