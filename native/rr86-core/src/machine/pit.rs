//! The 8254 programmable interval timer (Intel 8254 datasheet) with the speaker port 0x61.
//!
//! A channel counts at 1.193182 MHz. It is kept as the moment when it was loaded plus the ticks that
//! it had counted before its gate last stopped it; count and output follow from the time.

use super::device::{Access, Device, Lines, LoadError, Outbox, Reader, State, Trial, Writer};
use super::range::Range;
use std::borrow::Cow;

/// Input clock in Hz.
pub const FREQUENCY: u64 = 1_193_182;

const NANOSECONDS: u128 = 1_000_000_000;
/// Period of the refresh toggle in port 0x61, bit 4.
const REFRESH_NANOSECONDS: u64 = 15_085;

fn ticks_in(nanoseconds: u64) -> u64 {
    // The quotient is smaller than the dividend's 64 bits, since the clock is slower than 1 GHz.
    (u128::from(nanoseconds) * u128::from(FREQUENCY) / NANOSECONDS) as u64
}

/// Nanoseconds until `ticks` have passed, rounded up.
fn nanoseconds_for(ticks: u64) -> u64 {
    let nanoseconds = (u128::from(ticks) * NANOSECONDS).div_ceil(u128::from(FREQUENCY));
    u64::try_from(nanoseconds).unwrap_or(u64::MAX)
}

#[derive(Debug, Clone)]
struct Channel {
    mode: u8,
    /// 1: low byte, 2: high byte, 3: low then high.
    access: u8,
    bcd: bool,
    /// Ticks per period, 2 to 0x10000; 0 until a count was written.
    reload: u32,
    /// When counting last started or resumed.
    since: u64,
    /// Ticks counted before `since`.
    counted: u64,
    gate: bool,
    /// Modes 1 and 5 count only after a rising gate.
    triggered: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    read_high_next: bool,
    write_high_next: bool,
    write_low: u8,
}

impl Channel {
    fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            access: 3,
            bcd: false,
            reload: 0,
            since: 0,
            counted: 0,
            gate,
            triggered: false,
            latched_count: None,
            latched_status: None,
            read_high_next: false,
            write_high_next: false,
            write_low: 0,
        }
    }

    fn running(&self) -> bool {
        self.reload != 0
            && match self.mode {
                1 | 5 => self.triggered,
                _ => self.gate,
            }
    }

    fn elapsed(&self, now: u64) -> u64 {
        let counting = if self.running() {
            ticks_in(now.saturating_sub(self.since))
        } else {
            0
        };
        self.counted.saturating_add(counting)
    }

    fn output(&self, now: u64) -> bool {
        let reload = u64::from(self.reload);
        if reload == 0 {
            return self.mode != 0;
        }
        let elapsed = self.elapsed(now);
        match self.mode {
            0 => elapsed >= reload,
            1 => !self.triggered || elapsed >= reload,
            2 => !self.gate || elapsed % reload != reload - 1,
            3 => !self.gate || elapsed % reload < reload.div_ceil(2),
            4 => elapsed != reload,
            _ => !self.triggered || elapsed != reload,
        }
    }

    /// When the output changes next after `now`.
    fn next_change(&self, now: u64) -> Option<u64> {
        if !self.running() {
            return None;
        }
        let reload = u64::from(self.reload);
        let elapsed = self.elapsed(now);
        let periodic = |edge: u64| {
            let phase = elapsed % reload;
            let start = elapsed - phase;
            if phase < edge {
                start.checked_add(edge)
            } else {
                start.checked_add(reload)
            }
        };
        let target = match self.mode {
            0 | 1 => (elapsed < reload).then_some(reload),
            2 => periodic(reload - 1),
            3 => periodic(reload.div_ceil(2)),
            _ if elapsed < reload => Some(reload),
            _ => (elapsed == reload).then_some(reload + 1),
        }?;
        let ticks = target.saturating_sub(self.counted);
        self.since.checked_add(nanoseconds_for(ticks))
    }

    fn count(&self, now: u64) -> u16 {
        let reload = u64::from(self.reload);
        if reload == 0 {
            return 0;
        }
        let elapsed = self.elapsed(now);
        let wrap = if self.bcd { 10_000 } else { 0x1_0000 };
        let value = match self.mode {
            2 => reload - elapsed % reload,
            3 => reload - elapsed % reload.div_ceil(2) * 2 % reload,
            _ => (reload % wrap + wrap - elapsed % wrap) % wrap,
        };
        let value = (value % wrap) as u16;
        if self.bcd {
            (value / 1000) << 12 | (value / 100 % 10) << 8 | (value / 10 % 10) << 4 | (value % 10)
        } else {
            value
        }
    }

    fn status(&self, now: u64) -> u8 {
        u8::from(self.output(now)) << 7
            | u8::from(self.reload == 0) << 6
            | self.access << 4
            | self.mode << 1
            | u8::from(self.bcd)
    }

    fn set_control(&mut self, value: u8) {
        let gate = self.gate;
        let mode = value >> 1 & 7;
        *self = Self::new(gate);
        self.access = value >> 4 & 3;
        // Modes 6 and 7 are other names of 2 and 3.
        self.mode = if mode > 5 { mode - 4 } else { mode };
        self.bcd = value & 1 != 0;
    }

    fn latch_count(&mut self, now: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.count(now));
        }
    }

    fn load_count(&mut self, count: u16, now: u64) {
        let value = if self.bcd {
            let digit = |shift: u32| u32::from(count >> shift & 0xf);
            digit(0) + 10 * digit(4) + 100 * digit(8) + 1000 * digit(12)
        } else {
            u32::from(count)
        };
        self.reload = match value {
            0 if self.bcd => 10_000,
            0 => 0x1_0000,
            // A count of 1 is illegal in the periodic modes.
            1 if matches!(self.mode, 2 | 3) => 2,
            value => value,
        };
        if !matches!(self.mode, 1 | 5) {
            self.since = now;
            self.counted = 0;
        }
    }

    fn write(&mut self, value: u8, now: u64) {
        match self.access {
            1 => self.load_count(u16::from(value), now),
            2 => self.load_count(u16::from(value) << 8, now),
            _ if self.write_high_next => {
                self.write_high_next = false;
                self.load_count(u16::from(value) << 8 | u16::from(self.write_low), now);
            }
            _ => {
                self.write_low = value;
                self.write_high_next = true;
            }
        }
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let count = self.latched_count.unwrap_or_else(|| self.count(now));
        let high = match self.access {
            1 => false,
            2 => true,
            _ => {
                self.read_high_next = !self.read_high_next;
                !self.read_high_next
            }
        };
        if self.access != 3 || high {
            self.latched_count = None;
        }
        (count >> if high { 8 } else { 0 }) as u8
    }

    fn set_gate(&mut self, gate: bool, now: u64) {
        if gate == self.gate {
            return;
        }
        match self.mode {
            0 | 4 => {
                self.counted = self.elapsed(now);
                self.since = now;
            }
            // A rising gate starts the pulse of modes 1 and 5 and the period of modes 2 and 3.
            _ if gate => {
                self.triggered = true;
                self.counted = 0;
                self.since = now;
            }
            _ => {}
        }
        self.gate = gate;
    }
}

impl State for Channel {
    fn save(&self, w: &mut Writer) {
        w.u8(self.mode);
        w.u8(self.access);
        w.bool(self.bcd);
        w.u32(self.reload);
        w.u64(self.since);
        w.u64(self.counted);
        w.bool(self.gate);
        w.bool(self.triggered);
        w.option_u64(self.latched_count.map(u64::from));
        w.option_u64(self.latched_status.map(u64::from));
        w.bool(self.read_high_next);
        w.bool(self.write_high_next);
        w.u8(self.write_low);
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        let bad = |field, value| Err(LoadError::BadValue { field, value });
        self.mode = r.u8()?;
        self.access = r.u8()?;
        self.bcd = r.bool()?;
        self.reload = r.u32()?;
        if self.mode > 5 || self.access > 3 {
            return bad("8254 mode", u64::from(self.mode));
        }
        if self.reload > 0x1_0000 || (self.reload == 1 && matches!(self.mode, 2 | 3)) {
            return bad("8254 count", u64::from(self.reload));
        }
        self.since = r.u64()?;
        self.counted = r.u64()?;
        self.gate = r.bool()?;
        self.triggered = r.bool()?;
        self.latched_count = r.option_u64()?.map(|value| value as u16);
        self.latched_status = r.option_u64()?.map(|value| value as u8);
        self.read_high_next = r.bool()?;
        self.write_high_next = r.bool()?;
        self.write_low = r.u8()?;
        Ok(())
    }
}

/// The three channels: 0 is IRQ 0, 1 was DRAM refresh, 2 is the speaker.
#[derive(Debug, Clone)]
pub struct Pit {
    channels: [Channel; 3],
    speaker: bool,
    irq: bool,
    next: Option<u64>,
}

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}

impl Pit {
    /// All channels idle until a count is written.
    #[must_use]
    pub fn new() -> Self {
        Self {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            speaker: false,
            irq: true,
            next: None,
        }
    }

    fn sample(&mut self, now: u64) {
        self.irq = self.channels[0].output(now);
        self.next = self.channels[0].next_change(now);
    }

    /// Output of channel 0 as of the last access or `advance`: the level of IRQ 0.
    #[must_use]
    pub fn irq(&self) -> bool {
        self.irq
    }

    /// When channel 0's output changes next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.next
    }

    /// Brings channel 0's output up to date.
    pub fn advance(&mut self, now: u64) {
        self.sample(now);
    }

    /// Reads one of the ports 0x40 to 0x43, or 0x61.
    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        match port {
            0x40..=0x42 => self.channels[usize::from(port & 3)].read(now),
            0x61 => {
                let refresh = (now / REFRESH_NANOSECONDS) & 1 != 0;
                u8::from(self.channels[2].gate)
                    | u8::from(self.speaker) << 1
                    | u8::from(refresh) << 4
                    | u8::from(self.channels[2].output(now)) << 5
            }
            // The control register cannot be read.
            _ => 0xff,
        }
    }

    /// Writes one of the ports 0x40 to 0x43, or 0x61.
    pub fn write(&mut self, port: u16, value: u8, now: u64) {
        match port {
            0x40..=0x42 => self.channels[usize::from(port & 3)].write(value, now),
            0x43 => self.write_control(value, now),
            0x61 => {
                self.speaker = value & 2 != 0;
                self.channels[2].set_gate(value & 1 != 0, now);
            }
            _ => {}
        }
        self.sample(now);
    }

    fn write_control(&mut self, value: u8, now: u64) {
        let number = value >> 6;
        if number == 3 {
            for (index, channel) in self.channels.iter_mut().enumerate() {
                if value >> (index + 1) & 1 == 0 {
                    continue;
                }
                if value & 0x20 == 0 {
                    channel.latch_count(now);
                }
                if value & 0x10 == 0 && channel.latched_status.is_none() {
                    channel.latched_status = Some(channel.status(now));
                }
            }
        } else if value & 0x30 == 0 {
            self.channels[usize::from(number)].latch_count(now);
        } else {
            self.channels[usize::from(number)].set_control(value);
        }
    }
}

impl State for Pit {
    fn save(&self, w: &mut Writer) {
        for channel in &self.channels {
            channel.save(w);
        }
        w.bool(self.speaker);
        w.bool(self.irq);
        w.option_u64(self.next);
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        for channel in &mut self.channels {
            channel.load(r)?;
        }
        self.speaker = r.bool()?;
        self.irq = r.bool()?;
        self.next = r.option_u64()?;
        Ok(())
    }
}

impl Device for Pit {
    fn name(&self) -> Cow<'static, str> {
        "pit".into()
    }

    fn reset(&mut self) {
        *self = Self::new();
    }

    fn ranges(&self) -> Vec<Range> {
        vec![Range::isa(0x40, 4, 0), Range::isa(0x61, 1, 1)]
    }

    fn read(&mut self, at: Access, _out: &mut Outbox) -> u64 {
        Pit::read(self, port(at), at.now).into()
    }

    fn write(&mut self, at: Access, value: u64, _out: &mut Outbox) {
        Pit::write(self, port(at), value as u8, at.now);
    }

    fn lines(&self) -> Lines {
        Lines::isa(0, self.irq)
    }

    fn next_deadline(&self) -> Option<u64> {
        self.next
    }

    /// Each change of the output counts, so time goes on to the deadline only.
    fn advance(&mut self, deadline: u64, _now: u64, _out: &mut Outbox) {
        self.sample(deadline);
    }

    fn trial(&mut self) -> Option<&mut dyn Trial> {
        Some(self)
    }
}

impl Trial for Pit {
    fn copy(&self) -> Box<dyn Device> {
        Box::new(self.clone())
    }

    fn deadlines(&self) -> Vec<Option<u64>> {
        vec![self.next]
    }

    fn fire(&mut self, _timer: usize, at: u64) {
        self.sample(at);
    }

    /// The output rises and falls.
    fn firings(&self) -> usize {
        2
    }

    fn pass(&mut self, until: u64) {
        if self.next.is_some_and(|next| next <= until) {
            self.sample(until);
        }
    }
}

fn port(at: Access) -> u16 {
    match at.region {
        0 => 0x40 + at.offset as u16,
        _ => 0x61,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rising_edges(pit: &mut Pit, until: u64) -> Vec<u64> {
        let mut edges = Vec::new();
        while let Some(at) = pit.next_deadline().filter(|&at| at <= until) {
            let before = pit.irq();
            pit.advance(at);
            assert_ne!(pit.irq(), before, "a deadline is a change");
            if pit.irq() {
                edges.push(at);
            }
        }
        edges
    }

    #[test]
    fn an_idle_timer_has_no_deadline() {
        assert_eq!(Pit::new().next_deadline(), None);
    }

    #[test]
    fn mode_2_at_250_hertz_does_not_drift() {
        let mut pit = Pit::new();
        pit.write(0x43, 0x34, 0);
        pit.write(0x40, (4773u16 & 0xff) as u8, 0);
        pit.write(0x40, (4773u16 >> 8) as u8, 0);
        let edges = rising_edges(&mut pit, 1_000_000_000);
        assert_eq!(edges.len(), 249);
        assert_eq!(edges[0], nanoseconds_for(4773));
        assert_eq!(edges[248], nanoseconds_for(4773 * 249));
    }

    #[test]
    fn mode_3_is_high_for_half_of_the_period() {
        let mut pit = Pit::new();
        pit.write(0x43, 0x16, 0);
        pit.write(0x40, 100, 0);
        assert!(pit.irq());
        assert_eq!(pit.next_deadline(), Some(nanoseconds_for(50)));
        assert_eq!(rising_edges(&mut pit, nanoseconds_for(1000)).len(), 10);
    }

    #[test]
    fn linux_shots_of_mode_4_interrupt_once() {
        let mut pit = Pit::new();
        pit.write(0x43, 0x38, 0);
        pit.write(0x40, 0x10, 0);
        pit.write(0x40, 0x00, 0);
        assert_eq!(rising_edges(&mut pit, u64::MAX), [nanoseconds_for(17)]);
        assert_eq!(pit.next_deadline(), None);
    }

    #[test]
    fn the_calibration_of_linux_sees_channel_2_end() {
        let mut pit = Pit::new();
        pit.write(0x61, 1, 0);
        pit.write(0x43, 0xb0, 0);
        pit.write(0x42, 0x0b, 0);
        pit.write(0x42, 0xe9, 0);
        let end = nanoseconds_for(0xe90b);
        assert_eq!(pit.read(0x61, end - 1) & 0x21, 0x01);
        assert_eq!(pit.read(0x61, end) & 0x21, 0x21);
    }

    #[test]
    fn a_latched_count_waits_to_be_read() {
        let mut pit = Pit::new();
        pit.write(0x43, 0x34, 0);
        pit.write(0x40, 0x00, 0);
        pit.write(0x40, 0x10, 0);
        pit.write(0x43, 0x00, nanoseconds_for(0x123));
        let later = nanoseconds_for(0x400);
        let low = pit.read(0x40, later);
        let high = pit.read(0x40, later);
        assert_eq!(u16::from(high) << 8 | u16::from(low), 0x1000 - 0x123);
    }

    #[test]
    fn read_back_gives_the_status_before_the_count() {
        let mut pit = Pit::new();
        pit.write(0x43, 0x34, 0);
        pit.write(0x43, 0xc2, 0);
        assert_eq!(
            pit.read(0x40, 0),
            0xf4,
            "high, count not yet written, mode 2"
        );
    }

    #[test]
    fn a_closed_gate_stops_mode_0() {
        let mut pit = Pit::new();
        pit.write(0x61, 1, 0);
        pit.write(0x43, 0xb0, 0);
        pit.write(0x42, 0x00, 0);
        pit.write(0x42, 0x01, 0);
        let middle = nanoseconds_for(0x80);
        pit.write(0x61, 0, middle);
        assert_eq!(pit.read(0x61, middle * 10) & 0x20, 0);
        pit.write(0x61, 1, middle * 10);
        assert_eq!(pit.read(0x61, middle * 11 + 1) & 0x20, 0x20);
    }
}
