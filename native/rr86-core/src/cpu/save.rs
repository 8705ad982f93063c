//! The canonical byte form of a vCPU, for digests and checkpoints.
//!
//! All fields in order of declaration, little-endian, without padding. One function lists the
//! fields, and both directions use it, so that they cannot disagree; a destructuring without `..`
//! makes the compiler refuse a field that is not listed.

use thiserror::Error;

use super::semantics::Semantics;
use super::state::{Activity, CpuState, Msrs, Segment, TableRegister, XsaveArea};

/// Bytes that are not a saved vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RestoreError {
    #[error("a saved vCPU has {expected} bytes, not {found}")]
    Length { expected: usize, found: usize },
    #[error("a saved vCPU cannot be in activity state {0}")]
    Activity(u8),
    #[error("a saved vCPU cannot have privilege level {0}")]
    Privilege(u8),
}

/// Visits every field.
trait Visitor {
    fn u64(&mut self, value: &mut u64);
    fn u32(&mut self, value: &mut u32);
    fn u16(&mut self, value: &mut u16);
    fn u8(&mut self, value: &mut u8);
    fn bytes(&mut self, value: &mut [u8]);
}

fn visit_segment(segment: &mut Segment, v: &mut dyn Visitor) {
    let Segment {
        base,
        limit,
        selector,
        attr,
    } = segment;
    v.u64(base);
    v.u32(limit);
    v.u16(selector);
    v.u16(attr);
}

fn visit_table(table: &mut TableRegister, v: &mut dyn Visitor) {
    let TableRegister {
        base,
        limit,
        _pad: _,
    } = table;
    v.u64(base);
    v.u16(limit);
}

fn visit_msrs(msrs: &mut Msrs, v: &mut dyn Visitor) {
    let Msrs {
        star,
        lstar,
        cstar,
        sfmask,
        kernel_gs_base,
        sysenter_cs,
        sysenter_esp,
        sysenter_eip,
        pat,
        tsc_aux,
        tsc_adjust,
        misc_enable,
        spec_ctrl,
        mtrr_def_type,
        mtrr_fixed,
        mtrr_phys,
        xss,
        mcg_status,
        mcg_ctl,
        feature_control,
        bios_sign_id,
        debugctl,
    } = msrs;
    let head = [
        star,
        lstar,
        cstar,
        sfmask,
        kernel_gs_base,
        sysenter_cs,
        sysenter_esp,
        sysenter_eip,
        pat,
        tsc_aux,
        tsc_adjust,
        misc_enable,
        spec_ctrl,
        mtrr_def_type,
    ];
    let tail = [
        xss,
        mcg_status,
        mcg_ctl,
        feature_control,
        bios_sign_id,
        debugctl,
    ];
    for value in head
        .into_iter()
        .chain(mtrr_fixed)
        .chain(mtrr_phys)
        .chain(tail)
    {
        v.u64(value);
    }
}

/// Visits everything but the activity state, which is an enum and comes back as a number.
fn visit(cpu: &mut CpuState, activity: &mut u8, v: &mut dyn Visitor) {
    let CpuState {
        gpr,
        rip,
        rflags,
        seg,
        ldtr,
        tr,
        gdtr,
        idtr,
        cr0,
        cr2,
        cr3,
        cr4,
        efer,
        xcr0,
        dr,
        msr,
        fpu: XsaveArea(fpu),
        cpl,
        shadow,
        activity: _,
        nmi_pending,
        nmi_blocked,
        id,
        semantics: _,
        _pad: _,
    } = cpu;
    for value in gpr.iter_mut().chain([rip, rflags]) {
        v.u64(value);
    }
    for segment in seg.iter_mut().chain([ldtr, tr]) {
        visit_segment(segment, v);
    }
    visit_table(gdtr, v);
    visit_table(idtr, v);
    for value in [cr0, cr2, cr3, cr4, efer, xcr0].into_iter().chain(dr) {
        v.u64(value);
    }
    visit_msrs(msr, v);
    v.bytes(fpu);
    for value in [cpl, shadow, activity, nmi_pending, nmi_blocked, id] {
        v.u8(value);
    }
}

struct Writer(Vec<u8>);

impl Visitor for Writer {
    fn u64(&mut self, value: &mut u64) {
        self.0.extend(value.to_le_bytes());
    }
    fn u32(&mut self, value: &mut u32) {
        self.0.extend(value.to_le_bytes());
    }
    fn u16(&mut self, value: &mut u16) {
        self.0.extend(value.to_le_bytes());
    }
    fn u8(&mut self, value: &mut u8) {
        self.0.push(*value);
    }
    fn bytes(&mut self, value: &mut [u8]) {
        self.0.extend_from_slice(value);
    }
}

/// Reads as many bytes as are left; the length has been checked before.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.bytes(&mut bytes);
        bytes
    }
}

impl Visitor for Reader<'_> {
    fn u64(&mut self, value: &mut u64) {
        *value = u64::from_le_bytes(self.take());
    }
    fn u32(&mut self, value: &mut u32) {
        *value = u32::from_le_bytes(self.take());
    }
    fn u16(&mut self, value: &mut u16) {
        *value = u16::from_le_bytes(self.take());
    }
    fn u8(&mut self, value: &mut u8) {
        [*value] = self.take();
    }
    fn bytes(&mut self, value: &mut [u8]) {
        let count = value.len().min(self.0.len());
        let (head, rest) = self.0.split_at(count);
        value[..count].copy_from_slice(head);
        self.0 = rest;
    }
}

/// The canonical bytes of a vCPU. Two states are equal if and only if their bytes are.
pub fn save(cpu: &CpuState) -> Vec<u8> {
    let mut copy = cpu.clone();
    let mut activity = cpu.activity as u8;
    let mut writer = Writer(Vec::with_capacity(2048));
    visit(&mut copy, &mut activity, &mut writer);
    writer.0
}

/// The vCPU whose canonical bytes these are, on a machine of this version.
pub fn restore(bytes: &[u8], semantics: Semantics) -> Result<CpuState, RestoreError> {
    let mut cpu = CpuState::reset(0);
    cpu.semantics = semantics;
    let expected = save(&cpu).len();
    if bytes.len() != expected {
        return Err(RestoreError::Length {
            expected,
            found: bytes.len(),
        });
    }
    let mut activity = 0;
    visit(&mut cpu, &mut activity, &mut Reader(bytes));
    cpu.activity = Activity::from_number(activity).ok_or(RestoreError::Activity(activity))?;
    if cpu.cpl > 3 {
        return Err(RestoreError::Privilege(cpu.cpl));
    }
    Ok(cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers every byte, so that a swapped or forgotten field shows.
    struct Numberer(u8);
    impl Visitor for Numberer {
        fn u64(&mut self, value: &mut u64) {
            self.0 = self.0.wrapping_add(1);
            *value = u64::from(self.0) << 32 | 0x8000_0000_0000_0001;
        }
        fn u32(&mut self, value: &mut u32) {
            self.0 = self.0.wrapping_add(1);
            *value = u32::from(self.0) << 16 | 1;
        }
        fn u16(&mut self, value: &mut u16) {
            self.0 = self.0.wrapping_add(1);
            *value = u16::from(self.0) << 8 | 1;
        }
        fn u8(&mut self, value: &mut u8) {
            *value = 2;
        }
        fn bytes(&mut self, value: &mut [u8]) {
            value.fill(0xa5);
        }
    }

    #[test]
    fn a_saved_state_comes_back_equal() {
        let mut cpu = CpuState::reset(5);
        visit(&mut cpu, &mut 0, &mut Numberer(0));
        cpu.activity = Activity::Halted;
        cpu.semantics = Semantics::FIRST;
        let bytes = save(&cpu);
        assert_eq!(restore(&bytes, Semantics::FIRST), Ok(cpu.clone()));
        assert_eq!(&bytes[..8], &cpu.gpr[0].to_le_bytes());
    }

    #[test]
    fn foreign_bytes_are_refused() {
        let mut bytes = save(&CpuState::reset(0));
        assert!(matches!(
            restore(&bytes[1..], Semantics::CURRENT),
            Err(RestoreError::Length { .. })
        ));
        let activity = bytes.len() - 4;
        bytes[activity] = 4;
        let restored = |bytes: &[u8]| restore(bytes, Semantics::CURRENT);
        assert_eq!(restored(&bytes), Err(RestoreError::Activity(4)));
        bytes[activity] = 0;
        bytes[activity - 2] = 9;
        assert_eq!(restored(&bytes), Err(RestoreError::Privilege(9)));
    }
}
