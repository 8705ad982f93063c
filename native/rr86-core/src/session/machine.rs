//! A machine that executes decisions: engine, board, virtual time.
//!
//! Between slices, timers that are due fire, signals of the board are served, and halted vCPUs with
//! something to do wake up. When no vCPU can run, virtual time jumps to the next timer. All of this is a
//! function of the machine's state, so only the slices themselves are decisions.

use std::any::Any;

use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use super::slice::{Ending, Slice, Slices, Wait};
use crate::contents::Contents;
use crate::cpu::cpuid::{CpuidRow, CpuidTable};
use crate::cpu::paging;
use crate::cpu::registers::{self, RegisterError};
use crate::cpu::save;
use crate::cpu::semantics::Semantics;
use crate::cpu::state::{Activity, CpuState, RFlags};
use crate::host_time::{Phase, Stopwatch};
use crate::machine::dma::DmaAccess;
use crate::machine::{Board, BoardConfig, Signal};
use crate::memory::{PAGE_MASK, PAGE_SIZE};
use crate::runtime::agent::Agent;
use crate::runtime::dispatch::RunEnd;
use crate::runtime::engine::Engine;
use crate::runtime::host::HostError;
use crate::runtime::translator::BlockLimits;
use crate::runtime::windows::WindowPolicy;

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

/// A machine, between two slices or inside one.
pub struct Machine {
    pub engine: Box<Engine>,
    pub(super) slice: Option<Slice>,
    /// How the engine ended at a stop by instruction count, still to be acted upon.
    pub(super) after_stop: Option<RunEnd>,
    pub(super) ending: Option<Ending>,
    /// Whether the slices that it is given are new or recorded.
    pub slices: Slices,
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
            slices: Slices::New,
            stop_at: None,
        })
    }

    /// Which version of the machine's semantics it follows.
    pub fn semantics(&self) -> Semantics {
        self.engine.cpu(0).semantics
    }

    pub fn board(&mut self) -> &mut Board {
        let bus: &mut dyn Any = self.engine.bus();
        bus.downcast_mut().expect("a machine's bus is its board")
    }

    /// Switches vCPUs in the windows of the block protocol, with a probability of `bias` in 65,536 each.
    pub fn draw_windows(&mut self, seed: u64, bias: u32) {
        let state = seed ^ 0xa5a5_5a5a_1234_5678;
        self.engine.set_windows(WindowPolicy::Draw { state, bias });
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
            pages.clone().count() <= self.engine.memory.ram.pages()
                && pages
                    .into_iter()
                    .all(|p| self.engine.memory.ram.page_index(p << 12).is_some())
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

    /// Where a linear address lies as a vCPU maps it, without setting accessed bits; `None` where it is not mapped.
    pub fn peek(&self, vcpu: usize, address: u64) -> Option<u64> {
        let ram = &self.engine.memory.ram;
        let mut read = |paddr: u64, size: usize| {
            let mut bytes = [0; 8];
            ram.read(paddr, &mut bytes[..size]);
            u64::from_le_bytes(bytes)
        };
        let cpu = self.engine.cpu(vcpu);
        if !cpu.paging() {
            return Some(address);
        }
        paging::peek(cpu, &mut read, address)
    }

    /// Reads linear memory as a vCPU maps it. Returns how many bytes it could read, up to the first page that is not
    /// mapped.
    pub fn read_virtual(&self, vcpu: usize, address: u64, out: &mut [u8]) -> usize {
        let mut done = 0;
        while done < out.len() {
            let at = address.wrapping_add(done as u64);
            let Some(paddr) = self.peek(vcpu, at) else {
                break;
            };
            let room = (PAGE_SIZE - (at & PAGE_MASK)) as usize;
            let n = room.min(out.len() - done);
            self.engine.memory.ram.read(paddr, &mut out[done..done + n]);
            done += n;
        }
        done
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
        all.push(("blocks".to_string(), self.engine.blocks().digest()));
        all.push(("windows".to_string(), self.engine.windows_digest()));
        all.push(("time".to_string(), self.engine.now()));
        self.engine.observers.spend(Phase::Digests, watch.read());
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
        self.engine.jump_to(at);
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

    pub(super) fn others_can_run(&self, vcpu: usize) -> bool {
        (0..self.engine.vcpu_count())
            .any(|v| v != vcpu && self.engine.cpu(v).activity == Activity::Active)
    }

    /// Makes the accesses to memory that devices ask for. `hurried`: false is returned if the time is up before
    /// all are made.
    fn serve_dma(&mut self, hurried: bool) -> bool {
        while let Some(access) = self.board().dma_access() {
            if hurried && self.engine.call_is_over() {
                return false;
            }
            self.engine.count_step();
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
        let ram = &self.engine.memory.ram;
        last.is_some_and(|last| [paddr, last].iter().all(|&at| ram.page_index(at).is_some()))
    }

    /// Serves the board's signals and DMA. `hurried`: false is returned if the time is up before all is done.
    pub(super) fn serve(&mut self, hurried: bool) -> bool {
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
    pub(super) fn wake(&mut self, v: usize) -> bool {
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
}
