//! The pair of 8259A interrupt controllers (Intel 8259A datasheet; ICH9 datasheet 5.8), with the
//! edge/level control registers at 0x4d0 and 0x4d1.
//!
//! The second chip's output is the first one's input 2. Lines are given as levels; the chip itself
//! detects edges. An edge that was seen stays requested until it is acknowledged, even when the
//! line falls in between, so that a short pulse is never lost.

use super::device::{Access, Device, LoadError, Outbox, Reader, State, Writer};
use super::range::Range;
use std::borrow::Cow;

/// Input of the first chip to which the second one is wired.
const CASCADE: u8 = 2;

/// What the next write to the data port means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chip {
    lines: u8,
    irr: u8,
    imr: u8,
    isr: u8,
    /// Inputs that are level triggered.
    elcr: u8,
    /// Inputs that may be made level triggered at all.
    elcr_writable: u8,
    /// The input that has the highest priority.
    top: u8,
    base: u8,
    expect: Expect,
    icw4_follows: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    read_isr: bool,
    poll: bool,
    first: bool,
}

impl Chip {
    fn new(first: bool) -> Self {
        Self {
            lines: 0,
            irr: 0,
            imr: 0xff,
            isr: 0,
            elcr: 0,
            // The timer, keyboard, cascade, RTC and FPU inputs are edge triggered for ever.
            elcr_writable: if first { 0xf8 } else { 0xde },
            top: 0,
            base: if first { 0x08 } else { 0x70 },
            expect: Expect::Mask,
            icw4_follows: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            special_fully_nested: false,
            read_isr: false,
            poll: false,
            first,
        }
    }

    /// Requests as the chip sees them: latched edges and asserted levels.
    fn requests(&self) -> u8 {
        (self.irr & !self.elcr) | (self.lines & self.elcr)
    }

    fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << (input & 7);
        if level {
            if self.lines & bit == 0 {
                self.irr |= bit & !self.elcr;
            }
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    /// How far `bits` is from the highest priority: 0 to 7, or 8 when no bit is set.
    fn rank(&self, bits: u8) -> u32 {
        match bits.rotate_right(u32::from(self.top)) {
            0 => 8,
            rotated => rotated.trailing_zeros(),
        }
    }

    fn input_of_rank(&self, rank: u32) -> u8 {
        ((u32::from(self.top) + rank) & 7) as u8
    }

    /// The input that the chip would deliver now.
    fn winner(&self) -> Option<u8> {
        let rank = self.rank(self.requests() & !self.imr);
        if rank == 8 {
            return None;
        }
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.special_fully_nested && self.first {
            in_service &= !(1 << CASCADE);
        }
        (rank < self.rank(in_service)).then(|| self.input_of_rank(rank))
    }

    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        self.irr &= !bit;
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.top = (input + 1) & 7;
            }
        } else {
            self.isr |= bit;
        }
    }

    fn end_of_interrupt(&mut self, command: u8) {
        let specific = command & 0x40 != 0;
        let rotate = command & 0x80 != 0;
        let input = if specific {
            command & 7
        } else {
            match self.rank(self.isr) {
                8 => return,
                rank => self.input_of_rank(rank),
            }
        };
        self.isr &= !(1 << input);
        if rotate {
            self.top = (input + 1) & 7;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            // ICW1 restarts the chip. Lines that are still high have to fall and rise again.
            let (lines, elcr) = (self.lines, self.elcr);
            *self = Self::new(self.first);
            self.lines = lines;
            self.elcr = elcr;
            self.imr = 0;
            self.expect = Expect::Icw2;
            self.icw4_follows = value & 1 != 0;
        } else if value & 0x08 != 0 {
            if value & 0x04 != 0 {
                self.poll = true;
            }
            if value & 0x02 != 0 {
                self.read_isr = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            match value >> 5 {
                0 | 4 => self.rotate_on_auto_eoi = value & 0x80 != 0,
                1 | 3 | 5 | 7 => self.end_of_interrupt(value),
                6 => self.top = (value + 1) & 7,
                _ => {}
            }
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.expect {
            Expect::Mask => self.imr = value,
            Expect::Icw2 => {
                self.base = value & 0xf8;
                self.expect = Expect::Icw3;
            }
            Expect::Icw3 => {
                self.expect = if self.icw4_follows {
                    Expect::Icw4
                } else {
                    Expect::Mask
                };
            }
            Expect::Icw4 => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                self.expect = Expect::Mask;
            }
        }
    }

    fn read_poll(&mut self) -> u8 {
        self.poll = false;
        match self.winner() {
            Some(input) => {
                self.acknowledge(input);
                0x80 | input
            }
            None => 0,
        }
    }

    fn read(&mut self, data: bool) -> u8 {
        if self.poll {
            self.read_poll()
        } else if data {
            self.imr
        } else if self.read_isr {
            self.isr
        } else {
            self.requests()
        }
    }

    fn write_elcr(&mut self, value: u8) {
        self.elcr = value & self.elcr_writable;
        self.irr &= !self.elcr;
    }
}

impl State for Chip {
    fn save(&self, w: &mut Writer) {
        for byte in [self.lines, self.irr, self.imr, self.isr, self.elcr] {
            w.u8(byte);
        }
        w.u8(self.top);
        w.u8(self.base);
        w.u8(match self.expect {
            Expect::Mask => 0,
            Expect::Icw2 => 2,
            Expect::Icw3 => 3,
            Expect::Icw4 => 4,
        });
        for flag in [
            self.icw4_follows,
            self.auto_eoi,
            self.rotate_on_auto_eoi,
            self.special_mask,
            self.special_fully_nested,
            self.read_isr,
            self.poll,
        ] {
            w.bool(flag);
        }
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.lines = r.u8()?;
        self.irr = r.u8()?;
        self.imr = r.u8()?;
        self.isr = r.u8()?;
        self.elcr = r.u8()? & self.elcr_writable;
        self.top = r.u8()? & 7;
        self.base = r.u8()?;
        self.expect = match r.u8()? {
            0 => Expect::Mask,
            2 => Expect::Icw2,
            3 => Expect::Icw3,
            4 => Expect::Icw4,
            value => {
                return Err(LoadError::BadValue {
                    field: "8259 initialisation step",
                    value: u64::from(value),
                })
            }
        };
        self.icw4_follows = r.bool()?;
        self.auto_eoi = r.bool()?;
        self.rotate_on_auto_eoi = r.bool()?;
        self.special_mask = r.bool()?;
        self.special_fully_nested = r.bool()?;
        self.read_isr = r.bool()?;
        self.poll = r.bool()?;
        Ok(())
    }
}

/// The two cascaded chips: lines 0 to 7 on the first, 8 to 15 on the second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pic {
    chips: [Chip; 2],
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// The pair as firmware leaves it: all lines masked, the ACPI interrupt (9) level triggered.
    #[must_use]
    pub fn new() -> Self {
        let mut pic = Self {
            chips: [Chip::new(true), Chip::new(false)],
        };
        pic.chips[1].elcr = 0x02;
        pic
    }

    /// Sets the level of an ISA line, 0 to 15. Line 2 is the cascade and is ignored.
    pub fn set_irq(&mut self, line: u8, level: bool) {
        if line != CASCADE && line < 16 {
            self.chips[usize::from(line >> 3)].set_line(line & 7, level);
            self.cascade();
        }
    }

    fn cascade(&mut self) {
        let level = self.chips[1].winner().is_some();
        self.chips[0].set_line(CASCADE, level);
        if !level {
            // The second chip withdraws its request; there is nothing that a latched edge could mean.
            self.chips[0].irr &= !(1 << CASCADE);
        }
    }

    /// The INTR output of the pair.
    #[must_use]
    pub fn irq(&self) -> bool {
        self.chips[0].winner().is_some()
    }

    /// An INTA cycle: the vector of the interrupt with the highest priority. Without a request, the
    /// chip answers with its input 7 (the "spurious" interrupt of the datasheet).
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.chips[0].winner() {
            Some(CASCADE) => {
                let inner = self.chips[1].winner();
                if let Some(input) = inner {
                    self.chips[1].acknowledge(input);
                }
                self.chips[0].acknowledge(CASCADE);
                self.chips[1].base | inner.unwrap_or(7)
            }
            Some(input) => {
                self.chips[0].acknowledge(input);
                self.chips[0].base | input
            }
            None => self.chips[0].base | 7,
        };
        // The cascade input has to show an edge for the next request of the second chip.
        self.chips[0].set_line(CASCADE, false);
        self.cascade();
        vector
    }

    /// Reads one of the ports 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1.
    pub fn read(&mut self, port: u16) -> u8 {
        let value = match port {
            0x4d0 | 0x4d1 => self.chips[usize::from(port & 1)].elcr,
            _ => self.chips[usize::from(port >> 7 & 1)].read(port & 1 != 0),
        };
        self.cascade();
        value
    }

    /// Writes one of the ports 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1.
    pub fn write(&mut self, port: u16, value: u8) {
        match port {
            0x4d0 | 0x4d1 => self.chips[usize::from(port & 1)].write_elcr(value),
            _ => {
                let chip = &mut self.chips[usize::from(port >> 7 & 1)];
                if port & 1 != 0 {
                    chip.write_data(value);
                } else {
                    chip.write_command(value);
                }
            }
        }
        self.chips[0].set_line(CASCADE, false);
        self.cascade();
    }
}

impl State for Pic {
    fn save(&self, w: &mut Writer) {
        self.chips[0].save(w);
        self.chips[1].save(w);
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.chips[0].load(r)?;
        self.chips[1].load(r)
    }
}

impl Device for Pic {
    fn name(&self) -> Cow<'static, str> {
        "pic".into()
    }

    fn reset(&mut self) {
        *self = Self::new();
    }

    fn ranges(&self) -> Vec<Range> {
        (0..)
            .zip(PORTS)
            .map(|(region, port)| Range::isa(port, 2, region))
            .collect()
    }

    fn read(&mut self, at: Access, _out: &mut Outbox) -> u64 {
        Pic::read(self, port(at)).into()
    }

    fn write(&mut self, at: Access, value: u64, _out: &mut Outbox) {
        Pic::write(self, port(at), value as u8);
    }
}

/// Two ports each of the first chip, of the second one, and of the edge/level control registers.
const PORTS: [u16; 3] = [0x20, 0xa0, 0x4d0];

fn port(at: Access) -> u16 {
    PORTS[usize::from(at.region)] + at.offset as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux's `init_8259A` programs the pair.
    fn linux() -> Pic {
        let mut pic = Pic::new();
        for (port, value) in [
            (0x21, 0xff),
            (0x20, 0x11),
            (0x21, 0x30),
            (0x21, 0x04),
            (0x21, 0x01),
            (0xa0, 0x11),
            (0xa1, 0x38),
            (0xa1, 0x02),
            (0xa1, 0x01),
            (0x21, 0xfb),
            (0xa1, 0xff),
        ] {
            pic.write(port, value);
        }
        pic
    }

    #[test]
    fn the_probe_of_linux_finds_the_chip() {
        let mut pic = linux();
        pic.write(0x21, 0xfb);
        assert_eq!(pic.read(0x21), 0xfb);
    }

    #[test]
    fn an_edge_is_delivered_once() {
        let mut pic = linux();
        pic.write(0x21, 0xfa);
        pic.set_irq(0, true);
        assert!(pic.irq());
        assert_eq!(pic.acknowledge(), 0x30);
        assert!(!pic.irq());
        pic.write(0x20, 0x60);
        assert!(!pic.irq(), "a line that stays high is no new edge");
        pic.set_irq(0, false);
        pic.set_irq(0, true);
        assert!(pic.irq());
    }

    #[test]
    fn the_second_chip_arrives_through_the_cascade() {
        let mut pic = linux();
        pic.write(0xa1, 0xef);
        pic.set_irq(12, true);
        assert_eq!(pic.acknowledge(), 0x3c);
        pic.set_irq(12, false);
        pic.set_irq(12, true);
        assert!(!pic.irq(), "in service on both chips");
        pic.write(0xa0, 0x64);
        pic.write(0x20, 0x62);
        assert!(pic.irq());
    }

    #[test]
    fn a_level_line_asks_until_it_falls() {
        let mut pic = linux();
        pic.write(0xa1, 0xfd);
        pic.set_irq(9, true);
        assert_eq!(pic.acknowledge(), 0x39);
        pic.write(0xa0, 0x61);
        pic.write(0x20, 0x62);
        assert!(pic.irq());
        pic.set_irq(9, false);
        assert!(!pic.irq());
    }

    #[test]
    fn without_a_request_the_answer_is_spurious() {
        assert_eq!(linux().acknowledge(), 0x37);
    }

    #[test]
    fn lower_priorities_wait_for_the_one_in_service() {
        let mut pic = linux();
        pic.write(0x21, 0x00);
        pic.set_irq(3, true);
        assert_eq!(pic.acknowledge(), 0x33);
        pic.set_irq(4, true);
        assert!(!pic.irq());
        pic.set_irq(1, true);
        assert_eq!(pic.acknowledge(), 0x31);
        pic.write(0x20, 0x20);
        pic.write(0x20, 0x20);
        assert_eq!(pic.acknowledge(), 0x34);
    }
}
