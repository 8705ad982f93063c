//! Whether a restored state is one that a processor can be in.
//!
//! The semantics in `cpu` keep these rules and rely on them; a state from a file has to be held
//! against them before anything runs on it.

use super::fpu::MXCSR_MASK;
use super::paging::is_canonical;
use super::state::{CpuState, Cr0, Cr4, Efer, RFlags};

/// Bytes of the legacy region and of the header of an XSAVE area.
const HEADER: std::ops::Range<usize> = 512..576;

/// Checks the state of vCPU `id`; `xcr0_mask` has the features that XCR0 may enable.
///
/// # Errors
/// The name of what is wrong.
pub fn plausible(cpu: &CpuState, id: usize, xcr0_mask: u64) -> Result<(), &'static str> {
    let require = |holds: bool, what: &'static str| if holds { Ok(()) } else { Err(what) };
    require(usize::from(cpu.id) == id, "number of a vCPU")?;
    let within = |value: u64, mask: u64| value & !mask == 0;
    let (cr0, cr4, efer) = (cpu.cr0, cpu.cr4, cpu.efer);
    let on = |value: u64, bit: u64| value & bit != 0;
    require(
        within(cr0, Cr0::all().bits()) && (!on(cr0, Cr0::PG.bits()) || on(cr0, Cr0::PE.bits())),
        "CR0",
    )?;
    require(within(cr4, Cr4::all().bits()), "CR4")?;
    let long = on(efer, Efer::LMA.bits());
    require(
        within(efer, Efer::all().bits())
            && long == (on(efer, Efer::LME.bits()) && on(cr0, Cr0::PG.bits()))
            && (!long || on(cr4, Cr4::PAE.bits())),
        "EFER",
    )?;
    require(cpu.cr3 >> 52 == 0, "CR3")?;
    require(
        cpu.xcr0 & 1 != 0 && within(cpu.xcr0, xcr0_mask | 1) && cpu.xcr0 & 6 != 4,
        "XCR0",
    )?;
    let virtual_8086 = on(cpu.rflags, RFlags::VM.bits());
    require(
        within(cpu.rflags, RFlags::all().bits()) && on(cpu.rflags, RFlags::FIXED.bits()),
        "RFLAGS",
    )?;
    require(
        match (on(cr0, Cr0::PE.bits()), virtual_8086) {
            (false, virtual_8086) => cpu.cpl == 0 && !virtual_8086,
            (true, true) => cpu.cpl == 3 && !long,
            (true, false) => cpu.cpl <= 3,
        },
        "privilege level",
    )?;
    // In long mode, a jump to a non-canonical address may have been made and not faulted yet.
    require(long || cpu.rip >> 32 == 0, "rip")?;
    let bases = cpu.seg.iter().chain([&cpu.ldtr, &cpu.tr]).map(|s| s.base);
    let msr = &cpu.msr;
    let addresses = [
        cpu.gdtr.base,
        cpu.idtr.base,
        msr.lstar,
        msr.cstar,
        msr.kernel_gs_base,
        msr.sysenter_esp,
        msr.sysenter_eip,
    ];
    require(
        bases.chain(addresses).all(is_canonical),
        "address in a system register",
    )?;
    let area = &cpu.fpu.0;
    let mxcsr = u32::from_le_bytes([area[24], area[25], area[26], area[27]]);
    require(
        mxcsr & !MXCSR_MASK == 0 && area[HEADER].iter().all(|&byte| byte == 0),
        "FPU state",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_after_reset_is_plausible_and_impossible_ones_are_not() {
        let good = CpuState::reset(2);
        assert_eq!(plausible(&good, 2, 7), Ok(()));
        let wrong: [fn(&mut CpuState); 8] = [
            |cpu| cpu.id = 1,
            |cpu| cpu.cr0 |= Cr0::PG.bits(),
            |cpu| cpu.cr4 |= 1 << 40,
            |cpu| cpu.efer |= Efer::LMA.bits(),
            |cpu| cpu.cpl = 3,
            |cpu| cpu.rflags = 0,
            |cpu| cpu.msr.lstar = 1 << 60,
            |cpu| cpu.fpu.0[27] = 1,
        ];
        for (n, change) in wrong.iter().enumerate() {
            let mut cpu = good.clone();
            change(&mut cpu);
            assert!(plausible(&cpu, 2, 7).is_err(), "{n}");
        }
    }
}
