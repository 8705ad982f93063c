//! A machine in one of the modes of the sweep: the first MiB is a playground of plain memory, identity-mapped, and what
//! exceptions need lies above it.

use rr86_core::cpu::cpuid::{CpuidRow, CpuidTable};
use rr86_core::cpu::state::{sreg, CpuState, Segment, TableRegister};
use rr86_core::runtime::agent::Agent;
use rr86_core::runtime::dispatch::{RunEnd, Span};
use rr86_core::runtime::engine::Engine;
use rr86_core::runtime::translator::BlockLimits;

use super::Mode;
use crate::engine::NoBus;

const MEMORY: u64 = 4 << 20;
/// Where the encoding stands, and where most registers point to.
const CODE: u64 = 0x8000;
const DATA: u64 = 0x2400;
const STACK: u64 = 0x6000;
const SYSTEM: u64 = 0x20_0000;
const PML4: u64 = SYSTEM;
const PDPT: u64 = SYSTEM + 0x1000;
const PD: u64 = SYSTEM + 0x2000;
const GDT: u64 = SYSTEM + 0x3000;
const IDT: u64 = SYSTEM + 0x4000;
const TSS: u64 = SYSTEM + 0x5000;
/// The handlers. In real mode they have to be within reach of 16-bit addresses.
const STUBS: u64 = SYSTEM + 0x6000;
const REAL_STUBS: u64 = 0xf000;
const REAL_IDT: u64 = 0xe000;
/// Top of the ring-0 stack that exceptions of ring 3 are delivered on.
const STACK_END: u64 = SYSTEM + 0x8000;
const STUB_SIZE: u64 = 16;
/// Instructions after which a run is over; jumps may lead anywhere.
const MOST_INSTRUCTIONS: u64 = 24;

/// What came of an encoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An exception, of the encoding itself (`here`) or of what it led to.
    Fault { vector: u8, here: bool },
    /// HLT behind it was reached.
    Ended,
    /// Something else ran.
    RanOn,
    /// A triple fault.
    Shutdown,
    /// A signal on the host.
    HostFault(String),
}

/// The features of the model `westmere` in `rr86/cpu/model.py`.
pub fn westmere() -> CpuidTable {
    let rows = [
        (0, None, [0x16, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        (1, None, [0x206c2, 0x10800, 0x87b8_2203, 0x078b_fbfd]),
        (7, Some(0), [2, 0x0010_2283, 4, 0x2400_0000]),
        (0xd, Some(0), [3, 0x240, 0x240, 0]),
        (0xd, Some(1), [1, 0, 0, 0]),
        (0x8000_0000, None, [0x8000_0008, 0, 0, 0]),
        (0x8000_0001, None, [0, 0, 1, 0x2c10_0800]),
    ];
    CpuidTable::new(rows.map(|(leaf, subleaf, [eax, ebx, ecx, edx])| CpuidRow {
        leaf,
        subleaf,
        eax,
        ebx,
        ecx,
        edx,
    }))
}

/// A machine that tries encodings in one mode.
pub struct Machine {
    engine: Box<Engine>,
    mode: Mode,
    start: CpuState,
}

impl Machine {
    pub fn new(mode: Mode) -> Self {
        let limits = BlockLimits {
            protocol: rr86_core::runtime::protocol::PRECISE,
            instructions: 64,
            capacity: 4096,
        };
        let engine = Engine::new(MEMORY, 1, westmere(), Box::new(NoBus), limits)
            .expect("a host that rr86 runs on");
        let mut machine = Self {
            engine,
            mode,
            start: start_state(mode),
        };
        machine.engine.set_tracking(false);
        machine.build();
        machine
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.engine.write_physical(Agent::Device, at, bytes, None);
    }

    fn put(&mut self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    fn build(&mut self) {
        // Accessed and dirty already, user, writable; two pages of 2 MiB.
        self.put(PML4, PDPT | 0x67);
        self.put(PDPT, PD | 0x67);
        self.put(PD, 0xe7);
        self.put(PD + 8, 0x20_0000 | 0xe7);
        let descriptors = [
            0,
            0x00cf_9b00_0000_ffff, // 08: code, ring 0
            0x00af_9b00_0000_ffff, // 10: 64-bit code, ring 0
            0x00cf_9300_0000_ffff, // 18: data, ring 0
            0x00cf_f300_0000_ffff, // 20: data, ring 3
            0x00af_fb00_0000_ffff, // 28: 64-bit code, ring 3
            0x0020_8b00_0000_0067 | (TSS & 0xffff) << 16 | (TSS >> 16 & 0xff) << 32, // 30: TSS
            0,
            0x00cf_fb00_0000_ffff, // 40: 32-bit code, ring 3
            0x008f_fb00_0000_ffff, // 48: 16-bit code, ring 3
            0x008f_9b00_0000_ffff, // 50: 16-bit code, ring 0
        ];
        for (n, descriptor) in descriptors.into_iter().enumerate() {
            self.put(GDT + 8 * n as u64, descriptor);
        }
        let long = self.start.efer & 0x400 != 0;
        for vector in 0..32 {
            let at = self.stubs() + vector * STUB_SIZE;
            let selector = if long { 0x10 } else { 0x08 };
            let gate = at & 0xffff | selector << 16 | 0xee00 << 32 | (at >> 16 & 0xffff) << 48;
            if self.mode == Mode::Real {
                self.write(REAL_IDT + 4 * vector, &(at as u32).to_le_bytes());
            } else if long {
                self.put(IDT + 16 * vector, gate);
                self.put(IDT + 16 * vector + 8, 0);
            } else {
                self.put(IDT + 8 * vector, gate);
            }
        }
        // RSP0, or ESP0 and SS0.
        let stack = if long {
            STACK_END
        } else {
            STACK_END | 0x18 << 32
        };
        self.put(TSS + 4, stack);
        // No bitmap of ports.
        self.write(TSS + 0x66, &[0xff, 0xff]);
        let stubs = self.stubs();
        self.write(stubs, &[0xf4; 32 * STUB_SIZE as usize]);
    }

    fn stubs(&self) -> u64 {
        if self.mode == Mode::Real {
            REAL_STUBS
        } else {
            STUBS
        }
    }

    /// Runs an encoding of this length, with HLT behind it.
    pub fn run(&mut self, bytes: &[u8; 15], length: usize) -> Outcome {
        let mut code = [0xf4; 32];
        code[..length].copy_from_slice(&bytes[..length]);
        self.write(CODE, &code);
        // What the last one left in memory does not show in the next.
        self.write(DATA - 0x100, &[0; 0x400]);
        self.write(0, &[0; 0x40]);
        self.engine.init_vcpu(0);
        *self.engine.cpu_mut(0) = self.start.clone();
        let span = Span {
            budget: MOST_INSTRUCTIONS,
            exact: true,
            beyond: 0,
            fitting: false,
            start: self.engine.icount(),
        };
        let end = self.engine.run(0, span).1;
        self.engine.observers.forget_events();
        match end {
            RunEnd::HostFault => {
                let text = self.engine.host_fault().map(ToString::to_string);
                Outcome::HostFault(text.unwrap_or_default())
            }
            RunEnd::TripleFault => Outcome::Shutdown,
            RunEnd::Halt => self.halted(length),
            _ => Outcome::RanOn,
        }
    }

    /// What a HLT means.
    fn halted(&self, length: usize) -> Outcome {
        let cpu = self.engine.cpu(0);
        let linear = cpu.rip.wrapping_add(if cpu.code64() {
            0
        } else {
            cpu.seg[sreg::CS].base
        });
        if linear == CODE + length as u64 + 1 {
            return Outcome::Ended;
        }
        let vector = linear.wrapping_sub(1).wrapping_sub(self.stubs()) / STUB_SIZE;
        if vector >= 32 || cpu.cpl != 0 {
            return Outcome::RanOn;
        }
        let code = matches!(vector, 8 | 10..=14 | 17) && self.mode != Mode::Real;
        let word = match self.mode {
            Mode::Real => 2,
            _ if cpu.code64() => 8,
            _ => 4,
        };
        let sp = match self.mode {
            Mode::Real => cpu.seg[sreg::SS].base + (cpu.gpr[4] & 0xffff),
            _ => cpu.gpr[4],
        };
        let mut frame = [0; 8];
        let at = sp + if code { word } else { 0 };
        self.engine.memory.ram.read(at, &mut frame[..word as usize]);
        let rip = u64::from_le_bytes(frame);
        let expected = self.start.rip;
        if self.mode.user() && vector == 13 && rip == expected + length as u64 {
            // HLT in ring 3.
            return Outcome::Ended;
        }
        Outcome::Fault {
            vector: vector as u8,
            here: rip == expected,
        }
    }
}

/// The state in which an encoding is tried: everything is switched on that an operating system switches on.
fn start_state(mode: Mode) -> CpuState {
    let mut cpu = CpuState::reset(0);
    let ring: u16 = if mode.user() { 3 } else { 0 };
    let dpl = ring << 5;
    let segment = |selector: u16, attr: u16| Segment {
        base: 0,
        limit: u32::MAX,
        selector: selector | ring,
        attr: attr | dpl,
    };
    let data = segment(if ring == 3 { 0x20 } else { 0x18 }, 0xc093);
    let (selector, attr) = match mode {
        Mode::Long3 => (0x28, 0xa09b),
        Mode::Long0 => (0x10, 0xa09b),
        Mode::Compatible3 | Mode::Protected3 => (0x40, 0xc09b),
        Mode::Protected0 => (0x08, 0xc09b),
        Mode::Small3 => (0x48, 0x809b),
        Mode::Small0 => (0x50, 0x809b),
        Mode::Real | Mode::Virtual8086 => (0, 0),
    };
    let table = |base: u64, limit: u16| TableRegister {
        base,
        limit,
        ..TableRegister::default()
    };
    // MP, ET, NE, WP; OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE, PAE.
    cpu.cr0 = 0x1_0032;
    cpu.cr4 = 0x5_0620;
    cpu.xcr0 = 3;
    cpu.rflags = 2;
    cpu.rip = CODE;
    cpu.gpr = [DATA; 16];
    // REP has little to do.
    cpu.gpr[1] = 2;
    cpu.gpr[4] = STACK;
    cpu.gpr[5] = STACK;
    cpu.fpu.0[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    cpu.fpu.0[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    if mode == Mode::Real {
        let real = Segment {
            base: 0,
            limit: 0xffff,
            selector: 0,
            attr: 0x93,
        };
        cpu.seg = [real; 6];
        cpu.idtr = table(REAL_IDT, 0x3ff);
        return cpu;
    }
    cpu.cr0 |= 1;
    cpu.cpl = ring as u8;
    if mode == Mode::Virtual8086 {
        // VM, and IOPL 3, so that little is asked of a monitor.
        cpu.rflags |= 1 << 17 | 3 << 12;
        cpu.seg = [Segment {
            limit: 0xffff,
            attr: 0xf3,
            selector: 0,
            base: 0,
        }; 6];
    } else {
        cpu.seg = [data; 6];
        cpu.seg[sreg::CS] = segment(selector, attr);
    }
    cpu.tr = Segment {
        base: TSS,
        limit: 0x67,
        selector: 0x30,
        attr: 0x8b,
    };
    cpu.gdtr = table(GDT, 0x57);
    cpu.idtr = table(IDT, 0x1ff);
    if matches!(mode, Mode::Long3 | Mode::Long0 | Mode::Compatible3) {
        cpu.cr0 |= 1 << 31;
        cpu.cr3 = PML4;
        cpu.efer = 0xd01;
    }
    cpu
}
