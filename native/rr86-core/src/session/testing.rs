//! Small machines for the tests and fuzzers of this workspace: a program in flat 32-bit protected mode, on vCPUs that
//! differ in EBX alone.

use super::machine::{Machine, MachineConfig};
use crate::cpu::semantics::Semantics;
use crate::runtime::protocol::Protocol;
use crate::runtime::translator::BlockLimits;

/// A machine with nothing but memory and vCPUs, whose blocks have so many instructions at most.
pub fn config(memory: u64, vcpus: usize, instructions: usize, protocol: Protocol) -> MachineConfig {
    MachineConfig {
        memory,
        vcpus,
        cpuid: Vec::new(),
        msrs: Vec::new(),
        start_time: 0,
        semantics: Semantics::CURRENT,
        fw_cfg: Vec::new(),
        fw_cfg_files: Vec::new(),
        tracking: true,
        blocks: BlockLimits {
            instructions,
            capacity: 64,
            protocol,
        },
    }
}

/// Such a machine with a program at an address, at which all vCPUs are about to begin; EBX is 64 on vCPU 0, 128 on
/// the next, and so on.
///
/// # Panics
/// When the host cannot run guests, or the program does not fit.
pub fn machine(config: MachineConfig, entry: u64, program: &[u8]) -> Machine {
    let mut machine = Machine::new(config).expect("a machine");
    prepare(&mut machine, entry, program);
    machine
}

/// Puts a program into a new machine, and all vCPUs at its beginning; see [`machine`].
///
/// # Panics
/// When the program does not fit.
pub fn prepare(machine: &mut Machine, entry: u64, program: &[u8]) {
    machine.load(entry, program).expect("RAM");
    for vcpu in 0..machine.engine.vcpu_count() {
        let mut set = |name: &str, value| {
            machine.set_register(vcpu, name, value).expect(name);
        };
        for segment in ["cs", "ss", "ds", "es"] {
            set(segment, 8);
            set(&format!("{segment}_base"), 0);
            set(&format!("{segment}_limit"), 0xffff_ffff);
            let attr = if segment == "cs" { 0xc09b } else { 0xc093 };
            set(&format!("{segment}_attr"), attr);
        }
        set("cr0", 0x11);
        set("rflags", 2);
        set("rip", entry);
        set("rbx", 64 + 64 * vcpu as u64);
        set("activity", 0);
    }
}
