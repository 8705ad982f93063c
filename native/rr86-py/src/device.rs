//! Devices that are written in Python (`rr86.machine.Device`), as devices of the board.
//!
//! The base class in Python keeps line, timer and transfers, and hands them over after each call; so what the board
//! asks for between two calls needs no Python. A call that raises is remembered, and asks the machine to end.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use rr86_core::machine::device::{Access, Lines, Outbox};
use rr86_core::machine::dma::DmaAccess;
use rr86_core::machine::range::{Range, Rank, Space};
use rr86_core::machine::{Device, LoadError, Reader, Signal, State, Writer};
use rr86_core::memory::PAGE_SHIFT;
use rr86_core::session::Machine;

use crate::errors::{self, NativeError};

/// Plugs an object of `rr86.machine.Device` into a machine that has not run.
pub fn plug(machine: &mut Machine, object: &Bound<'_, PyAny>) -> PyResult<()> {
    let device = PyDevice::new(object)?;
    for (base, length) in device.memory() {
        let mut pages = (base..base.saturating_add(length)).step_by(1 << PAGE_SHIFT);
        if pages.any(|paddr| machine.engine.memory.ram.page_index(paddr).is_some()) {
            let what = format!("a device cannot lie at {base:#x}: there is RAM");
            return Err(NativeError::new_err(what));
        }
    }
    machine
        .board()
        .plug(Box::new(device))
        .map_err(|e| NativeError::new_err(e.to_string()))
}

/// What a device in Python has raised since the last call, as an error that says so.
pub fn raised(py: Python<'_>, machine: &mut Machine) -> Option<PyErr> {
    let mut devices = machine.board().devices_of::<PyDevice>();
    devices.find_map(|device| device.take_failure(py))
}

/// What a device waits for, as its base class says it after each call.
#[derive(Default)]
struct Wishes {
    level: bool,
    deadline: Option<u64>,
    dma: Option<DmaAccess>,
}

/// A device written in Python.
pub struct PyDevice {
    object: Py<PyAny>,
    name: String,
    ranges: Vec<Range>,
    lines: Lines,
    wishes: Wishes,
    /// The exception that it raised first.
    failure: Mutex<Option<PyErr>>,
    /// Once it has raised, it is not called again.
    failed: bool,
}

/// Bits of `Lines` for an interrupt line: below 16 an ISA line, above that a pin of the I/O APIC.
fn line(irq: Option<u8>) -> Lines {
    match irq {
        None => Lines::default(),
        Some(line @ 0..=15) => Lines::isa(line, true),
        Some(pin) => Lines {
            pins: 1 << (pin & 31),
            ..Lines::default()
        },
    }
}

impl PyDevice {
    /// The device that an object of the base class describes.
    pub fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        type Ranges = Vec<(u64, u64)>;
        let described = object.call_method0("_describe")?;
        let (name, ports, memory, irq): (String, Ranges, Ranges, Option<u8>) =
            described.extract()?;
        let spaces = [(Space::Ports, ports), (Space::Memory, memory)];
        let all = spaces
            .into_iter()
            .flat_map(|(space, ranges)| ranges.into_iter().map(move |range| (space, range)));
        let ranges = (0..)
            .zip(all)
            .map(|(region, (space, (base, length)))| {
                Range::new(space, base, length, region).ranked(Rank::Plugged)
            })
            .collect();
        let mut device = Self {
            object: object.clone().unbind(),
            name,
            ranges,
            lines: line(irq),
            wishes: Wishes::default(),
            failure: Mutex::new(None),
            failed: false,
        };
        device.look();
        match device.take_failure(object.py()) {
            Some(error) => Err(error),
            None => Ok(device),
        }
    }

    /// The addresses of physical memory at which it answers.
    pub fn memory(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let ranges = self.ranges.iter();
        ranges
            .filter(|range| range.space == Space::Memory)
            .map(|range| (range.base, range.length))
    }

    fn fail(&self, error: PyErr) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(error);
    }

    fn take_failure(&self, py: Python<'_>) -> Option<PyErr> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure
            .take()
            .map(|error| errors::device(py, &self.name, error))
    }

    /// Asks what it waits for, as after power-on or a load.
    fn look(&mut self) {
        self.serve("look", (0, 0), number(0), 0, &mut Outbox::default());
    }

    /// Calls `_serve` of the base class. Gives the value that it answers with, ones once it has raised.
    fn serve(
        &mut self,
        what: &str,
        (address, size): (u64, usize),
        value: impl for<'py> Fn(Python<'py>) -> PyResult<Bound<'py, PyAny>>,
        now: u64,
        out: &mut Outbox,
    ) -> u64 {
        type Dma<'py> = Option<(u64, Bound<'py, PyAny>)>;
        if self.failed {
            return u64::MAX;
        }
        let served = Python::attach(|py| {
            let object = self.object.bind(py);
            let arguments = (PyString::intern(py, what), address, size, value(py)?, now);
            let answer = object.call_method1(intern!(py, "_serve"), arguments)?;
            let (value, level, deadline, dma): (u64, bool, Option<u64>, Dma<'_>) =
                answer.extract()?;
            let dma = dma
                .map(|(paddr, what)| dma_access(paddr, &what))
                .transpose()?;
            self.wishes = Wishes {
                level,
                deadline,
                dma,
            };
            Ok::<u64, PyErr>(value)
        });
        match served {
            Ok(value) => value,
            Err(error) => {
                self.fail(error);
                self.failed = true;
                self.wishes = Wishes::default();
                out.signals.push(Signal::DeviceFailed);
                u64::MAX
            }
        }
    }

    fn address(&self, at: Access) -> (&'static str, &'static str, u64) {
        let range = &self.ranges[usize::from(at.region)];
        let address = range.base.wrapping_add(at.offset);
        match range.space {
            Space::Ports => ("read_port", "write_port", address),
            Space::Memory => ("read_memory", "write_memory", address),
        }
    }
}

fn dma_access(paddr: u64, what: &Bound<'_, PyAny>) -> PyResult<DmaAccess> {
    Ok(match what.cast::<PyBytes>() {
        Ok(data) => DmaAccess::Write {
            paddr,
            data: data.as_bytes().to_vec(),
        },
        Err(_) => DmaAccess::Read {
            paddr,
            length: what.extract()?,
        },
    })
}

fn number(value: u64) -> impl for<'py> Fn(Python<'py>) -> PyResult<Bound<'py, PyAny>> {
    move |py| Ok(value.into_pyobject(py)?.into_any())
}

impl State for PyDevice {
    fn save(&self, w: &mut Writer) {
        let saved = Python::attach(|py| {
            let state = self.object.bind(py).call_method0(intern!(py, "_save"))?;
            state.extract::<Vec<u8>>()
        });
        match saved {
            Ok(bytes) => w.bytes(&bytes),
            Err(error) => {
                self.fail(error);
                w.bytes(&[]);
            }
        }
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        let bytes = r.bytes()?;
        let loaded = Python::attach(|py| {
            let state = PyBytes::new(py, &bytes);
            self.object
                .bind(py)
                .call_method1(intern!(py, "_load"), (state,))?;
            Ok::<(), PyErr>(())
        });
        if let Err(error) = loaded {
            return Err(LoadError::Refused(format!(
                "the device {:?} does not take the state that was saved: {error}",
                self.name
            )));
        }
        self.failed = false;
        self.look();
        Ok(())
    }
}

impl Device for PyDevice {
    fn name(&self) -> Cow<'static, str> {
        self.name.clone().into()
    }

    fn reset(&mut self) {
        self.serve("reset", (0, 0), number(0), 0, &mut Outbox::default());
    }

    fn ranges(&self) -> Vec<Range> {
        self.ranges.clone()
    }

    fn read(&mut self, at: Access, out: &mut Outbox) -> u64 {
        let (read, _, address) = self.address(at);
        let value = self.serve(read, (address, at.size), number(0), at.now, out);
        value & (u64::MAX >> (64 - 8 * at.size.clamp(1, 8)))
    }

    fn write(&mut self, at: Access, value: u64, out: &mut Outbox) {
        let (_, write, address) = self.address(at);
        self.serve(write, (address, at.size), number(value), at.now, out);
    }

    fn lines(&self) -> Lines {
        if self.wishes.level {
            self.lines
        } else {
            Lines::default()
        }
    }

    fn next_deadline(&self) -> Option<u64> {
        self.wishes.deadline
    }

    /// Its time is that of its deadline, so that a device sees the same however late the board asks.
    fn advance(&mut self, deadline: u64, _now: u64, out: &mut Outbox) {
        self.serve("timer", (0, 0), number(0), deadline, out);
    }

    fn wants_dma(&self) -> bool {
        self.wishes.dma.is_some()
    }

    fn dma_access(&self) -> Option<DmaAccess> {
        self.wishes.dma.clone()
    }

    fn dma_done(&mut self, bytes: Option<&[u8]>, now: u64, out: &mut Outbox) {
        let value = |py: Python<'_>| -> PyResult<Py<PyAny>> {
            Ok(match bytes {
                None => py.None(),
                Some(bytes) => PyBytes::new(py, bytes).into_any().unbind(),
            })
        };
        self.serve("dma", (0, 0), |py| Ok(value(py)?.into_bound(py)), now, out);
    }
}
