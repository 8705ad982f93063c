//! Looking at a machine, and counting what it has done, as Python has it.

use std::collections::BTreeMap;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use rr86_core::host_time::{Phase, Spent};
use rr86_core::memory::ram::REGION;
use rr86_core::memory::PAGE_SHIFT;
use rr86_core::runtime::engine::Engine;
use rr86_core::session::Machine;
use rr86_core::translate::layout::Exit;

use crate::errors::{self, NativeError};

/// Bytes for which memory is taken before it is known that the guest has them.
const READ_AT_ONCE: usize = 1 << 20;

/// The registers of a vCPU by name.
pub fn registers<'py>(
    py: Python<'py>,
    machine: &mut Machine,
    vcpu: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let registers = PyDict::new(py);
    for (name, value) in machine.registers(vcpu).map_err(errors::machine)? {
        registers.set_item(name, value)?;
    }
    Ok(registers)
}

/// The vCPU's XSAVE area.
pub fn fpu_state<'py>(
    py: Python<'py>,
    machine: &Machine,
    vcpu: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    machine.check_vcpu(vcpu).map_err(errors::machine)?;
    Ok(PyBytes::new(py, &machine.engine.cpu(vcpu).fpu.0))
}

/// Bytes of RAM.
pub fn read_physical<'py>(
    py: Python<'py>,
    machine: &Machine,
    paddr: u64,
    length: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    if length as u64 > machine.engine.memory.ram.size() {
        return Err(NativeError::new_err(format!(
            "{length} bytes are more than the RAM has"
        )));
    }
    let mut bytes = vec![0; length];
    machine.engine.memory.ram.read(paddr, &mut bytes);
    Ok(PyBytes::new(py, &bytes))
}

/// Bytes at a linear address, up to the first page that is not mapped.
pub fn read_virtual<'py>(
    py: Python<'py>,
    machine: &Machine,
    vcpu: usize,
    address: u64,
    length: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    machine.check_vcpu(vcpu).map_err(errors::machine)?;
    // A page that is not there ends the read, so that no guess about the length is needed.
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let start = bytes.len();
        let at = address.wrapping_add(start as u64);
        bytes.resize((start + READ_AT_ONCE).min(length), 0);
        let n = machine.read_virtual(vcpu, at, &mut bytes[start..]);
        if start + n < bytes.len() {
            bytes.truncate(start + n);
            break;
        }
    }
    Ok(PyBytes::new(py, &bytes))
}

/// The physical address of a linear one.
pub fn translate(machine: &Machine, vcpu: usize, address: u64) -> PyResult<Option<u64>> {
    machine.check_vcpu(vcpu).map_err(errors::machine)?;
    Ok(machine.peek(vcpu, address))
}

/// The digest of each component.
pub fn digests<'py>(py: Python<'py>, machine: &mut Machine) -> PyResult<Bound<'py, PyDict>> {
    let digests = PyDict::new(py);
    for (name, value) in machine.digests() {
        digests.set_item(name, value)?;
    }
    Ok(digests)
}

/// A bit for each 2 MiB of RAM, lowest first: whether the guest has touched them.
pub fn touched_ram<'py>(py: Python<'py>, machine: &Machine) -> Bound<'py, PyBytes> {
    let bits = machine.engine.memory.pages.touched(REGION >> PAGE_SHIFT);
    let byte = |eight: &[bool]| {
        (0..8)
            .filter(|&n| eight.get(n) == Some(&true))
            .fold(0, |b, n| b | 1 << n)
    };
    let bytes: Vec<u8> = bits.chunks(8).map(byte).collect();
    PyBytes::new(py, &bytes)
}

/// What a run has cost the host, in seconds.
pub fn seconds(spent: &Spent) -> BTreeMap<&'static str, f64> {
    let phases = Phase::ALL.map(|p| (p.name(), spent.on(p)));
    let all = [("whole", spent.whole), ("guest", spent.rest())];
    let all = phases.into_iter().chain(all);
    all.map(|(name, time)| (name, time.seconds())).collect()
}

/// The counters.
pub fn stats<'py>(py: Python<'py>, engine: &Engine, slices: u64) -> PyResult<Bound<'py, PyDict>> {
    let s = engine.observers.stats();
    let stats = PyDict::new(py);
    for (name, value) in [
        ("instructions", engine.icount()),
        ("skipped_ns", engine.skipped_ns()),
        ("slices", slices),
        ("blocks", engine.blocks().len() as u64),
        ("blocks_translated", s.blocks_translated),
        ("instructions_translated", s.instructions_translated),
        ("blocks_invalidated", s.blocks_invalidated),
        ("stale_blocks", s.stale_blocks),
        ("stale_entries", s.stale_entries),
        ("stale_int3s", s.stale_int3s),
        ("superblocks", s.superblocks),
        ("block_flushes", s.block_flushes),
        ("code_drops", s.code_drops),
        ("blocks_ahead", s.blocks_ahead),
        ("dispatches", s.dispatches),
        ("lookups", s.lookups),
        ("fetch_misses", s.fetch_misses),
        ("slow_accesses", s.slow_accesses),
        ("bounced_accesses", s.bounced_accesses),
        ("tlb_fills", s.tlb_fills),
        ("tlb_flushes", s.tlb_flushes),
        ("page_walks", s.page_walks),
        ("helper_calls", s.helper_calls),
        ("hand_offs", s.hand_offs),
        ("exceptions", s.exceptions),
        ("interrupts", s.interrupts),
    ] {
        stats.set_item(name, value)?;
    }
    for (name, count) in Exit::NAMES.iter().zip(s.exits) {
        stats.set_item(format!("exits_{name}"), count)?;
    }
    for (mnemonic, calls) in engine.observers.helpers().sorted() {
        stats.set_item(format!("helper_{mnemonic}"), calls)?;
    }
    Ok(stats)
}
