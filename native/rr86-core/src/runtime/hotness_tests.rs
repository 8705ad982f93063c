//! Superblocks come and go with the blocks that they are made of, and a guest that has them is where one
//! without is, whatever happens to them.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;

use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};

use super::*;
use crate::cpu::cpuid::CpuidTable;
use crate::cpu::state::{gpr, sreg, CpuState, Segment, TableRegister};
use crate::runtime::agent::Agent;
use crate::runtime::bus::Bus;
use crate::runtime::codebuf::CodeBuffer;
use crate::runtime::dispatch::{RunEnd, Span};
use crate::runtime::entry::place_stubs;
use crate::runtime::protocol::Protocol;
use crate::runtime::stops::StopCause;
use crate::runtime::translator::BlockLimits;
use crate::translate::lower::emitter::Hooks;

const MEMORY: u64 = 0x40000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const HANDLER: u64 = 0x8000;
const STACKS: u64 = 0xa000;
/// The loop, the other vCPU's program, and a second page with the loop.
const CODE: u64 = 0x10000;
const OTHER: u64 = 0x11000;
const TWIN: u64 = 0x12000;
/// What the loop reads and writes, and another page to read.
const SOURCE: u64 = 0x20000;
const SINK: u64 = 0x21000;
const SECOND_SOURCE: u64 = 0x22000;
/// Linear address of a page of a device.
const DEVICE: u64 = 0x10_0000;
/// Present, writable, accessed, dirty.
const LEAF: u64 = 0x63;
const VECTOR: u8 = 0x40;

#[derive(Default)]
struct Wires {
    writes: AtomicU32,
    reads: AtomicU32,
    interrupt: AtomicBool,
    signal: AtomicBool,
}

/// Every fifth write asks for an interrupt, every seventh read signals the machine.
struct Device(Arc<Wires>);

impl Bus for Device {
    fn io_read(&mut self, _: usize, _: u16, _: usize, _: u64) -> u32 {
        u32::MAX
    }
    fn io_write(&mut self, _: usize, _: u16, _: usize, _: u32, _: u64) {}
    fn mmio_read(&mut self, _: usize, _: u64, _: usize, now: u64) -> u64 {
        let reads = self.0.reads.fetch_add(1, Ordering::Relaxed);
        if reads % 7 == 6 {
            self.0.signal.store(true, Ordering::Relaxed);
        }
        now
    }
    fn mmio_write(&mut self, _: usize, _: u64, _: usize, _: u64, _: u64) {
        let writes = self.0.writes.fetch_add(1, Ordering::Relaxed);
        if writes % 5 == 4 {
            self.0.interrupt.store(true, Ordering::Relaxed);
        }
    }
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
        self.0.interrupt.load(Ordering::Relaxed)
    }
    fn acknowledge_interrupt(&mut self, _: usize) -> Option<u8> {
        self.0
            .interrupt
            .swap(false, Ordering::Relaxed)
            .then_some(VECTOR)
    }
    fn has_signals(&self) -> bool {
        self.0.signal.load(Ordering::Relaxed)
    }
}

/// Where the parts of the loop are: its first block, and the immediates of the MOVs in all three.
#[derive(Clone, Copy)]
struct Places {
    head: u64,
    immediates: [u64; 3],
}

type Side = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Three blocks that follow one another for ever, and a fourth that does its part once in 64 turns.
fn write_loop(at: u64, side: Side, indirect: bool) -> (Vec<u8>, Places) {
    let mut a = CodeAssembler::new(64).unwrap();
    let mut labels: Vec<CodeLabel> = (0..4).map(|_| a.create_label()).collect();
    let mut movs: Vec<CodeLabel> = (0..3).map(|_| a.create_label()).collect();
    let mut write = || -> Result<(), IcedError> {
        let [head, second, third, aside] = &mut labels[..] else {
            unreachable!()
        };
        a.set_label(head)?;
        a.add(rax, 1)?;
        a.set_label(&mut movs[0])?;
        a.mov(ecx, 0x0101)?;
        a.test(al, 0x3f)?;
        a.je(*aside)?;
        a.set_label(second)?;
        a.adc(rdx, rcx)?;
        a.set_label(&mut movs[1])?;
        a.mov(ecx, 0x0202)?;
        a.add(edx, dword_ptr(rsi))?;
        a.jmp(*third)?;
        a.int3()?;
        a.set_label(third)?;
        a.adc(rbx, rcx)?;
        a.mov(dword_ptr(rdi), edx)?;
        a.set_label(&mut movs[2])?;
        a.mov(ecx, 0x0303)?;
        a.rol(rbx, 7)?;
        a.xor(rbx, rcx)?;
        if indirect {
            a.jmp(r8)?;
        } else {
            a.jmp(*head)?;
        }
        a.set_label(aside)?;
        side(&mut a)?;
        a.add(r9, 1)?;
        a.jmp(*second)
    };
    write().unwrap();
    let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let done = a.assemble_options(at, options).unwrap();
    let place = |label: &CodeLabel| done.label_ip(label).unwrap();
    let places = Places {
        head: place(&labels[0]),
        immediates: [0, 1, 2].map(|n| place(&movs[n]) + 1),
    };
    (done.inner.code_buffer, places)
}

fn registers(vcpu: u64, rip: u64) -> CpuState {
    let mut cpu = CpuState::reset(0);
    let data = Segment {
        base: 0,
        limit: u32::MAX,
        selector: 0x18,
        attr: 0xc093,
    };
    cpu.seg = [data; 6];
    cpu.seg[sreg::CS] = Segment {
        selector: 0x10,
        attr: 0xa09b,
        ..data
    };
    let table = |base: u64, limit: u16| TableRegister {
        base,
        limit,
        ..TableRegister::default()
    };
    cpu.gdtr = table(GDT, 4 * 8 - 1);
    cpu.idtr = table(IDT, 0x1000 - 1);
    (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer) = (0x8005_0033, PML4, 0x620, 0x500);
    cpu.rflags = 0x202;
    cpu.rip = rip;
    cpu.gpr = [0; 16];
    cpu.gpr[gpr::RSP] = STACKS + 0x1000 * (vcpu + 1);
    cpu.gpr[gpr::RSI] = SOURCE;
    cpu.gpr[gpr::RDI] = SINK;
    cpu.gpr[8] = CODE;
    cpu
}

fn put(engine: &mut Engine, at: u64, bytes: &[u8]) {
    engine.write_physical(Agent::Device, at, bytes, None);
}

fn build(engine: &mut Engine) {
    let word = |engine: &mut Engine, at: u64, value: u64| put(engine, at, &value.to_le_bytes());
    word(engine, PML4, PDPT | LEAF);
    word(engine, PDPT, PD | LEAF);
    word(engine, PD, PT | LEAF);
    for page in 0..MEMORY >> 12 {
        word(engine, PT + page * 8, page << 12 | LEAF);
    }
    word(engine, PT + (DEVICE >> 12) * 8, 0xfed0_0000 | LEAF);
    word(engine, GDT + 0x10, 0x00af_9b00_0000_ffff);
    word(engine, GDT + 0x18, 0x00cf_9300_0000_ffff);
    let gate = HANDLER & 0xffff | 0x10 << 16 | 0x8e << 40;
    word(engine, IDT + u64::from(VECTOR) * 16, gate);
    // inc r13; mov r12, rax; iretq
    put(
        engine,
        HANDLER,
        &[0x49, 0xff, 0xc5, 0x49, 0x89, 0xc4, 0x48, 0xcf],
    );
    for (at, value) in [(SOURCE, 0x1234_5678), (SECOND_SOURCE, 0x0bad_cafe)] {
        word(engine, at, value);
    }
}

/// The same machine with superblocks and without.
struct Twins {
    machines: [Box<Engine>; 2],
    wires: [Arc<Wires>; 2],
    places: Places,
    slices: u64,
}

impl Twins {
    fn new(side: Side, indirect: bool, capacity: usize) -> Self {
        let wires: [Arc<Wires>; 2] = Default::default();
        let (code, places) = write_loop(CODE, side, indirect);
        let machines = [Shortcuts::ALL, Shortcuts::without(["paths"]).unwrap()];
        let machines = std::array::from_fn(|number| {
            let limits = BlockLimits {
                protocol: Protocol::named("precise").unwrap(),
                instructions: 16,
                capacity,
            };
            let bus = Box::new(Device(wires[number].clone()));
            let mut engine = Engine::new(MEMORY, 2, CpuidTable::new([]), bus, limits).unwrap();
            engine.set_shortcuts(machines[number]);
            engine.set_hot(1);
            build(&mut engine);
            put(&mut engine, CODE, &code);
            *engine.cpu_mut(0) = registers(0, CODE);
            *engine.cpu_mut(1) = registers(1, OTHER);
            engine
        });
        Self {
            machines,
            wires,
            places,
            slices: 0,
        }
    }

    fn plain() -> Self {
        Self::new(|_| Ok(()), false, 4096)
    }

    fn each(&mut self, mut what: impl FnMut(&mut Engine)) {
        self.machines.iter_mut().for_each(|engine| what(engine));
    }

    fn slice(&mut self, vcpu: usize, budget: u64, exact: bool) -> RunEnd {
        let ends = self.machines.each_mut().map(|engine| {
            let span = Span {
                budget,
                exact,
                beyond: 0,
                fitting: !exact,
                start: engine.icount(),
            };
            engine.run(vcpu, span).1
        });
        assert_eq!(ends[0], ends[1]);
        let [with, without] = self.machines.each_ref().map(|engine| {
            let cpu = engine.cpu(vcpu);
            let now = (engine.icount(), cpu.rip, cpu.gpr, cpu.rflags);
            (
                now,
                engine.cache.blocks.digest(),
                engine.observers.events().len(),
            )
        });
        assert_eq!(with, without);
        ends[0]
    }

    /// Many slices of vCPU 0, of different lengths.
    fn run(&mut self, slices: u64) {
        for _ in 0..slices {
            self.slices += 1;
            let budget = 20 + self.slices * 29 % 83;
            let end = self.slice(0, budget, self.slices % 7 == 0);
            if end == RunEnd::Signals {
                for wires in &self.wires {
                    wires.signal.store(false, Ordering::Relaxed);
                }
            }
        }
        let [with, without] = self.machines.each_mut().map(|engine| {
            let lines: Vec<u64> = (0..engine.memory.ram.pages())
                .map(|page| engine.memory.ram.take_lines(page))
                .collect();
            (
                lines,
                engine.ram_digest(),
                engine.observers.take_events().collect::<Vec<_>>(),
            )
        });
        assert!(with == without, "memory or events");
    }

    fn block(&self, rip: u64) -> Option<&crate::runtime::cache::Block> {
        let live = self.machines[0].cache.blocks.iter_live();
        live.into_iter().find(|block| block.rip == rip)
    }

    fn has_path(&self) -> bool {
        let head = self.block(self.places.head);
        head.is_some_and(|block| block.hot.has_superblock)
    }

    /// Runs until the loop has a superblock.
    fn warm_up(&mut self) {
        self.run(600);
        assert!(self.has_path(), "{:?}", self.machines[0].observers.stats);
        assert_eq!(self.machines[1].observers.stats.superblocks, 0);
    }

    fn set(&mut self, vcpu: usize, register: usize, value: u64) {
        self.each(|engine| engine.cpu_mut(vcpu).gpr[register] = value);
    }
}

#[test]
fn a_loop_of_blocks_gets_a_superblock() {
    let mut twins = Twins::plain();
    twins.warm_up();
    twins.run(300);
}

#[test]
fn a_path_goes_with_each_of_its_blocks_whoever_writes() {
    let writers: [fn(&mut Twins, u64); 3] = [
        // DMA
        |twins, at| twins.each(|engine| put(engine, at, &[0x77])),
        // The loop itself, with what it writes in every turn.
        |twins, at| {
            twins.set(0, gpr::RDI, at);
            let removed = twins.machines[0].observers.stats.blocks_invalidated;
            while twins.machines[0].observers.stats.blocks_invalidated == removed {
                twins.slice(0, 1, true);
            }
            twins.set(0, gpr::RDI, SINK);
        },
        // The other vCPU: mov [rdi], eax; jmp $-2
        |twins, at| {
            twins.each(|engine| put(engine, OTHER, &[0x89, 0x07, 0xeb, 0xfc]));
            twins.set(1, gpr::RAX, 0x4321);
            twins.set(1, gpr::RDI, at);
            twins.slice(1, 4, false);
        },
    ];
    for (number, write) in writers.into_iter().enumerate() {
        for member in 0..3 {
            for indirect in [false, true] {
                let mut twins = Twins::new(|_| Ok(()), indirect, 4096);
                twins.warm_up();
                let made = twins.machines[0].observers.stats.superblocks;
                let at = twins.places.immediates[member];
                write(&mut twins, at);
                assert!(!twins.has_path(), "writer {number}, block {member}");
                twins.run(20);
                twins.warm_up();
                assert!(twins.machines[0].observers.stats.superblocks > made);
            }
        }
    }
}

#[test]
fn a_path_whose_blocks_change_again_and_again_is_given_up() {
    let mut twins = Twins::plain();
    let (head, at) = (twins.places.head, twins.places.immediates[1]);
    for turn in 0..2 * MOST {
        twins.run(600);
        let block = twins.block(head).unwrap();
        assert_eq!(block.hot.superblocks, MOST.min(turn + 1));
        assert_eq!(block.hot.has_superblock, turn < MOST);
        twins.each(|engine| put(engine, at, &[turn]));
        assert!(!twins.has_path());
        assert!(!twins.block(head).unwrap().hot.has_superblock);
    }
}

#[test]
fn stops_inside_of_a_path_are_exact_and_no_superblock_goes_over_them() {
    let mut twins = Twins::plain();
    twins.warm_up();
    let made = twins.machines[0].observers.stats.superblocks;
    for number in [1, 2] {
        let stop = twins.places.immediates[number] - 1;
        let hooks = Hooks {
            rips: vec![stop],
            int3: false,
        };
        twins.each(|engine| engine.set_stops(hooks.clone(), Vec::new(), &[], None));
        assert!(!twins.has_path());
        for _ in 0..100 {
            let end = twins.slice(0, 1000, true);
            assert_eq!(end, RunEnd::Stopped(StopCause::Hook));
            assert_eq!(twins.machines[0].cpu(0).rip, stop);
            // Ends between blocks, which are samples.
            for budget in 1..14 {
                twins.slice(0, budget, false);
            }
        }
        // The two blocks beside the stop may have one of their own each time.
        let new = twins.machines[0].observers.stats.superblocks - made;
        assert!(new <= number as u64, "{new}");
    }
    twins.each(|engine| engine.set_stops(Hooks::default(), Vec::new(), &[], None));
    twins.warm_up();
}

#[test]
fn a_watched_store_stops_inside_of_a_path() {
    let mut twins = Twins::plain();
    twins.warm_up();
    twins.each(|engine| engine.set_stops(Hooks::default(), vec![(SINK, 4)], &[], None));
    assert!(twins.has_path());
    for _ in 0..200 {
        let end = twins.slice(0, 1000, true);
        assert_eq!(end, RunEnd::Stopped(StopCause::Watch { paddr: SINK }));
        assert_eq!(twins.machines[0].cpu(0).rip, twins.places.immediates[2] - 1);
    }
    twins.each(|engine| engine.set_stops(Hooks::default(), Vec::new(), &[], None));
    twins.run(100);
}

#[test]
fn dropped_code_and_flushed_blocks_take_superblocks_with_them() {
    let mut twins = Twins::new(|_| Ok(()), false, 24);
    for _ in 0..MOST - 1 {
        twins.warm_up();
        twins.each(Engine::drop_code);
        assert!(!twins.has_path());
    }
    twins.warm_up();
    // A chain of jumps, each a block.
    twins.each(|engine| {
        put(engine, OTHER, &[0xeb, 0x00].repeat(40));
        put(engine, OTHER + 80, &[0xeb, 0xfe]);
    });
    twins.slice(1, 60, false);
    assert!(twins.machines[0].observers.stats.block_flushes > 0);
    assert!(!twins.has_path());
    twins.warm_up();
}

#[test]
fn a_page_that_is_mapped_elsewhere_is_read_there() {
    // The page table has the one page in R11, and R14 makes it the other.
    let sides: [Side; 2] = [
        |a| {
            a.xor(r11, r14)?;
            a.mov(qword_ptr(r15), r11)?;
            a.invlpg(byte_ptr(rsi))
        },
        |a| {
            a.xor(r11, r14)?;
            a.mov(qword_ptr(r15), r11)?;
            a.mov(rbp, cr3)?;
            a.mov(cr3, rbp)
        },
    ];
    for side in sides {
        let mut twins = Twins::new(side, false, 4096);
        twins.set(0, 11, SOURCE | LEAF);
        twins.set(0, 14, SOURCE ^ SECOND_SOURCE);
        twins.set(0, 15, PT + (SOURCE >> 12) * 8);
        twins.warm_up();
        twins.run(600);
        assert!(twins.machines[0].cpu(0).gpr[9] > 10);
    }
}

#[test]
fn code_that_is_mapped_elsewhere_is_another_path() {
    let side: Side = |a| {
        a.xor(r11, r14)?;
        a.mov(qword_ptr(r15), r11)?;
        a.invlpg(byte_ptr(r8))
    };
    let mut twins = Twins::new(side, false, 4096);
    let (code, places) = write_loop(CODE, side, false);
    twins.each(|engine| {
        put(engine, TWIN, &code);
        for immediate in places.immediates {
            put(engine, TWIN + (immediate - CODE), &[0x5a]);
        }
    });
    twins.set(0, 11, CODE | LEAF);
    twins.set(0, 14, CODE ^ TWIN);
    twins.set(0, 15, PT + (CODE >> 12) * 8);
    twins.run(2000);
    let with = twins.machines[0].cache.blocks.iter_live();
    let heads = with
        .iter()
        .filter(|b| b.rip == places.head && b.hot.has_superblock);
    assert_eq!(heads.count(), 2);
}

#[test]
fn interrupts_and_signals_come_at_the_same_moments() {
    let side: Side = |a| a.mov(dword_ptr(r15), eax);
    let mut twins = Twins::new(side, false, 4096);
    twins.set(0, 15, DEVICE);
    twins.warm_up();
    twins.run(600);
    assert!(twins.machines[0].cpu(0).gpr[13] > 3);
    // From inside of the path, too.
    for (register, memory) in [(gpr::RDI, SINK), (gpr::RSI, SOURCE)] {
        let before = twins.machines[0].observers.stats.slow_accesses;
        twins.set(0, register, DEVICE);
        twins.run(300);
        assert!(twins.machines[0].observers.stats.slow_accesses - before > 300);
        twins.set(0, register, memory);
        twins.warm_up();
    }
    assert!(twins.wires[0].reads.load(Ordering::Relaxed) > 100);
}

#[test]
fn a_code_buffer_that_is_full_keeps_no_guest_from_running() {
    let (mut dropped, mut made) = (0, 0);
    for room in (2400..9600).step_by(48) {
        let mut twins = Twins::plain();
        let engine = &mut twins.machines[0];
        let mut code = CodeBuffer::new(1 << 20).unwrap();
        place_stubs(&mut code, None);
        let mut code = CodeBuffer::new(code.used() + room).unwrap();
        let stubs = place_stubs(&mut code, None);
        engine.cache.replace_buffer(code, stubs);
        twins.run(120);
        let stats = twins.machines[0].observers.stats;
        dropped += u64::from(stats.code_drops > 0);
        made += u64::from(stats.superblocks > 0);
    }
    assert!(dropped > 20 && made > 20, "{dropped} {made}");
}
