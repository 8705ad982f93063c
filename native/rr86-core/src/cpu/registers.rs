//! Registers by name, for loaders, debuggers and tools.
//!
//! Setting goes around all checks that instructions make: a loader sets hidden parts and modes directly, as
//! a debugger does. After any set, every cached translation and block mode is out of date.

use thiserror::Error;

use super::state::{Activity, CpuState, Segment};

/// A register that cannot be set as asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RegisterError {
    #[error("there is no register named {0:?}")]
    Unknown(String),
    #[error("{value:#x} does not fit register {name:?}, which has {bits} bits")]
    TooWide { name: String, value: u64, bits: u32 },
    #[error("{value:#x} is no valid value of {name:?}")]
    Invalid { name: String, value: u64 },
}

/// Names of plain 64-bit registers, in the order in which tools show them.
const PLAIN: [&str; 18] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip", "rflags",
];

const SEGMENTS: [&str; 8] = ["es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"];

const SYSTEM: [&str; 16] = [
    "cr0",
    "cr2",
    "cr3",
    "cr4",
    "efer",
    "xcr0",
    "dr0",
    "dr1",
    "dr2",
    "dr3",
    "dr6",
    "dr7",
    "lstar",
    "kernel_gs_base",
    "star",
    "sysenter_eip",
];

/// A named register as a place in the state.
enum Slot<'a> {
    U64(&'a mut u64),
    U32(&'a mut u32),
    U16(&'a mut u16),
    Cpl(&'a mut u8),
    Activity(&'a mut Activity),
}

impl Activity {
    /// The activity with this number, as tools and saved states write it.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Active),
            1 => Some(Self::Halted),
            2 => Some(Self::WaitForSipi),
            3 => Some(Self::Shutdown),
            _ => None,
        }
    }
}

fn segment_slot<'a>(cpu: &'a mut CpuState, name: &str) -> Option<Slot<'a>> {
    let (register, part) = name.split_once('_').unwrap_or((name, ""));
    let index = SEGMENTS.iter().position(|&s| s == register)?;
    let segment: &mut Segment = match index {
        6 => &mut cpu.ldtr,
        7 => &mut cpu.tr,
        _ => &mut cpu.seg[index],
    };
    match part {
        "" if name == register => Some(Slot::U16(&mut segment.selector)),
        "base" => Some(Slot::U64(&mut segment.base)),
        "limit" => Some(Slot::U32(&mut segment.limit)),
        "attr" => Some(Slot::U16(&mut segment.attr)),
        _ => None,
    }
}

fn slot<'a>(cpu: &'a mut CpuState, name: &str) -> Option<Slot<'a>> {
    if let Some(index) = PLAIN.iter().position(|&n| n == name) {
        return Some(Slot::U64(match index {
            16 => &mut cpu.rip,
            17 => &mut cpu.rflags,
            _ => &mut cpu.gpr[index],
        }));
    }
    let slot = match name {
        "gdtr_base" => Slot::U64(&mut cpu.gdtr.base),
        "gdtr_limit" => Slot::U16(&mut cpu.gdtr.limit),
        "idtr_base" => Slot::U64(&mut cpu.idtr.base),
        "idtr_limit" => Slot::U16(&mut cpu.idtr.limit),
        "cr0" => Slot::U64(&mut cpu.cr0),
        "cr2" => Slot::U64(&mut cpu.cr2),
        "cr3" => Slot::U64(&mut cpu.cr3),
        "cr4" => Slot::U64(&mut cpu.cr4),
        "efer" => Slot::U64(&mut cpu.efer),
        "xcr0" => Slot::U64(&mut cpu.xcr0),
        "dr0" => Slot::U64(&mut cpu.dr[0]),
        "dr1" => Slot::U64(&mut cpu.dr[1]),
        "dr2" => Slot::U64(&mut cpu.dr[2]),
        "dr3" => Slot::U64(&mut cpu.dr[3]),
        "dr6" => Slot::U64(&mut cpu.dr[6]),
        "dr7" => Slot::U64(&mut cpu.dr[7]),
        "lstar" => Slot::U64(&mut cpu.msr.lstar),
        "kernel_gs_base" => Slot::U64(&mut cpu.msr.kernel_gs_base),
        "star" => Slot::U64(&mut cpu.msr.star),
        "sysenter_eip" => Slot::U64(&mut cpu.msr.sysenter_eip),
        "cpl" => Slot::Cpl(&mut cpu.cpl),
        "activity" => Slot::Activity(&mut cpu.activity),
        _ => return segment_slot(cpu, name),
    };
    Some(slot)
}

/// All names, each once, in the order in which tools show them. CR8 is not among them: it belongs to the
/// local APIC.
pub fn names() -> Vec<String> {
    let mut names: Vec<String> = PLAIN.iter().map(|n| (*n).to_string()).collect();
    for segment in SEGMENTS {
        names.push(segment.to_string());
        names.extend(["base", "limit", "attr"].map(|part| format!("{segment}_{part}")));
    }
    names.extend(["gdtr_base", "gdtr_limit", "idtr_base", "idtr_limit"].map(String::from));
    names.extend(SYSTEM.map(String::from));
    names.extend(["cpl", "activity"].map(String::from));
    names
}

/// Value of the register with this name, if there is one.
pub fn get(cpu: &CpuState, name: &str) -> Option<u64> {
    // Reading goes through a copy, so that one table of places serves both directions.
    let mut copy = cpu.clone();
    read_slot(slot(&mut copy, name)?)
}

fn read_slot(slot: Slot<'_>) -> Option<u64> {
    Some(match slot {
        Slot::U64(value) => *value,
        Slot::U32(value) => u64::from(*value),
        Slot::U16(value) => u64::from(*value),
        Slot::Cpl(value) => u64::from(*value),
        Slot::Activity(value) => *value as u64,
    })
}

/// All registers with their names, in the order of [`names`].
pub fn all(cpu: &CpuState) -> Vec<(String, u64)> {
    let mut copy = cpu.clone();
    let read = |name: String| {
        let value = slot(&mut copy, &name).and_then(read_slot)?;
        Some((name, value))
    };
    names().into_iter().filter_map(read).collect()
}

/// Sets the register with this name.
pub fn set(cpu: &mut CpuState, name: &str, value: u64) -> Result<(), RegisterError> {
    let too_wide = |bits| RegisterError::TooWide {
        name: name.to_string(),
        value,
        bits,
    };
    let invalid = || RegisterError::Invalid {
        name: name.to_string(),
        value,
    };
    match slot(cpu, name).ok_or_else(|| RegisterError::Unknown(name.to_string()))? {
        Slot::U64(place) => *place = value,
        Slot::U32(place) => *place = u32::try_from(value).map_err(|_| too_wide(32))?,
        Slot::U16(place) => *place = u16::try_from(value).map_err(|_| too_wide(16))?,
        Slot::Cpl(place) => {
            if value > 3 {
                return Err(invalid());
            }
            *place = value as u8;
        }
        Slot::Activity(place) => {
            let number = u8::try_from(value).map_err(|_| invalid())?;
            *place = Activity::from_number(number).ok_or_else(invalid)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_can_be_set_and_read_back_on_its_own() {
        for name in names() {
            let mut cpu = CpuState::reset(0);
            let before = all(&cpu);
            set(&mut cpu, &name, 3).unwrap();
            for ((name_after, value), (_, old)) in all(&cpu).into_iter().zip(before) {
                assert_eq!(value, if name_after == name { 3 } else { old }, "{name}");
                assert_eq!(get(&cpu, &name_after), Some(value));
            }
        }
    }

    #[test]
    fn unknown_names_and_values_that_do_not_fit_are_refused() {
        let mut cpu = CpuState::reset(0);
        for (name, value) in [
            ("cs", 0x1_0000),
            ("ds_limit", 1 << 32),
            ("cpl", 4),
            ("activity", 9),
            ("cs_", 0),
            ("eax", 0),
        ] {
            assert!(set(&mut cpu, name, value).is_err(), "{name}");
        }
        assert_eq!(get(&cpu, "cs_"), None);
        assert_eq!(cpu, CpuState::reset(0));
    }
}
