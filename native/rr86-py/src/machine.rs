//! The machine: one class for plain runs, recordings and replays.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyList};
use rr86_core::contents::Contents;
use rr86_core::cpu::cpuid::CpuidRow;
use rr86_core::cpu::paging;
use rr86_core::cpu::semantics::Semantics;
use rr86_core::host_time::{Patience, PatienceLimit, Phase};
use rr86_core::memory::ram::REGION;
use rr86_core::memory::PAGE_SHIFT;
use rr86_core::runtime::engine::BlockLimits;
use rr86_core::runtime::protocol::{Protocol, PROTOCOLS};
use rr86_core::session::{
    self as schedule, Alone, Checkpointer, Condition, Conditions, Diversion, Ending, MachineConfig,
    Policy, Recording, Replay, Scheduler, Session, Stop,
};
use rr86_core::trace::TraceReader;
use rr86_core::translate::layout::Exit;
use rr86_core::translate::shortcuts::Shortcuts;

use crate::blocks;
use crate::bytes::Slice;
use crate::device::{Failure, PyDevice};
use crate::errors::{self, NativeError};
use crate::oracle;
use crate::trace::Events;

/// A moment of a replay, for other replays of its trace.
#[pyclass(frozen, module = "rr86._native")]
pub struct Moment(schedule::Moment);

#[pymethods]
impl Moment {
    #[getter]
    fn icount(&self) -> u64 {
        self.0.icount
    }
}

/// After this long, a call of `run` comes back at the next opportunity, so that it lasts no more than a twentieth
/// of a second.
const PATIENCE: Duration = Duration::from_millis(40);

/// What drives the machine.
enum Driver {
    Record(Box<Session<Recording>>),
    Replay(Box<Session<Replay>>),
    Solo(Box<Session<Alone>>),
    Diversion(Box<Session<Diversion>>),
    /// In transition; seen only after a failed `replay_from`.
    Gone,
}

impl Driver {
    fn machine(&mut self) -> PyResult<&mut schedule::Machine> {
        match self {
            Self::Record(r) => Ok(&mut r.machine),
            Self::Replay(r) => Ok(&mut r.machine),
            Self::Solo(s) => Ok(&mut s.machine),
            Self::Diversion(d) => Ok(&mut d.machine),
            Self::Gone => Err(NativeError::new_err(
                "this machine could not start its replay",
            )),
        }
    }
}

type ConditionRow = (String, u64, u64);

#[pyclass(module = "rr86._native")]
pub struct Machine {
    /// Only ever reached through `get_mut`: the lock is there because the class must be `Sync`.
    driver: Mutex<Driver>,
    rows: Vec<ConditionRow>,
    patterns: Vec<Vec<u8>>,
    conditions: Conditions,
    /// What a device in Python has raised.
    failure: Failure,
    /// The last stop, for the trace's closing event.
    last: (u8, u32, String),
}

/// (name, number in the trace, code) of a stop.
fn describe(stop: Stop) -> (&'static str, u8, u32) {
    match stop {
        Stop::Condition(_) => ("condition", 1, 0),
        Stop::Limit => ("limit", 2, 0),
        // What a trace whose recording ends here says is that of a limit that somebody set.
        Stop::TimeUp => ("time-up", 2, 0),
        Stop::Ended(Ending::PowerOff) => ("poweroff", 3, 0),
        Stop::Ended(Ending::Reset) => ("reset", 4, 0),
        // The core has the exit status (v << 1 | 1); what the guest wrote is v.
        Stop::Ended(Ending::DebugExit(status)) => ("debug-exit", 5, status >> 1),
        Stop::Ended(Ending::TripleFault { .. }) => ("triple-fault", 6, 0),
        Stop::End => ("end", 7, 0),
        Stop::Deadlock => ("deadlock", 8, 0),
        Stop::Failed => ("host-fault", 9, 0),
        Stop::Ended(Ending::DeviceFailed) => ("device-error", 10, 0),
    }
}

fn parse(rows: &[ConditionRow], patterns: &[Vec<u8>]) -> PyResult<Vec<Condition>> {
    rows.iter()
        .map(|(kind, a, b)| {
            let byte = || {
                u8::try_from(*a)
                    .map_err(|_| NativeError::new_err(format!("{a} is not an interrupt vector")))
            };
            Ok(match kind.as_str() {
                "rip" => Condition::Rip(*a),
                "int3" => Condition::Int3,
                "stale" => Condition::Stale,
                "stale-int3" => Condition::StaleInt3,
                "icount" => Condition::Icount(*a),
                "write" => Condition::Write {
                    paddr: *a,
                    length: (*b).clamp(1, 1 << 30),
                },
                "irq" => Condition::Interrupt(byte()?),
                "console" => {
                    let index = usize::try_from(*a).ok().filter(|&i| i < patterns.len());
                    let index = index.ok_or_else(|| {
                        NativeError::new_err(format!("there is no console pattern {a}"))
                    })?;
                    Condition::Console(patterns[index].clone())
                }
                other => return Err(NativeError::new_err(format!("unknown condition {other:?}"))),
            })
        })
        .collect()
}

impl Machine {
    /// Makes a replay of a machine that has not run.
    fn start_replay(
        &mut self,
        begin: impl FnOnce(schedule::Machine) -> PyResult<Session<Replay>>,
    ) -> PyResult<()> {
        match std::mem::replace(self.driver(), Driver::Gone) {
            Driver::Record(recorder) => {
                let replayer = begin(recorder.machine)?;
                *self.driver() = Driver::Replay(Box::new(replayer));
                Ok(())
            }
            other => {
                *self.driver() = other;
                Err(NativeError::new_err("this machine is replaying already"))
            }
        }
    }

    fn driver(&mut self) -> &mut Driver {
        self.driver
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Machine {
    #[new]
    #[pyo3(signature = (*, memory, vcpus, cpuid, msrs=Vec::new(), seed=0, quantum=100_000,
        start_time=1_700_000_000, fw_cfg=Vec::new(), fw_cfg_files=Vec::new(), max_block=64,
        block_capacity=262_144, block_protocol="precise", window_bias=8192, schedule="uniform",
        cross_writes=true, semantics=2))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        memory: u64,
        vcpus: usize,
        cpuid: Vec<(u32, i64, u32, u32, u32, u32)>,
        msrs: Vec<(u32, u64)>,
        seed: u64,
        quantum: u64,
        start_time: i64,
        fw_cfg: Vec<(u16, Slice)>,
        fw_cfg_files: Vec<(String, Vec<u8>)>,
        max_block: usize,
        block_capacity: usize,
        block_protocol: &str,
        window_bias: u32,
        schedule: &str,
        cross_writes: bool,
        semantics: u32,
    ) -> PyResult<Self> {
        let policy = Policy::named(schedule).map_err(|e| NativeError::new_err(e.to_string()))?;
        let protocol = Protocol::named(block_protocol).ok_or_else(|| {
            NativeError::new_err(format!("there is no block protocol {block_protocol:?}"))
        })?;
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
        let machine = schedule::Machine::new(MachineConfig {
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
                protocol,
            },
            tracking: cross_writes,
            semantics,
        })
        .map_err(errors::machine)?;
        let mut recorder = Session::record(machine, Scheduler::new(policy, seed, quantum));
        recorder.machine.engine.patience = Patience::new(PatienceLimit::Time(PATIENCE));
        recorder.machine.draw_windows(seed, window_bias);
        Ok(Self {
            driver: Mutex::new(Driver::Record(Box::new(recorder))),
            rows: Vec::new(),
            patterns: Vec::new(),
            conditions: Conditions::default(),
            failure: Failure::default(),
            last: (0, 0, String::new()),
        })
    }

    fn load(&mut self, paddr: u64, data: Slice) -> PyResult<()> {
        self.driver()
            .machine()?
            .load(paddr, data.as_ref())
            .map_err(errors::machine)
    }

    fn set_registers(&mut self, vcpu: usize, values: BTreeMap<String, u64>) -> PyResult<()> {
        let machine = self.driver().machine()?;
        for (name, value) in values {
            machine
                .set_register(vcpu, &name, value)
                .map_err(errors::machine)?;
        }
        Ok(())
    }

    fn plug(&mut self, device: &Bound<'_, PyAny>) -> PyResult<()> {
        let device = PyDevice::new(device, self.failure.clone())?;
        let machine = self.driver().machine()?;
        for (base, length) in device.memory() {
            let mut pages = (base..base.saturating_add(length)).step_by(1 << PAGE_SHIFT);
            if pages.any(|paddr| machine.engine.ram.page_index(paddr).is_some()) {
                let what = format!("a device cannot lie at {base:#x}: there is RAM");
                return Err(NativeError::new_err(what));
            }
        }
        machine
            .board()
            .plug(Box::new(device))
            .map_err(|e| NativeError::new_err(e.to_string()))
    }

    #[pyo3(signature = (path, header, images, checkpoints=None))]
    fn record_to(
        &mut self,
        path: &str,
        header: &[u8],
        images: Vec<(String, PyBackedBytes)>,
        checkpoints: Option<u64>,
    ) -> PyResult<()> {
        let Driver::Record(recorder) = self.driver() else {
            return Err(NativeError::new_err("a replaying machine cannot record"));
        };
        let images: Vec<(String, Contents)> = images
            .into_iter()
            .map(|(name, data)| (name, Contents::new(data)))
            .collect();
        if let Some(every) = checkpoints {
            recorder
                .set_checkpoints(every)
                .map_err(errors::checkpoint)?;
        }
        recorder
            .record_to(Path::new(path), header, &images)
            .map_err(errors::trace)
    }

    fn set_patience(&mut self, steps: u32) -> PyResult<()> {
        self.driver().machine()?.engine.patience = Patience::new(PatienceLimit::Steps(steps));
        Ok(())
    }

    fn finish_recording(&mut self, footer: &[u8]) -> PyResult<()> {
        let (reason, code, detail) = self.last.clone();
        let Driver::Record(recorder) = self.driver() else {
            return Err(NativeError::new_err("this machine is not recording"));
        };
        recorder
            .finish(reason, code, &detail, footer)
            .map_err(errors::session)
    }

    fn without_side_file(&mut self) -> Option<String> {
        match self.driver() {
            Driver::Record(r) => r.without_tail().map(ToString::to_string),
            _ => None,
        }
    }

    #[pyo3(signature = (path, verify=true, checkpoint=None))]
    fn replay_from(
        &mut self,
        py: Python<'_>,
        path: &str,
        verify: bool,
        checkpoint: Option<usize>,
    ) -> PyResult<()> {
        let reader = TraceReader::open(Path::new(path)).map_err(errors::trace)?;
        let checkpoint = match checkpoint {
            None => None,
            Some(n) => {
                let mut all = reader.checkpoints().map_err(errors::trace)?;
                if n >= all.len() {
                    let what = format!("the trace has no checkpoint {n}");
                    return Err(NativeError::new_err(what));
                }
                Some(all.swap_remove(n))
            }
        };
        self.start_replay(|machine| match checkpoint {
            None => Ok(Session::replay(
                machine,
                reader.stream_for_replay(0),
                verify,
            )),
            Some(info) => py
                .detach(|| Session::from_checkpoint(machine, &reader, &info, verify))
                .map_err(errors::session),
        })
    }

    fn replay_events(&mut self, events: &Events, verify: bool) -> PyResult<()> {
        let events = events.take()?;
        self.start_replay(|machine| Ok(Session::replay(machine, events, verify)))
    }

    fn keep(&mut self, py: Python<'_>, trace: &str) -> PyResult<Moment> {
        let reader = TraceReader::open(Path::new(trace)).map_err(errors::trace)?;
        let Driver::Replay(replayer) = self.driver() else {
            return Err(NativeError::new_err(
                "the replay does not stand between two recorded slices",
            ));
        };
        let moment = py.detach(|| replayer.keep(&reader));
        moment.map(Moment).map_err(errors::checkpoint)
    }

    fn replay_from_moment(
        &mut self,
        py: Python<'_>,
        moment: &Moment,
        verify: bool,
    ) -> PyResult<()> {
        self.start_replay(|machine| {
            py.detach(|| Session::<Replay>::from_moment(machine, &moment.0, verify))
                .map_err(errors::session)
        })
    }

    fn make_checkpoints(&mut self, source: &str, path: &str, every: u64) -> PyResult<()> {
        let Driver::Replay(replayer) = self.driver() else {
            return Err(NativeError::new_err("only a replay can add checkpoints"));
        };
        let reader = TraceReader::open(Path::new(source)).map_err(errors::trace)?;
        let copy = Checkpointer::create(reader, Path::new(path), every).map_err(errors::trace)?;
        replayer.make_checkpoints(copy).map_err(errors::checkpoint)
    }

    fn finish_checkpoints(&mut self, py: Python<'_>) -> PyResult<()> {
        let copy = match self.driver() {
            Driver::Replay(replayer) => replayer.take_checkpointer(),
            _ => None,
        };
        let copy = copy.ok_or_else(|| NativeError::new_err("no checkpoints are being made"))?;
        py.detach(|| copy.finish()).map_err(errors::trace)
    }

    /// Makes an expansion of the trace on the way of a replay that has not begun.
    #[pyo3(signature = (trace, path, stores=false))]
    fn expand_to(&mut self, trace: &str, path: &str, stores: bool) -> PyResult<()> {
        let reader = TraceReader::open(Path::new(trace)).map_err(errors::trace)?;
        let Driver::Replay(replayer) = self.driver() else {
            return Err(NativeError::new_err("only a replay can be expanded"));
        };
        replayer
            .expand(&reader, Path::new(path), stores)
            .map_err(errors::trace)
    }

    fn finish_expansion(&mut self) -> PyResult<()> {
        let Driver::Replay(replayer) = self.driver() else {
            return Err(NativeError::new_err("only a replay can be expanded"));
        };
        replayer.finish_expansion().map_err(errors::trace)
    }

    #[pyo3(signature = (path, expansion, vcpu, verify=true))]
    fn replay_alone(
        &mut self,
        path: &str,
        expansion: &str,
        vcpu: usize,
        verify: bool,
    ) -> PyResult<()> {
        let reader = TraceReader::open(Path::new(path)).map_err(errors::trace)?;
        let machine = self.driver().machine()?;
        machine.check_vcpu(vcpu).map_err(errors::machine)?;
        match std::mem::replace(self.driver(), Driver::Gone) {
            Driver::Record(recorder) => {
                let machine = recorder.machine;
                let solo = Session::alone(machine, &reader, Path::new(expansion), vcpu, verify)
                    .map_err(errors::trace)?;
                *self.driver() = Driver::Solo(Box::new(solo));
                Ok(())
            }
            other => {
                *self.driver() = other;
                Err(NativeError::new_err("this machine is replaying already"))
            }
        }
    }

    /// A bit for each 2 MiB of RAM, lowest first: whether the guest has touched them.
    fn touched_ram<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let pages = &self.driver().machine()?.engine.pages;
        let bits = pages.touched(REGION >> PAGE_SHIFT);
        let byte = |eight: &[bool]| {
            (0..8)
                .filter(|&n| eight.get(n) == Some(&true))
                .fold(0, |b, n| b | 1 << n)
        };
        let bytes: Vec<u8> = bits.chunks(8).map(byte).collect();
        Ok(PyBytes::new(py, &bytes))
    }

    /// Takes RAM from the host ahead of the guest, as `touched_ram` told of an earlier run.
    fn take_ram(&mut self, touched: &[u8]) -> PyResult<()> {
        let regions = (0..touched.len() * 8).filter(|n| touched[n / 8] >> (n % 8) & 1 != 0);
        self.driver().machine()?.engine.ram.take_ahead(regions);
        Ok(())
    }

    fn trace_bytes(&mut self) -> u64 {
        match self.driver() {
            Driver::Record(r) => r.trace_bytes(),
            _ => 0,
        }
    }

    #[pyo3(signature = (max_instructions, conditions=Vec::new(), console_patterns=Vec::new(), by_lines=false))]
    fn run<'py>(
        &mut self,
        py: Python<'py>,
        max_instructions: u64,
        conditions: Vec<ConditionRow>,
        console_patterns: Vec<Vec<u8>>,
        by_lines: bool,
    ) -> PyResult<Bound<'py, PyDict>> {
        if conditions != self.rows || console_patterns != self.patterns {
            self.conditions = Conditions::new(parse(&conditions, &console_patterns)?);
            self.rows = conditions;
            self.patterns = console_patterns;
        }
        let driver = self
            .driver
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let conditions = &mut self.conditions;
        let stop = py.detach(|| match driver {
            Driver::Record(r) => {
                r.by_lines = by_lines;
                r.run(max_instructions, conditions).map_err(errors::session)
            }
            Driver::Replay(r) => {
                r.by_lines = by_lines;
                r.run(max_instructions, conditions).map_err(errors::session)
            }
            Driver::Solo(s) => s.run(max_instructions, conditions).map_err(errors::session),
            Driver::Diversion(d) => {
                d.by_lines = by_lines;
                d.run(max_instructions, conditions).map_err(errors::session)
            }
            Driver::Gone => Err(NativeError::new_err(
                "this machine could not start its replay",
            )),
        })?;
        let vcpu = match (&*self.driver(), stop) {
            (_, Stop::Ended(Ending::TripleFault { vcpu })) => vcpu,
            (Driver::Record(r), _) => r.vcpu,
            (Driver::Replay(r), _) => r.vcpu,
            (Driver::Solo(s), _) => s.vcpu,
            (Driver::Diversion(d), _) => d.vcpu,
            (Driver::Gone, _) => 0,
        };
        let (name, number, code) = describe(stop);
        let machine = self.driver().machine()?;
        let (icount, time_ns) = (machine.engine.icount(), machine.engine.now());
        let rip = machine.engine.cpu(vcpu).rip;
        let detail = format!("{name} at instruction {icount}, vCPU {vcpu}, rip {rip:#x}");
        self.last = (number, code, detail);
        if let Some(error) = self.failure.take(py) {
            return Err(error);
        }
        if stop == Stop::Failed {
            return Err(errors::host_fault(self.driver().machine()?));
        }
        let info = PyDict::new(py);
        info.set_item("reason", name)?;
        info.set_item(
            "condition",
            if let Stop::Condition(i) = stop {
                i as i64
            } else {
                -1
            },
        )?;
        info.set_item("vcpu", vcpu)?;
        info.set_item("icount", icount)?;
        info.set_item("time_ns", time_ns)?;
        info.set_item("rip", rip)?;
        info.set_item("code", code)?;
        info.set_item("detail", "")?;
        Ok(info)
    }

    fn console_output<'py>(&mut self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let bytes = match self.driver() {
            Driver::Record(r) => r.take_console(),
            Driver::Replay(r) => r.take_console(),
            Driver::Diversion(r) => r.take_console(),
            Driver::Solo(_) | Driver::Gone => Vec::new(),
        };
        PyBytes::new(py, &bytes)
    }

    fn debugcon_output<'py>(&mut self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>, usize)> {
        let (bytes, alone) = self.driver().machine()?.board().take_debugcon_output();
        Ok((PyBytes::new(py, &bytes), alone))
    }

    fn compared_digests(&mut self) -> (u64, u64) {
        match self.driver() {
            Driver::Replay(r) => (r.decisions.compared.digests, r.decisions.compared.moments),
            _ => (0, 0),
        }
    }

    fn console_input(&mut self, data: &[u8]) -> PyResult<()> {
        match self.driver() {
            Driver::Record(r) => {
                r.console_input(data);
                Ok(())
            }
            _ => Err(NativeError::new_err(
                "a replay takes its input from the trace",
            )),
        }
    }

    fn registers<'py>(&mut self, py: Python<'py>, vcpu: usize) -> PyResult<Bound<'py, PyDict>> {
        let all = self
            .driver()
            .machine()?
            .registers(vcpu)
            .map_err(errors::machine)?;
        let registers = PyDict::new(py);
        for (name, value) in all {
            registers.set_item(name, value)?;
        }
        Ok(registers)
    }

    fn fpu_state<'py>(&mut self, py: Python<'py>, vcpu: usize) -> PyResult<Bound<'py, PyBytes>> {
        let machine = self.driver().machine()?;
        machine.check_vcpu(vcpu).map_err(errors::machine)?;
        Ok(PyBytes::new(py, &machine.engine.cpu(vcpu).fpu.0))
    }

    fn read_physical<'py>(
        &mut self,
        py: Python<'py>,
        paddr: u64,
        length: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let machine = self.driver().machine()?;
        if length as u64 > machine.engine.ram.size() {
            return Err(NativeError::new_err(format!(
                "{length} bytes are more than the RAM has"
            )));
        }
        let mut bytes = vec![0; length];
        machine.engine.ram.read(paddr, &mut bytes);
        Ok(PyBytes::new(py, &bytes))
    }

    fn read_virtual<'py>(
        &mut self,
        py: Python<'py>,
        vcpu: usize,
        address: u64,
        length: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let machine = self.driver().machine()?;
        machine.check_vcpu(vcpu).map_err(errors::machine)?;
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let at = address.wrapping_add(bytes.len() as u64);
            let Some(paddr) = peek(machine, vcpu, at) else {
                break;
            };
            let room = (4096 - (at & 4095)) as usize;
            let n = room.min(length - bytes.len());
            let start = bytes.len();
            bytes.resize(start + n, 0);
            machine.engine.ram.read(paddr, &mut bytes[start..]);
        }
        Ok(PyBytes::new(py, &bytes))
    }

    fn translate(&mut self, vcpu: usize, address: u64) -> PyResult<Option<u64>> {
        let machine = self.driver().machine()?;
        machine.check_vcpu(vcpu).map_err(errors::machine)?;
        Ok(peek(machine, vcpu, address))
    }

    fn digests<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let digests = PyDict::new(py);
        for (name, value) in self.driver().machine()?.digests() {
            digests.set_item(name, value)?;
        }
        Ok(digests)
    }

    fn detect_stale(&mut self, on: bool) -> PyResult<()> {
        self.driver().machine()?.engine.detect_stale(on);
        Ok(())
    }

    fn current_block<'py>(
        &mut self,
        py: Python<'py>,
        vcpu: usize,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let machine = self.driver().machine()?;
        machine.check_vcpu(vcpu).map_err(errors::machine)?;
        let engine = &machine.engine;
        let id = engine.current_block(vcpu);
        id.map(|id| blocks::describe(py, engine, id)).transpose()
    }

    fn block<'py>(&mut self, py: Python<'py>, serial: u64) -> PyResult<Option<Bound<'py, PyDict>>> {
        let engine = &self.driver().machine()?.engine;
        let id = engine.block_with_serial(serial);
        id.map(|id| blocks::describe(py, engine, id)).transpose()
    }

    fn serialised_at(&mut self, vcpu: usize) -> PyResult<Option<u64>> {
        let machine = self.driver().machine()?;
        machine.check_vcpu(vcpu).map_err(errors::machine)?;
        Ok(machine.engine.serialised_at(vcpu))
    }

    fn log_writes(&mut self, ranges: Vec<(u64, u64)>) -> PyResult<()> {
        self.driver().machine()?.engine.log_writes(ranges);
        Ok(())
    }

    fn logged_writes<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let entries = self.driver().machine()?.engine.take_writes();
        let entries = entries
            .ok_or_else(|| NativeError::new_err("there were too many writes to log them all"))?;
        blocks::writes(py, &entries)
    }

    fn ask_oracle(&mut self) -> PyResult<()> {
        self.driver().machine()?.engine.ask_oracle();
        Ok(())
    }

    fn oracle_verdict<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let engine = &self.driver().machine()?.engine;
        let oracle = engine.oracle();
        oracle
            .map(|o| oracle::verdict(py, o.verdict(), engine.unseen_by_oracle()))
            .transpose()
    }

    fn plant(&mut self, rip: u64, code: &[u8]) -> PyResult<()> {
        self.driver().machine()?.engine.plant(rip, code);
        Ok(())
    }

    fn go_free(&mut self) -> PyResult<()> {
        match std::mem::replace(self.driver(), Driver::Gone) {
            Driver::Replay(r) => {
                *self.driver() = Driver::Diversion(Box::new(r.divert()));
                Ok(())
            }
            Driver::Diversion(d) => {
                *self.driver() = Driver::Diversion(d);
                Ok(())
            }
            _ => Err(NativeError::new_err("only a replay can be set free")),
        }
    }

    fn invalidate_block(&mut self, serial: u64) -> PyResult<bool> {
        self.go_free()?;
        Ok(self.driver().machine()?.engine.invalidate_serial(serial))
    }

    fn refetch_block(&mut self, serial: u64, vcpu: usize, fetched: u64) -> PyResult<()> {
        self.go_free()?;
        self.driver()
            .machine()?
            .engine
            .refetch(serial, vcpu, fetched);
        Ok(())
    }

    fn seconds(&mut self) -> PyResult<BTreeMap<&'static str, f64>> {
        let spent = match self.driver() {
            Driver::Record(r) => r.spent(),
            Driver::Replay(r) => r.spent(),
            Driver::Solo(s) => s.spent(),
            Driver::Diversion(d) => d.spent(),
            Driver::Gone => self.driver().machine()?.engine.spent,
        };
        let phases = Phase::ALL.map(|p| (p.name(), spent.on(p)));
        let all = [("whole", spent.whole), ("guest", spent.rest())];
        let all = phases.into_iter().chain(all);
        Ok(all.map(|(name, time)| (name, time.seconds())).collect())
    }

    fn stats<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let slices = match self.driver() {
            Driver::Record(r) => r.slices,
            Driver::Replay(r) => r.slices,
            Driver::Solo(s) => s.slices,
            Driver::Diversion(d) => d.slices,
            Driver::Gone => 0,
        };
        let own = match self.driver() {
            Driver::Solo(s) => Some(s.instructions()),
            _ => None,
        };
        let engine = &self.driver().machine()?.engine;
        let s = engine.stats;
        let stats = PyDict::new(py);
        for (name, value) in [
            ("instructions", engine.icount()),
            ("skipped_ns", engine.skipped_ns),
            ("slices", slices),
            ("blocks", engine.blocks.len() as u64),
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
        if let Some(own) = own {
            stats.set_item("own_instructions", own)?;
        }
        for (name, count) in Exit::NAMES.iter().zip(s.exits) {
            stats.set_item(format!("exits_{name}"), count)?;
        }
        for (mnemonic, calls) in engine.helpers.sorted() {
            stats.set_item(format!("helper_{mnemonic}"), calls)?;
        }
        Ok(stats)
    }
}

/// Names of the block protocols, `precise` first.
#[pyfunction]
pub fn block_protocols() -> Vec<&'static str> {
    PROTOCOLS.iter().map(|p| p.name).collect()
}

/// Switches shortcuts of translated code off for machines that are made from now on, and all others on.
#[pyfunction]
pub fn disable_shortcuts(names: Vec<String>) -> PyResult<()> {
    let left = Shortcuts::without(names.iter().map(String::as_str)).map_err(|name| {
        let known: Vec<&str> = Shortcuts::NAMES.iter().map(|(name, _)| *name).collect();
        PyValueError::new_err(format!(
            "there is no shortcut {name:?} (there are: {})",
            known.join(", ")
        ))
    })?;
    left.set_default();
    Ok(())
}

/// Where a linear address lies, without setting accessed bits.
fn peek(machine: &schedule::Machine, vcpu: usize, address: u64) -> Option<u64> {
    let ram = &machine.engine.ram;
    let mut read = |paddr: u64, size: usize| {
        let mut bytes = [0; 8];
        ram.read(paddr, &mut bytes[..size]);
        u64::from_le_bytes(bytes)
    };
    let cpu = machine.engine.cpu(vcpu);
    if !cpu.paging() {
        return Some(address);
    }
    paging::peek(cpu, &mut read, address)
}
