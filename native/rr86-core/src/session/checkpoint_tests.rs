//! Two vCPUs that patch each other's code, saved between any two slices, with whatever is under way;
//! and states that were damaged.

use super::*;
use crate::runtime::checkpoint::Blocks;
use crate::runtime::protocol::Protocol;
use crate::runtime::windows::WindowPolicy;
use crate::session::{testing, Policy, Scheduler, Wait};

const ENTRY: u64 = 0x10_0000;
/// ```text
/// again:  lock incl  0x200000
///         mov   0x200000, %eax
///         mov   %al, patch + 1
///         nop
///         jmp   patch
/// patch:  mov   $0, %cl
///         add   %ecx, 0x200000(%ebx)
///         jmp   again
/// ```
const PROGRAM: [u8; 30] = [
    0xf0, 0xff, 0x05, 0x00, 0x00, 0x20, 0x00, // lock incl
    0xa1, 0x00, 0x00, 0x20, 0x00, // mov
    0xa2, 0x15, 0x00, 0x10, 0x00, // mov %al, patch + 1
    0x90, 0xeb, 0x00, // nop, jmp
    0xb1, 0x00, // mov $0, %cl
    0x01, 0x8b, 0x00, 0x00, 0x20, 0x00, // add
    0xeb, 0xe2, // jmp
];

/// Switches in all fetch windows, and in half of the stores' windows, which are drawn more rarely.
fn draw_windows(state: u64) -> WindowPolicy {
    WindowPolicy::Draw {
        state,
        bias: 0x8000 << 8,
    }
}

fn machine() -> Machine {
    machine_under(named("qemu-7.2"))
}

fn named(protocol: &str) -> Protocol {
    Protocol::named(protocol).expect("a protocol")
}

fn machine_under(protocol: Protocol) -> Machine {
    let config = testing::config(4 << 20, 2, 8, protocol);
    let mut machine = testing::machine(config, ENTRY, &PROGRAM);
    let policy = draw_windows(3);
    machine.engine.set_windows(policy);
    machine.allow_checkpoints().expect("checkpoints");
    machine
}

/// Runs up to `count` slices, as long as there is somebody to run.
fn run(machine: &mut Machine, scheduler: &mut Scheduler, count: usize) {
    for _ in 0..count {
        if machine.prepare() != Wait::Ready {
            return;
        }
        let decision = scheduler.next(&machine.runnable());
        machine.run_slice(decision);
    }
}

/// A checkpoint: the pages that are not zero, and the state.
struct Saved {
    pages: Vec<(usize, Box<[u8; 4096]>)>,
    state: Vec<u8>,
}

fn take(machine: &mut Machine) -> Saved {
    let digests = machine.digests();
    let state = machine.save(&digests);
    let ram = &machine.engine.memory.ram;
    let pages = (0..ram.pages())
        .filter(|&page| ram.page(page).iter().any(|&b| b != 0))
        .map(|page| (page, Box::new(*ram.page(page).first_chunk().unwrap())))
        .collect();
    Saved { pages, state }
}

fn put(machine: &mut Machine, pages: &[(usize, Box<[u8; 4096]>)]) {
    machine.wipe();
    for (page, bytes) in pages {
        machine.set_page(*page, bytes).expect("a page");
    }
}

/// Checkpoints between the slices of a run, those first that have most under way.
fn checkpoints() -> Vec<Saved> {
    let mut machine = machine();
    let mut scheduler = Scheduler::new(Policy::Random, 9, 40);
    let mut all = Vec::new();
    for _ in 0..300 {
        run(&mut machine, &mut scheduler, 1);
        let inside = (0..2).filter(|&v| machine.engine.inside_block(v).is_some());
        let weight = inside.count() + usize::from(machine.engine.has_under_way());
        all.push((weight, take(&mut machine)));
    }
    all.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    assert!(all[0].0 >= 2, "nothing was under way at once");
    all.into_iter().map(|(_, saved)| saved).collect()
}

#[test]
fn a_restored_machine_goes_on_like_the_one_that_was_saved() {
    restores_under(named("qemu-7.2"));
}

#[test]
fn a_machine_under_another_order_of_the_steps_goes_on_too() {
    restores_under(Protocol {
        guard_first: true,
        commit_first: true,
        ..named("qemu-7.2")
    });
}

fn restores_under(protocol: Protocol) {
    let mut original = machine_under(protocol);
    let mut scheduler = Scheduler::new(Policy::Random, 9, 40);
    let mut other = machine_under(protocol);
    let (mut windows, mut inside, mut stale) = (0, 0, 0);
    for _ in 0..200 {
        run(&mut original, &mut scheduler, 1);
        let saved = take(&mut original);
        windows += usize::from(original.engine.has_under_way());
        inside += (0..2)
            .filter(|&v| original.engine.inside_block(v).is_some())
            .count();
        let blocks = original.engine.blocks().iter_live();
        stale += blocks.iter().filter(|b| b.stale.marked).count();
        put(&mut other, &saved.pages);
        other.restore(&saved.state).expect("a whole checkpoint");
        other.digests();
        assert_eq!(take(&mut other).state, saved.state);
        // Both go the same way from here, windows and all.
        let policy = draw_windows(77);
        original.engine.set_windows(policy.clone());
        other.engine.set_windows(policy);
        original.engine.observers.forget_events();
        let mut same = scheduler.clone();
        run(&mut original, &mut scheduler, 5);
        run(&mut other, &mut same, 5);
        assert_eq!(
            original.engine.observers.events(),
            other.engine.observers.events()
        );
        assert_eq!(original.digests(), other.digests());
    }
    assert!(
        windows > 10 && inside > 10 && stale > 10,
        "{windows} {inside} {stale}"
    );
}

#[test]
fn a_state_cut_short_is_refused() {
    let saved = &checkpoints()[0];
    let mut machine = machine();
    put(&mut machine, &saved.pages);
    for len in 0..saved.state.len() {
        assert!(machine.restore(&saved.state[..len]).is_err(), "{len}");
    }
    let mut longer = saved.state.clone();
    longer.push(0);
    assert!(machine.restore(&longer).is_err());
    machine.restore(&saved.state).expect("the whole state");
}

/// Damage that digests would show as well, without that comparison: nothing that is let through may do
/// more than lead the guest astray.
#[test]
fn damaged_states_are_refused_or_safe_to_run() {
    let all = checkpoints();
    let mut machine = machine();
    let (mut refused, mut ran) = (0, 0);
    let mut draw = 1u64;
    for saved in &all[..2] {
        for at in 0..saved.state.len() {
            draw = draw.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let mut state = saved.state.clone();
            match draw >> 60 {
                0 => state[at] = 0xff,
                1 => state[at] = 0,
                2 => state[at] = (draw >> 32) as u8,
                n => state[at] ^= 1 << (n & 7),
            }
            put(&mut machine, &saved.pages);
            if machine.load_state(&state, Blocks::Anew).is_err() {
                refused += 1;
                continue;
            }
            ran += 1;
            let policy = draw_windows(draw);
            machine.engine.set_windows(policy);
            let mut scheduler = Scheduler::new(Policy::Random, draw, 40);
            run(&mut machine, &mut scheduler, 20);
            machine.digests();
        }
    }
    assert!(refused > 500 && ran > 500, "{refused} {ran}");
}

#[test]
fn a_protocol_that_keeps_chains_has_no_checkpoints() {
    let mut config = testing::config(1 << 20, 1, 8, named("chain-kept"));
    let mut machine = Machine::new(config.clone()).expect("a machine");
    assert!(machine.allow_checkpoints().is_err());
    config.blocks.protocol = named("precise");
    let mut machine = Machine::new(config).expect("a machine");
    assert_eq!(machine.allow_checkpoints(), Ok(()));
}
