//! The opcode sweep: every prefix, map, opcode and ModRM in every mode, against what the CPU model offers.
//!
//! An encoding executes, or raises what the SDM says, #UD where the model does not have it; it never raises a
//! signal on the host. In 64-bit user code the host's CPU is asked too, where it has the instruction.

pub mod host;
pub mod machine;
pub mod table;

use std::fmt;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;

use machine::{Machine, Outcome};
use table::Expected;

/// The state of a processor in which encodings are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Long3,
    Long0,
    /// 32-bit code of long mode, and of protected mode.
    Compatible3,
    Protected3,
    Protected0,
    /// 16-bit code of protected mode.
    Small3,
    Small0,
    Real,
    Virtual8086,
}

impl Mode {
    pub const ALL: [Self; 9] = [
        Self::Long3,
        Self::Long0,
        Self::Compatible3,
        Self::Protected3,
        Self::Protected0,
        Self::Small3,
        Self::Small0,
        Self::Real,
        Self::Virtual8086,
    ];

    /// The mode of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|mode| format!("{mode:?}").eq_ignore_ascii_case(name))
    }

    /// Code size: 16, 32 or 64.
    pub fn bits(self) -> u32 {
        match self {
            Self::Long3 | Self::Long0 => 64,
            Self::Compatible3 | Self::Protected3 | Self::Protected0 => 32,
            Self::Small3 | Self::Small0 | Self::Real | Self::Virtual8086 => 16,
        }
    }

    /// Privilege level.
    pub fn user(self) -> bool {
        matches!(
            self,
            Self::Long3 | Self::Compatible3 | Self::Protected3 | Self::Small3 | Self::Virtual8086
        )
    }
}

/// What opcodes are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    One,
    Two,
    /// 0F 38 and 0F 3A.
    Three38,
    Three3a,
    /// The suffix of 0F 0F, which stands behind the operands.
    Now,
    /// C5, and C4 with maps 1 to 3.
    Vex2,
    Vex(u8),
    /// 62, with maps 1 to 6.
    Evex(u8),
    /// 8F, with maps 8 to 10.
    Xop(u8),
}

impl Map {
    pub fn all() -> Vec<Self> {
        let mut all = vec![
            Self::One,
            Self::Two,
            Self::Three38,
            Self::Three3a,
            Self::Now,
            Self::Vex2,
        ];
        all.extend((1..=3).map(Self::Vex));
        all.extend((1..=6).map(Self::Evex));
        all.extend((8..=10).map(Self::Xop));
        all
    }

    /// How many times as rarely its encodings are tried: those of the model's that it has none of.
    fn thinned(self) -> usize {
        match self {
            Self::Vex2 | Self::Vex(_) | Self::Evex(_) | Self::Xop(_) => 61,
            _ => 1,
        }
    }

    /// The bytes that lead to the opcode, in each variant that the map has (vector length, W, implied prefix).
    fn leads(self) -> Vec<Vec<u8>> {
        let fields = |make: &dyn Fn(u8) -> Vec<u8>| {
            // W, L and pp; vvvv is 1111.
            [0x00, 0x01, 0x02, 0x03, 0x04, 0x80, 0x85]
                .into_iter()
                .map(|wlpp| make(wlpp | 0x78))
                .collect()
        };
        match self {
            Self::One => vec![vec![]],
            Self::Two => vec![vec![0x0f]],
            Self::Three38 => vec![vec![0x0f, 0x38]],
            Self::Three3a => vec![vec![0x0f, 0x3a]],
            Self::Now => vec![vec![0x0f, 0x0f]],
            Self::Vex2 => (0..8).map(|low| vec![0xc5, 0xf8 | low]).collect(),
            Self::Vex(map) => fields(&|low| vec![0xc4, 0xe0 | map, low]),
            Self::Evex(map) => fields(&|low| vec![0x62, 0xf0 | map, low | 4, 0x08]),
            Self::Xop(map) => fields(&|low| vec![0x8f, 0xe0 | map, low]),
        }
    }
}

/// Prefixes, in front of any encoding. REX prefixes are none outside of 64-bit code.
pub const PREFIXES: [&[u8]; 20] = [
    &[],
    &[0x66],
    &[0xf2],
    &[0xf3],
    &[0x66, 0xf2],
    &[0x66, 0xf3],
    &[0xf3, 0x66],
    &[0xf2, 0xf3],
    &[0xf3, 0xf2],
    &[0xf0],
    &[0xf0, 0x66],
    &[0xf0, 0xf2],
    &[0xf0, 0xf3],
    &[0x67],
    &[0x48],
    &[0x66, 0x48],
    &[0xf2, 0x48],
    &[0xf3, 0x48],
    &[0xf0, 0x48],
    &[0x4f],
];

/// A part of the sweep. Those of one mode and map run in a process of their own.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub mode: Mode,
    pub map: Map,
    pub prefix: &'static [u8],
}

impl Part {
    /// All parts of a mode and map, in a fixed order.
    fn of(mode: Mode, map: Map) -> impl Iterator<Item = Self> {
        PREFIXES
            .into_iter()
            .filter(move |prefix| {
                let rex = prefix.iter().any(|byte| byte & 0xf0 == 0x40);
                mode.bits() == 64 || !rex
            })
            .map(move |prefix| Self { mode, map, prefix })
    }

    /// The encodings of this part, each followed by zeros; of every `stride` ones, one.
    pub fn encodings(&self, stride: usize, seed: u64) -> impl Iterator<Item = [u8; 15]> + '_ {
        let stride = stride.max(1) * self.map.thinned();
        let mut count = seed as usize % stride;
        let leads = self.map.leads();
        leads.into_iter().flat_map(move |lead| {
            let mut chosen = Vec::new();
            for opcode in 0..=255u8 {
                for modrm in 0..=255u8 {
                    count += 1;
                    if count % stride != 0 {
                        continue;
                    }
                    let mut bytes = [0; 15];
                    let mut at = 0;
                    let mut put = |part: &[u8]| {
                        bytes[at..at + part.len()].copy_from_slice(part);
                        at += part.len();
                    };
                    put(self.prefix);
                    put(&lead);
                    if self.map == Map::Now {
                        put(&[modrm]);
                        put(&[0; 5][..now_tail(self.mode.bits(), modrm)]);
                        put(&[opcode]);
                    } else {
                        put(&[opcode, modrm]);
                    }
                    chosen.push(bytes);
                }
            }
            chosen
        })
    }
}

/// Bytes between the ModRM of a 3DNow! instruction and its suffix; the SIB byte is 0.
fn now_tail(bits: u32, modrm: u8) -> usize {
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let wide = if bits == 16 { 2 } else { 4 };
    let sib = usize::from(bits != 16 && mode != 3 && rm == 4);
    let bare = if bits == 16 { 6 } else { 5 };
    sib + match mode {
        0 if rm == bare => wide,
        1 => 1,
        2 => wide,
        _ => 0,
    }
}

/// What came of a sweep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub cases: u64,
    /// Encodings that raised #UD, that raised something else, and that did not fault at once.
    pub undefined: u64,
    pub faulted: u64,
    pub executed: u64,
    /// Signals on the host, and processes that died.
    pub signals: u64,
    /// Encodings that did something else than they should; the signals among them.
    pub findings: u64,
    /// The first few, as text.
    pub shown: Vec<String>,
}

const SHOWN: usize = 40;

impl Summary {
    fn find(&mut self, text: String) {
        self.findings += 1;
        if self.shown.len() < SHOWN {
            self.shown.push(text);
        }
    }

    fn add(&mut self, other: Self) {
        self.cases += other.cases;
        self.undefined += other.undefined;
        self.faulted += other.faulted;
        self.executed += other.executed;
        self.signals += other.signals;
        self.findings += other.findings;
        let room = SHOWN.saturating_sub(self.shown.len());
        self.shown.extend(other.shown.into_iter().take(room));
    }

    fn numbers(&self) -> [u64; 6] {
        [
            self.cases,
            self.undefined,
            self.faulted,
            self.executed,
            self.signals,
            self.findings,
        ]
    }

    fn to_text(&self) -> String {
        let numbers = self.numbers().map(|n| n.to_string()).join(" ");
        let lines = std::iter::once(numbers).chain(self.shown.iter().cloned());
        lines.collect::<Vec<_>>().join("\n")
    }

    fn from_text(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let numbers: Vec<u64> = lines
            .next()?
            .split(' ')
            .map(|n| n.parse().ok())
            .collect::<Option<_>>()?;
        let [cases, undefined, faulted, executed, signals, findings] = numbers[..] else {
            return None;
        };
        Some(Self {
            cases,
            undefined,
            faulted,
            executed,
            signals,
            findings,
            shown: lines.map(String::from).collect(),
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} encodings: {} #UD, {} other faults, {} executed; {} host signals, {} findings",
            self.cases, self.undefined, self.faulted, self.executed, self.signals, self.findings
        )?;
        self.shown
            .iter()
            .try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// Bytes as people write them.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Tries one part in this process.
pub fn try_part(
    machine: &mut Machine,
    part: Part,
    stride: usize,
    seed: u64,
    note: &mut dyn FnMut(&[u8; 15]),
) -> Summary {
    let mut summary = Summary::default();
    for bytes in part.encodings(stride, seed) {
        note(&bytes);
        summary.cases += 1;
        let expected = table::expected(&bytes, part.mode);
        let outcome = machine.run(&bytes, table::length(&bytes, part.mode));
        let at = || format!("{:?}: {}", part.mode, table::describe(&bytes, part.mode));
        match outcome {
            Outcome::Fault {
                vector: 6,
                here: true,
            } => {
                summary.undefined += 1;
                if expected == Expected::Defined {
                    summary.find(format!("{} raises #UD", at()));
                }
            }
            Outcome::Fault { vector, here } => {
                if here {
                    summary.faulted += 1;
                } else {
                    summary.executed += 1;
                }
                if expected == Expected::Undefined {
                    summary.find(format!("{} raises {vector} and not #UD", at()));
                }
            }
            Outcome::Ended | Outcome::RanOn | Outcome::Shutdown => {
                summary.executed += 1;
                if expected == Expected::Undefined {
                    summary.find(format!("{} executes ({outcome:?})", at()));
                }
            }
            Outcome::HostFault(text) => {
                summary.signals += 1;
                summary.find(format!("{}: {text}", at()));
                // Nothing runs on a machine that failed.
                *machine = Machine::new(part.mode);
            }
        }
    }
    summary
}

/// Runs `work` in a process of its own. `work` gets a place to say what it is about to do, which is told if the
/// process dies.
pub fn apart(work: impl FnOnce(&mut dyn FnMut(&[u8; 15])) -> Summary) -> Summary {
    let mut ends = [0; 2];
    // SAFETY: the array holds two descriptors; the mapping is anonymous, and shared with the child alone.
    let (child, noted) = unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0, "a pipe");
        let noted = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(noted, libc::MAP_FAILED, "a page of memory");
        (libc::fork(), noted.cast::<[u8; 15]>())
    };
    assert!(child >= 0, "a process");
    if child == 0 {
        // SAFETY: the mapping has room for the bytes, and nothing else writes to it.
        let summary = work(&mut |bytes| unsafe { noted.write_volatile(*bytes) });
        // SAFETY: the descriptor is this process's own, and it ends here without running anything of its parent's.
        unsafe {
            let mut pipe = std::fs::File::from_raw_fd(ends[1]);
            let written = pipe.write_all(summary.to_text().as_bytes());
            libc::_exit(i32::from(written.is_err()));
        }
    }
    let mut text = String::new();
    // SAFETY: both descriptors belong to this process; the child is waited for once.
    let (status, last) = unsafe {
        libc::close(ends[1]);
        let _ = std::fs::File::from_raw_fd(ends[0]).read_to_string(&mut text);
        let mut status = 0;
        libc::waitpid(child, &raw mut status, 0);
        let last = noted.read_volatile();
        libc::munmap(noted.cast(), 4096);
        (status, last)
    };
    match Summary::from_text(&text) {
        Some(summary) if status == 0 => summary,
        _ => {
            let mut summary = Summary {
                signals: 1,
                ..Summary::default()
            };
            summary.find(format!(
                "the process died with status {status:#x} at {}",
                hex(&last)
            ));
            summary
        }
    }
}

/// How the encodings of a sweep are chosen.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of so many encodings one is tried.
    pub stride: usize,
    pub seed: u64,
    /// The host's CPU is asked too.
    pub host: bool,
    pub modes: Vec<Mode>,
}

/// Sweeps over everything, each mode and map in a process of its own.
pub fn sweep(options: Options, progress: &mut dyn FnMut(&str)) -> Summary {
    let Options {
        stride,
        seed,
        host,
        modes,
    } = options;
    let mut all = Summary::default();
    let groups = modes
        .into_iter()
        .flat_map(|mode| Map::all().into_iter().map(move |map| (mode, map)));
    for (number, (mode, map)) in groups.enumerate() {
        // Each part begins at another place of its stride.
        let parts = || {
            let seeds = seed.wrapping_add(31 * number as u64)..;
            Part::of(mode, map).zip(seeds)
        };
        let summary = apart(|note| {
            let mut machine = Machine::new(mode);
            let mut summary = Summary::default();
            for (part, seed) in parts() {
                summary.add(try_part(&mut machine, part, stride, seed, note));
            }
            summary
        });
        progress(&format!("{mode:?} {map:?}: {summary}"));
        all.add(summary);
        if host && mode == Mode::Long3 {
            let summary = apart(|note| {
                let mut sides = host::Sides::default();
                let mut summary = Summary::default();
                for (part, seed) in parts() {
                    summary.add(sides.compare(part, stride, seed, note));
                }
                summary
            });
            progress(&format!("{map:?} against the host: {summary}"));
            all.add(summary);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_dies_is_a_finding_that_names_the_encoding() {
        let summary = apart(|note| {
            note(&[0x0f; 15]);
            // SAFETY: ends this process.
            unsafe { libc::abort() }
        });
        assert_eq!((summary.signals, summary.findings), (1, 1));
        assert!(summary.shown[0].contains("0f 0f 0f"), "{summary}");
    }

    #[test]
    fn a_summary_survives_its_way_between_processes() {
        let mut summary = Summary {
            cases: 3,
            ..Summary::default()
        };
        summary.find("something".into());
        assert_eq!(apart(|_| summary.clone()), summary);
    }
}
