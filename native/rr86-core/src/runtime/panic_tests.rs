//! What a panic in a run, and a run inside another one, leave behind: the thread as it was, and a machine that can be
//! looked at and says that it cannot run on.

use std::panic::{catch_unwind, AssertUnwindSafe};

use super::super::signals;
use super::super::vcpu::Vcpus;
use crate::cpu::cpuid::CpuidTable;
use crate::cpu::state::{gpr, sreg};
use crate::runtime::agent::Agent;
use crate::runtime::bus::Bus;
use crate::runtime::dispatch::{RunEnd, Span};
use crate::runtime::engine::Engine;
use crate::runtime::protocol::PRECISE;
use crate::session::{testing, Recording};
use crate::session::{Conditions, Policy, Scheduler, Session, SessionError, Stop};

const ENTRY: u64 = 0x1000;
const HANDLER: u64 = 0x2000;
/// inc eax; jmp back
const COUNTING: [u8; 3] = [0x40, 0xeb, 0xfd];

fn session(program: &[u8]) -> Session<Recording> {
    let config = testing::config(1 << 20, 1, 16, PRECISE);
    let machine = testing::machine(config, ENTRY, program);
    Session::record(machine, Scheduler::new(Policy::Uniform, 5, 1000))
}

fn run(session: &mut Session<Recording>) -> Result<Stop, SessionError> {
    session.run(10_000, &mut Conditions::default())
}

#[test]
fn after_a_panic_in_a_run_the_machine_can_be_looked_at_and_says_that_it_cannot_run_on() {
    let before = signals::on_this_thread();
    let mut session = session(&COUNTING);
    assert!(matches!(run(&mut session), Ok(Stop::Limit)));
    let counted = session.machine.engine.cpu(0).gpr[gpr::RAX];
    assert!(counted > 4000);
    // The dispatcher finds nothing where it keeps a vCPU's progress.
    let progress = std::mem::take(&mut session.machine.engine.progress);
    let panicked = catch_unwind(AssertUnwindSafe(|| run(&mut session)));
    assert!(panicked.is_err());
    session.machine.engine.progress = progress;
    assert_eq!(signals::on_this_thread(), before);
    assert_eq!(session.machine.engine.cpu(0).gpr[gpr::RAX], counted);
    for _ in 0..2 {
        assert!(matches!(run(&mut session), Err(SessionError::Panicked)));
    }
    // Another machine is not concerned.
    let mut other = self::session(&COUNTING);
    assert!(matches!(run(&mut other), Ok(Stop::Limit)));
}

#[test]
fn a_run_inside_another_one_gives_the_thread_back_to_it() {
    let mut vcpus = [Vcpus::new(1, 1), Vcpus::new(1, 1)];
    let [outer, inner] = vcpus.each_mut().map(|vcpus| vcpus.begin(0));
    let before = signals::on_this_thread();
    let first = signals::enter(outer, (0x1000, 0x2000), 0x1000);
    let during = signals::on_this_thread();
    assert_eq!(
        during,
        (outer as u64, Some((outer as u64, (0x1000, 0x2000))))
    );
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _second = signals::enter(inner, (0x3000, 0x4000), 0x3000);
        let (gs, running) = signals::on_this_thread();
        assert_eq!(
            (gs, running.map(|(vcpu, _)| vcpu)),
            (inner as u64, Some(inner as u64))
        );
        panic!("a run inside another one ends");
    }));
    assert!(panicked.is_err());
    assert_eq!(signals::on_this_thread(), during);
    drop(first);
    assert_eq!(signals::on_this_thread(), before);
}

/// A bus at whose ports another machine runs.
struct Nesting(Session<Recording>);

impl Bus for Nesting {
    fn io_read(&mut self, _: usize, _: u16, _: usize, _: u64) -> u32 {
        assert!(matches!(run(&mut self.0), Ok(Stop::Limit)));
        7
    }
    fn io_write(&mut self, _: usize, _: u16, _: usize, _: u32, _: u64) {}
    fn mmio_read(&mut self, _: usize, _: u64, _: usize, _: u64) -> u64 {
        0
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

#[test]
fn an_exception_behind_a_run_inside_a_run_is_delivered_to_the_outer_guest() {
    let limits = testing::config(1 << 20, 1, 16, PRECISE).blocks;
    let bus = Box::new(Nesting(session(&COUNTING)));
    let mut engine = Engine::new(1 << 20, 1, CpuidTable::new([]), bus, limits).expect("an engine");
    let mut put = |at, bytes: &[u8]| engine.write_physical(Agent::Device, at, bytes, None);
    // In real mode: in al, 0x10; xor cx, cx; div cl, which the host finds out; its handler is a HLT.
    put(ENTRY, &[0xe4, 0x10, 0x31, 0xc9, 0xf6, 0xf1]);
    put(HANDLER, &[0xf4]);
    put(0, &(HANDLER as u32).to_le_bytes());
    let cpu = engine.cpu_mut(0);
    (cpu.seg[sreg::CS].selector, cpu.seg[sreg::CS].base) = (0, 0);
    (cpu.rip, cpu.gpr[gpr::RSP]) = (ENTRY, 0x8000);
    let span = Span {
        budget: 100,
        exact: false,
        beyond: 0,
        fitting: true,
        start: 0,
    };
    assert_eq!(engine.run(0, span).1, RunEnd::Halt);
    let cpu = engine.cpu(0);
    assert_eq!((cpu.rip, cpu.gpr[gpr::RAX] as u8), (HANDLER + 1, 7));
}
