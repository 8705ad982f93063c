//! The high precision event timer (IA-PC HPET specification 1.0a): three comparators on a 64-bit
//! counter of 100 MHz, with the legacy replacement route.
//!
//! The counter follows from the moment and value of its last setting. An armed comparator is kept
//! as the moment at which it matches next.

use super::device::{Access, Device, Lines, LoadError, Outbox, Reader, State, Trial, Writer};
use super::range::Range;
use std::borrow::Cow;

/// Physical address of the registers.
pub const BASE: u64 = 0xfed0_0000;
/// Size of the register block in bytes.
pub const SIZE: u64 = 0x400;
/// Nanoseconds per tick of the counter.
pub const TICK: u64 = 10;
/// Number of comparators.
pub const TIMERS: usize = 3;

/// Period of 10 ns in femtoseconds, vendor 8086, legacy capable, 64-bit, three timers, revision 1.
const CAPABILITIES: u64 =
    ((TICK * 1_000_000) << 32) | (0x8086 << 16) | (1 << 15) | (1 << 13) | (2 << 8) | 1;

const ENABLE: u64 = 1;
const LEGACY: u64 = 2;

const T_LEVEL: u64 = 1 << 1;
const T_ENABLE: u64 = 1 << 2;
const T_PERIODIC: u64 = 1 << 3;
const T_SET_VALUE: u64 = 1 << 6;
const T_32BIT: u64 = 1 << 8;
const T_WRITABLE: u64 = T_LEVEL | T_ENABLE | T_PERIODIC | T_SET_VALUE | T_32BIT | 0x1f << 9;
/// Periodic and 64-bit capable; I/O APIC pins 2, 8 and 16 to 23.
const T_CAPABILITIES: u64 = 0x00ff_0104 << 32 | 1 << 5 | 1 << 4;

/// Where a comparator's interrupt goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// An ISA line: legacy replacement of the PIT (0) and the RTC (8).
    Isa(u8),
    /// An I/O APIC pin.
    Pin(u8),
}

#[derive(Debug, Clone, Default)]
struct Timer {
    config: u64,
    comparator: u64,
    period: u64,
    /// When the comparator matches next.
    match_at: Option<u64>,
}

impl Timer {
    fn width(&self) -> u64 {
        if self.config & T_32BIT != 0 {
            0xffff_ffff
        } else {
            u64::MAX
        }
    }

    fn periodic(&self) -> bool {
        self.config & T_PERIODIC != 0 && self.period & self.width() != 0
    }
}

/// The event timer block.
#[derive(Debug, Clone)]
pub struct Hpet {
    config: u64,
    /// Interrupts of level-triggered timers that were not yet cleared.
    status: u64,
    /// Counter value at `since` while running, or as it stands.
    value: u64,
    since: u64,
    timers: [Timer; TIMERS],
    /// Timers whose edge the board has not seen yet.
    pulses: u8,
}

impl Default for Hpet {
    fn default() -> Self {
        Self::new()
    }
}

impl Hpet {
    /// A halted counter at zero.
    #[must_use]
    pub fn new() -> Self {
        Self {
            config: 0,
            status: 0,
            value: 0,
            since: 0,
            timers: std::array::from_fn(|_| Timer {
                comparator: u64::MAX,
                ..Timer::default()
            }),
            pulses: 0,
        }
    }

    fn running(&self) -> bool {
        self.config & ENABLE != 0
    }

    /// The timers 0 and 1 stand in for the PIT and the RTC.
    #[must_use]
    pub fn legacy(&self) -> bool {
        self.config & (ENABLE | LEGACY) == ENABLE | LEGACY
    }

    fn counter(&self, now: u64) -> u64 {
        if self.running() {
            self.value
                .wrapping_add(now.saturating_sub(self.since) / TICK)
        } else {
            self.value
        }
    }

    /// Works out when a comparator matches next, after a change at `now`.
    fn arm(&mut self, index: usize, now: u64) {
        let counter = self.counter(now);
        let running = self.running();
        let phase = now.saturating_sub(self.since) % TICK;
        let timer = &mut self.timers[index];
        timer.match_at = None;
        if !running || timer.config & T_ENABLE == 0 {
            return;
        }
        let width = timer.width();
        if timer.periodic() {
            // Periods that passed while the timer was off are over.
            let period = timer.period & width;
            let behind = counter.wrapping_sub(timer.comparator) & width;
            if behind != 0 && behind <= width >> 1 {
                let steps = behind.div_ceil(period);
                timer.comparator =
                    timer.comparator.wrapping_add(steps.wrapping_mul(period)) & width;
            }
        }
        let ticks = timer.comparator.wrapping_sub(counter) & width;
        timer.match_at = ticks
            .checked_mul(TICK)
            .and_then(|delay| now.checked_add(delay))
            .map(|at| if ticks == 0 { at } else { at - phase });
    }

    fn arm_all(&mut self, now: u64) {
        for index in 0..TIMERS {
            self.arm(index, now);
        }
    }

    /// When a comparator matches next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.timers.iter().filter_map(|timer| timer.match_at).min()
    }

    /// Handles all matches up to `now`; several of one timer give one interrupt.
    pub fn advance(&mut self, now: u64) {
        for index in 0..TIMERS {
            self.advance_one(index, now);
        }
    }

    /// Handles the matches of one comparator up to `now`.
    fn advance_one(&mut self, index: usize, now: u64) {
        let timer = &mut self.timers[index];
        let Some(at) = timer.match_at.filter(|&at| at <= now) else {
            return;
        };
        let width = timer.width();
        let step = if timer.periodic() {
            Some(timer.period & width)
        } else {
            // A 32-bit comparator matches again after the counter's lower half went round.
            (width != u64::MAX).then_some(1 << 32)
        };
        timer.match_at = None;
        if let Some(delay) = step.and_then(|step| step.checked_mul(TICK)) {
            let steps = (now - at) / delay + 1;
            timer.match_at = steps.checked_mul(delay).and_then(|all| at.checked_add(all));
            if timer.periodic() {
                let passed = steps.wrapping_mul(timer.period & width);
                timer.comparator = timer.comparator.wrapping_add(passed) & width;
            }
        }
        if timer.config & T_LEVEL != 0 {
            self.status |= 1 << index;
        } else {
            self.pulses |= 1 << index;
        }
    }

    /// Where a comparator's interrupt goes now.
    #[must_use]
    pub fn route(&self, timer: usize) -> Route {
        match timer {
            0 if self.legacy() => Route::Isa(0),
            1 if self.legacy() => Route::Isa(8),
            _ => Route::Pin(
                self.timers
                    .get(timer)
                    .map_or(0, |timer| (timer.config >> 9 & 0x1f) as u8),
            ),
        }
    }

    /// The level of a level-triggered comparator's line.
    #[must_use]
    pub fn level(&self, timer: usize) -> bool {
        self.timers.get(timer).is_some_and(|state| {
            self.running()
                && self.status >> timer & 1 != 0
                && state.config & (T_ENABLE | T_LEVEL) == T_ENABLE | T_LEVEL
        })
    }

    /// The line of a comparator.
    fn line(&self, timer: usize) -> Lines {
        match self.route(timer) {
            Route::Isa(line) => Lines::isa(line, true),
            Route::Pin(pin) => Lines {
                pins: 1 << pin,
                ..Lines::default()
            },
        }
    }

    fn read_register(&self, register: u64, now: u64) -> u64 {
        match register {
            0x000 => CAPABILITIES,
            0x010 => self.config,
            0x020 => self.status,
            0x0f0 => self.counter(now),
            0x100..=0x15f => {
                let timer = &self.timers[(register - 0x100) as usize / 0x20];
                match register & 0x1f {
                    0x00 => timer.config | T_CAPABILITIES,
                    0x08 => timer.comparator & timer.width(),
                    _ => 0,
                }
            }
            _ => 0,
        }
    }

    /// Reads 4 or 8 bytes; narrower reads give parts of the register.
    #[must_use]
    pub fn read(&self, offset: u64, size: usize, now: u64) -> u64 {
        let value = self.read_register(offset & !7, now) >> (8 * (offset & 7));
        if size >= 8 {
            value
        } else {
            value & ((1 << (8 * size)) - 1)
        }
    }

    /// Writes 4 or 8 bytes at an aligned offset; other writes have no effect.
    pub fn write(&mut self, offset: u64, size: usize, value: u64, now: u64) {
        if offset % 4 != 0 || size < 4 {
            return;
        }
        // The bits of the 64-bit register that this access covers.
        let (mask, value) = match (offset & 4, size) {
            (0, 8) => (u64::MAX, value),
            (0, _) => (0xffff_ffff, value & 0xffff_ffff),
            _ => (0xffff_ffff << 32, value << 32),
        };
        match offset & !7 {
            0x010 => self.write_config(self.config & !mask | value, now),
            0x020 => self.status &= !value,
            0x0f0 => {
                self.value = self.counter(now) & !mask | value;
                self.since = now;
                self.arm_all(now);
            }
            register @ 0x100..=0x15f => {
                let index = (register - 0x100) as usize / 0x20;
                match register & 0x1f {
                    0x00 => self.write_timer_config(index, mask, value, now),
                    0x08 => self.write_comparator(index, mask, value, now),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn write_config(&mut self, value: u64, now: u64) {
        let config = value & (ENABLE | LEGACY);
        if (config ^ self.config) & ENABLE != 0 {
            self.value = self.counter(now);
            self.since = now;
        }
        self.config = config;
        self.arm_all(now);
    }

    fn write_timer_config(&mut self, index: usize, mask: u64, value: u64, now: u64) {
        let timer = &mut self.timers[index];
        timer.config = (timer.config & !mask | value & mask) & T_WRITABLE;
        if timer.config & T_32BIT != 0 {
            timer.comparator &= 0xffff_ffff;
            timer.period &= 0xffff_ffff;
        }
        if timer.config & T_LEVEL == 0 {
            self.status &= !(1 << index);
        }
        self.arm(index, now);
    }

    fn write_comparator(&mut self, index: usize, mask: u64, value: u64, now: u64) {
        let timer = &mut self.timers[index];
        let width = timer.width();
        let merge = |old: u64| (old & !mask | value) & width;
        let periodic = timer.config & T_PERIODIC != 0;
        if !periodic || timer.config & T_SET_VALUE != 0 {
            timer.comparator = merge(timer.comparator);
        }
        if periodic {
            timer.period = merge(timer.period);
            timer.config &= !T_SET_VALUE;
        }
        self.arm(index, now);
    }
}

impl State for Hpet {
    fn save(&self, w: &mut Writer) {
        for value in [self.config, self.status, self.value, self.since] {
            w.u64(value);
        }
        for timer in &self.timers {
            w.u64(timer.config);
            w.u64(timer.comparator);
            w.u64(timer.period);
            w.option_u64(timer.match_at);
        }
        w.u8(self.pulses);
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.config = r.u64()? & (ENABLE | LEGACY);
        self.status = r.u64()?;
        self.value = r.u64()?;
        self.since = r.u64()?;
        for timer in &mut self.timers {
            timer.config = r.u64()? & T_WRITABLE;
            timer.comparator = r.u64()?;
            timer.period = r.u64()?;
            timer.match_at = r.option_u64()?;
        }
        self.pulses = r.u8()?;
        Ok(())
    }
}

impl Device for Hpet {
    fn name(&self) -> Cow<'static, str> {
        "hpet".into()
    }

    fn reset(&mut self) {
        *self = Self::new();
    }

    fn ranges(&self) -> Vec<Range> {
        vec![Range::memory(BASE, SIZE, 0).quiet()]
    }

    fn read(&mut self, at: Access, _out: &mut Outbox) -> u64 {
        Hpet::read(self, at.offset, at.size, at.now)
    }

    fn write(&mut self, at: Access, value: u64, _out: &mut Outbox) {
        Hpet::write(self, at.offset, at.size, value, at.now);
    }

    fn lines(&self) -> Lines {
        let cuts = if self.legacy() { 1 << 0 | 1 << 8 } else { 0 };
        let lines = Lines {
            cuts,
            ..Lines::default()
        };
        (0..TIMERS)
            .filter(|&timer| self.level(timer))
            .fold(lines, |lines, timer| lines.and(self.line(timer)))
    }

    fn take_pulse(&mut self) -> Option<Lines> {
        let timer = (0..TIMERS).find(|timer| self.pulses >> timer & 1 != 0);
        if timer.is_none() {
            self.pulses = 0;
        }
        let timer = timer?;
        self.pulses &= !(1 << timer);
        Some(self.line(timer))
    }

    fn next_deadline(&self) -> Option<u64> {
        Hpet::next_deadline(self)
    }

    fn advance(&mut self, _deadline: u64, now: u64, _out: &mut Outbox) {
        Hpet::advance(self, now);
    }

    fn trial(&mut self) -> Option<&mut dyn Trial> {
        Some(self)
    }
}

impl Trial for Hpet {
    fn copy(&self) -> Box<dyn Device> {
        Box::new(self.clone())
    }

    fn deadlines(&self) -> Vec<Option<u64>> {
        self.timers.iter().map(|timer| timer.match_at).collect()
    }

    fn fire(&mut self, timer: usize, at: u64) {
        self.advance_one(timer, at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_those_of_an_ich9() {
        assert_eq!(Hpet::new().read(0, 8, 0), 0x0098_9680_8086_a201);
    }

    #[test]
    fn the_counter_runs_only_while_enabled() {
        let mut hpet = Hpet::new();
        assert_eq!(hpet.read(0xf0, 8, 5000), 0);
        hpet.write(0x10, 4, 1, 5000);
        assert_eq!(hpet.read(0xf0, 8, 6005), 100);
        hpet.write(0x10, 4, 0, 7000);
        assert_eq!(hpet.read(0xf0, 4, 9000), 200);
    }

    #[test]
    fn linux_one_shot_fires_once_at_its_time() {
        let mut hpet = Hpet::new();
        hpet.write(0x10, 4, 3, 0);
        hpet.write(0x100, 4, T_ENABLE | T_32BIT, 0);
        hpet.write(0x108, 4, 1000, 3);
        assert_eq!(hpet.next_deadline(), Some(10_000));
        hpet.advance(9_999);
        assert_eq!(hpet.take_pulse(), None);
        hpet.advance(10_000);
        assert_eq!(hpet.take_pulse(), Some(Lines::isa(0, true)));
        assert_eq!(hpet.take_pulse(), None);
        assert_eq!(hpet.route(0), Route::Isa(0));
        assert_eq!(hpet.next_deadline(), Some(10_000 + (10 << 32)));
    }

    #[test]
    fn linux_periodic_sets_the_comparator_and_then_the_period() {
        let mut hpet = Hpet::new();
        hpet.write(0x10, 4, 3, 0);
        hpet.write(0x100, 4, T_ENABLE | T_PERIODIC | T_SET_VALUE | T_32BIT, 0);
        hpet.write(0x108, 4, 500, 0);
        hpet.write(0x108, 4, 400, 0);
        for expected in [5000, 9000, 13_000] {
            assert_eq!(hpet.next_deadline(), Some(expected));
            hpet.advance(expected);
            assert_eq!(hpet.take_pulse(), Some(Lines::isa(0, true)));
            assert_eq!(hpet.take_pulse(), None);
        }
        assert_eq!(hpet.read(0x108, 4, 13_000), 1700);
    }

    #[test]
    fn a_level_timer_holds_its_line_until_cleared() {
        let mut hpet = Hpet::new();
        hpet.write(0x148, 8, 10, 0);
        hpet.write(0x140, 4, T_ENABLE | T_LEVEL | 20 << 9, 0);
        hpet.write(0x10, 4, 1, 0);
        hpet.advance(100);
        assert!(hpet.level(2));
        assert_eq!(hpet.route(2), Route::Pin(20));
        hpet.write(0x20, 4, 4, 200);
        assert!(!hpet.level(2));
        assert_eq!(hpet.next_deadline(), None);
    }

    #[test]
    fn a_period_of_zero_does_not_fire_for_ever() {
        let mut hpet = Hpet::new();
        hpet.write(0x100, 4, T_ENABLE | T_PERIODIC, 0);
        hpet.write(0x10, 4, 1, 0);
        hpet.write(0x108, 8, 0, 0);
        hpet.advance(1_000_000);
        hpet.advance(2_000_000);
        assert!(hpet.next_deadline().is_none_or(|at| at > 2_000_000));
    }
}
