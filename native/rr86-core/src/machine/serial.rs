//! 16550A UART (COM1 at 0x3f8, IRQ 4).
//!
//! A byte leaves at the moment when it is written, so the transmitter is always empty and its interrupt
//! condition returns with each write, as on a UART that is infinitely fast. Received bytes wait in an
//! unbounded queue outside of the chip and move into the FIFO as the guest drains it, so a host can
//! paste a text without an overrun. Below the trigger level the character time-out is reported at
//! once. The interrupt is not gated by OUT2: small guests often leave it off.
//!
//! Interface: [`Serial::read`] and [`Serial::write`] with register offset 0–7, [`Serial::irq`] (IRQ 4),
//! [`Serial::receive`], [`Serial::take_output`], [`Serial::reset`]. It has no timers.

use super::device::{Access, Device, Lines, LoadError, Outbox, Reader, State, Writer};
use super::range::Range;
use std::borrow::Cow;
use std::collections::VecDeque;

const IER_RECEIVE: u8 = 1 << 0;
const IER_TRANSMIT: u8 = 1 << 1;
const IER_LINE_STATUS: u8 = 1 << 2;
const IER_MODEM_STATUS: u8 = 1 << 3;
const IER_MASK: u8 = 0x0f;

const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_NONE: u8 = 0x01;
const IIR_TRANSMIT: u8 = 0x02;
const IIR_RECEIVE: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFO_ENABLED: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVE: u8 = 1 << 1;
/// Enable, DMA mode and trigger level are kept; the clear bits act once.
const FCR_KEPT: u8 = 0xc9;

const LCR_DLAB: u8 = 1 << 7;

const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const MCR_MASK: u8 = 0x1f;

const LSR_DATA_READY: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_TRANSMITTER_EMPTY: u8 = 0x60;

const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;
const MSR_DELTA_MASK: u8 = 0x0f;
const MSR_DELTA_RI: u8 = 1 << 2;

const FIFO_SIZE: usize = 16;
/// 9600 baud at 1.8432 MHz, as PC firmware leaves it.
const DIVISOR_AT_RESET: u16 = 12;

/// The serial port.
pub struct Serial {
    divisor: u16,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    overrun: bool,
    /// Delta bits of the modem status register.
    msr_delta: u8,
    /// The transmitter became empty and the guest has not been told yet.
    transmit_pending: bool,
    fifo: VecDeque<u8>,
    /// Last byte taken from the FIFO: what an empty receiver reads.
    last_received: u8,
    /// Bytes from outside that have not reached the chip yet.
    queue: VecDeque<u8>,
    /// On its way to the host; not guest-visible.
    output: Vec<u8>,
    /// Whether the guest has ever sent a byte; not guest-visible.
    used: bool,
}

impl Default for Serial {
    fn default() -> Self {
        Self::new()
    }
}

impl Serial {
    /// A UART after power-on.
    #[must_use]
    pub fn new() -> Self {
        Self {
            divisor: DIVISOR_AT_RESET,
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            scratch: 0,
            overrun: false,
            msr_delta: 0,
            transmit_pending: false,
            fifo: VecDeque::new(),
            last_received: 0,
            queue: VecDeque::new(),
            output: Vec::new(),
            used: false,
        }
    }

    /// Back to the state after power-on. What is on its way from and to the outside stays.
    pub fn reset(&mut self) {
        let queue = std::mem::take(&mut self.queue);
        let output = std::mem::take(&mut self.output);
        *self = Self {
            queue,
            output,
            used: self.used,
            ..Self::new()
        };
        self.refill();
    }

    /// Reads register `offset` (0–7).
    pub fn read(&mut self, offset: u16, _now: u64) -> u8 {
        let divisor_latch = self.lcr & LCR_DLAB != 0;
        match offset {
            0 if divisor_latch => self.divisor as u8,
            0 => {
                if let Some(byte) = self.fifo.pop_front() {
                    self.last_received = byte;
                    self.refill();
                }
                self.last_received
            }
            1 if divisor_latch => (self.divisor >> 8) as u8,
            1 => self.ier,
            2 => {
                let source = self.interrupt_source();
                if source == IIR_TRANSMIT {
                    self.transmit_pending = false;
                }
                let fifo = if self.fifo_enabled() {
                    IIR_FIFO_ENABLED
                } else {
                    0
                };
                source | fifo
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let mut status = LSR_TRANSMITTER_EMPTY;
                if !self.fifo.is_empty() {
                    status |= LSR_DATA_READY;
                }
                if std::mem::take(&mut self.overrun) {
                    status |= LSR_OVERRUN;
                }
                status
            }
            6 => self.modem_lines() | std::mem::take(&mut self.msr_delta),
            7 => self.scratch,
            _ => 0xff,
        }
    }

    /// Writes register `offset` (0–7).
    pub fn write(&mut self, offset: u16, value: u8, _now: u64) {
        let divisor_latch = self.lcr & LCR_DLAB != 0;
        match offset {
            0 if divisor_latch => self.divisor = self.divisor & 0xff00 | u16::from(value),
            0 => self.transmit(value),
            1 if divisor_latch => self.divisor = self.divisor & 0xff | u16::from(value) << 8,
            1 => {
                let enabled = value & !self.ier;
                self.ier = value & IER_MASK;
                // Enabling the interrupt while the transmitter is empty raises it (Linux tests this).
                if enabled & IER_TRANSMIT != 0 {
                    self.transmit_pending = true;
                }
            }
            2 => {
                let toggled = (value ^ self.fcr) & FCR_ENABLE != 0;
                self.fcr = if value & FCR_ENABLE != 0 {
                    value & FCR_KEPT
                } else {
                    0
                };
                if toggled || value & FCR_CLEAR_RECEIVE != 0 {
                    self.fifo.clear();
                    self.refill();
                }
            }
            3 => self.lcr = value,
            4 => self.set_modem_control(value & MCR_MASK),
            7 => self.scratch = value,
            // Line and modem status are read-only.
            _ => {}
        }
    }

    /// Level of IRQ 4.
    #[must_use]
    pub fn irq(&self) -> bool {
        self.interrupt_source() != IIR_NONE
    }

    /// Queues bytes from the outside world for the guest.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.queue.extend(bytes);
        self.refill();
    }

    /// The bytes that the guest has sent and that have not been taken yet.
    pub fn waiting_output(&self) -> &[u8] {
        &self.output
    }

    /// Takes the bytes that the guest has sent since the last call.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Whether the guest has ever sent a byte.
    #[must_use]
    pub fn used(&self) -> bool {
        self.used
    }

    fn fifo_enabled(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    fn capacity(&self) -> usize {
        if self.fifo_enabled() {
            FIFO_SIZE
        } else {
            1
        }
    }

    fn trigger_level(&self) -> usize {
        match (self.fifo_enabled(), self.fcr >> 6) {
            (false, _) | (_, 0) => 1,
            (_, 1) => 4,
            (_, 2) => 8,
            _ => 14,
        }
    }

    /// Moves waiting bytes into the receiver; in loop-back the line is cut off.
    fn refill(&mut self) {
        if self.mcr & MCR_LOOP != 0 {
            return;
        }
        while self.fifo.len() < self.capacity() {
            match self.queue.pop_front() {
                Some(byte) => self.fifo.push_back(byte),
                None => break,
            }
        }
    }

    fn transmit(&mut self, value: u8) {
        if self.mcr & MCR_LOOP == 0 {
            self.output.push(value);
            self.used = true;
        } else if self.fifo.len() < self.capacity() {
            self.fifo.push_back(value);
        } else {
            self.overrun = true;
        }
        self.transmit_pending = true;
    }

    /// Highest pending and enabled source, as IIR shows it (16550D datasheet, table IV).
    fn interrupt_source(&self) -> u8 {
        if self.ier & IER_LINE_STATUS != 0 && self.overrun {
            IIR_LINE_STATUS
        } else if self.ier & IER_RECEIVE != 0 && !self.fifo.is_empty() {
            if self.fifo.len() >= self.trigger_level() {
                IIR_RECEIVE
            } else {
                IIR_TIMEOUT
            }
        } else if self.ier & IER_TRANSMIT != 0 && self.transmit_pending {
            IIR_TRANSMIT
        } else if self.ier & IER_MODEM_STATUS != 0 && self.msr_delta != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    /// Modem lines: a ready peer, or in loop-back our own outputs.
    fn modem_lines(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        let pairs = [
            (MCR_RTS, MSR_CTS),
            (MCR_DTR, MSR_DSR),
            (MCR_OUT1, MSR_RI),
            (MCR_OUT2, MSR_DCD),
        ];
        pairs
            .iter()
            .filter(|(output, _)| self.mcr & output != 0)
            .fold(0, |lines, (_, input)| lines | input)
    }

    fn set_modem_control(&mut self, value: u8) {
        let before = self.modem_lines();
        self.mcr = value;
        let after = self.modem_lines();
        let mut delta = (before ^ after) >> 4;
        // The ring indicator reports its trailing edge only.
        if after & MSR_RI != 0 {
            delta &= !MSR_DELTA_RI;
        }
        self.msr_delta |= delta;
        self.refill();
    }
}

impl State for Serial {
    fn save(&self, w: &mut Writer) {
        w.u16(self.divisor);
        for byte in [
            self.ier,
            self.fcr,
            self.lcr,
            self.mcr,
            self.scratch,
            self.msr_delta,
            self.last_received,
        ] {
            w.u8(byte);
        }
        w.bool(self.overrun);
        w.bool(self.transmit_pending);
        for bytes in [&self.fifo, &self.queue] {
            w.bytes(&bytes.iter().copied().collect::<Vec<u8>>());
        }
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.divisor = r.u16()?;
        self.ier = r.u8()? & IER_MASK;
        self.fcr = r.u8()? & FCR_KEPT;
        self.lcr = r.u8()?;
        self.mcr = r.u8()? & MCR_MASK;
        self.scratch = r.u8()?;
        self.msr_delta = r.u8()? & MSR_DELTA_MASK;
        self.last_received = r.u8()?;
        self.overrun = r.bool()?;
        self.transmit_pending = r.bool()?;
        let fifo = r.bytes()?;
        if fifo.len() > self.capacity() {
            return Err(LoadError::BadValue {
                field: "serial FIFO length",
                value: fifo.len() as u64,
            });
        }
        self.fifo = fifo.into();
        self.queue = r.bytes()?.into();
        Ok(())
    }
}

impl Device for Serial {
    fn name(&self) -> Cow<'static, str> {
        "serial".into()
    }

    fn reset(&mut self) {
        Serial::reset(self);
    }

    fn ranges(&self) -> Vec<Range> {
        vec![Range::isa(0x3f8, 8, 0)]
    }

    fn read(&mut self, at: Access, _out: &mut Outbox) -> u64 {
        Serial::read(self, at.offset as u16, at.now).into()
    }

    fn write(&mut self, at: Access, value: u64, _out: &mut Outbox) {
        Serial::write(self, at.offset as u16, value as u8, at.now);
    }

    fn lines(&self) -> Lines {
        Lines::isa(4, self.irq())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_autoconfiguration_finds_a_16550a() {
        let mut s = Serial::new();
        s.write(1, 0, 0);
        s.write(1, 0x0f, 0);
        assert_eq!(s.read(1, 0), 0x0f);
        s.write(1, 0, 0);
        // Loop-back with RTS and OUT2 must show CTS and DCD.
        s.write(4, MCR_LOOP | MCR_OUT2 | MCR_RTS, 0);
        assert_eq!(s.read(6, 0) & 0xf0, MSR_CTS | MSR_DCD);
        s.write(4, 0, 0);
        s.write(2, FCR_ENABLE, 0);
        assert_eq!(s.read(2, 0) >> 6, 3);
        s.write(7, 0xa5, 0);
        assert_eq!(s.read(7, 0), 0xa5);
        // No extended registers: no UUE bit, no automatic flow control.
        s.write(1, 0x40, 0);
        assert_eq!(s.read(1, 0), 0);
    }

    #[test]
    fn enabling_the_transmit_interrupt_raises_it_until_iir_is_read() {
        let mut s = Serial::new();
        for _ in 0..2 {
            s.write(1, IER_TRANSMIT, 0);
            assert!(s.irq());
            assert_eq!(s.read(2, 0), IIR_TRANSMIT);
            assert!(!s.irq());
            assert_eq!(s.read(2, 0), IIR_NONE);
            s.write(1, 0, 0);
        }
        s.write(1, IER_TRANSMIT, 0);
        s.read(2, 0);
        s.write(0, b'x', 0);
        assert!(s.irq());
        assert_eq!(s.read(5, 0), LSR_TRANSMITTER_EMPTY);
        assert_eq!(s.take_output(), b"x");
    }

    #[test]
    fn a_long_input_reaches_the_guest_in_order_without_an_overrun() {
        let mut s = Serial::new();
        s.write(2, FCR_ENABLE | FCR_CLEAR_RECEIVE | 0x80, 0);
        s.write(1, IER_RECEIVE, 0);
        let text: Vec<u8> = (0..100).collect();
        s.receive(&text);
        assert_eq!(s.read(2, 0) & 0x0f, IIR_RECEIVE);
        let mut got = Vec::new();
        while s.read(5, 0) & LSR_DATA_READY != 0 {
            got.push(s.read(0, 0));
            if got.len() == 95 {
                assert_eq!(s.read(2, 0) & 0x0f, IIR_TIMEOUT);
            }
        }
        assert_eq!(got, text);
        assert!(!s.irq());
    }

    #[test]
    fn loop_back_returns_sent_bytes_and_keeps_the_outside_away() {
        let mut s = Serial::new();
        s.write(4, MCR_LOOP, 0);
        s.receive(b"outside");
        s.write(0, 0xae, 0);
        assert_eq!(s.read(5, 0) & LSR_DATA_READY, LSR_DATA_READY);
        s.write(0, 0xaf, 0);
        assert_eq!(s.read(5, 0) & LSR_OVERRUN, LSR_OVERRUN);
        assert_eq!(s.read(0, 0), 0xae);
        assert_eq!(s.read(5, 0) & LSR_DATA_READY, 0);
        assert!(s.take_output().is_empty());
        s.write(4, 0, 0);
        assert_eq!(s.read(0, 0), b'o');
    }

    #[test]
    fn the_divisor_latch_hides_data_and_interrupt_enable() {
        let mut s = Serial::new();
        s.write(3, LCR_DLAB | 3, 0);
        s.write(0, 1, 0);
        s.write(1, 0, 0);
        assert_eq!((s.read(0, 0), s.read(1, 0)), (1, 0));
        s.write(3, 3, 0);
        assert!(s.take_output().is_empty());
        assert_eq!(s.read(1, 0), 0);
    }

    #[test]
    fn modem_changes_interrupt_until_the_status_is_read() {
        let mut s = Serial::new();
        s.write(1, IER_MODEM_STATUS, 0);
        s.write(4, MCR_LOOP, 0);
        assert_eq!(s.read(2, 0), IIR_MODEM_STATUS);
        assert_eq!(s.read(6, 0), 0x0b);
        assert!(!s.irq());
    }

    #[test]
    fn an_impossible_fifo_is_refused() {
        let mut s = Serial::new();
        s.receive(b"ab");
        let mut w = Writer::new();
        s.save(&mut w);
        let mut bytes = w.into_bytes();
        // The FIFO's length precedes its one byte, the queue's eight length bytes and one byte.
        let at = bytes.len() - 18;
        bytes[at] = 2;
        assert!(s.load(&mut Reader::new(&bytes)).is_err());
    }
}
