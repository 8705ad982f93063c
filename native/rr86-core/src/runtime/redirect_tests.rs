//! A block whose bytes change while its writer's code runs gets other host code. Where the code buffer is full then, the
//! writer's own code must not be dropped: it goes on behind its store.

use crate::runtime::codebuf::CodeBuffer;
use crate::runtime::entry::place_stubs;
use crate::runtime::protocol::Protocol;
use crate::session::{testing, Conditions, Machine, Policy, Scheduler, Session};

const ENTRY: u64 = 0x10_0000;
const PAIRS: u32 = 60;
/// Each pair of blocks begins so far behind the one before.
const SPACING: u32 = 40;

/// Pairs of blocks. The first changes the second with a locked instruction, which the protocol does not check, goes on
/// for a few instructions, and jumps to it; the last pair jumps to the first.
fn program() -> Vec<u8> {
    let mut program = Vec::new();
    for pair in 0..PAIRS {
        let start = program.len();
        let patched = ENTRY as u32 + pair * SPACING + 23;
        // lock add byte [patched], 1; add ecx, pair; rol ecx, 3; xor ecx, eax; jmp to the second block
        program.extend([0xf0, 0x80, 0x05]);
        program.extend(patched.to_le_bytes());
        program.push(1);
        program.extend([0x81, 0xc1]);
        program.extend(pair.to_le_bytes());
        program.extend([0xc1, 0xc1, 3, 0x31, 0xc1, 0xeb, 1, 0xcc]);
        // mov edx, 0; add esi, edx; inc eax; jmp to the next pair
        assert_eq!(program.len() - start, 22);
        program.extend([0xba, 0, 0, 0, 0, 0x01, 0xd6, 0x40, 0xe9]);
        let next = (pair + 1) % PAIRS * SPACING;
        let here = start as u32 + 35;
        program.extend(next.wrapping_sub(here).to_le_bytes());
        program.resize(start + SPACING as usize, 0xcc);
    }
    program
}

fn machine() -> Machine {
    let protocol = Protocol::named("helper-unchecked").expect("a protocol");
    let mut config = testing::config(2 << 20, 1, 16, protocol);
    config.blocks.capacity = 1000;
    testing::machine(config, ENTRY, &program())
}

/// What there is after three rounds, and how often code was dropped.
fn outcome(machine: Machine) -> ((Vec<(String, u64)>, u64), u64) {
    let mut session = Session::record(machine, Scheduler::new(Policy::Uniform, 5, 100_000));
    let rounds = u64::from(PAIRS) * 9 * 3;
    let mut none = Conditions::default();
    session.run(rounds, &mut none).expect("a run");
    let stats = *session.machine.engine.observers.stats();
    assert!(stats.stale_blocks >= u64::from(PAIRS));
    let digests = session.machine.digests();
    ((digests, stats.stale_entries), stats.code_drops)
}

#[test]
fn blocks_that_change_where_the_code_buffer_is_full_do_not_take_their_writers_code() {
    let (expected, dropped) = outcome(machine());
    assert_eq!(dropped, 0);
    let mut full = 0;
    for room in (6_000..26_000).step_by(250) {
        let mut small = machine();
        let mut measured = CodeBuffer::new(1 << 20).unwrap();
        place_stubs(&mut measured, None);
        let mut code = CodeBuffer::new(measured.used() + room).unwrap();
        let stubs = place_stubs(&mut code, None);
        small.engine.cache.replace_buffer(code, stubs);
        let (found, dropped) = outcome(small);
        assert_eq!(found, expected, "with room for {room} bytes");
        full += u64::from(dropped > 0);
    }
    assert!(full > 20, "{full}");
}
