//! A machine at power-on, for a session to take over.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rr86_core::contents::Contents;
use rr86_core::cpu::cpuid::CpuidRow;
use rr86_core::cpu::semantics::Semantics;
use rr86_core::host_time::{CallLimit, Limit};
use rr86_core::runtime::protocol;
use rr86_core::runtime::translator::BlockLimits;
use rr86_core::session::{self, MachineConfig};
use rr86_core::translate::shortcuts::Shortcuts;

use crate::bytes::Slice;
use crate::device;
use crate::errors::{self, NativeError};
use crate::face::looking;
use crate::protocol::BlockProtocol;

/// After this long, a call of `run` comes back at the next opportunity, so that it lasts no more than a twentieth
/// of a second.
const CALL_LIMIT: Duration = Duration::from_millis(40);

/// A machine that has not run; nothing once a session has taken it over.
///
/// Only ever reached through `get_mut`: the lock is there because the class must be `Sync`.
#[pyclass(module = "rr86._native")]
pub struct Machine(Mutex<Option<session::Machine>>);

impl Machine {
    /// The machine, which stays.
    pub fn machine(&mut self) -> PyResult<&mut session::Machine> {
        let machine = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        machine.as_mut().ok_or_else(taken)
    }

    /// The machine, for a session.
    pub fn take(&mut self) -> PyResult<session::Machine> {
        let machine = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        machine.take().ok_or_else(taken)
    }
}

fn taken() -> PyErr {
    NativeError::new_err("a session has taken this machine over already")
}

looking! { Machine {
    #[new]
    #[pyo3(signature = (*, memory, vcpus, cpuid, msrs=Vec::new(),
        start_time=1_700_000_000, fw_cfg=Vec::new(), fw_cfg_files=Vec::new(), max_block=64,
        block_capacity=262_144, block_protocol=None, cross_writes=true, semantics=2))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        memory: u64,
        vcpus: usize,
        cpuid: Vec<(u32, i64, u32, u32, u32, u32)>,
        msrs: Vec<(u32, u64)>,
        start_time: i64,
        fw_cfg: Vec<(u16, Slice)>,
        fw_cfg_files: Vec<(String, Vec<u8>)>,
        max_block: usize,
        block_capacity: usize,
        block_protocol: Option<BlockProtocol>,
        cross_writes: bool,
        semantics: u32,
    ) -> PyResult<Self> {
        let semantics =
            Semantics::new(semantics).map_err(|e| NativeError::new_err(e.to_string()))?;
        let cpuid = cpuid
            .into_iter()
            .map(|(leaf, subleaf, eax, ebx, ecx, edx)| CpuidRow {
                leaf,
                subleaf: u32::try_from(subleaf).ok(),
                eax,
                ebx,
                ecx,
                edx,
            })
            .collect();
        let fw_cfg = fw_cfg
            .into_iter()
            .map(|(key, data)| (key, Contents::new(data)))
            .collect();
        let mut machine = session::Machine::new(MachineConfig {
            memory,
            vcpus,
            cpuid,
            msrs,
            start_time,
            fw_cfg,
            fw_cfg_files,
            blocks: BlockLimits {
                instructions: max_block,
                capacity: block_capacity.max(1),
                protocol: block_protocol.map_or(protocol::PRECISE, Into::into),
            },
            tracking: cross_writes,
            semantics,
        })
        .map_err(errors::machine)?;
        machine.engine.limit_calls(CallLimit::new(Limit::Time(CALL_LIMIT)));
        Ok(Self(Mutex::new(Some(machine))))
    }

    fn load(&mut self, paddr: u64, data: Slice) -> PyResult<()> {
        self.machine()?
            .load(paddr, data.as_ref())
            .map_err(errors::machine)
    }

    fn set_registers(&mut self, vcpu: usize, values: BTreeMap<String, u64>) -> PyResult<()> {
        let machine = self.machine()?;
        for (name, value) in values {
            machine
                .set_register(vcpu, &name, value)
                .map_err(errors::machine)?;
        }
        Ok(())
    }

    fn plug(&mut self, device: &Bound<'_, PyAny>) -> PyResult<()> {
        device::plug(self.machine()?, device)
    }

    /// Takes RAM from the host ahead of the guest, as `touched_ram` told of an earlier run.
    fn take_ram(&mut self, touched: &[u8]) -> PyResult<()> {
        let regions = (0..touched.len() * 8).filter(|n| touched[n / 8] >> (n % 8) & 1 != 0);
        self.machine()?.engine.memory.ram.take_ahead(regions);
        Ok(())
    }

    /// Switches shortcuts of translated code off; before anything has run.
    fn disable_shortcuts(&mut self, names: Vec<String>) -> PyResult<()> {
        let left = Shortcuts::without(names.iter().map(String::as_str)).map_err(|name| {
            let known: Vec<&str> = Shortcuts::NAMES.iter().map(|(name, _)| *name).collect();
            PyValueError::new_err(format!(
                "there is no shortcut {name:?} (there are: {})",
                known.join(", ")
            ))
        })?;
        self.machine()?.engine.set_shortcuts(left);
        Ok(())
    }

    fn ask_oracle(&mut self) -> PyResult<()> {
        self.machine()?.engine.ask_oracle();
        Ok(())
    }

    fn plant(&mut self, rip: u64, code: &[u8]) -> PyResult<()> {
        self.machine()?.engine.plant(rip, code);
        Ok(())
    }
} }
