//! A session as Python holds it: what its classes share.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use rr86_core::session::{
    Condition, Conditions, Decisions, Ending, Expression, Hit, Machine, Policy, Scheduler, Session,
    SessionError, Stop,
};

use crate::device;
use crate::errors::{self, NativeError};

/// A condition: (kind, a, b).
pub type ConditionRow = (String, u64, u64);

/// What a condition on an address asks further: (vCPU or -1, agent expressions).
pub type FilterRow = (i64, Vec<Vec<u8>>);

/// The conditions of a call, as Python gives them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub rows: Vec<ConditionRow>,
    pub patterns: Vec<Vec<u8>>,
    pub filters: Vec<FilterRow>,
}

/// A session, until it is handed over to another class.
pub struct Held<D> {
    /// Only ever reached through `get_mut`: the lock is there because the classes must be `Sync`.
    session: Mutex<Option<Box<Session<D>>>>,
    /// The conditions of the last call, and what they were made of.
    conditions: Conditions,
    wanted: Wanted,
    /// The last bytes that the console sent before this session.
    heard: Vec<u8>,
}

/// Where a call of `run` came back, and why.
pub struct Return {
    stop: Stop,
    vcpu: usize,
    icount: u64,
    time_ns: u64,
    rip: u64,
}

impl<D: Decisions + Send> Held<D> {
    pub fn new(session: Session<D>) -> Self {
        Self {
            session: Mutex::new(Some(Box::new(session))),
            conditions: Conditions::default(),
            wanted: Wanted::default(),
            heard: Vec::new(),
        }
    }

    fn place(&mut self) -> &mut Option<Box<Session<D>>> {
        self.session
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The session.
    ///
    /// # Errors
    /// When it has been handed over.
    pub fn session(&mut self) -> PyResult<&mut Session<D>> {
        self.place().as_deref_mut().ok_or_else(gone)
    }

    pub fn machine(&mut self) -> PyResult<&mut Machine> {
        Ok(&mut self.session()?.machine)
    }

    /// Hands the session over.
    ///
    /// # Errors
    /// When it has been handed over already.
    pub fn take(&mut self) -> PyResult<Session<D>> {
        self.place().take().map(|session| *session).ok_or_else(gone)
    }

    /// Takes over the conditions of a call. Those on console output go on from what the last call has seen of it.
    fn prepare(&mut self, wanted: Wanted) -> PyResult<()> {
        if wanted != self.wanted {
            let list = parse(&wanted)?;
            if wanted.patterns == self.wanted.patterns {
                self.conditions.renew(list);
            } else {
                self.conditions = Conditions::new(list).after(&self.heard);
                self.heard.clear();
            }
            self.wanted = wanted;
        }
        Ok(())
    }

    /// The session was brought to another moment, before which the console had sent this.
    pub fn moved(&mut self, heard: Vec<u8>) {
        self.conditions = Conditions::default();
        self.wanted = Wanted::default();
        self.heard = heard;
    }

    /// Runs with these conditions, and without the interpreter's lock.
    ///
    /// # Errors
    /// For conditions that make no sense, and whatever ends the session.
    pub fn run(
        &mut self,
        py: Python<'_>,
        max_instructions: u64,
        wanted: Wanted,
        by_lines: bool,
    ) -> PyResult<Return> {
        self.call(py, wanted, |session, conditions| {
            session.by_lines = by_lines;
            session.run(max_instructions, conditions)
        })
    }

    /// Runs up to a moment, and gives the last one before it at which conditions held, if there was any in this call.
    ///
    /// # Errors
    /// As `run`.
    pub fn run_over(
        &mut self,
        py: Python<'_>,
        (limit, before): (u64, u64),
        mut wanted: Wanted,
    ) -> PyResult<(Return, Option<Hit>)> {
        // First, so that no other condition on the same moment hides it.
        let end = 0;
        wanted.rows.insert(end, ("before".to_string(), before, 0));
        let mut last: Option<Hit> = None;
        let found = self.call(py, wanted, |session, conditions| {
            session.by_lines = false;
            session.run_over(limit, end, conditions, &mut last)
        })?;
        if let Some(hit) = &mut last {
            hit.met.iter_mut().for_each(|place| *place -= 1);
        }
        Ok((found, last))
    }

    fn call(
        &mut self,
        py: Python<'_>,
        wanted: Wanted,
        run: impl FnOnce(&mut Session<D>, &mut Conditions) -> Result<Stop, SessionError> + Send,
    ) -> PyResult<Return> {
        self.prepare(wanted)?;
        let place = self.session.get_mut();
        let place = place.unwrap_or_else(PoisonError::into_inner);
        let session = place.as_deref_mut().ok_or_else(gone)?;
        let conditions = &mut self.conditions;
        let stop = match py.detach(|| run(session, conditions)) {
            Ok(stop) => stop,
            // What a device in Python has done wrong comes before what that led to.
            Err(error) => {
                let raised = device::raised(py, &mut session.machine);
                return Err(raised.unwrap_or_else(|| errors::session(error)));
            }
        };
        let vcpu = match stop {
            Stop::Ended(Ending::TripleFault { vcpu }) => vcpu,
            _ => session.vcpu,
        };
        let engine = &session.machine.engine;
        Ok(Return {
            stop,
            vcpu,
            icount: engine.icount(),
            time_ns: engine.now(),
            rip: engine.cpu(vcpu).rip,
        })
    }

    /// What a call came back with, for Python.
    ///
    /// # Errors
    /// When translated code has failed on the host, or a device in Python has raised an exception.
    pub fn answer<'py>(&mut self, py: Python<'py>, found: &Return) -> PyResult<Bound<'py, PyDict>> {
        if let Some(error) = device::raised(py, self.machine()?) {
            return Err(error);
        }
        if found.stop == Stop::Failed {
            return Err(errors::host_fault(self.machine()?));
        }
        let (reason, _, code) = describe(found.stop);
        let index = match found.stop {
            Stop::Condition(index) => index as i64,
            _ => -1,
        };
        let info = PyDict::new(py);
        info.set_item("reason", reason)?;
        info.set_item("condition", index)?;
        let met = matches!(found.stop, Stop::Condition(_)).then(|| self.conditions.met());
        info.set_item("conditions", met.unwrap_or_default())?;
        info.set_item("vcpu", found.vcpu)?;
        info.set_item("icount", found.icount)?;
        info.set_item("time_ns", found.time_ns)?;
        info.set_item("rip", found.rip)?;
        info.set_item("code", code)?;
        info.set_item("detail", "")?;
        Ok(info)
    }
}

impl Return {
    /// What a trace that ends here says of it: number, code, text.
    pub fn closing(&self) -> (u8, u32, String) {
        let (name, number, code) = describe(self.stop);
        let (icount, vcpu, rip) = (self.icount, self.vcpu, self.rip);
        let detail = format!("{name} at instruction {icount}, vCPU {vcpu}, rip {rip:#x}");
        (number, code, detail)
    }
}

/// A moment at which conditions held, as a stop.
///
/// # Errors
/// When Python has no memory.
pub fn hit<'py>(py: Python<'py>, hit: &Hit) -> PyResult<Bound<'py, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("reason", "condition")?;
    info.set_item("condition", hit.met.first().copied())?;
    info.set_item("conditions", &hit.met)?;
    info.set_item("vcpu", hit.vcpu)?;
    info.set_item("icount", hit.icount)?;
    info.set_item("time_ns", hit.time_ns)?;
    info.set_item("rip", hit.rip)?;
    info.set_item("code", 0)?;
    info.set_item("detail", "")?;
    Ok(info)
}

fn gone() -> PyErr {
    NativeError::new_err(
        "this replay has been left for a diversion, or could not be brought to a snapshot",
    )
}

/// A scheduler with this policy.
///
/// # Errors
/// When there is no such policy.
pub fn scheduler(schedule: &str, seed: u64, quantum: u64) -> PyResult<Scheduler> {
    let policy = Policy::named(schedule).map_err(|e| NativeError::new_err(e.to_string()))?;
    Ok(Scheduler::new(policy, seed, quantum))
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

fn parse(wanted: &Wanted) -> PyResult<Vec<Condition>> {
    let Wanted {
        rows,
        patterns,
        filters,
    } = wanted;
    rows.iter()
        .map(|(kind, a, b)| {
            let byte = || {
                u8::try_from(*a)
                    .map_err(|_| NativeError::new_err(format!("{a} is not an interrupt vector")))
            };
            Ok(match kind.as_str() {
                "rip" => Condition::Rip(*a),
                "rip-where" => where_row(*a, *b, filters)?,
                "before" => Condition::Before(*a),
                "read" => Condition::Read {
                    paddr: *a,
                    length: (*b).clamp(1, 1 << 30),
                },
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

fn where_row(address: u64, filter: u64, filters: &[FilterRow]) -> PyResult<Condition> {
    let row = usize::try_from(filter).ok().and_then(|n| filters.get(n));
    let (vcpu, code) =
        row.ok_or_else(|| NativeError::new_err(format!("there is no filter {filter}")))?;
    let expressions: Result<Vec<Expression>, _> = code.iter().map(|c| Expression::new(c)).collect();
    Ok(Condition::RipWhere {
        address,
        vcpu: usize::try_from(*vcpu).ok(),
        expressions: expressions.map_err(|e| NativeError::new_err(e.to_string()))?,
    })
}
