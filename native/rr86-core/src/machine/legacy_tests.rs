//! What every legacy device must stand, whatever the guest does: random accesses, save and load in
//! the middle, and damaged states. The devices are driven through one small face so that one suite
//! covers all.

use super::device::{load_from_bytes, save_to_bytes, State};
use super::fw_cfg::FwCfg;
use super::i8042::I8042;
use super::misc::Misc;
use super::pci::Pci;
use super::pm::Pm;
use super::rtc::Rtc;
use super::serial::Serial;
use proptest::prelude::*;

/// A device with all that the suite does to it; the results are folded into one number.
trait Driven: State {
    fn access(&mut self, write: bool, at: u16, size: usize, value: u32, now: u64) -> u64;
    fn level(&self) -> bool {
        false
    }
    fn deadline(&self) -> Option<u64> {
        None
    }
    fn pass(&mut self, _now: u64) {}
}

impl Driven for Rtc {
    fn access(&mut self, write: bool, at: u16, _size: usize, value: u32, now: u64) -> u64 {
        // Mostly the data port, after choosing one of the clock's registers.
        let index = if at & 0x10 != 0 { at & 0x7f } else { at & 0x0f };
        self.write(0, index as u8, now);
        if write {
            self.write(1, value as u8, now);
            0
        } else {
            u64::from(self.read(1, now))
        }
    }
    fn level(&self) -> bool {
        self.irq()
    }
    fn deadline(&self) -> Option<u64> {
        self.next_deadline()
    }
    fn pass(&mut self, now: u64) {
        self.advance(now);
    }
}

impl Driven for Serial {
    fn access(&mut self, write: bool, at: u16, size: usize, value: u32, now: u64) -> u64 {
        if at & 0x300 == 0x300 {
            self.receive(&value.to_le_bytes()[..size]);
        } else if write {
            self.write(at & 7, value as u8, now);
        } else {
            return u64::from(self.read(at & 7, now));
        }
        self.take_output().len() as u64
    }
    fn level(&self) -> bool {
        self.irq()
    }
}

impl Driven for I8042 {
    fn access(&mut self, write: bool, at: u16, _size: usize, value: u32, now: u64) -> u64 {
        if write {
            self.write(at & 4, value as u8, now);
            u64::from(self.take_reset())
        } else {
            u64::from(self.read(at & 4, now))
        }
    }
    fn level(&self) -> bool {
        self.keyboard_irq() || self.mouse_irq()
    }
}

impl Driven for Pm {
    fn access(&mut self, write: bool, at: u16, size: usize, value: u32, now: u64) -> u64 {
        if at & 0x100 != 0 {
            self.smi_write(at & 1, value as u8, now);
            u64::from(self.smi_read(at & 1, now))
        } else if write {
            self.write(at & 0x7f, size, value, now);
            u64::from(self.take_power_off())
        } else {
            u64::from(self.read(at & 0x7f, size, now))
        }
    }
    fn level(&self) -> bool {
        self.irq()
    }
    fn deadline(&self) -> Option<u64> {
        self.next_deadline()
    }
    fn pass(&mut self, now: u64) {
        self.advance(now);
    }
}

impl Driven for FwCfg {
    fn access(&mut self, write: bool, at: u16, size: usize, value: u32, now: u64) -> u64 {
        if write {
            self.write(at & 1, size, value & 0x3f, now);
            0
        } else {
            u64::from(self.read(at & 1, size, now))
        }
    }
}

impl Driven for Misc {
    fn access(&mut self, write: bool, at: u16, size: usize, value: u32, now: u64) -> u64 {
        let port = [0x80, 0x92, 0xe9, 0xf4, 0x402, 0xcf9, at][usize::from(at % 7)];
        if write {
            let event = self.write(port, size, value, now);
            self.take_debugcon_output().0.len() as u64 + u64::from(event.is_some())
        } else {
            u64::from(self.read(port, size, now))
        }
    }
}

impl Driven for Pci {
    fn access(&mut self, write: bool, at: u16, size: usize, value: u32, now: u64) -> u64 {
        let device = if at & 0x100 != 0 { 31 } else { 0 };
        let offset = device << 15 | u64::from(at & 0xff);
        match (at >> 9 & 3, write) {
            (0, true) => self.io_write(at & 7, size, value, now),
            (0, false) => return u64::from(self.io_read(at & 7, size, now)),
            (1, true) => self.mmconfig_write(offset, size, u64::from(value), now),
            (1, false) => return self.mmconfig_read(offset, size, now),
            (2, true) => self.rcba_write(u64::from(at), size, u64::from(value), now),
            (2, false) => return self.rcba_read(u64::from(at), size, now),
            _ => {
                let (isa, pin) = self.pirq_route(usize::from(at));
                let pirq = self.pirq_of(at as u8, value as u8) as u64;
                return pirq << 16 | u64::from(isa.unwrap_or(0xff)) << 8 | u64::from(pin);
            }
        }
        let base = self.mmconfig_range().map_or(0, |(base, _)| base);
        base + u64::from(self.pm_base().unwrap_or(0)) + self.rcba_range().map_or(0, |(b, _)| b)
    }
}

fn devices() -> Vec<Box<dyn Driven>> {
    let files = [("etc/table".to_string(), vec![7; 40])];
    vec![
        Box::new(Rtc::new(1_700_000_000, 512 << 20)),
        Box::new(Serial::new()),
        Box::new(I8042::new()),
        Box::new(Pm::new()),
        Box::new(FwCfg::new(4, 512 << 20, &[], &files)),
        Box::new(Misc::new()),
        Box::new(Pci::new()),
    ]
}

#[derive(Debug, Clone)]
struct Step {
    write: bool,
    at: u16,
    size: usize,
    value: u32,
    /// Time since the step before; now and then an hour.
    wait: u64,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![Just(1_usize), Just(2), Just(4)];
    let value = prop_oneof![0..0x100_u32, any::<u32>()];
    let wait = prop_oneof![8 => 0..2_000_000_u64, 2 => 0..2_000_000_000_u64, 1 => Just(3_600_000_000_000_u64)];
    let step = (any::<bool>(), any::<u16>(), size, value, wait).prop_map(
        |(write, at, size, value, wait)| Step {
            write,
            at,
            size,
            value,
            wait,
        },
    );
    prop::collection::vec(step, 0..120)
}

/// Runs the steps, firing every deadline on the way as the board does, and tells all that was seen.
/// `extra` asks for needless `advance` calls in between.
fn run(device: &mut dyn Driven, steps: &[Step], now: &mut u64, extra: bool) -> Vec<(u64, bool)> {
    let mut seen = Vec::new();
    for step in steps {
        let target = *now + step.wait;
        if extra {
            let halfway = *now + step.wait / 2;
            if device.deadline().is_none_or(|deadline| deadline > halfway) {
                device.pass(halfway);
            }
        }
        while let Some(deadline) = device.deadline().filter(|deadline| *deadline <= target) {
            device.pass(deadline.max(*now));
            assert_ne!(device.deadline(), Some(deadline), "a deadline must pass");
        }
        *now = target;
        let result = device.access(step.write, step.at, step.size, step.value, *now);
        seen.push((result, device.level()));
    }
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn equal_accesses_give_equal_results_and_states(steps in steps()) {
        for (mut a, mut b) in devices().into_iter().zip(devices()) {
            let (mut now_a, mut now_b) = (0, 0);
            let seen = run(a.as_mut(), &steps, &mut now_a, false);
            prop_assert_eq!(seen, run(b.as_mut(), &steps, &mut now_b, true));
            prop_assert_eq!(save(a.as_ref()), save(b.as_ref()));
        }
    }

    #[test]
    fn a_loaded_device_saves_the_same_and_goes_on_alike(before in steps(), after in steps()) {
        for (mut original, mut copy) in devices().into_iter().zip(devices()) {
            let mut now = 0;
            run(original.as_mut(), &before, &mut now, false);
            let state = save(original.as_ref());
            prop_assert_eq!(load(copy.as_mut(), &state), Ok(()));
            prop_assert_eq!(save(copy.as_ref()), state);
            let mut copy_now = now;
            let seen = run(original.as_mut(), &after, &mut now, false);
            prop_assert_eq!(seen, run(copy.as_mut(), &after, &mut copy_now, false));
            prop_assert_eq!(save(copy.as_ref()), save(original.as_ref()));
        }
    }

    #[test]
    fn a_damaged_state_is_refused_or_harmless(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
        steps in steps(),
    ) {
        for mut device in devices() {
            let state = save(device.as_ref());
            prop_assert!(load(device.as_mut(), &state[..cut.index(state.len())]).is_err());
            let mut damaged = state;
            for (index, value) in &damage {
                let at = index.index(damaged.len());
                damaged[at] = *value;
            }
            // Whatever it says, the device stays safe to use.
            let _ = load(device.as_mut(), &damaged);
            for step in &steps {
                device.access(step.write, step.at, step.size, step.value, step.wait);
                device.deadline();
                device.pass(step.wait);
            }
        }
    }
}

fn save(device: &dyn Driven) -> Vec<u8> {
    save_to_bytes(device)
}

fn load(device: &mut dyn Driven, bytes: &[u8]) -> Result<(), super::device::LoadError> {
    load_from_bytes(device, bytes)
}
