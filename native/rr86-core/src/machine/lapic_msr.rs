//! The MSR face of the local APIC: IA32_APIC_BASE, IA32_TSC_DEADLINE and the x2APIC registers
//! (Intel SDM volume 3, 11.4.3, 11.5.4.1 and 11.12).

use super::lapic::{
    Action, Lapic, BASE_BSP, BASE_ENABLE, BASE_EXTD, REG_APR, REG_DFR, REG_EOI, REG_ESR,
    REG_ICR_HIGH, REG_ICR_LOW, REG_RRD, REG_SELF_IPI,
};

/// IA32_APIC_BASE.
pub const MSR_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// The first x2APIC register.
pub const MSR_X2APIC_FIRST: u32 = 0x800;
/// The last MSR that is set aside for the x2APIC.
pub const MSR_X2APIC_LAST: u32 = 0x8ff;

/// Physical address bits that IA32_APIC_BASE accepts.
const PHYSICAL_ADDRESS_BITS: u32 = 40;

/// The access raises #GP(0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneralProtection;

impl Lapic {
    /// Reads one of the APIC's MSRs.
    pub fn read_msr(&self, msr: u32, now: u64) -> Result<u64, GeneralProtection> {
        match msr {
            MSR_APIC_BASE => Ok(self.base),
            MSR_TSC_DEADLINE => Ok(self.tsc_deadline()),
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST if self.x2apic() => {
                match msr - MSR_X2APIC_FIRST {
                    REG_ICR_LOW => Ok(self.read_icr()),
                    // Without a counterpart in x2APIC mode, or write-only.
                    REG_ICR_HIGH | REG_DFR | REG_APR | REG_RRD | REG_EOI | REG_SELF_IPI => {
                        Err(GeneralProtection)
                    }
                    register => self
                        .read_register(register, now)
                        .map(u64::from)
                        .ok_or(GeneralProtection),
                }
            }
            _ => Err(GeneralProtection),
        }
    }

    /// Writes one of the APIC's MSRs.
    pub fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        now: u64,
    ) -> Result<Action, GeneralProtection> {
        match msr {
            MSR_APIC_BASE => self.write_base(value).map(|()| Action::None),
            MSR_TSC_DEADLINE => {
                self.set_tsc_deadline(value);
                Ok(Action::None)
            }
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST if self.x2apic() => {
                let register = msr - MSR_X2APIC_FIRST;
                if register == REG_ICR_LOW {
                    return Ok(self.write_icr(value));
                }
                let low = u32::try_from(value).map_err(|_| GeneralProtection)?;
                if matches!(register, REG_EOI | REG_ESR) && low != 0 {
                    return Err(GeneralProtection);
                }
                self.write_register(register, low, now)
                    .ok_or(GeneralProtection)
            }
            _ => Err(GeneralProtection),
        }
    }

    /// IA32_APIC_BASE: the legal transitions of SDM figure 11-27. The BSP flag stays as it is.
    fn write_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let reserved = !((1 << PHYSICAL_ADDRESS_BITS) - 1) | 0x2ff;
        if value & reserved & !BASE_BSP != 0 {
            return Err(GeneralProtection);
        }
        let was = (self.enabled(), self.x2apic());
        let becomes = (value & BASE_ENABLE != 0, value & BASE_EXTD != 0);
        match (was, becomes) {
            (_, (false, true)) | ((false, _), (true, true)) | ((true, true), (true, false)) => {
                return Err(GeneralProtection)
            }
            _ => {}
        }
        self.base = value & !BASE_BSP | self.base & BASE_BSP;
        if was == becomes {
            return Ok(());
        }
        match becomes {
            (true, true) => self.enter_x2apic(),
            _ => self.reset_registers(),
        }
        Ok(())
    }
}
