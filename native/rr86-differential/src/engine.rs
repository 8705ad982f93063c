//! The translator as a subject: cases run at CPL 3 in a small 64-bit address space whose exception
//! handlers are a HLT each, as in [`crate::kvm`]. The handler that halts tells the vector, and the frame on
//! its stack tells what the exception delivered.
//!
//! System structures live in the upper half of the linear address space, because a stray access to
//! the lower half must find it as empty as it is natively.

use rr86_core::cpu::cpuid::CpuidTable;
use rr86_core::cpu::state::{sreg, CpuState, Segment, TableRegister, XsaveArea};
use rr86_core::runtime::agent::Agent;
use rr86_core::runtime::bus::Bus;
use rr86_core::runtime::dispatch::{RunEnd, Span};
use rr86_core::runtime::engine::Engine;
use rr86_core::runtime::host::HostError;
use rr86_core::runtime::observers::Observed;
use rr86_core::runtime::stops::StopCause;
use rr86_core::runtime::translator::BlockLimits;
use rr86_core::translate::lower::emitter::Hooks;
use rr86_core::translate::shortcuts::Shortcuts;

use crate::case::{
    layout, outcome_of_exception, Case, Fault, Outcome, Subject, SubjectError, FLAG_MASK,
    FXSAVE_USED,
};

const MEMORY: u64 = 0x40000;
/// Linear address of physical 0.
const HIGH: u64 = 0xffff_8000_0000_0000;
// Physical addresses of the system structures, a page each.
const PML4: u64 = 0x1000;
const PDPT_LOW: u64 = 0x2000;
const PD_LOW: u64 = 0x3000;
const PT_CODE: u64 = 0x4000;
const PT_ARENA: u64 = 0x5000;
const PDPT_HIGH: u64 = 0x6000;
const PD_HIGH: u64 = 0x7000;
const PT_HIGH: u64 = 0x8000;
const GDT: u64 = 0x9000;
const IDT: u64 = 0xa000;
const TSS: u64 = 0xb000;
const STUBS: u64 = 0xc000;
/// End of the CPL-0 stack.
const STACK_END: u64 = 0xe000;
const CODE_AT: u64 = 0x10000;
const ARENA_AT: u64 = 0x20000;
const STUB_SIZE: u64 = 16;

// Page-table bits; A and D are set so that the walker never writes to the tables.
const PRESENT: u64 = 0x61;
const WRITE: u64 = 2;
const USER: u64 = 4;
const NO_EXECUTE: u64 = 1 << 63;

/// Instructions after which a case counts as hung. Iterations of string instructions count as well.
const MOST_INSTRUCTIONS: u64 = 20_000_000;

/// No devices and no interrupts.
pub struct NoBus;

impl Bus for NoBus {
    fn io_read(&mut self, _: usize, _: u16, _: usize, _: u64) -> u32 {
        u32::MAX
    }
    fn io_write(&mut self, _: usize, _: u16, _: usize, _: u32, _: u64) {}
    fn mmio_read(&mut self, _: usize, _: u64, _: usize, _: u64) -> u64 {
        u64::MAX
    }
    fn mmio_write(&mut self, _: usize, _: u64, _: usize, _: u64, _: u64) {}
    fn apic_msr_read(&mut self, _: usize, _: u32, _: u64) -> Option<u64> {
        None
    }
    fn apic_msr_write(&mut self, _: usize, _: u32, _: u64, _: u64) -> Option<()> {
        None
    }
    fn cr8(&self, _: usize) -> u8 {
        0
    }
    fn set_cr8(&mut self, _: usize, _: u8) {}
    fn pending_interrupt(&self, _: usize) -> bool {
        false
    }
    fn acknowledge_interrupt(&mut self, _: usize) -> Option<u8> {
        None
    }
    fn has_signals(&self) -> bool {
        false
    }
}

/// How the translator is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Most instructions in a block.
    pub block_length: usize,
    /// The code region is writable by user code.
    pub writable_code: bool,
    /// Instructions of one stretch of running, to the instruction; 0 runs without interruption.
    pub stretch: u64,
    pub shortcuts: Shortcuts,
    /// Lines that are written are marked.
    pub tracking: bool,
    /// A debugger stops the run behind every store into the arena and the code region.
    pub watched: bool,
    /// Samples that make a block hot; `None` for as many as usual.
    pub hot: Option<u8>,
    /// What FXSAVE is taken to store as MXCSR_MASK: what processors of another maker do. `None` for the host's own.
    pub mxcsr_mask: Option<u32>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            block_length: 64,
            writable_code: false,
            stretch: 0,
            shortcuts: Shortcuts::default(),
            tracking: false,
            watched: false,
            hot: None,
            mxcsr_mask: None,
        }
    }
}

/// A machine with one vCPU that runs cases.
pub struct Translated {
    engine: Box<Engine>,
    start: CpuState,
    /// Where the last case has left code: address and length.
    dirty: (u64, usize),
    writable_code: bool,
    stretch: u64,
}

impl Translated {
    /// Builds the machine.
    pub fn new(setup: Setup) -> Result<Self, SubjectError> {
        let limits = BlockLimits {
            protocol: rr86_core::runtime::protocol::PRECISE,
            instructions: setup.block_length,
            capacity: 4096,
        };
        let mut engine = Engine::new(MEMORY, 1, CpuidTable::new([]), Box::new(NoBus), limits)
            .map_err(|error| SubjectError::Other(error.to_string()))?;
        engine.set_shortcuts(setup.shortcuts);
        engine.set_tracking(setup.tracking);
        if let Some(mask) = setup.mxcsr_mask {
            let refused = |error: HostError| SubjectError::Other(error.to_string());
            engine.pretend_mxcsr_mask(mask).map_err(refused)?;
        }
        if let Some(samples) = setup.hot {
            engine.set_hot(samples);
        }
        let mut machine = Self {
            engine,
            start: start_state(),
            dirty: (CODE_AT, 0),
            writable_code: setup.writable_code,
            stretch: setup.stretch,
        };
        machine.build(setup.writable_code);
        if setup.watched {
            let watches = vec![
                (ARENA_AT, layout::ARENA_SIZE as u64),
                (CODE_AT, layout::CODE_SIZE as u64),
            ];
            machine
                .engine
                .set_stops(Hooks::default(), watches, &[], None);
        }
        Ok(machine)
    }

    /// The engine itself, for its counters.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The marks of the lines of the arena and of the code region, by page; they are gone then.
    pub fn take_lines(&mut self) -> Vec<u64> {
        let ram = &mut self.engine.memory.ram;
        let region = |start: u64, size: usize| {
            (0..size / layout::PAGE).map(move |page| start + (page * layout::PAGE) as u64)
        };
        region(ARENA_AT, layout::ARENA_SIZE)
            .chain(region(CODE_AT, layout::CODE_SIZE))
            .map(|at| ram.page_index(at).map_or(0, |page| ram.take_lines(page)))
            .collect()
    }

    /// What the translator has told of blocks and pages since this was asked last or a case was run whole.
    pub fn take_observed(&mut self) -> Vec<(u64, Observed)> {
        self.engine.observers.take_events().collect()
    }

    /// Digest of all of RAM.
    pub fn ram_digest(&mut self) -> u64 {
        self.engine.ram_digest()
    }

    fn write(&mut self, address: u64, data: &[u8]) {
        self.engine
            .write_physical(Agent::Device, address, data, None);
    }

    fn put(&mut self, address: u64, value: u64) {
        self.write(address, &value.to_le_bytes());
    }

    fn word(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.engine.memory.ram.read(address, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn build(&mut self, writable_code: bool) {
        use layout::*;
        let table = PRESENT | WRITE | USER;
        self.put(PML4, PDPT_LOW | table);
        self.put(PML4 + 256 * 8, PDPT_HIGH | table);
        self.put(PDPT_LOW, PD_LOW | table);
        self.put(PD_LOW + (CODE >> 21) * 8, PT_CODE | table);
        self.put(PD_LOW + (ARENA >> 21) * 8, PT_ARENA | table);
        self.put(PDPT_HIGH, PD_HIGH | table);
        self.put(PD_HIGH, PT_HIGH | table);
        let write = if writable_code { WRITE } else { 0 };
        for page in 0..(CODE_SIZE / PAGE) as u64 {
            let physical = CODE_AT + page * PAGE as u64;
            self.put(PT_CODE + page * 8, physical | PRESENT | USER | write);
        }
        for page in (0..ARENA_SIZE / PAGE).filter(|&page| mapped(page)) {
            let write = if page == READ_ONLY_PAGE { 0 } else { WRITE };
            let physical = ARENA_AT + (page * PAGE) as u64;
            self.put(
                PT_ARENA + page as u64 * 8,
                physical | PRESENT | USER | write | NO_EXECUTE,
            );
        }
        for page in 0..16 {
            self.put(PT_HIGH + page * 8, (page * 0x1000) | PRESENT | WRITE);
        }
        // GDT: null, -, code 0, data 0, data 3, code 3 (0x2b), TSS (0x30).
        let entries = [
            0,
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
        ];
        for (index, entry) in entries.into_iter().enumerate() {
            self.put(GDT + index as u64 * 8, entry);
        }
        for vector in 0..32 {
            let handler = HIGH + STUBS + vector * STUB_SIZE;
            // Interrupt gates; #BP and #OF may be raised by user code.
            let dpl = if matches!(vector, 3 | 4) { 3 } else { 0 };
            let low = handler & 0xffff
                | 0x10 << 16
                | (0x8e | dpl << 5) << 40
                | (handler >> 16 & 0xffff) << 48;
            self.put(IDT + vector * 16, low);
            self.put(IDT + vector * 16 + 8, handler >> 32);
        }
        // RSP0 of the TSS.
        self.put(TSS + 4, HIGH + STACK_END);
        // No bitmap of ports, so that user code has none.
        self.write(TSS + 0x66, &[0xff, 0xff]);
        self.write(STUBS, &[0xf4; 32 * STUB_SIZE as usize]);
        self.write(CODE_AT, &[0xf4; CODE_SIZE]);
    }

    /// Runs until a handler halts.
    fn until_halt(&mut self) -> Result<(), SubjectError> {
        let mut left = MOST_INSTRUCTIONS;
        loop {
            let (budget, exact) = match self.stretch {
                0 => (left, false),
                some => (some, true),
            };
            let before = self.engine.icount();
            if self.step(budget, exact)? {
                return Ok(());
            }
            let done = self.engine.icount() - before;
            left = left.saturating_sub(done.max(1));
            if left == 0 {
                return Err(SubjectError::TimedOut);
            }
        }
    }

    /// Runs so many instructions of a case that has been prepared, to the instruction or to the last block that
    /// fits. True when a handler has halted.
    ///
    /// # Errors
    /// When the run ends in a way that a case cannot end.
    pub fn step(&mut self, budget: u64, exact: bool) -> Result<bool, SubjectError> {
        let span = Span {
            budget,
            exact,
            beyond: 0,
            fitting: !exact,
            start: self.engine.icount(),
        };
        match self.engine.run(0, span).1 {
            RunEnd::Halt => Ok(true),
            RunEnd::HostFault => {
                let fault = self.engine.host_fault();
                let text = fault.map(ToString::to_string).unwrap_or_default();
                Err(SubjectError::Other(text))
            }
            RunEnd::Budget | RunEnd::Pause | RunEnd::Stopped(StopCause::Watch { .. }) => Ok(false),
            other => Err(SubjectError::Other(format!("the run ended with {other:?}"))),
        }
    }
}

/// The registers of user code under Linux, but for what a case sets.
fn start_state() -> CpuState {
    let mut cpu = CpuState::reset(0);
    let data = Segment {
        base: 0,
        limit: u32::MAX,
        selector: 0x23,
        attr: 0xc0f3,
    };
    cpu.seg = [data; 6];
    cpu.seg[sreg::CS] = Segment {
        selector: 0x2b,
        attr: 0xa0fb,
        ..data
    };
    cpu.tr = Segment {
        base: HIGH + TSS,
        limit: 0x67,
        selector: 0x30,
        attr: 0x8b,
    };
    let table = |address: u64, limit: u16| TableRegister {
        base: HIGH + address,
        limit,
        ..TableRegister::default()
    };
    cpu.gdtr = table(GDT, 6 * 8 - 1);
    cpu.idtr = table(IDT, 32 * 16 - 1);
    // PE, MP, ET, NE, WP, AM, PG; PAE, OSFXSR, OSXMMEXCPT; SCE, LME, LMA, NXE.
    cpu.cr0 = 0x8005_0033;
    cpu.cr3 = PML4;
    cpu.cr4 = 0x620;
    cpu.efer = 0xd01;
    cpu.cpl = 3;
    cpu
}

impl Translated {
    /// Puts a case into memory and its entry state into the vCPU.
    ///
    /// # Errors
    /// When the case does not fit.
    pub fn prepare(&mut self, case: &Case) -> Result<(), SubjectError> {
        let offset = case.code_address.wrapping_sub(layout::CODE);
        if offset > layout::CODE_SIZE as u64
            || offset as usize + case.code.len() >= layout::CODE_SIZE
            || case.arena.len() != layout::ARENA_SIZE
        {
            return Err(SubjectError::Malformed(
                "code or arena outside of its region",
            ));
        }
        let (start, len) = self.dirty;
        self.write(start, &vec![0xf4; len]);
        let start = CODE_AT + offset;
        self.write(start, &case.code);
        self.dirty = if self.writable_code {
            (CODE_AT, layout::CODE_SIZE)
        } else {
            (start, case.code.len())
        };
        self.write(ARENA_AT, &case.arena);

        let mut cpu = self.start.clone();
        cpu.gpr = case.entry.gpr;
        cpu.rip = case.code_address;
        cpu.rflags = case.entry.rflags & FLAG_MASK | 0x202;
        cpu.seg[sreg::FS].base = case.entry.fs_base;
        cpu.seg[sreg::GS].base = case.entry.gs_base;
        cpu.fpu = XsaveArea::default();
        cpu.fpu.0[..FXSAVE_USED].copy_from_slice(&case.entry.fxsave[..FXSAVE_USED]);
        *self.engine.cpu_mut(0) = cpu;
        Ok(())
    }

    /// What has come of a case when a handler has halted.
    ///
    /// # Errors
    /// When it was not a handler of this machine.
    pub fn outcome(&self, case: &Case) -> Result<Outcome, SubjectError> {
        // The stub's HLT has retired, so rip is one further.
        let cpu = self.engine.cpu(0);
        let vector = cpu.rip.wrapping_sub(HIGH + STUBS) / STUB_SIZE;
        let top = cpu.gpr[4].wrapping_sub(HIGH);
        if vector >= 32 || !(STACK_END - 0x100..STACK_END).contains(&top) {
            return Err(SubjectError::Other(
                "the guest halted outside of a handler".into(),
            ));
        }
        let with_code = matches!(vector, 8 | 10..=14 | 17);
        let frame = top + if with_code { 8 } else { 0 };
        let fault = Fault {
            vector: vector as u8,
            error_code: if with_code { self.word(top) } else { 0 },
            cr2: cpu.cr2,
        };
        let mut gpr = cpu.gpr;
        gpr[4] = self.word(frame + 24);
        let (rip, rflags) = (self.word(frame), self.word(frame + 16));
        let mut fxsave = [0; 512];
        fxsave.copy_from_slice(&cpu.fpu.0[..512]);
        let mut arena = vec![0; layout::ARENA_SIZE];
        self.engine.memory.ram.read(ARENA_AT, &mut arena);
        Ok(outcome_of_exception(
            case, gpr, rip, rflags, fxsave, arena, fault,
        ))
    }
}

impl Subject for Translated {
    fn run(&mut self, case: &Case) -> Result<Outcome, SubjectError> {
        self.prepare(case)?;
        let result = self.until_halt();
        self.engine.observers.forget_events();
        result?;
        self.outcome(case)
    }
}
