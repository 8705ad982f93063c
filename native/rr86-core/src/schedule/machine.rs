//! A machine that executes decisions: engine, board, virtual time.
//!
//! Between slices, timers that are due fire, signals of the board are served, and halted vCPUs with
//! something to do wake up. When nobody can run, virtual time jumps to the next timer. All of this is a
//! function of the machine's state, so only the slices themselves are decisions.

use std::any::Any;

use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use crate::contents::Contents;
use crate::cpu::cpuid::{CpuidRow, CpuidTable};
use crate::cpu::registers::{self, RegisterError};
use crate::cpu::save;
use crate::cpu::semantics::Semantics;
use crate::cpu::state::{Activity, CpuState, RFlags};
use crate::host_time::{Phase, Stopwatch};
use crate::machine::dma::DmaAccess;
use crate::machine::{Board, BoardConfig, Signal};
use crate::runtime::dispatch::{RunEnd, Span};
use crate::runtime::engine::{Agent, BlockLimits, Engine, HostError, StopCause};
use crate::runtime::windows::Window;

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// RAM in bytes.
    pub memory: u64,
    pub vcpus: usize,
    pub cpuid: Vec<CpuidRow>,
    /// Values of MSRs at reset.
    pub msrs: Vec<(u32, u64)>,
    /// Unix seconds that the RTC shows at power-on.
    pub start_time: i64,
    pub fw_cfg: Vec<(u16, Contents)>,
    pub fw_cfg_files: Vec<(String, Vec<u8>)>,
    pub blocks: BlockLimits,
    /// Track who writes and reads which page.
    pub tracking: bool,
    pub semantics: Semantics,
}

/// Instructions that a slice has before PAUSE gives way: vCPUs that wait for each other, or for the
/// time, would otherwise take turns at every PAUSE, with a decision for each.
const SPIN: u64 = 1_000;

/// A machine that cannot be built or run.
#[derive(Debug, Error)]
pub enum MachineError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("a machine has 1 to 64 vCPUs, not {0}")]
    Vcpus(usize),
    #[error("memory must be a whole number of MiB, at least 1, not {0} bytes")]
    Memory(u64),
    #[error("there is no vCPU {0}")]
    NoVcpu(usize),
    #[error("there is no RAM at {address:#x} for {length} bytes")]
    NoRam { address: u64, length: usize },
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error("blocks have 1 to 64 instructions, not {0}")]
    BlockLength(usize),
}

/// Which vCPU runs next, and for how many instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub vcpu: usize,
    pub budget: u64,
}

/// Why the machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    PowerOff,
    Reset,
    /// isa-debug-exit, with the exit status that QEMU would give.
    DebugExit(u32),
    /// A device could not do its work.
    DeviceFailed,
    /// A vCPU shut down after a triple fault.
    TripleFault {
        vcpu: usize,
    },
}

/// What happens before the next slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Some vCPU can run.
    Ready,
    /// Virtual time jumped to this many nanoseconds, and now some vCPU can run, or has to wait on.
    Skipped(u64),
    /// Nobody can run and no timer is set: only input could wake the machine.
    Deadlock,
    Ended(Ending),
}

/// Why a slice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SliceStop {
    Quantum,
    Pause,
    Halt,
    Deadline,
    Ended(Ending),
    /// Switched out between two steps of the block protocol.
    Window(Window),
}

/// What became of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SliceReport {
    /// It is over.
    Done {
        vcpu: usize,
        start: u64,
        instructions: u64,
        stop: SliceStop,
    },
    /// The debugger's stop inside the slice; `resume` goes on with it.
    Stopped(StopCause),
    /// Translated code failed on the host. The slice has no end, and nothing runs any more.
    Failed,
    /// The call has lasted long enough; `resume` goes on with the slice.
    TimeUp,
}

/// A slice under way.
#[derive(Clone, Copy, Debug)]
struct Slice {
    vcpu: usize,
    start: u64,
    /// Instructions that the decision still allows.
    left: u64,
    /// Why it ends when these are used up.
    stop: SliceStop,
}

/// What could make a vCPU that does not run act.
struct Sleeper {
    waits_for_sipi: bool,
    /// An NMI waits already, and cannot be delivered.
    has_nmi: bool,
    /// Halted with interrupts on.
    open: bool,
}

impl Sleeper {
    fn of(cpu: &CpuState) -> Self {
        Self {
            waits_for_sipi: cpu.activity == Activity::WaitForSipi,
            has_nmi: cpu.nmi_pending != 0,
            open: cpu.activity == Activity::Halted && cpu.rflags & RFlags::IF.bits() != 0,
        }
    }
}

pub struct Machine {
    pub engine: Box<Engine>,
    slice: Option<Slice>,
    /// How the engine ended at a stop by instruction count, still to be acted upon.
    after_stop: Option<RunEnd>,
    ending: Option<Ending>,
    /// Whether timers may cut slices short; a replayer's decisions are already cut.
    pub cut_at_deadlines: bool,
    /// Run decisions to the instruction; a recorded slice may end inside a block when the debugger
    /// ended the recording there.
    pub exact: bool,
    /// The debugger's icount stop.
    pub stop_at: Option<u64>,
}

impl Machine {
    /// A machine in its power-on state.
    ///
    /// # Errors
    /// [`MachineError`] for values out of range and for hosts that lack something.
    pub fn new(config: MachineConfig) -> Result<Self, MachineError> {
        if !(1..=64).contains(&config.vcpus) {
            return Err(MachineError::Vcpus(config.vcpus));
        }
        if config.memory == 0 || config.memory % (1 << 20) != 0 {
            return Err(MachineError::Memory(config.memory));
        }
        if !(1..=64).contains(&config.blocks.instructions) {
            return Err(MachineError::BlockLength(config.blocks.instructions));
        }
        let board = Board::new(&BoardConfig {
            vcpus: config.vcpus,
            memory: config.memory,
            start_time: config.start_time,
            semantics: config.semantics,
            fw_cfg: config.fw_cfg,
            fw_cfg_files: config.fw_cfg_files,
        });
        let mut model = CpuidTable::new(config.cpuid);
        model.set_msrs(config.msrs);
        let mut engine = Engine::new(
            config.memory,
            config.vcpus,
            model,
            Box::new(board),
            config.blocks,
        )?;
        engine.set_tracking(config.tracking);
        engine.set_semantics(config.semantics);
        Ok(Self {
            engine,
            slice: None,
            after_stop: None,
            ending: None,
            cut_at_deadlines: true,
            exact: false,
            stop_at: None,
        })
    }

    /// Which version of the machine's semantics it follows.
    pub fn semantics(&self) -> Semantics {
        self.engine.cpu(0).semantics
    }

    pub fn board(&mut self) -> &mut Board {
        let bus: &mut dyn Any = self.engine.bus.as_mut();
        bus.downcast_mut().expect("a machine's bus is its board")
    }

    // ---- before and between runs -----------------------------------------------------------------

    /// Writes an image into RAM.
    ///
    /// # Errors
    /// When part of the range is not RAM.
    pub fn load(&mut self, paddr: u64, data: &[u8]) -> Result<(), MachineError> {
        let last = paddr.checked_add(data.len().max(1) as u64 - 1);
        let error = MachineError::NoRam {
            address: paddr,
            length: data.len(),
        };
        let inside = last.is_some_and(|last| {
            let pages = (paddr >> 12)..=(last >> 12);
            pages.clone().count() <= self.engine.ram.pages()
                && pages
                    .into_iter()
                    .all(|p| self.engine.ram.page_index(p << 12).is_some())
        });
        if !inside {
            return Err(error);
        }
        self.engine.write_physical(Agent::Device, paddr, data, None);
        Ok(())
    }

    /// Sets a register by name; "cr8" belongs to the local APIC.
    ///
    /// # Errors
    /// For a vCPU or a register that does not exist.
    pub fn set_register(
        &mut self,
        vcpu: usize,
        name: &str,
        value: u64,
    ) -> Result<(), MachineError> {
        self.check_vcpu(vcpu)?;
        if name == "cr8" {
            self.board().set_cr8(vcpu, value as u8);
            return Ok(());
        }
        registers::set(self.engine.cpu_mut(vcpu), name, value)?;
        Ok(())
    }

    /// All registers of a vCPU by name.
    ///
    /// # Errors
    /// For a vCPU that does not exist.
    pub fn registers(&mut self, vcpu: usize) -> Result<Vec<(String, u64)>, MachineError> {
        self.check_vcpu(vcpu)?;
        let mut all = registers::all(self.engine.cpu(vcpu));
        all.push(("cr8".to_string(), u64::from(self.board().cr8(vcpu))));
        Ok(all)
    }

    pub fn check_vcpu(&self, vcpu: usize) -> Result<(), MachineError> {
        if vcpu < self.engine.vcpu_count() {
            Ok(())
        } else {
            Err(MachineError::NoVcpu(vcpu))
        }
    }

    /// Gives bytes to COM1's receiver, now.
    pub fn console_input(&mut self, data: &[u8]) {
        let now = self.engine.now();
        self.board().serial_receive(data, now);
    }

    /// Digest of each component, in a fixed order.
    pub fn digests(&mut self) -> Vec<(String, u64)> {
        let watch = Stopwatch::start();
        let mut all = vec![("ram".to_string(), self.engine.ram_digest())];
        for v in 0..self.engine.vcpu_count() {
            all.push((format!("cpu{v}"), xxh3_64(&save::save(self.engine.cpu(v)))));
        }
        for (name, bytes) in self.board().save() {
            all.push((name, xxh3_64(&bytes)));
        }
        all.push(("blocks".to_string(), self.engine.blocks.digest()));
        all.push(("windows".to_string(), self.engine.windows_digest()));
        all.push(("time".to_string(), self.engine.now()));
        self.engine.spent.add(Phase::Digests, watch.read());
        all
    }

    // ---- moving ------------------------------------------------------------------------------------

    /// Whether `prepare` has something to serve, so that calling it changes more than the time.
    pub fn is_due(&mut self) -> bool {
        let now = self.engine.now();
        let board = self.board();
        board.has_signals() || board.next_deadline().is_some_and(|at| at <= now)
    }

    /// Serves what is due before the next slice. Call again after `Skipped`.
    pub fn prepare(&mut self) -> Wait {
        let now = self.engine.now();
        if self.board().next_deadline().is_some_and(|at| at <= now) {
            self.board().advance(now);
        }
        self.serve(false);
        if let Some(ending) = self.ending {
            return Wait::Ended(ending);
        }
        for v in 0..self.engine.vcpu_count() {
            self.wake(v);
        }
        if self.runnable().contains(&true) {
            return Wait::Ready;
        }
        let now = self.engine.now();
        let selective = self
            .engine
            .cpu(0)
            .semantics
            .only_timers_with_effect_pass_time();
        let next = if selective {
            self.next_event()
        } else {
            self.board().next_deadline()
        };
        let Some(at) = next.map(|at| at.max(now + 1)) else {
            return Wait::Deadlock;
        };
        if selective {
            self.board().pass_until(at);
        }
        self.engine.skipped_ns += at - now;
        Wait::Skipped(at)
    }

    /// When something happens next although no vCPU can run: a function of the machine's state.
    fn next_event(&mut self) -> Option<u64> {
        let sleepers: Vec<Sleeper> = (0..self.engine.vcpu_count())
            .map(|v| Sleeper::of(self.engine.cpu(v)))
            .collect();
        self.board().next_effect(&|signal| match *signal {
            Signal::Init(v) => !sleepers[v].waits_for_sipi,
            Signal::Sipi(v, _) => sleepers[v].waits_for_sipi,
            Signal::Nmi(v) => !sleepers[v].has_nmi,
            Signal::Interrupt(v) => sleepers[v].open,
            Signal::DeadlineChanged => false,
            Signal::PowerOff | Signal::Reset | Signal::DebugExit(_) | Signal::DeviceFailed => true,
        })
    }

    /// Which vCPUs can run.
    pub fn runnable(&self) -> Vec<bool> {
        (0..self.engine.vcpu_count())
            .map(|v| self.engine.cpu(v).activity == Activity::Active)
            .collect()
    }

    fn others_can_run(&self, vcpu: usize) -> bool {
        (0..self.engine.vcpu_count())
            .any(|v| v != vcpu && self.engine.cpu(v).activity == Activity::Active)
    }

    /// Makes the accesses to memory that devices ask for. `hurried`: false is returned if the time is up before
    /// all are made.
    fn serve_dma(&mut self, hurried: bool) -> bool {
        while let Some(access) = self.board().dma_access() {
            if hurried && self.engine.patience.is_over() {
                return false;
            }
            self.engine.patience.step();
            let now = self.engine.now();
            match access {
                DmaAccess::Read { paddr, length } => {
                    let mut bytes = vec![0; length];
                    let inside = self.is_ram(paddr, length);
                    if inside {
                        self.engine.read_physical(paddr, &mut bytes);
                    }
                    self.board().dma_done(inside.then_some(&bytes), now);
                }
                DmaAccess::Write { paddr, data } => {
                    let inside = self.is_ram(paddr, data.len());
                    if inside {
                        self.engine
                            .write_physical(Agent::Device, paddr, &data, None);
                    }
                    self.board().dma_done(inside.then_some(&[]), now);
                }
            }
        }
        true
    }

    /// Whether all bytes of a range of at most a page are RAM.
    fn is_ram(&self, paddr: u64, length: usize) -> bool {
        let last = paddr.checked_add(length.max(1) as u64 - 1);
        let ram = &self.engine.ram;
        last.is_some_and(|last| [paddr, last].iter().all(|&at| ram.page_index(at).is_some()))
    }

    /// Serves the board's signals and DMA. `hurried`: false is returned if the time is up before all is done.
    fn serve(&mut self, hurried: bool) -> bool {
        while self.board().has_signals() {
            if !self.serve_dma(hurried) {
                return false;
            }
            for signal in self.board().take_signals() {
                match signal {
                    Signal::Init(v) => {
                        self.engine.init_vcpu(v);
                    }
                    Signal::Sipi(v, page) => self.engine.cpu_mut(v).startup(page),
                    Signal::Nmi(v) => self.engine.cpu_mut(v).nmi_pending = 1,
                    Signal::Interrupt(_) | Signal::DeadlineChanged => {}
                    Signal::PowerOff => self.ending = self.ending.or(Some(Ending::PowerOff)),
                    Signal::Reset => self.ending = self.ending.or(Some(Ending::Reset)),
                    Signal::DebugExit(code) => {
                        self.ending = self.ending.or(Some(Ending::DebugExit(code)));
                    }
                    Signal::DeviceFailed => {
                        self.ending = self.ending.or(Some(Ending::DeviceFailed));
                    }
                }
            }
        }
        true
    }

    /// Ends a vCPU's HLT when an interrupt or NMI is there for it.
    fn wake(&mut self, v: usize) -> bool {
        let cpu = self.engine.cpu(v);
        if cpu.activity != Activity::Halted {
            return cpu.activity == Activity::Active;
        }
        let nmi = cpu.nmi_pending != 0 && cpu.nmi_blocked == 0;
        let open = cpu.rflags & RFlags::IF.bits() != 0;
        let due = nmi || open && self.board().pending_interrupt(v);
        if due {
            self.engine.cpu_mut(v).activity = Activity::Active;
        }
        due
    }

    /// Starts a slice and runs it to its end or to a stop.
    pub fn run_slice(&mut self, decision: Decision) -> SliceReport {
        let now = self.engine.now();
        let mut slice = Slice {
            vcpu: decision.vcpu,
            start: self.engine.icount(),
            left: decision.budget,
            stop: SliceStop::Quantum,
        };
        self.cut(&mut slice, now);
        self.engine.begin_slice();
        self.slice = Some(slice);
        self.resume()
    }

    /// Shortens a slice so that it ends at the next timer.
    fn cut(&mut self, slice: &mut Slice, now: u64) {
        if !self.cut_at_deadlines {
            return;
        }
        if let Some(at) = self.board().next_deadline() {
            let until = at.saturating_sub(now).max(1);
            if until < slice.left {
                slice.left = until;
                slice.stop = SliceStop::Deadline;
            }
        }
    }

    /// Stands between two slices, whatever was under way.
    pub(super) fn forget_slice(&mut self) {
        self.slice = None;
        self.after_stop = None;
        self.ending = None;
    }

    /// Why the machine ended, if it has.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// Whether a slice is under way, so that `resume` must be called before the next decision.
    pub fn inside_slice(&self) -> bool {
        self.slice.is_some()
    }

    /// Goes on with a slice that was stopped inside.
    ///
    /// # Panics
    /// If no slice is under way.
    pub fn resume(&mut self) -> SliceReport {
        let mut slice = self.slice.take().expect("a slice is under way");
        loop {
            let before = self.engine.icount();
            let (budget, exact) = match self.stop_at {
                Some(at) if at >= before && at - before <= slice.left => (at - before, true),
                _ => (slice.left, false),
            };
            let (count, end) = match self.after_stop.take() {
                Some(end) => (0, Some(end)),
                None if exact && budget == 0 => (0, None),
                None => {
                    let span = Span {
                        budget,
                        exact: exact || self.exact,
                        beyond: slice.left.saturating_sub(budget),
                        fitting: !self.exact,
                        start: slice.start,
                    };
                    let others = self.others_can_run(slice.vcpu);
                    // In terms of the slice, not of this call.
                    let below = (budget + (before - slice.start)) as i64 - SPIN as i64 + 1;
                    let yields = self.cut_at_deadlines && others;
                    self.engine
                        .set_pause_below(slice.vcpu, if yields { below } else { i64::MIN });
                    self.engine.open_windows(others);
                    let (count, end) = self.engine.run(slice.vcpu, span);
                    (count, Some(end))
                }
            };
            slice.left = slice.left.saturating_sub(count);
            let (vcpu, start) = (slice.vcpu, slice.start);
            let done = |machine: &Self, stop: SliceStop| SliceReport::Done {
                vcpu,
                start,
                instructions: machine.engine.icount() - start,
                stop,
            };
            let failed = end == Some(RunEnd::HostFault);
            if exact && !failed && self.stop_at == Some(self.engine.icount()) {
                // The moment has come, whatever else has; the slice goes on from here.
                self.stop_at = None;
                self.slice = Some(slice);
                // With the slice used up to a block's end, going on would look for interrupts anew.
                let over = slice.left == 0 && self.engine.inside_block(vcpu).is_none();
                self.after_stop = end.filter(|&e| e != RunEnd::Budget || over);
                return SliceReport::Stopped(StopCause::Moment);
            }
            let Some(end) = end else { continue };
            match end {
                RunEnd::Budget => return done(self, slice.stop),
                RunEnd::Pause => {
                    let spun = self.engine.icount() - slice.start >= SPIN;
                    let yields = self.cut_at_deadlines && spun && self.others_can_run(slice.vcpu);
                    if slice.left == 0 || yields {
                        slice.left = 0;
                        slice.stop = SliceStop::Pause;
                    }
                }
                RunEnd::Halt | RunEnd::Signals if !self.serve(true) => {
                    self.slice = Some(slice);
                    self.after_stop = Some(end);
                    return SliceReport::TimeUp;
                }
                RunEnd::Halt => {
                    if let Some(ending) = self.ending {
                        return done(self, SliceStop::Ended(ending));
                    }
                    if !self.wake(slice.vcpu) {
                        return done(self, SliceStop::Halt);
                    }
                }
                RunEnd::Signals => {
                    if let Some(ending) = self.ending {
                        return done(self, SliceStop::Ended(ending));
                    }
                    if self.engine.cpu(slice.vcpu).activity != Activity::Active {
                        return done(self, SliceStop::Halt);
                    }
                    let now = self.engine.now();
                    self.cut(&mut slice, now);
                }
                RunEnd::Stopped(cause) => {
                    self.slice = Some(slice);
                    return SliceReport::Stopped(cause);
                }
                RunEnd::HostFault => return SliceReport::Failed,
                RunEnd::TimeUp => {
                    self.slice = Some(slice);
                    return SliceReport::TimeUp;
                }
                RunEnd::Window(window) => return done(self, SliceStop::Window(window)),
                RunEnd::TripleFault => {
                    let ending = Ending::TripleFault { vcpu: slice.vcpu };
                    self.ending = Some(ending);
                    return done(self, SliceStop::Ended(ending));
                }
            }
            // Whether the decision had instructions left that the next block did not fit is not recorded. So
            // what comes between two blocks is looked for at every end of a slice: the engine is asked once
            // more, and says that the budget is used up.
            let asked = self.semantics().interrupts_before_slice_ends();
            // A recorded fetch window comes after all that the slice counts.
            if slice.left == 0 && !asked && !self.engine.expects_fetch() {
                return done(self, slice.stop);
            }
        }
    }
}
