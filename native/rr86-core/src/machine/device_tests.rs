//! What every device must stand, whatever the guest does: random accesses, save and load in the middle, damaged states,
//! a reset. The list of the board is what is tested, with the interrupt controllers and a PCI function on top, so a new
//! device is tested by being on the board.

use proptest::prelude::*;

use super::bus::truncate;
use super::device::{
    load_from_bytes, save_to_bytes, Access, ConfigCycle, Device, Lines, LoadError, Outbox,
};
use super::dma::DmaAccess;
use super::interrupts::Interrupts;
use super::ioapic::IoApic;
use super::lapic::Lapic;
use super::message::Message;
use super::pic::Pic;
use super::probe::probe;
use super::q35::{self, BoardConfig};
use super::range::{Range, Space, Takes};
use super::signal::Signal;
use crate::cpu::semantics::Semantics;

const RAM: usize = 0x1_0000;
/// Deadlines that are met within one step: some timers are much faster than others.
const MOST_FIRINGS: usize = 500;

fn devices() -> Vec<Box<dyn Device>> {
    let config = BoardConfig {
        vcpus: 4,
        memory: 512 << 20,
        start_time: 1_700_000_000,
        semantics: Semantics::CURRENT,
        fw_cfg: Vec::new(),
        fw_cfg_files: vec![("etc/table".to_string(), vec![7; 40])],
    };
    let mut all: Vec<Box<dyn Device>> = vec![
        Box::new(Lapic::new(0)),
        Box::new(Lapic::new(1)),
        Box::new(IoApic::new()),
        Box::new(Pic::new()),
    ];
    all.extend(q35::devices(&config));
    all.push(Box::new(probe(3)));
    all
}

/// A device with the ranges that were seen of it, whoever decodes them.
struct Tried {
    device: Box<dyn Device>,
    ranges: Vec<Range>,
    ram: Vec<u8>,
    now: u64,
}

fn all() -> Vec<Tried> {
    let devices = devices();
    let decoded: Vec<(String, Range)> = devices
        .iter()
        .flat_map(|device| {
            device
                .ranges()
                .into_iter()
                .map(|range| (device.name(), range))
        })
        .map(|(name, range)| (range.answers.clone().unwrap_or(name).into_owned(), range))
        .collect();
    let tried = |device: Box<dyn Device>| {
        let own = decoded.iter().filter(|(name, _)| *name == device.name());
        let mut ranges: Vec<Range> = own.map(|(_, range)| range.clone()).collect();
        if ranges.is_empty() {
            // A PCI function, whose registers have no place yet.
            ranges.extend((0..6).map(|bar| Range::memory(0, 0x1000, bar)));
        }
        Tried {
            device,
            ranges,
            ram: (0..RAM).map(|at| (at * 7) as u8).collect(),
            now: 0,
        }
    };
    devices.into_iter().map(tried).collect()
}

#[derive(Debug, Clone)]
struct Step {
    kind: u8,
    range: u8,
    at: u16,
    size: usize,
    value: u64,
    /// Time since the step before; now and then an hour.
    wait: u64,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let value = prop_oneof![
        4 => 0..0x100u64,
        2 => any::<u16>().prop_map(u64::from),
        2 => any::<u64>(),
        1 => (0u32..64).prop_map(|bit| 1 << bit),
    ];
    let wait = prop_oneof![
        8 => 0..2_000_000u64,
        2 => 0..2_000_000_000u64,
        1 => Just(3_600_000_000_000u64),
    ];
    let at =
        prop_oneof![3 => 0u16..0x40, 2 => (0u16..0x40).prop_map(|n| n << 4), 1 => any::<u16>()];
    let size = prop::sample::select(vec![1usize, 2, 4, 8]);
    let step = (any::<u8>(), any::<u8>(), at, size, value, wait).prop_map(
        |(kind, range, at, size, value, wait)| Step {
            kind,
            range,
            at,
            size,
            value,
            wait,
        },
    );
    prop::collection::vec(step, 0..100)
}

/// All that can be seen of a device after a step.
type Sight = (u64, Lines, Vec<Signal>, Vec<Message>, Option<u64>);

impl Tried {
    fn fire(&mut self, step: &Step, out: &mut Outbox) {
        let target = self.now + step.wait;
        for _ in 0..MOST_FIRINGS {
            let Some(at) = self.device.next_deadline().filter(|&at| at <= target) else {
                break;
            };
            self.device.advance(at, at.max(self.now), out);
            while self.device.take_pulse().is_some() {}
            let next = self.device.next_deadline();
            assert!(next.is_none_or(|next| next > at), "a deadline must pass");
        }
        let next = self.device.next_deadline();
        self.now = next
            .map_or(target, |next| target.min(next - 1))
            .max(self.now);
    }

    fn access(&mut self, step: &Step, out: &mut Outbox) -> u64 {
        let range = &self.ranges[usize::from(step.range) % self.ranges.len()];
        let size = match (range.takes, range.space) {
            (Takes::Bytes, _) => 1,
            (_, Space::Ports) => step.size.min(4),
            (_, Space::Memory) => step.size,
        };
        let room = match range.takes {
            Takes::Beginning => range.length,
            _ => range.length - range.length.min(size as u64) + 1,
        };
        let offset = u64::from(step.at) % room;
        if range.takes == Takes::Configuration && step.kind & 0x10 != 0 {
            self.device.config_cycle(range.region, offset);
        }
        let at = Access {
            region: range.region,
            offset,
            size,
            now: self.now,
        };
        if step.kind & 1 != 0 {
            self.device.write(at, truncate(step.value, size), out);
            0
        } else {
            self.device.read(at, out)
        }
    }

    fn configure(&mut self, step: &Step, out: &mut Outbox) -> u64 {
        let functions = self.device.functions();
        let Some(&devfn) = functions.get(usize::from(step.range) % functions.len().max(1)) else {
            return 0;
        };
        let cycle = ConfigCycle {
            devfn,
            register: usize::from(step.at & 0xfff),
        };
        if step.kind & 1 != 0 {
            self.device
                .config_write(cycle, step.value as u8, self.now, out);
        }
        self.device.config_read(cycle).into()
    }

    fn serve_dma(&mut self, out: &mut Outbox) {
        for _ in 0..8 {
            if !self.device.wants_dma() {
                return;
            }
            match self.device.dma_access().expect("it waits for one") {
                DmaAccess::Read { paddr, length } => {
                    let at = (paddr as usize).min(RAM);
                    let bytes = self.ram.get(at..at + length).map(<[u8]>::to_vec);
                    self.device.dma_done(bytes.as_deref(), self.now, out);
                }
                DmaAccess::Write { paddr, data } => {
                    let at = (paddr as usize).min(RAM);
                    let room = self.ram.get_mut(at..at + data.len());
                    let done = room.map(|room| room.copy_from_slice(&data));
                    self.device
                        .dma_done(done.map(|()| [].as_slice()), self.now, out);
                }
            }
        }
    }

    fn run(&mut self, steps: &[Step]) -> Vec<Sight> {
        let mut seen = Vec::new();
        for step in steps {
            let mut out = Outbox::default();
            self.fire(step, &mut out);
            let value = match step.kind >> 6 {
                0 if !self.device.functions().is_empty() => self.configure(step, &mut out),
                _ => self.access(step, &mut out),
            };
            self.serve_dma(&mut out);
            self.device.ranges();
            seen.push((
                value,
                self.device.lines(),
                out.signals,
                out.messages,
                self.device.next_deadline(),
            ));
        }
        seen
    }

    fn save(&self) -> Vec<u8> {
        save_to_bytes(self.device.as_ref())
    }

    fn load(&mut self, bytes: &[u8]) -> Result<(), LoadError> {
        load_from_bytes(self.device.as_mut(), bytes)
    }
}

#[test]
fn components_have_names_of_their_own() {
    let mut names: Vec<_> = devices().iter().map(|device| device.name()).collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn controllers_come_in_the_order_in_which_they_are_saved() {
    let controllers = Interrupts::new(2);
    let names: Vec<_> = (0..controllers.count())
        .map(|number| controllers.device(number).name())
        .collect();
    assert_eq!(names, ["lapic0", "lapic1", "ioapic", "pic"]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn equal_accesses_give_equal_results_and_states(steps in steps()) {
        for (mut one, mut two) in all().into_iter().zip(all()) {
            prop_assert_eq!(one.run(&steps), two.run(&steps));
            prop_assert_eq!(one.save(), two.save());
            prop_assert_eq!(one.ram, two.ram);
        }
    }

    #[test]
    fn a_loaded_device_saves_the_same_and_goes_on_alike(before in steps(), after in steps()) {
        for (mut original, mut copy) in all().into_iter().zip(all()) {
            original.run(&before);
            let state = original.save();
            prop_assert_eq!(copy.load(&state), Ok(()), "{}", copy.device.name());
            prop_assert_eq!(copy.save(), state);
            prop_assert_eq!(copy.device.ranges(), original.device.ranges());
            copy.now = original.now;
            copy.ram.clone_from(&original.ram);
            prop_assert_eq!(copy.run(&after), original.run(&after), "{}", copy.device.name());
            prop_assert_eq!(copy.save(), original.save());
        }
    }

    #[test]
    fn a_damaged_state_is_refused_or_leads_to_a_valid_one(
        before in steps(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
        steps in steps(),
    ) {
        for mut tried in all() {
            tried.run(&before);
            let state = tried.save();
            prop_assert!(tried.load(&state[..cut.index(state.len())]).is_err());
            let mut damaged = state;
            for (index, value) in &damage {
                let at = index.index(damaged.len());
                damaged[at] = *value;
            }
            if tried.load(&damaged).is_ok() {
                let state = tried.save();
                prop_assert_eq!(tried.load(&state), Ok(()), "{}", tried.device.name());
                prop_assert_eq!(tried.save(), state);
            }
            // Whatever the state says, the device stays safe to use.
            for step in &steps {
                let mut out = Outbox::default();
                tried.access(step, &mut out);
                tried.configure(step, &mut out);
                tried.serve_dma(&mut out);
                tried.now += step.wait;
                if let Some(at) = tried.device.next_deadline() {
                    tried.device.advance(at, tried.now.max(at), &mut out);
                }
                tried.device.lines();
                tried.device.ranges();
            }
        }
    }

    #[test]
    fn a_reset_device_is_like_a_new_one(steps in steps()) {
        for (mut used, new) in all().into_iter().zip(all()) {
            used.run(&steps);
            used.device.reset();
            prop_assert_eq!(used.save(), new.save(), "{}", new.device.name());
            prop_assert_eq!(used.device.lines(), new.device.lines());
            prop_assert_eq!(used.device.ranges(), new.device.ranges());
            prop_assert_eq!(used.device.next_deadline(), new.device.next_deadline());
            prop_assert_eq!(used.device.wants_dma(), new.device.wants_dma());
        }
    }
}
