//! MC146818 real-time clock with CMOS memory (ports 0x70/0x71, IRQ 8).
//!
//! The date is computed from the virtual time: the divider chain counts from `origin`, and `epoch` is
//! the Unix time (UTC) of its second zero. Interrupt flags are computed likewise, from what happened
//! after `since` (the last moment at which they were collected), so asking does not change anything.
//! Only the interrupt request itself is latched, at its deadline.
//!
//! Simplifications: an update takes no time (the update-in-progress bit shows the 244 µs before it, in
//! which the date must not be read), there is no square wave, and daylight saving is ignored.
//!
//! Interface: [`Rtc::read`] and [`Rtc::write`] with offset 0 (port 0x70) or 1 (0x71), [`Rtc::irq`]
//! (IRQ 8), [`Rtc::next_deadline`], [`Rtc::advance`], [`Rtc::set_cmos`].

use super::device::{Access, Device, Lines, LoadError, Outbox, Reader, State, Trial, Writer};
use super::range::Range;
use std::borrow::Cow;

const SECONDS: usize = 0x00;
const SECONDS_ALARM: usize = 0x01;
const MINUTES: usize = 0x02;
const MINUTES_ALARM: usize = 0x03;
const HOURS: usize = 0x04;
const HOURS_ALARM: usize = 0x05;
const DAY_OF_WEEK: usize = 0x06;
const DAY: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const REG_A: usize = 0x0a;
const REG_B: usize = 0x0b;
const REG_C: usize = 0x0c;
const REG_D: usize = 0x0d;
/// Where PC firmware and the FADT keep the century.
const CENTURY: usize = 0x32;
const CMOS_SIZE: usize = 128;

const A_UPDATE_IN_PROGRESS: u8 = 0x80;
const A_DIVIDER: u8 = 0x70;
const A_DIVIDER_32KHZ: u8 = 0x20;
const A_RATE: u8 = 0x0f;
const B_SET: u8 = 0x80;
const B_UPDATE: u8 = 0x10;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
/// Periodic, alarm and update-ended: the same bits enable in B and flag in C.
const SOURCES: u8 = PERIODIC | ALARM | B_UPDATE;
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const C_REQUEST: u8 = 0x80;
const D_VALID_RAM: u8 = 0x80;
const HOUR_PM: u8 = 0x80;
/// Alarm values from here on match everything.
const ALARM_ANY: u8 = 0xc0;

const NS_PER_SECOND: u64 = 1_000_000_000;
const OSCILLATOR_HZ: u64 = 32_768;
/// How long before an update the update-in-progress bit shows (datasheet: 244 µs).
const UPDATE_WARNING_NS: u64 = 244_000;
/// The first update comes half a second after the divider chain is released.
const DIVIDER_RELEASE_NS: u64 = NS_PER_SECOND / 2;
const SECONDS_PER_DAY: i64 = 86_400;
/// Dates that the registers can show: years 0 to 9999.
const EARLIEST: i64 = -62_167_219_200;
const LATEST: i64 = 253_402_300_799;

/// The real-time clock with its CMOS memory.
#[derive(Clone)]
pub struct Rtc {
    index: u8,
    /// Registers and memory. While the clock runs, the date in here is not current.
    cmos: [u8; CMOS_SIZE],
    /// Unix time at second zero of the divider chain.
    epoch: i64,
    /// When the divider chain was started, and where in its second it was then (ns).
    origin: u64,
    phase: u64,
    /// Flags collected up to `since`.
    flags: u8,
    since: u64,
    request: bool,
    /// What it was made with, for a reset.
    start_time: i64,
    memory: u64,
}

impl Rtc {
    /// A clock that shows `start_time` (Unix seconds, UTC; limited to the years 0–9999) at virtual
    /// time zero. CMOS describes `memory` bytes of RAM as QEMU's q35 does.
    #[must_use]
    pub fn new(start_time: i64, memory: u64) -> Self {
        let mut rtc = Self {
            index: 0,
            cmos: [0; CMOS_SIZE],
            epoch: start_time.clamp(EARLIEST, LATEST),
            origin: 0,
            phase: 0,
            flags: 0,
            since: 0,
            request: false,
            start_time,
            memory,
        };
        rtc.cmos[REG_A] = A_DIVIDER_32KHZ | 6;
        rtc.cmos[REG_B] = B_24_HOURS;
        rtc.cmos[REG_D] = D_VALID_RAM;
        rtc.describe_memory(memory);
        rtc
    }

    /// Sets a byte of CMOS memory (index 0x0e–0x7f, not the century), for the board's own facts.
    pub fn set_cmos(&mut self, index: u8, value: u8) {
        let index = usize::from(index);
        if index > REG_D && index != CENTURY && index < CMOS_SIZE {
            self.cmos[index] = value;
        }
    }

    /// Reads port 0x70 (`offset` 0, write-only: ones) or 0x71 (1).
    pub fn read(&mut self, offset: u16, now: u64) -> u8 {
        if offset != 1 {
            return 0xff;
        }
        let index = usize::from(self.index);
        match index {
            REG_A => {
                let updating = self.runs()
                    && self.elapsed(now) % NS_PER_SECOND >= NS_PER_SECOND - UPDATE_WARNING_NS;
                self.cmos[REG_A] | if updating { A_UPDATE_IN_PROGRESS } else { 0 }
            }
            REG_C => {
                self.collect(now);
                let flags = std::mem::take(&mut self.flags);
                let request = flags & self.cmos[REG_B] & SOURCES != 0 || self.request;
                self.request = false;
                flags | if request { C_REQUEST } else { 0 }
            }
            _ if is_date(index) && self.runs() => self.date_registers(now)[index],
            _ => self.cmos[index],
        }
    }

    /// Writes port 0x70 (`offset` 0: index; bit 7, the NMI mask, has no effect) or 0x71 (1).
    pub fn write(&mut self, offset: u16, value: u8, now: u64) {
        match offset {
            0 => self.index = value & 0x7f,
            1 => self.write_register(usize::from(self.index), value, now),
            _ => {}
        }
    }

    /// Level of IRQ 8.
    #[must_use]
    pub fn irq(&self) -> bool {
        self.request
    }

    /// Time of the next enabled alarm, update-ended or periodic event, unless the line is high already.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let enabled = self.cmos[REG_B] & SOURCES;
        if self.request || enabled == 0 {
            return None;
        }
        let mut next: Option<u64> = None;
        let mut consider = |time: Option<u64>| {
            if let Some(time) = time {
                next = Some(next.map_or(time, |next| next.min(time)));
            }
        };
        if enabled & PERIODIC != 0 {
            consider(self.next_period(self.since));
        }
        if self.runs() {
            let second = self.second(self.since);
            if enabled & B_UPDATE != 0 {
                consider(self.time_of_second(second.saturating_add(1)));
            }
            if enabled & ALARM != 0 {
                consider(self.next_alarm(second).and_then(|s| self.time_of_second(s)));
            }
        }
        next
    }

    /// Raises the line for the events due at or before `now`.
    pub fn advance(&mut self, now: u64) {
        if self.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.request = true;
        }
    }

    fn write_register(&mut self, index: usize, value: u8, now: u64) {
        match index {
            REG_A | REG_B => {
                self.collect(now);
                let ran = self.runs();
                let divided = self.divider_runs();
                if ran {
                    self.cmos = self.date_registers(now);
                }
                if index == REG_A {
                    self.cmos[REG_A] = value & !A_UPDATE_IN_PROGRESS;
                } else {
                    // Setting the clock turns the update interrupt off (datasheet, register B).
                    let off = if value & B_SET != 0 { B_UPDATE } else { 0 };
                    self.cmos[REG_B] = value & !off;
                }
                if self.divider_runs() && !divided {
                    self.origin = now;
                    self.phase = DIVIDER_RELEASE_NS;
                }
                if self.runs() && !ran {
                    self.set_date_from_registers(now);
                }
                self.update_request();
            }
            REG_C | REG_D => {}
            SECONDS_ALARM | MINUTES_ALARM | HOURS_ALARM => {
                self.collect(now);
                self.cmos[index] = value;
                self.update_request();
            }
            _ if is_date(index) && self.runs() => {
                self.collect(now);
                self.cmos = self.date_registers(now);
                self.cmos[index] = value;
                self.set_date_from_registers(now);
            }
            _ => self.cmos[index] = value,
        }
    }

    fn divider_runs(&self) -> bool {
        self.cmos[REG_A] & A_DIVIDER == A_DIVIDER_32KHZ
    }

    /// Whether the date advances.
    fn runs(&self) -> bool {
        self.divider_runs() && self.cmos[REG_B] & B_SET == 0
    }

    /// Nanoseconds counted by the divider chain at `now`.
    fn elapsed(&self, now: u64) -> u64 {
        now.saturating_sub(self.origin).saturating_add(self.phase)
    }

    fn second(&self, now: u64) -> u64 {
        self.elapsed(now) / NS_PER_SECOND
    }

    fn time_of_second(&self, second: u64) -> Option<u64> {
        let elapsed = second.checked_mul(NS_PER_SECOND)?;
        self.origin.checked_add(elapsed.saturating_sub(self.phase))
    }

    /// Length of the periodic interrupt in oscillator ticks (datasheet, table of rates).
    fn period(&self) -> Option<u128> {
        match self.cmos[REG_A] & A_RATE {
            _ if !self.divider_runs() => None,
            0 => None,
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    fn periods(&self, period: u128, now: u64) -> u128 {
        u128::from(self.elapsed(now)) * u128::from(OSCILLATOR_HZ)
            / u128::from(NS_PER_SECOND)
            / period
    }

    /// First moment after `now` at which a period ends.
    fn next_period(&self, now: u64) -> Option<u64> {
        let period = self.period()?;
        let ticks = (self.periods(period, now) + 1) * period;
        let elapsed = (ticks * u128::from(NS_PER_SECOND)).div_ceil(u128::from(OSCILLATOR_HZ));
        let elapsed = u64::try_from(elapsed).ok()?;
        self.origin.checked_add(elapsed.saturating_sub(self.phase))
    }

    /// First second after `second` at which the alarm matches.
    fn next_alarm(&self, second: u64) -> Option<u64> {
        let candidates = |register: usize, end: i64, hours: bool| -> Option<(i64, i64)> {
            let raw = self.cmos[register];
            if raw >= ALARM_ANY {
                return Some((0, end));
            }
            let value = if hours {
                self.decode_hour(raw)
            } else {
                self.decode(raw)
            };
            (value < end).then_some((value, value + 1))
        };
        let (h0, h1) = candidates(HOURS_ALARM, 24, true)?;
        let (m0, m1) = candidates(MINUTES_ALARM, 60, false)?;
        let (s0, s1) = candidates(SECONDS_ALARM, 60, false)?;
        let current = self.unix(second).rem_euclid(SECONDS_PER_DAY);
        let first_after = |after: i64| {
            let hour = (h0..h1).find(|h| h * 3600 + (m1 - 1) * 60 + s1 - 1 > after)?;
            let minute = (m0..m1).find(|m| hour * 3600 + m * 60 + s1 - 1 > after)?;
            let second = (s0..s1).find(|s| hour * 3600 + minute * 60 + s > after)?;
            Some(hour * 3600 + minute * 60 + second)
        };
        let ahead = match first_after(current) {
            Some(today) => today - current,
            None => first_after(-1)? + SECONDS_PER_DAY - current,
        };
        second.checked_add(u64::try_from(ahead).ok()?)
    }

    /// Adds to `flags` what happened between `since` and `now`.
    fn collect(&mut self, now: u64) {
        if let Some(period) = self.period() {
            if self.periods(period, now) > self.periods(period, self.since) {
                self.flags |= PERIODIC;
            }
        }
        if self.runs() {
            let (before, after) = (self.second(self.since), self.second(now));
            if after > before {
                self.flags |= B_UPDATE;
                if self.next_alarm(before).is_some_and(|alarm| alarm <= after) {
                    self.flags |= ALARM;
                }
            }
        }
        self.since = self.since.max(now);
    }

    fn update_request(&mut self) {
        self.request = self.flags & self.cmos[REG_B] & SOURCES != 0;
    }

    fn unix(&self, second: u64) -> i64 {
        self.epoch
            .saturating_add(i64::try_from(second).unwrap_or(i64::MAX))
            .clamp(EARLIEST, LATEST)
    }

    fn encode(&self, value: i64) -> u8 {
        let value = value.rem_euclid(100) as u8;
        if self.cmos[REG_B] & B_BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, raw: u8) -> i64 {
        if self.cmos[REG_B] & B_BINARY != 0 {
            i64::from(raw)
        } else {
            i64::from(raw >> 4) * 10 + i64::from(raw & 0x0f)
        }
    }

    fn encode_hour(&self, hour: i64) -> u8 {
        if self.cmos[REG_B] & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { HOUR_PM } else { 0 }
    }

    fn decode_hour(&self, raw: u8) -> i64 {
        if self.cmos[REG_B] & B_24_HOURS != 0 {
            return self.decode(raw);
        }
        let afternoon = if raw & HOUR_PM != 0 { 12 } else { 0 };
        self.decode(raw & !HOUR_PM) % 12 + afternoon
    }

    /// All registers, with the date as of `now`.
    fn date_registers(&self, now: u64) -> [u8; CMOS_SIZE] {
        let unix = self.unix(self.second(now));
        let days = unix.div_euclid(SECONDS_PER_DAY);
        let second = unix.rem_euclid(SECONDS_PER_DAY);
        let (year, month, day) = civil_from_days(days);
        let mut registers = self.cmos;
        registers[SECONDS] = self.encode(second % 60);
        registers[MINUTES] = self.encode(second / 60 % 60);
        registers[HOURS] = self.encode_hour(second / 3600);
        // 1970-01-01 was a Thursday; Sunday is 1.
        registers[DAY_OF_WEEK] = self.encode((days + 4).rem_euclid(7) + 1);
        registers[DAY] = self.encode(day);
        registers[MONTH] = self.encode(month);
        registers[YEAR] = self.encode(year.rem_euclid(100));
        registers[CENTURY] = self.encode(year.div_euclid(100));
        registers
    }

    /// Takes the date in the registers for the date at `now`. Impossible dates carry over.
    fn set_date_from_registers(&mut self, now: u64) {
        let year = self.decode(self.cmos[CENTURY]) * 100 + self.decode(self.cmos[YEAR]);
        let month = self.decode(self.cmos[MONTH]).clamp(1, 12);
        let days = days_from_civil(year, month, 1) + self.decode(self.cmos[DAY]) - 1;
        let unix = days * SECONDS_PER_DAY
            + self.decode_hour(self.cmos[HOURS]) * 3600
            + self.decode(self.cmos[MINUTES]) * 60
            + self.decode(self.cmos[SECONDS]);
        let second = i64::try_from(self.second(now)).unwrap_or(i64::MAX);
        self.epoch = unix.clamp(EARLIEST, LATEST).saturating_sub(second);
    }

    /// Memory sizes where firmware looks for them. Above 2.75 GiB, q35 moves all but 2 GiB of RAM above
    /// the 4 GiB boundary.
    fn describe_memory(&mut self, memory: u64) {
        let below_4g = if memory >= 0xb000_0000 {
            0x8000_0000
        } else {
            memory
        };
        let above_4g = memory - below_4g;
        let limit = |value: u64, bits: u32| value.min((1 << bits) - 1);
        let extended_kib = limit(below_4g.saturating_sub(1 << 20) >> 10, 16);
        let above_16m = limit(below_4g.saturating_sub(16 << 20) >> 16, 16);
        let above_4g_chunks = limit(above_4g >> 16, 24);
        // Equipment: FPU and PS/2 mouse, as PCs have had since.
        self.cmos[0x14] = 0x06;
        let conventional_kib = limit(below_4g >> 10, 16).min(640);
        for (index, value, bytes) in [
            (0x15, conventional_kib, 2),
            (0x17, extended_kib, 2),
            (0x30, extended_kib, 2),
            (0x34, above_16m, 2),
            (0x5b, above_4g_chunks, 3),
        ] {
            self.cmos[index..index + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        }
    }
}

fn is_date(index: usize) -> bool {
    matches!(
        index,
        SECONDS | MINUTES | HOURS | DAY_OF_WEEK | DAY | MONTH | YEAR | CENTURY
    )
}

/// Days since 1970-01-01 of a date in the proleptic Gregorian calendar, counted in years that begin in
/// March, so that the leap day is the last one.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let march_year = if month <= 2 { year - 1 } else { year };
    let march_month = (month + 9) % 12;
    let leap_days =
        march_year.div_euclid(4) - march_year.div_euclid(100) + march_year.div_euclid(400);
    march_year * 365 + leap_days + (march_month * 153 + 2) / 5 + day - 1 - 719_468
}

/// Year, month and day of a day since 1970-01-01.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let since_0000_march = days + 719_468;
    // A guess that is at most one too high, from the mean length of a year.
    let mut march_year = (since_0000_march * 400).div_euclid(146_097);
    if days_from_civil(march_year, 3, 1) > days {
        march_year -= 1;
    } else if days_from_civil(march_year + 1, 3, 1) <= days {
        march_year += 1;
    }
    let day_of_year = days - days_from_civil(march_year, 3, 1);
    let march_month = (day_of_year * 5 + 2) / 153;
    let day = day_of_year - (march_month * 153 + 2) / 5 + 1;
    let month = (march_month + 2) % 12 + 1;
    let year = if month <= 2 {
        march_year + 1
    } else {
        march_year
    };
    (year, month, day)
}

impl State for Rtc {
    fn save(&self, w: &mut Writer) {
        w.u8(self.index);
        for byte in self.cmos {
            w.u8(byte);
        }
        w.u64(self.epoch as u64);
        w.u64(self.origin);
        w.u64(self.phase);
        w.u8(self.flags);
        w.u64(self.since);
        w.bool(self.request);
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.index = r.u8()? & 0x7f;
        for byte in &mut self.cmos {
            *byte = r.u8()?;
        }
        self.epoch = r.u64()? as i64;
        self.origin = r.u64()?;
        self.phase = r.u64()?;
        if self.phase >= NS_PER_SECOND {
            return Err(LoadError::BadValue {
                field: "RTC phase",
                value: self.phase,
            });
        }
        self.flags = r.u8()? & SOURCES;
        self.since = r.u64()?;
        self.request = r.bool()?;
        Ok(())
    }
}

impl Device for Rtc {
    fn name(&self) -> Cow<'static, str> {
        "rtc".into()
    }

    fn reset(&mut self) {
        *self = Self::new(self.start_time, self.memory);
    }

    fn ranges(&self) -> Vec<Range> {
        vec![Range::isa(0x70, 2, 0)]
    }

    fn read(&mut self, at: Access, _out: &mut Outbox) -> u64 {
        Rtc::read(self, at.offset as u16, at.now).into()
    }

    fn write(&mut self, at: Access, value: u64, _out: &mut Outbox) {
        Rtc::write(self, at.offset as u16, value as u8, at.now);
    }

    fn lines(&self) -> Lines {
        Lines::isa(8, self.irq())
    }

    fn next_deadline(&self) -> Option<u64> {
        Rtc::next_deadline(self)
    }

    fn advance(&mut self, _deadline: u64, now: u64, _out: &mut Outbox) {
        Rtc::advance(self, now);
    }

    fn trial(&mut self) -> Option<&mut dyn Trial> {
        Some(self)
    }
}

impl Trial for Rtc {
    fn copy(&self) -> Box<dyn Device> {
        Box::new(self.clone())
    }

    fn deadlines(&self) -> Vec<Option<u64>> {
        vec![Rtc::next_deadline(self)]
    }

    fn fire(&mut self, _timer: usize, at: u64) {
        Rtc::advance(self, at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2024-02-29 23:59:58 UTC, a Thursday.
    const LEAP_EVENING: i64 = 1_709_251_198;
    const S: u64 = NS_PER_SECOND;

    fn get(rtc: &mut Rtc, index: usize, now: u64) -> u8 {
        rtc.write(0, index as u8 | 0x80, now);
        rtc.read(1, now)
    }

    fn set(rtc: &mut Rtc, index: usize, value: u8, now: u64) {
        rtc.write(0, index as u8, now);
        rtc.write(1, value, now);
    }

    fn date(rtc: &mut Rtc, now: u64) -> Vec<u8> {
        [
            CENTURY,
            YEAR,
            MONTH,
            DAY,
            HOURS,
            MINUTES,
            SECONDS,
            DAY_OF_WEEK,
        ]
        .iter()
        .map(|&index| get(rtc, index, now))
        .collect()
    }

    #[test]
    fn the_date_is_bcd_and_follows_virtual_time_over_a_leap_day() {
        let mut rtc = Rtc::new(LEAP_EVENING, 0);
        let before = [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58, 5];
        assert_eq!(date(&mut rtc, 0), before);
        assert_eq!(date(&mut rtc, S - 1), before);
        let after = [0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x00, 6];
        assert_eq!(date(&mut rtc, 2 * S), after);
    }

    #[test]
    fn civil_dates_and_day_numbers_agree_over_eight_centuries() {
        for days in -200_000..200_000 {
            let (year, month, day) = civil_from_days(days);
            assert!((1..=12).contains(&month) && (1..=31).contains(&day));
            assert_eq!(days_from_civil(year, month, day), days);
        }
        assert_eq!(days_from_civil(1970, 1, 1), 0);
        assert_eq!(days_from_civil(2000, 3, 1), 11_017);
    }

    #[test]
    fn update_in_progress_shows_just_before_the_second_changes() {
        let mut rtc = Rtc::new(0, 0);
        assert_eq!(get(&mut rtc, REG_A, S / 2), 0x26);
        assert_eq!(get(&mut rtc, REG_A, S - 1), 0xa6);
        assert_eq!(get(&mut rtc, REG_A, S), 0x26);
    }

    #[test]
    fn linux_sets_the_time_with_the_divider_held() {
        let mut rtc = Rtc::new(0, 0);
        let now = 5 * S + 123;
        set(&mut rtc, REG_B, B_SET | B_24_HOURS, now);
        set(&mut rtc, REG_A, 0x76, now);
        for (index, value) in [(YEAR, 0x31), (MONTH, 0x12), (DAY, 0x31), (CENTURY, 0x20)] {
            set(&mut rtc, index, value, now);
        }
        for (index, value) in [(HOURS, 0x11), (MINUTES, 0x22), (SECONDS, 0x33)] {
            set(&mut rtc, index, value, now);
        }
        set(&mut rtc, REG_B, B_24_HOURS, now);
        assert_eq!(get(&mut rtc, SECONDS, now + 3 * S), 0x33);
        set(&mut rtc, REG_A, 0x26, now + 3 * S);
        assert_eq!(get(&mut rtc, SECONDS, now + 3 * S + S / 2 - 1), 0x33);
        let later = [0x20, 0x31, 0x12, 0x31, 0x11, 0x22, 0x34, 4];
        assert_eq!(date(&mut rtc, now + 3 * S + S / 2), later);
    }

    #[test]
    fn twelve_hour_binary_mode_shows_the_afternoon_bit() {
        let mut rtc = Rtc::new(0, 0);
        set(&mut rtc, REG_B, B_BINARY, 0);
        assert_eq!(get(&mut rtc, HOURS, 0), 12);
        assert_eq!(get(&mut rtc, HOURS, 13 * 3600 * S), HOUR_PM | 1);
        set(&mut rtc, HOURS, HOUR_PM | 12, 0);
        set(&mut rtc, REG_B, B_BINARY | B_24_HOURS, 0);
        assert_eq!(get(&mut rtc, HOURS, 0), 12);
    }

    #[test]
    fn the_update_interrupt_comes_each_second_until_register_c_is_read() {
        let mut rtc = Rtc::new(0, 0);
        assert_eq!(rtc.next_deadline(), None);
        set(&mut rtc, REG_B, B_24_HOURS | B_UPDATE, S / 4);
        assert_eq!(rtc.next_deadline(), Some(S));
        rtc.advance(S - 1);
        assert!(!rtc.irq());
        rtc.advance(S);
        assert!(rtc.irq());
        assert_eq!(get(&mut rtc, REG_C, S + 5), C_REQUEST | B_UPDATE | PERIODIC);
        assert!(!rtc.irq());
        assert_eq!(rtc.next_deadline(), Some(2 * S));
    }

    #[test]
    fn the_periodic_rate_is_1024_hz_at_6_and_8192_hz_at_3() {
        let mut rtc = Rtc::new(0, 0);
        set(&mut rtc, REG_B, B_24_HOURS | PERIODIC, 0);
        assert_eq!(rtc.next_deadline(), Some(976_563));
        set(&mut rtc, REG_A, 0x23, 0);
        assert_eq!(rtc.next_deadline(), Some(122_071));
        set(&mut rtc, REG_A, 0x21, 0);
        assert_eq!(rtc.next_deadline(), Some(3_906_250));
    }

    #[test]
    fn an_alarm_fires_at_its_time_of_day_and_again_a_day_later() {
        let mut rtc = Rtc::new(LEAP_EVENING, 0);
        for (index, value) in [
            (HOURS_ALARM, 0x00),
            (MINUTES_ALARM, 0x01),
            (SECONDS_ALARM, 0x02),
        ] {
            set(&mut rtc, index, value, 0);
        }
        set(&mut rtc, REG_B, B_24_HOURS | ALARM, 0);
        assert_eq!(rtc.next_deadline(), Some(64 * S));
        rtc.advance(64 * S);
        assert_eq!(
            get(&mut rtc, REG_C, 64 * S) & (C_REQUEST | ALARM),
            C_REQUEST | ALARM
        );
        assert_eq!(rtc.next_deadline(), Some((64 + 86_400) * S));
        // Any hour and any minute: once a minute.
        set(&mut rtc, HOURS_ALARM, 0xff, 65 * S);
        set(&mut rtc, MINUTES_ALARM, 0xc0, 65 * S);
        assert_eq!(rtc.next_deadline(), Some(124 * S));
        // An impossible second never comes.
        set(&mut rtc, SECONDS_ALARM, 0x60, 65 * S);
        assert_eq!(rtc.next_deadline(), None);
    }

    #[test]
    fn advancing_between_deadlines_changes_nothing() {
        let mut rtc = Rtc::new(0, 0);
        set(&mut rtc, REG_B, B_24_HOURS | B_UPDATE, 0);
        let state = |rtc: &Rtc| {
            let mut w = Writer::new();
            rtc.save(&mut w);
            w.into_bytes()
        };
        let before = state(&rtc);
        rtc.advance(S / 3);
        rtc.advance(S / 2);
        assert_eq!(state(&rtc), before);
    }

    #[test]
    fn memory_sizes_stand_where_firmware_looks() {
        let mut rtc = Rtc::new(0, 512 << 20);
        let word = |rtc: &mut Rtc, index| {
            u16::from(get(rtc, index, 0)) | u16::from(get(rtc, index + 1, 0)) << 8
        };
        assert_eq!(word(&mut rtc, 0x15), 640);
        assert_eq!(word(&mut rtc, 0x30), 0xffff);
        assert_eq!(word(&mut rtc, 0x34), (496 << 20 >> 16) as u16);
        assert_eq!(word(&mut rtc, 0x5b), 0);
        let mut large = Rtc::new(0, 6 << 30);
        assert_eq!(word(&mut large, 0x34), ((2048 - 16) << 20 >> 16) as u16);
        assert_eq!(word(&mut large, 0x5b), 0);
        assert_eq!(get(&mut large, 0x5d, 0), 1);
    }
}
