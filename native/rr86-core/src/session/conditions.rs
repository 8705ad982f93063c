//! Conditions on which a run stops, for recording and replaying alike. They observe; they never change
//! which blocks exist or where slices end.

use super::agent::Expression;
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
    /// The same on one vCPU alone, or when one of gdb's agent expressions holds; none at all holds always.
    RipWhere {
        address: u64,
        vcpu: Option<usize>,
        expressions: Vec<Expression>,
    },
    /// Before an INT3 or an INT with vector 3, and before the handler of an interrupt with that vector.
    Int3,
    /// Before such an instruction that memory does not hold.
    StaleInt3,
    /// Before the n-th instruction of the machine, counted from 0.
    Icount(u64),
    /// The same when everything is done that comes between two instructions: the slice has begun whose vCPU executes it,
    /// and interrupts before it are delivered. So a replay gets to one and the same state from wherever it comes.
    Before(u64),
    /// After an instruction read any of these bytes of physical memory. Page walks and fetches do not count.
    Read { paddr: u64, length: u64 },
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
    /// Conditions on reads by an instruction that is still to run, and the moment after it.
    reading: Option<(u64, Vec<usize>)>,
}

impl Conditions {
    pub fn new(list: Vec<Condition>) -> Self {
        Self {
            list,
            ..Self::default()
        }
    }

    /// The same, when the console has sent this before.
    #[must_use]
    pub fn after(mut self, heard: &[u8]) -> Self {
        self.tail = heard.to_vec();
        self
    }

    /// Other conditions, with the same patterns on the console: what these have seen of it counts on.
    pub fn renew(&mut self, list: Vec<Condition>) {
        self.list = list;
        self.reading = None;
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
        let mut reads = Vec::new();
        let mut vectors = Vec::new();
        for condition in &self.list {
            match *condition {
                Condition::Rip(rip) | Condition::RipWhere { address: rip, .. } => {
                    hooks.rips.push(rip);
                }
                Condition::Read { paddr, length } => reads.push((paddr, length)),
                Condition::Int3 => {
                    hooks.int3 = true;
                    vectors.push(vector::BP);
                }
                Condition::StaleInt3 => hooks.int3 = true,
                Condition::Write { paddr, length } => watches.push((paddr, length)),
                Condition::Interrupt(vector) => vectors.push(vector),
                Condition::Icount(_)
                | Condition::Before(_)
                | Condition::Console(_)
                | Condition::Stale => {}
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
        machine.engine.set_read_watches(reads);
        let now = machine.engine.icount();
        let due = self.list.contains(&Condition::Before(now));
        machine.engine.stop_before(due.then_some(now));
        let moments = self.list.iter().filter_map(|c| match *c {
            Condition::Icount(at) | Condition::Before(at) if at > now => Some(at),
            _ => None,
        });
        let after_read = self.reading.as_ref().map(|&(at, _)| at);
        machine.stop_at = moments.chain(after_read).min();
    }

    /// What an instruction reads that is about to run again: the run stops behind it.
    fn note_read(&mut self, machine: &mut Machine) {
        let mut met = self.met_by(machine.engine.read(), false);
        met.extend(self.met_by(machine.engine.written(), true));
        if !met.is_empty() {
            let after = machine.engine.icount() + 1;
            self.reading = Some((after, met));
            machine.stop_at = Some(machine.stop_at.map_or(after, |at| at.min(after)));
        }
    }

    /// At a moment that was waited for: which condition holds. One that waits for more than the moment has the machine
    /// go on to it.
    fn at_moment(&mut self, machine: &mut Machine) -> Vec<usize> {
        let now = machine.engine.icount();
        if let Some((_, met)) = self.reading.take_if(|(at, _)| *at == now) {
            return met;
        }
        let icount = self.list.iter().position(|c| *c == Condition::Icount(now));
        if icount.is_none() && self.list.contains(&Condition::Before(now)) {
            machine.engine.stop_before(Some(now));
        }
        icount.into_iter().collect()
    }

    /// Which condition a stop of the engine fulfils, the first if there are several; see [`Self::met`].
    pub fn index_of(
        &mut self,
        machine: &mut Machine,
        vcpu: usize,
        cause: StopCause,
    ) -> Option<usize> {
        self.met = match cause {
            StopCause::Watch { .. } => {
                let reading = self.reading.take().map(|(_, met)| met);
                let mut met = self.met_by(machine.engine.written(), true);
                met.extend(self.met_by(machine.engine.read(), false));
                met.extend(reading.unwrap_or_default());
                met.sort_unstable();
                met.dedup();
                met
            }
            StopCause::Read => {
                self.note_read(machine);
                Vec::new()
            }
            StopCause::Moment => self.at_moment(machine),
            other => self.first_of(machine, vcpu, other).into_iter().collect(),
        };
        self.met.first().copied()
    }

    /// The conditions on writes, or on reads, of which one of these ranges fulfils a part.
    fn met_by(&self, ranges: &[(u64, u64)], write: bool) -> Vec<usize> {
        let overlaps = |at: u64, length: u64| {
            ranges.iter().any(|&(paddr, len)| {
                paddr < at.saturating_add(length) && at < paddr.saturating_add(len)
            })
        };
        let hit = |c: &Condition| match *c {
            Condition::Write { paddr, length } => write && overlaps(paddr, length),
            Condition::Read { paddr, length } => !write && overlaps(paddr, length),
            _ => false,
        };
        (0..self.list.len())
            .filter(|&n| hit(&self.list[n]))
            .collect()
    }

    /// The first condition on this address that holds on this vCPU.
    fn at_address(&self, machine: &mut Machine, vcpu: usize, rip: u64) -> Option<usize> {
        let holds = |c: &Condition| match c {
            Condition::Rip(address) => *address == rip,
            Condition::RipWhere {
                address,
                vcpu: only,
                expressions,
            } => {
                *address == rip
                    && only.is_none_or(|only| only == vcpu)
                    && (expressions.is_empty()
                        || expressions.iter().any(|e| e.holds(machine, vcpu)))
            }
            _ => false,
        };
        self.list.iter().position(holds)
    }

    fn first_of(&self, machine: &mut Machine, vcpu: usize, cause: StopCause) -> Option<usize> {
        let rip = machine.engine.cpu(vcpu).rip;
        let position = |f: &dyn Fn(&Condition) -> bool| self.list.iter().position(f);
        match cause {
            StopCause::Hook => self
                .at_address(machine, vcpu, rip)
                .or_else(|| position(&|c| *c == Condition::Int3))
                .or_else(|| {
                    position(&|c| *c == Condition::StaleInt3)
                        .filter(|_| machine.engine.executes_other_bytes(vcpu))
                }),
            StopCause::Before => position(&|c| *c == Condition::Before(machine.engine.icount())),
            StopCause::Watch { .. } | StopCause::Read | StopCause::Moment | StopCause::Output => {
                None
            }
            StopCause::Interrupt { vector: number } => position(&|c| {
                *c == Condition::Interrupt(number) || *c == Condition::Int3 && number == vector::BP
            }),
            StopCause::Stale => position(&|c| *c == Condition::Stale),
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
