//! Power-on, INIT and SIPI (SDM vol. 3A, section 9.1 and table 9-1).

use super::control::{DR6_FIXED, DR7_FIXED};
use super::msr::{BIOS_SIGN_ID_VALUE, MISC_ENABLE_RESET};
use super::semantics::Semantics;
use super::state::{gpr, sreg, Activity, CpuState, Cr0, Msrs, Segment, TableRegister, XsaveArea};

/// A segment of real-address mode: 64 KiB, present, read/write, accessed.
const fn real_segment(selector: u16, base: u64) -> Segment {
    Segment {
        base,
        limit: 0xffff,
        selector,
        attr: 0x93,
    }
}

const TABLE: TableRegister = TableRegister {
    base: 0,
    limit: 0xffff,
    _pad: [0; 3],
};

/// PAT0–PAT7 at power-on: WB, WT, UC-, UC, twice.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

impl CpuState {
    /// The state after power-on or RESET. vCPU 0 is the bootstrap processor and starts at
    /// FFFFFFF0H; the others wait for a SIPI. EDX holds family 6, as processors show it there.
    pub fn reset(id: u8) -> Self {
        let mut seg = [real_segment(0, 0); 6];
        seg[sreg::CS] = real_segment(0xf000, 0xffff_0000);
        let mut registers = [0; 16];
        registers[gpr::RDX] = 0x600;
        let mut dr = [0; 8];
        dr[6] = DR6_FIXED;
        dr[7] = DR7_FIXED;
        Self {
            gpr: registers,
            rip: 0xfff0,
            rflags: 2,
            seg,
            ldtr: Segment {
                base: 0,
                limit: 0xffff,
                selector: 0,
                attr: 0x82,
            },
            tr: Segment {
                base: 0,
                limit: 0xffff,
                selector: 0,
                attr: 0x8b,
            },
            gdtr: TABLE,
            idtr: TABLE,
            cr0: (Cr0::CD | Cr0::NW | Cr0::ET).bits(),
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            dr,
            msr: Msrs {
                pat: PAT_RESET,
                misc_enable: MISC_ENABLE_RESET,
                bios_sign_id: BIOS_SIGN_ID_VALUE,
                ..Msrs::default()
            },
            fpu: power_on_fpu(),
            cpl: 0,
            shadow: 0,
            activity: if id == 0 {
                Activity::Active
            } else {
                Activity::WaitForSipi
            },
            nmi_pending: 0,
            nmi_blocked: 0,
            id,
            semantics: Semantics::CURRENT,
            _pad: [0; 57],
        }
    }

    /// INIT: as after RESET, but CR0.CD and CR0.NW, the x87, SSE and AVX state, XCR0 and the MSRs
    /// stay what they were. Only vCPU 0 goes on running; the others wait for a SIPI.
    pub fn init(&mut self) {
        let kept = Cr0::CD | Cr0::NW;
        let cr0 = (self.cr0 & kept.bits()) | Cr0::ET.bits();
        *self = Self {
            cr0,
            xcr0: self.xcr0,
            msr: self.msr,
            fpu: self.fpu,
            semantics: self.semantics,
            ..Self::reset(self.id)
        };
    }

    /// A start-up IPI: real-address mode at `vector` << 12. Ignored unless the vCPU waits for it.
    pub fn startup(&mut self, vector: u8) {
        if self.activity != Activity::WaitForSipi {
            return;
        }
        self.seg[sreg::CS] = real_segment(u16::from(vector) << 8, u64::from(vector) << 12);
        self.rip = 0;
        self.activity = Activity::Active;
    }
}

/// The x87 unit after power-on: FCW = 0040H and all tags empty; MXCSR = 1F80H.
fn power_on_fpu() -> XsaveArea {
    let mut area = XsaveArea::default();
    area.0[0..2].copy_from_slice(&0x40u16.to_le_bytes());
    area
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_starts_the_bootstrap_processor_at_the_reset_vector() {
        let cpu = CpuState::reset(0);
        assert_eq!(cpu.seg[sreg::CS].base + cpu.rip, 0xffff_fff0);
        assert_eq!(cpu.cr0, 0x6000_0010);
        assert_eq!(cpu.activity, Activity::Active);
        assert_eq!(CpuState::reset(1).activity, Activity::WaitForSipi);
    }

    #[test]
    fn init_keeps_msrs_and_fpu_but_not_modes() {
        let mut cpu = CpuState::reset(2);
        cpu.cr0 = 0x8005_0033;
        cpu.efer = 0xd01;
        cpu.msr.tsc_aux = 7;
        cpu.fpu.0[100] = 9;
        cpu.cpl = 3;
        cpu.init();
        assert_eq!((cpu.cr0, cpu.efer, cpu.cpl), (0x10, 0, 0));
        assert_eq!((cpu.msr.tsc_aux, cpu.fpu.0[100], cpu.id), (7, 9, 2));
        assert_eq!(cpu.activity, Activity::WaitForSipi);
    }

    #[test]
    fn a_sipi_starts_a_waiting_processor_only() {
        let mut cpu = CpuState::reset(1);
        cpu.startup(0x9a);
        assert_eq!(
            (cpu.seg[sreg::CS].selector, cpu.seg[sreg::CS].base),
            (0x9a00, 0x9a000)
        );
        assert_eq!((cpu.rip, cpu.activity), (0, Activity::Active));
        cpu.startup(0x10);
        assert_eq!(cpu.seg[sreg::CS].base, 0x9a000);
    }
}
