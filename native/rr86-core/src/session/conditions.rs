//! Conditions on which a run stops, for recording and replaying alike. They observe; they never change
//! which blocks exist or where slices end.

use super::machine::Machine;
use crate::cpu::exception::vector;
use crate::runtime::stops::StopCause;
use crate::translate::lower::emitter::Hooks;

/// Data register of the console's serial port.
const CONSOLE_PORT: u16 = 0x3f8;

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Before the instruction at this address, on any vCPU.
    Rip(u64),
    /// Before an INT3 or an INT with vector 3, and before the handler of an interrupt with that vector.
    Int3,
    /// Before such an instruction that memory does not hold.
    StaleInt3,
    /// Before the n-th instruction of the machine, counted from 0.
    Icount(u64),
    /// After an instruction wrote any of these bytes of physical memory.
    Write { paddr: u64, length: u64 },
    /// Before the first instruction of the handler of this interrupt.
    Interrupt(u8),
    /// Before a block runs that memory no longer holds.
    Stale,
    /// After the OUT that sent the last of these bytes to the console. Bytes sent by OUTS or by stores are
    /// looked at when the slice ends.
    Console(Vec<u8>),
}

/// Several conditions, and which of them has come true.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    list: Vec<Condition>,
    /// The last bytes of console output, as many as the longest pattern could still need.
    tail: Vec<u8>,
    /// Those that the last stop fulfilled.
    met: Vec<usize>,
}

impl Conditions {
    pub fn new(list: Vec<Condition>) -> Self {
        Self {
            list,
            ..Self::default()
        }
    }

    /// Other conditions, with the same patterns on the console: what these have seen of it counts on.
    pub fn renew(&mut self, list: Vec<Condition>) {
        self.list = list;
    }

    /// The conditions that the last stop fulfilled, in their order: all that waited for the same event, as far as
    /// that says which they are.
    pub fn met(&self) -> &[usize] {
        &self.met
    }

    /// Arms the machine for these conditions, and for no others. They stay armed.
    pub fn arm(&self, machine: &mut Machine) {
        let mut hooks = Hooks::default();
        let mut watches = Vec::new();
        let mut vectors = Vec::new();
        for condition in &self.list {
            match *condition {
                Condition::Rip(rip) => hooks.rips.push(rip),
                Condition::Int3 => {
                    hooks.int3 = true;
                    vectors.push(vector::BP);
                }
                Condition::StaleInt3 => hooks.int3 = true,
                Condition::Write { paddr, length } => watches.push((paddr, length)),
                Condition::Interrupt(vector) => vectors.push(vector),
                Condition::Icount(_) | Condition::Console(_) | Condition::Stale => {}
            }
        }
        hooks.rips.sort_unstable();
        hooks.rips.dedup();
        machine
            .engine
            .set_stop_on_stale(self.list.contains(&Condition::Stale));
        let port = self.list.iter().any(|c| matches!(c, Condition::Console(_)));
        machine
            .engine
            .set_stops(hooks, watches, &vectors, port.then_some(CONSOLE_PORT));
        let now = machine.engine.icount();
        machine.stop_at = self
            .list
            .iter()
            .filter_map(|c| match c {
                Condition::Icount(at) if *at > now => Some(*at),
                _ => None,
            })
            .min();
    }

    /// Which condition a stop of the engine fulfils, the first if there are several; see [`Self::met`].
    pub fn index_of(&mut self, machine: &Machine, vcpu: usize, cause: StopCause) -> Option<usize> {
        self.met = match cause {
            StopCause::Watch { .. } => self.written(machine.engine.written()),
            other => self.first_of(machine, vcpu, other).into_iter().collect(),
        };
        self.met.first().copied()
    }

    fn written(&self, ranges: &[(u64, u64)]) -> Vec<usize> {
        let hit = |c: &Condition| match *c {
            Condition::Write { paddr: at, length } => ranges.iter().any(|&(paddr, len)| {
                paddr < at.saturating_add(length) && at < paddr.saturating_add(len)
            }),
            _ => false,
        };
        (0..self.list.len())
            .filter(|&n| hit(&self.list[n]))
            .collect()
    }

    fn first_of(&self, machine: &Machine, vcpu: usize, cause: StopCause) -> Option<usize> {
        let cpu = machine.engine.cpu(vcpu);
        let position = |f: &dyn Fn(&Condition) -> bool| self.list.iter().position(f);
        match cause {
            StopCause::Hook => position(&|c| *c == Condition::Rip(cpu.rip))
                .or_else(|| position(&|c| *c == Condition::Int3))
                .or_else(|| {
                    position(&|c| *c == Condition::StaleInt3)
                        .filter(|_| machine.engine.executes_other_bytes(vcpu))
                }),
            StopCause::Watch { .. } | StopCause::Output => None,
            StopCause::Interrupt { vector: number } => position(&|c| {
                *c == Condition::Interrupt(number) || *c == Condition::Int3 && number == vector::BP
            }),
            StopCause::Stale => position(&|c| *c == Condition::Stale),
            StopCause::Moment => position(&|c| *c == Condition::Icount(machine.engine.icount())),
        }
    }

    /// Which console condition holds now that the console has printed `output`.
    pub fn console(&mut self, output: &[u8]) -> Option<usize> {
        if output.is_empty() {
            return None;
        }
        self.tail.extend_from_slice(output);
        let tail = &self.tail;
        let holds = |c: &Condition| match c {
            Condition::Console(text) => {
                !text.is_empty() && tail.windows(text.len()).any(|w| w == text.as_slice())
            }
            _ => false,
        };
        let all = (0..self.list.len()).filter(|&n| holds(&self.list[n]));
        self.met = all.collect();
        let found = self.met.first().copied();
        let longest = self
            .list
            .iter()
            .map(|c| {
                if let Condition::Console(text) = c {
                    text.len()
                } else {
                    0
                }
            })
            .max()
            .unwrap_or(0);
        if found.is_some() {
            self.tail.clear();
        } else {
            let keep = longest.saturating_sub(1).min(self.tail.len());
            self.tail.drain(..self.tail.len() - keep);
        }
        found
    }
}
