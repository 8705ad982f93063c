//! Small ports that are not worth a device each: debug exit, debug consoles, POST codes, reset control.
//!
//! | port | device | read | write |
//! |---|---|---|---|
//! | 0x80 | POST code | last value | latched |
//! | 0x92 | system control port A | last value | bit 0 set: reset; bit 1: A20 gate (latched, without effect) |
//! | 0xe9 | Bochs debug console | 0xe9 | output |
//! | 0xf4 | isa-debug-exit | ones | v ends the run with status `(v << 1) \| 1` |
//! | 0x402 | SeaBIOS debug console | 0xe9 | output |
//! | 0xcf9 | ICH9 RST_CNT (byte accesses only) | bits 1 and 3 | bit 2 set: reset |
//!
//! Interface: [`Misc::claims`], [`Misc::read`] and [`Misc::write`] with absolute ports,
//! [`Misc::take_debugcon_output`], [`Misc::reset`]. A wide access to a byte port is not claimed: the
//! bus splits it and offers the bytes.

use super::device::{Access, Device, LoadError, Outbox, Reader, State, Writer};
use super::range::{Range, Rank, Takes};
use super::signal::Signal;
use std::borrow::Cow;

/// All ports; the place in here is the number of the region.
const PORTS: [u16; 6] = [
    PORT_POST,
    PORT_92,
    PORT_DEBUGCON,
    PORT_DEBUG_EXIT,
    PORT_SEABIOS_DEBUGCON,
    PORT_RESET_CONTROL,
];
const PORT_POST: u16 = 0x80;
const PORT_92: u16 = 0x92;
const PORT_DEBUGCON: u16 = 0xe9;
const PORT_DEBUG_EXIT: u16 = 0xf4;
const PORT_SEABIOS_DEBUGCON: u16 = 0x402;
const PORT_RESET_CONTROL: u16 = 0xcf9;

/// What a debug console reads back, so that a guest can tell that it exists.
const DEBUGCON_READBACK: u8 = 0xe9;

const PORT_92_FAST_RESET: u8 = 1 << 0;
const PORT_92_A20: u8 = 1 << 1;

const RST_CNT_SYS_RST: u8 = 1 << 1;
const RST_CNT_RST_CPU: u8 = 1 << 2;
const RST_CNT_FULL_RST: u8 = 1 << 3;

/// What a write to one of the small ports asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MiscEvent {
    /// isa-debug-exit: end the run with this status.
    DebugExit(u32),
    /// Reset the machine.
    Reset,
}

/// The small ports.
pub struct Misc {
    post: u8,
    port_92: u8,
    reset_control: u8,
    /// On its way to the host; not guest-visible.
    output: Vec<u8>,
    /// How many bytes of `output` came while there was no other console.
    alone: usize,
}

impl Default for Misc {
    fn default() -> Self {
        Self::new()
    }
}

impl Misc {
    /// The ports as firmware leaves them: A20 open.
    #[must_use]
    pub fn new() -> Self {
        Self {
            post: 0,
            port_92: PORT_92_A20,
            reset_control: 0,
            output: Vec::new(),
            alone: 0,
        }
    }

    /// Back to the state after power-on. Output that was not taken yet stays.
    pub fn reset(&mut self) {
        let output = std::mem::take(&mut self.output);
        *self = Self {
            output,
            alone: self.alone,
            ..Self::new()
        };
    }

    /// Whether an access of `size` bytes at `port` is this device's.
    #[must_use]
    pub fn claims(port: u16, size: usize) -> bool {
        match port {
            PORT_DEBUG_EXIT => true,
            PORT_POST | PORT_92 | PORT_DEBUGCON | PORT_SEABIOS_DEBUGCON | PORT_RESET_CONTROL => {
                size == 1
            }
            _ => false,
        }
    }

    /// Reads `size` bytes at absolute `port`; ports that are not claimed read ones.
    pub fn read(&mut self, port: u16, size: usize, _now: u64) -> u32 {
        if !Self::claims(port, size) {
            return u32::MAX;
        }
        match port {
            PORT_POST => u32::from(self.post),
            PORT_92 => u32::from(self.port_92),
            PORT_DEBUGCON | PORT_SEABIOS_DEBUGCON => u32::from(DEBUGCON_READBACK),
            PORT_RESET_CONTROL => u32::from(self.reset_control),
            _ => u32::MAX,
        }
    }

    /// Writes `size` bytes at absolute `port`; ports that are not claimed ignore it.
    pub fn write(&mut self, port: u16, size: usize, value: u32, _now: u64) -> Option<MiscEvent> {
        if !Self::claims(port, size) {
            return None;
        }
        let byte = value as u8;
        match port {
            PORT_POST => self.post = byte,
            PORT_92 => {
                self.port_92 = byte & PORT_92_A20;
                if byte & PORT_92_FAST_RESET != 0 {
                    return Some(MiscEvent::Reset);
                }
            }
            PORT_DEBUGCON | PORT_SEABIOS_DEBUGCON => self.output.push(byte),
            PORT_DEBUG_EXIT => {
                let value = match size {
                    1 => value & 0xff,
                    2 => value & 0xffff,
                    _ => value,
                };
                return Some(MiscEvent::DebugExit(value.wrapping_shl(1) | 1));
            }
            PORT_RESET_CONTROL => {
                self.reset_control = byte & (RST_CNT_SYS_RST | RST_CNT_FULL_RST);
                if byte & RST_CNT_RST_CPU != 0 {
                    return Some(MiscEvent::Reset);
                }
            }
            _ => {}
        }
        None
    }

    /// Notes that the guest has used no other console up to now.
    pub fn note_alone(&mut self) {
        self.alone = self.output.len();
    }

    /// Whether a line that was written to the debug consoles waits to be taken.
    #[must_use]
    pub fn has_line(&self) -> bool {
        self.output.contains(&b'\n')
    }

    /// Takes what the guest has written to the debug consoles since the last call, and how many bytes of
    /// it came while it had used no other console.
    pub fn take_debugcon_output(&mut self) -> (Vec<u8>, usize) {
        (
            std::mem::take(&mut self.output),
            std::mem::take(&mut self.alone),
        )
    }
}

impl State for Misc {
    fn save(&self, w: &mut Writer) {
        w.u8(self.post);
        w.u8(self.port_92);
        w.u8(self.reset_control);
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.post = r.u8()?;
        self.port_92 = r.u8()?;
        self.reset_control = r.u8()?;
        Ok(())
    }
}

impl Device for Misc {
    fn name(&self) -> Cow<'static, str> {
        "misc".into()
    }

    fn reset(&mut self) {
        Misc::reset(self);
    }

    fn ranges(&self) -> Vec<Range> {
        let range = |(region, &port): (usize, &u16)| {
            let takes = match port {
                PORT_DEBUG_EXIT => Takes::Beginning,
                _ => Takes::Bytes,
            };
            Range::ports(port, 1, region as u8)
                .taking(takes)
                .ranked(Rank::Fixed)
        };
        PORTS.iter().enumerate().map(range).collect()
    }

    fn read(&mut self, at: Access, _out: &mut Outbox) -> u64 {
        let port = PORTS[usize::from(at.region)];
        Misc::read(self, port, at.size, at.now).into()
    }

    fn write(&mut self, at: Access, value: u64, out: &mut Outbox) {
        let port = PORTS[usize::from(at.region)];
        match Misc::write(self, port, at.size, value as u32, at.now) {
            Some(MiscEvent::DebugExit(status)) => out.signals.push(Signal::DebugExit(status)),
            Some(MiscEvent::Reset) => out.signals.push(Signal::Reset),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_exit_reports_an_odd_status_that_holds_the_value() {
        let mut misc = Misc::new();
        assert_eq!(
            misc.write(0xf4, 1, 0x1_10, 0),
            Some(MiscEvent::DebugExit(0x21))
        );
        assert_eq!(
            misc.write(0xf4, 4, u32::MAX, 0),
            Some(MiscEvent::DebugExit(u32::MAX))
        );
    }

    #[test]
    fn both_debug_consoles_announce_themselves_and_share_one_output() {
        let mut misc = Misc::new();
        assert_eq!(misc.read(0xe9, 1, 0), 0xe9);
        assert_eq!(misc.read(0x402, 1, 0), 0xe9);
        misc.write(0xe9, 1, u32::from(b'a'), 0);
        misc.write(0x402, 1, u32::from(b'b'), 0);
        assert_eq!(misc.take_debugcon_output(), (b"ab".to_vec(), 0));
        assert_eq!(misc.take_debugcon_output(), (Vec::new(), 0));
    }

    #[test]
    fn reset_control_resets_only_with_the_cpu_bit() {
        let mut misc = Misc::new();
        assert_eq!(misc.write(0xcf9, 1, 0x02, 0), None);
        assert_eq!(misc.read(0xcf9, 1, 0), 0x02);
        assert_eq!(misc.write(0xcf9, 1, 0x06, 0), Some(MiscEvent::Reset));
    }

    #[test]
    fn port_92_opens_a20_without_a_reset() {
        let mut misc = Misc::new();
        assert_eq!(misc.write(0x92, 1, 0x02, 0), None);
        assert_eq!(misc.read(0x92, 1, 0), 0x02);
        assert_eq!(misc.write(0x92, 1, 0x03, 0), Some(MiscEvent::Reset));
    }

    #[test]
    fn absent_ports_and_wide_reset_control_read_ones() {
        let mut misc = Misc::new();
        assert!(!Misc::claims(0xcf9, 4));
        assert_eq!(misc.read(0x1234, 1, 0), u32::MAX);
        assert_eq!(misc.write(0xcf9, 4, 0x06, 0), None);
    }
}
