//! 8042 keyboard controller with nothing plugged in (ports 0x60 and 0x64, IRQ 1 and 12).
//!
//! It answers the self test, keeps its command byte, and controls A20 and reset, which is what boot
//! code and Linux's i8042 driver want of it. A byte for an absent keyboard is answered at once as the
//! chip does after a time-out: 0xfe with the time-out bit, so that probes end quickly. There is no
//! auxiliary port: its loop-back lacks the AUX bit and its line test fails.
//!
//! Interface: [`I8042::read`] and [`I8042::write`] with offset 0 (port 0x60) or 4 (port 0x64),
//! [`I8042::keyboard_irq`] (IRQ 1), [`I8042::mouse_irq`] (IRQ 12), [`I8042::take_reset`].

use super::device::{Access, Device, Lines, LoadError, Outbox, Reader, State, Writer};
use super::range::Range;
use super::signal::Signal;
use std::borrow::Cow;

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_COMMAND: u8 = 1 << 3;
/// The key lock is open; Linux warns when this bit is clear.
const STATUS_UNLOCKED: u8 = 1 << 4;
const STATUS_AUX: u8 = 1 << 5;
const STATUS_TIMEOUT: u8 = 1 << 6;

const CTR_KEYBOARD_INTERRUPT: u8 = 1 << 0;
const CTR_MOUSE_INTERRUPT: u8 = 1 << 1;
const CTR_SYSTEM: u8 = 1 << 2;
const CTR_KEYBOARD_DISABLED: u8 = 1 << 4;
const CTR_MOUSE_DISABLED: u8 = 1 << 5;
const CTR_TRANSLATE: u8 = 1 << 6;

/// Output port: bit 0 is the inverted reset line.
const OUTPUT_PORT_NOT_RESET: u8 = 1 << 0;
const OUTPUT_PORT_A20: u8 = 1 << 1;

/// What a device that does not answer looks like.
const RESEND: u8 = 0xfe;

/// The keyboard controller.
pub struct I8042 {
    /// Internal RAM; byte 0 is the command byte (CTR).
    ram: [u8; 32],
    output_port: u8,
    /// Last byte in the output buffer; stays readable after it was taken.
    data: u8,
    /// Output-full, AUX and time-out bits of the status register.
    buffer_status: u8,
    last_was_command: bool,
    /// A command that waits for its data byte on port 0x60.
    pending_command: Option<u8>,
    reset_requested: bool,
}

impl Default for I8042 {
    fn default() -> Self {
        Self::new()
    }
}

impl I8042 {
    /// A controller as firmware leaves it: self test passed, translation on, A20 open.
    #[must_use]
    pub fn new() -> Self {
        let mut ram = [0; 32];
        ram[0] = CTR_KEYBOARD_INTERRUPT | CTR_SYSTEM | CTR_MOUSE_DISABLED | CTR_TRANSLATE;
        Self {
            ram,
            output_port: OUTPUT_PORT_NOT_RESET | OUTPUT_PORT_A20,
            data: 0,
            buffer_status: 0,
            last_was_command: false,
            pending_command: None,
            reset_requested: false,
        }
    }

    /// Reads port 0x60 (`offset` 0) or 0x64 (4).
    pub fn read(&mut self, offset: u16, _now: u64) -> u8 {
        match offset {
            0 => {
                self.buffer_status = 0;
                self.data
            }
            4 => {
                let command = if self.last_was_command {
                    STATUS_COMMAND
                } else {
                    0
                };
                STATUS_UNLOCKED | self.buffer_status | command | (self.ram[0] & CTR_SYSTEM)
            }
            _ => 0xff,
        }
    }

    /// Writes port 0x60 (`offset` 0) or 0x64 (4).
    pub fn write(&mut self, offset: u16, value: u8, _now: u64) {
        match offset {
            0 => {
                self.last_was_command = false;
                self.write_data(value);
            }
            4 => {
                self.last_was_command = true;
                self.pending_command = None;
                self.command(value);
            }
            _ => {}
        }
    }

    /// Level of IRQ 1 (keyboard).
    #[must_use]
    pub fn keyboard_irq(&self) -> bool {
        self.buffer_status & (STATUS_OUTPUT_FULL | STATUS_AUX) == STATUS_OUTPUT_FULL
            && self.ram[0] & CTR_KEYBOARD_INTERRUPT != 0
    }

    /// Level of IRQ 12 (mouse).
    #[must_use]
    pub fn mouse_irq(&self) -> bool {
        let both = STATUS_OUTPUT_FULL | STATUS_AUX;
        self.buffer_status & both == both && self.ram[0] & CTR_MOUSE_INTERRUPT != 0
    }

    /// True once after the guest pulsed the reset line.
    pub fn take_reset(&mut self) -> bool {
        std::mem::take(&mut self.reset_requested)
    }

    fn reply(&mut self, data: u8, status: u8) {
        self.data = data;
        self.buffer_status = STATUS_OUTPUT_FULL | status;
    }

    fn set_output_port(&mut self, value: u8) {
        self.output_port = value;
        if value & OUTPUT_PORT_NOT_RESET == 0 {
            self.reset_requested = true;
        }
    }

    fn command(&mut self, command: u8) {
        match command {
            0x20..=0x3f => self.reply(self.ram[usize::from(command & 0x1f)], 0),
            0x60..=0x7f | 0xd1..=0xd4 => self.pending_command = Some(command),
            0xa7 => self.ram[0] |= CTR_MOUSE_DISABLED,
            0xa8 => self.ram[0] &= !CTR_MOUSE_DISABLED,
            // Auxiliary line test: clock line stuck low, for want of a port.
            0xa9 => self.reply(0x01, 0),
            0xaa => {
                self.ram[0] |= CTR_SYSTEM;
                self.reply(0x55, 0);
            }
            0xab => self.reply(0x00, 0),
            0xad => self.ram[0] |= CTR_KEYBOARD_DISABLED,
            0xae => self.ram[0] &= !CTR_KEYBOARD_DISABLED,
            // Input port: key lock open.
            0xc0 => self.reply(0x80, 0),
            0xd0 => self.reply(self.output_port, 0),
            0xdd => self.output_port &= !OUTPUT_PORT_A20,
            0xdf => self.output_port |= OUTPUT_PORT_A20,
            // Pulse output lines; a clear bit selects a line, and line 0 is reset.
            0xf0..=0xff if command & 1 == 0 => self.reset_requested = true,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.pending_command.take() {
            Some(command @ 0x60..=0x7f) => self.ram[usize::from(command & 0x1f)] = value,
            Some(0xd1) => self.set_output_port(value),
            // Both loop-backs arrive as keyboard data: without an auxiliary port nothing sets AUX.
            Some(0xd2 | 0xd3) => self.reply(value, 0),
            Some(_) => self.reply(RESEND, STATUS_AUX | STATUS_TIMEOUT),
            None => {
                // Data for the keyboard re-enables its interface, as the chip does.
                self.ram[0] &= !CTR_KEYBOARD_DISABLED;
                self.reply(RESEND, STATUS_TIMEOUT);
            }
        }
    }
}

impl State for I8042 {
    fn save(&self, w: &mut Writer) {
        for byte in self.ram {
            w.u8(byte);
        }
        w.u8(self.output_port);
        w.u8(self.data);
        w.u8(self.buffer_status);
        w.bool(self.last_was_command);
        w.option_u64(self.pending_command.map(u64::from));
        w.bool(self.reset_requested);
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        for byte in &mut self.ram {
            *byte = r.u8()?;
        }
        self.output_port = r.u8()?;
        self.data = r.u8()?;
        self.buffer_status = r.u8()?;
        self.last_was_command = r.bool()?;
        self.pending_command = match r.option_u64()? {
            None => None,
            Some(value) => Some(u8::try_from(value).map_err(|_| LoadError::BadValue {
                field: "i8042 pending command",
                value,
            })?),
        };
        self.reset_requested = r.bool()?;
        Ok(())
    }
}

impl Device for I8042 {
    fn name(&self) -> Cow<'static, str> {
        "i8042".into()
    }

    fn reset(&mut self) {
        *self = Self::new();
    }

    fn ranges(&self) -> Vec<Range> {
        vec![Range::isa(0x60, 1, 0), Range::isa(0x64, 1, 4)]
    }

    fn read(&mut self, at: Access, _out: &mut Outbox) -> u64 {
        I8042::read(self, at.region.into(), at.now).into()
    }

    fn write(&mut self, at: Access, value: u64, out: &mut Outbox) {
        I8042::write(self, at.region.into(), value as u8, at.now);
        if self.take_reset() {
            out.signals.push(Signal::Reset);
        }
    }

    fn lines(&self) -> Lines {
        Lines::isa(1, self.keyboard_irq()).and(Lines::isa(12, self.mouse_irq()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(controller: &mut I8042) -> u8 {
        assert_eq!(controller.read(4, 0) & STATUS_OUTPUT_FULL, 1);
        controller.read(0, 0)
    }

    #[test]
    fn linux_probe_passes_self_test_and_finds_no_auxiliary_port() {
        let mut c = I8042::new();
        assert_eq!(c.read(4, 0) & STATUS_OUTPUT_FULL, 0);
        assert_ne!(c.read(4, 0) & STATUS_UNLOCKED, 0);
        c.write(4, 0xaa, 0);
        assert_eq!(answer(&mut c), 0x55);
        c.write(4, 0x20, 0);
        let ctr = answer(&mut c);
        c.write(4, 0x60, 0);
        c.write(0, ctr & !CTR_KEYBOARD_INTERRUPT | CTR_KEYBOARD_DISABLED, 0);
        c.write(4, 0x20, 0);
        assert_eq!(answer(&mut c) & CTR_KEYBOARD_INTERRUPT, 0);
        assert!(!c.keyboard_irq());
        // The AUX loop-back comes back without the AUX bit, then the line test reports an error.
        c.write(4, 0xd3, 0);
        c.write(0, 0x5a, 0);
        assert_eq!(c.read(4, 0) & STATUS_AUX, 0);
        assert_eq!(answer(&mut c), 0x5a);
        c.write(4, 0xa9, 0);
        assert_eq!(answer(&mut c), 0x01);
    }

    #[test]
    fn an_absent_keyboard_times_out_at_once_and_interrupts() {
        let mut c = I8042::new();
        c.write(0, 0xf2, 0);
        assert!(c.keyboard_irq());
        assert!(!c.mouse_irq());
        assert_ne!(c.read(4, 0) & STATUS_TIMEOUT, 0);
        assert_eq!(c.read(0, 0), RESEND);
        assert!(!c.keyboard_irq());
    }

    #[test]
    fn reset_is_asked_for_by_pulse_and_by_output_port() {
        let mut c = I8042::new();
        c.write(4, 0xff, 0);
        assert!(!c.take_reset());
        c.write(4, 0xfe, 0);
        assert!(c.take_reset());
        assert!(!c.take_reset());
        c.write(4, 0xd1, 0);
        c.write(0, 0xde, 0);
        assert!(c.take_reset());
    }

    #[test]
    fn the_output_port_shows_a20() {
        let mut c = I8042::new();
        c.write(4, 0xdd, 0);
        c.write(4, 0xd0, 0);
        assert_eq!(answer(&mut c) & OUTPUT_PORT_A20, 0);
        c.write(4, 0xd1, 0);
        c.write(0, 0xdf, 0);
        c.write(4, 0xd0, 0);
        assert_ne!(answer(&mut c) & OUTPUT_PORT_A20, 0);
    }

    #[test]
    fn a_new_command_cancels_one_that_waits_for_data() {
        let mut c = I8042::new();
        c.write(4, 0xd1, 0);
        c.write(4, 0xae, 0);
        c.write(0, 0x00, 0);
        assert!(!c.take_reset());
    }
}
