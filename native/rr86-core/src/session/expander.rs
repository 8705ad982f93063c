//! Makes an expansion: rides along with a full replay and notes what reaches each vCPU from outside.

use std::collections::BTreeMap;
use std::path::Path;

use super::expansion::{ExpansionWriter, Part, Sync};
use super::machine::Machine;
use crate::cpu::save;
use crate::memory::PAGE_SHIFT;
use crate::runtime::inputs::{InputRecorder, Inputs};
use crate::runtime::storelog::StoreLog;
use crate::trace::{survey, TraceError, TraceReader};

/// The lines that one agent wrote and another then got, by RAM page index.
fn shared_lines(
    trace: &TraceReader,
    machine: &Machine,
) -> Result<BTreeMap<usize, u64>, TraceError> {
    let ram = &machine.engine.memory.ram;
    let all = survey::shared_lines(trace)?;
    Ok(all
        .into_iter()
        .filter_map(|(page, lines)| Some((ram.page_index(page << PAGE_SHIFT)?, lines)))
        .collect())
}

/// Notes the inputs of each vCPU, and writes them to an expansion at every set of digests.
pub struct Expander {
    writer: ExpansionWriter,
    vcpus: Vec<Progress>,
}

/// What is known of a vCPU.
#[derive(Default)]
struct Progress {
    /// Its state after its last slice, as far as it has been told to the expansion.
    known: Vec<u8>,
    /// INITs that it has had.
    inits: u64,
    /// Sync points so far.
    syncs: u64,
    changed: Vec<Sync>,
}

impl Expander {
    /// Begins with a machine that has not run. With `stores`, the last stores to lines that agents share are kept
    /// too.
    ///
    /// # Errors
    /// When the file cannot be written or the trace cannot be read.
    pub fn create(
        machine: &mut Machine,
        trace: &TraceReader,
        path: &Path,
        stores: bool,
    ) -> Result<Self, TraceError> {
        let writer = ExpansionWriter::create(path, trace, stores)?;
        let stores = stores.then(|| shared_lines(trace, machine)).transpose()?;
        let count = machine.engine.vcpu_count();
        let log = InputRecorder::new(count, &machine.engine.memory);
        machine.engine.set_inputs(Inputs::Logged(Box::new(log)));
        if let Some(lines) = stores {
            machine.engine.log_stores(StoreLog::new(lines));
        }
        let start = |v| Progress {
            known: save::save(machine.engine.cpu(v)),
            ..Progress::default()
        };
        let vcpus = (0..count).map(start).collect();
        Ok(Self { writer, vcpus })
    }

    /// A vCPU is about to run a slice.
    pub fn before_slice(&mut self, machine: &Machine, vcpu: usize) {
        let progress = &mut self.vcpus[vcpu];
        let now = save::save(machine.engine.cpu(vcpu));
        let inits = machine.engine.inits(vcpu);
        if now != progress.known || inits != progress.inits {
            progress.changed.push(Sync {
                index: progress.syncs,
                init: inits != progress.inits,
                changes: changes(&progress.known, &now),
            });
            progress.known = now;
            progress.inits = inits;
        }
        progress.syncs += 1;
    }

    /// A vCPU has run a slice.
    pub fn after_slice(&mut self, machine: &Machine, vcpu: usize) {
        self.vcpus[vcpu].known = save::save(machine.engine.cpu(vcpu));
    }

    /// Digests are about to be compared: an interval ends.
    ///
    /// # Errors
    /// When the expansion cannot be written.
    pub fn digests(&mut self, machine: &mut Machine) -> Result<(), TraceError> {
        for vcpu in 0..self.vcpus.len() {
            self.before_slice(machine, vcpu);
        }
        self.write(machine)
    }

    fn write(&mut self, machine: &mut Machine) -> Result<(), TraceError> {
        let Some(log) = machine.engine.input_recorder() else {
            return Ok(());
        };
        for (vcpu, (progress, inputs)) in self.vcpus.iter_mut().zip(&mut log.vcpus).enumerate() {
            let part = Part {
                inputs: std::mem::take(inputs),
                syncs: std::mem::take(&mut progress.changed),
            };
            self.writer.part(vcpu as u8, &part)?;
        }
        if let Some(stores) = &mut log.stores {
            self.writer.stores(std::mem::take(&mut stores.done))?;
        }
        Ok(())
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// When the expansion cannot be written.
    pub fn finish(mut self, machine: &mut Machine) -> Result<(), TraceError> {
        if let Some(log) = machine.engine.input_recorder() {
            if let Some(stores) = &mut log.stores {
                stores.close();
            }
        }
        self.write(machine)?;
        machine.engine.set_inputs(Inputs::Live);
        self.writer.finish()
    }
}

/// Runs of bytes that differ between two states of the same length.
fn changes(old: &[u8], new: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut runs: Vec<(u16, Vec<u8>)> = Vec::new();
    for (at, (_, &byte)) in old.iter().zip(new).enumerate().filter(|(_, (o, n))| o != n) {
        match runs.last_mut() {
            Some((start, bytes)) if usize::from(*start) + bytes.len() == at => bytes.push(byte),
            _ => runs.push((at as u16, vec![byte])),
        }
    }
    runs
}
