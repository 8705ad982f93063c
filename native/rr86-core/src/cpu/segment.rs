//! Segment descriptors: reading them from the GDT and LDT, loading segment registers, LDTR and TR,
//! and the instructions that only look at them (SDM vol. 3A, chapters 3 and 5).

use super::effects::{self, Effects};
use super::exception::Exception;
use super::memory::{LinearMemory, Privilege};
use super::paging::is_canonical;
use super::state::{sreg, CpuState, Cr4, Segment, TableRegister};

/// Types of system descriptors (SDM vol. 3A, table 3-2).
pub mod system_type {
    pub const TSS16_AVAILABLE: u16 = 1;
    pub const LDT: u16 = 2;
    pub const TSS16_BUSY: u16 = 3;
    pub const CALL_GATE16: u16 = 4;
    pub const TASK_GATE: u16 = 5;
    pub const INTERRUPT_GATE16: u16 = 6;
    pub const TRAP_GATE16: u16 = 7;
    pub const TSS_AVAILABLE: u16 = 9;
    pub const TSS_BUSY: u16 = 11;
    pub const CALL_GATE: u16 = 12;
    pub const INTERRUPT_GATE: u16 = 14;
    pub const TRAP_GATE: u16 = 15;
}

/// The part of a selector that goes into an error code: index and TI.
pub const fn selector_code(selector: u16) -> u32 {
    (selector & !3) as u32
}

/// Whether the selector is one of the four null selectors.
pub const fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// An 8-byte descriptor as it stands in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub raw: u64,
    /// Linear address, for updates of the accessed and busy bits.
    pub address: u64,
}

impl Descriptor {
    /// Bits 40–55 without the limit nibble, as in [`Segment::attr`].
    pub const fn attr(&self) -> u16 {
        ((self.raw >> 40) & 0xf0ff) as u16
    }
    /// Base, bits 31–0.
    pub const fn base(&self) -> u64 {
        ((self.raw >> 16) & 0xff_ffff) | ((self.raw >> 32) & 0xff00_0000)
    }
    /// Limit in bytes, scaled by G.
    pub const fn limit(&self) -> u32 {
        let limit = ((self.raw & 0xffff) | ((self.raw >> 32) & 0xf_0000)) as u32;
        if self.attr() & Segment::G != 0 {
            (limit << 12) | 0xfff
        } else {
            limit
        }
    }
    pub const fn kind(&self) -> u16 {
        self.attr() & Segment::TYPE_MASK
    }
    pub const fn dpl(&self) -> u8 {
        ((self.raw >> 45) & 3) as u8
    }
    pub const fn present(&self) -> bool {
        self.attr() & Segment::P != 0
    }
    /// A system descriptor (S clear): TSS, LDT or gate.
    pub const fn is_system(&self) -> bool {
        self.attr() & Segment::S == 0
    }
    pub const fn is_code(&self) -> bool {
        self.attr() & (Segment::S | 8) == Segment::S | 8
    }
    pub const fn is_conforming(&self) -> bool {
        self.attr() & (Segment::S | 0xc) == Segment::S | 0xc
    }
    pub const fn is_writable_data(&self) -> bool {
        self.attr() & (Segment::S | 0xa) == Segment::S | 2
    }
    /// A data segment, or code with R set.
    pub const fn is_readable(&self) -> bool {
        self.attr() & Segment::S != 0 && (self.attr() & 8 == 0 || self.attr() & 2 != 0)
    }
    pub const fn long(&self) -> bool {
        self.attr() & Segment::L != 0
    }
    pub const fn big(&self) -> bool {
        self.attr() & Segment::DB != 0
    }
    /// The register contents that loading this code or data descriptor gives.
    pub const fn segment(&self, selector: u16) -> Segment {
        Segment {
            base: self.base(),
            limit: self.limit(),
            selector,
            attr: self.attr() | if self.is_system() { 0 } else { 1 },
        }
    }
    /// Target selector of a gate.
    pub const fn gate_selector(&self) -> u16 {
        (self.raw >> 16) as u16
    }
    /// Target offset of a gate, bits 31–0.
    pub const fn gate_offset(&self) -> u64 {
        (self.raw & 0xffff) | ((self.raw >> 32) & 0xffff_0000)
    }
}

/// A null segment register: unusable in every mode but 64-bit mode.
pub const fn null_segment(selector: u16) -> Segment {
    Segment {
        base: 0,
        limit: 0,
        selector,
        attr: 0,
    }
}

/// SS after a null selector has been loaded in 64-bit mode; its DPL follows CPL.
pub const fn null_stack_segment(selector: u16, cpl: u8) -> Segment {
    Segment {
        base: 0,
        limit: 0,
        selector,
        attr: (cpl as u16) << 5,
    }
}

/// Cuts a linear address to the width that the mode has.
pub const fn linear_address(cpu: &CpuState, address: u64) -> u64 {
    if cpu.long_mode() {
        address
    } else {
        address & 0xffff_ffff
    }
}

/// The address of `bytes` bytes of a descriptor, or None beyond the table's limit or without LDT.
fn descriptor_address(cpu: &CpuState, selector: u16, bytes: u64) -> Option<u64> {
    let offset = u64::from(selector & !7);
    let (base, limit) = if selector & 4 != 0 {
        if !cpu.ldtr.present() {
            return None;
        }
        (cpu.ldtr.base, u64::from(cpu.ldtr.limit))
    } else {
        (cpu.gdtr.base, u64::from(cpu.gdtr.limit))
    };
    (offset + bytes - 1 <= limit).then(|| linear_address(cpu, base.wrapping_add(offset)))
}

/// Reads the descriptor that `selector` names; None beyond the table's limit.
pub fn find_descriptor(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
) -> Result<Option<Descriptor>, Exception> {
    let Some(address) = descriptor_address(cpu, selector, 8) else {
        return Ok(None);
    };
    let raw = mem.read(cpu, address, 8, Privilege::System)?;
    Ok(Some(Descriptor { raw, address }))
}

/// Reads the descriptor that `selector` names; `outside` is raised beyond the table's limit.
pub fn read_descriptor(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
    outside: Exception,
) -> Result<Descriptor, Exception> {
    find_descriptor(cpu, mem, selector)?.ok_or(outside)
}

/// The upper half of a 16-byte descriptor (long mode: LDT, TSS, call gate); `outside` is raised
/// beyond the table's limit.
pub fn read_upper_half(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
    outside: Exception,
) -> Result<u64, Exception> {
    let address = descriptor_address(cpu, selector, 16).ok_or(outside)?;
    mem.read(cpu, address.wrapping_add(8), 8, Privilege::System)
}

/// Sets the accessed bit of a code or data descriptor in memory.
pub fn set_accessed(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    descriptor: &Descriptor,
) -> Result<(), Exception> {
    if descriptor.is_system() || descriptor.kind() & 1 != 0 {
        return Ok(());
    }
    write_type_byte(cpu, mem, descriptor, (descriptor.raw >> 40) as u8 | 1)
}

/// Replaces byte 5 (type, S, DPL, P) of a descriptor in memory.
pub fn write_type_byte(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    descriptor: &Descriptor,
    value: u8,
) -> Result<(), Exception> {
    let address = linear_address(cpu, descriptor.address.wrapping_add(5));
    mem.write(cpu, address, 1, u64::from(value), Privilege::System)
}

/// A segment register as real-address mode loads it: the base changes, the limit stays what it was
/// ("unreal mode" relies on that).
pub const fn real_mode_segment(old: &Segment, selector: u16) -> Segment {
    Segment {
        base: (selector as u64) << 4,
        limit: old.limit,
        selector,
        attr: (old.attr & (Segment::G | Segment::DB)) | 0x93,
    }
}

/// A segment register of virtual-8086 mode (SDM vol. 3B, section 21.2).
pub const fn v8086_segment(selector: u16) -> Segment {
    Segment {
        base: (selector as u64) << 4,
        limit: 0xffff,
        selector,
        attr: 0xf3,
    }
}

/// MOV, POP and LxS to ES, SS, DS, FS or GS (`reg` is an index of [`sreg`]; CS is #UD).
///
/// The caller sets `cpu.shadow` after MOV SS and POP SS (LSS has no shadow).
pub fn load_segment(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    reg: usize,
    selector: u16,
) -> Result<Effects, Exception> {
    if reg == sreg::CS || reg > sreg::GS {
        return Err(Exception::ud());
    }
    let new = check_segment(cpu, mem, reg, selector)?;
    let old = std::mem::replace(&mut cpu.seg[reg], new);
    Ok(effects::of_segment(cpu, reg, &old))
}

fn check_segment(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    reg: usize,
    selector: u16,
) -> Result<Segment, Exception> {
    if !cpu.protected() {
        return Ok(real_mode_segment(&cpu.seg[reg], selector));
    }
    if cpu.v8086() {
        return Ok(v8086_segment(selector));
    }
    if reg == sreg::SS {
        return check_stack_segment(cpu, mem, selector, cpu.cpl, cpu.code64(), Exception::gp);
    }
    if is_null(selector) {
        return Ok(null_segment(selector));
    }
    let code = selector_code(selector);
    let descriptor = read_descriptor(cpu, mem, selector, Exception::gp(code))?;
    if !descriptor.is_readable() {
        return Err(Exception::gp(code));
    }
    let rpl = (selector & 3) as u8;
    if !descriptor.is_conforming() && (rpl > descriptor.dpl() || cpu.cpl > descriptor.dpl()) {
        return Err(Exception::gp(code));
    }
    if !descriptor.present() {
        return Err(Exception::np(code));
    }
    set_accessed(cpu, mem, &descriptor)?;
    Ok(descriptor.segment(selector))
}

/// Checks a selector for SS at privilege level `cpl` and reads its segment. `allow_null` holds when the stack is
/// for 64-bit mode; even then not at CPL 3. `fault` makes #GP(code) or #TS(code).
pub fn check_stack_segment(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
    cpl: u8,
    allow_null: bool,
    fault: fn(u32) -> Exception,
) -> Result<Segment, Exception> {
    let rpl = (selector & 3) as u8;
    if is_null(selector) {
        if allow_null && cpl != 3 && rpl == cpl {
            return Ok(null_stack_segment(selector, cpl));
        }
        return Err(fault(0));
    }
    let code = selector_code(selector);
    let descriptor = read_descriptor(cpu, mem, selector, fault(code))?;
    if rpl != cpl || !descriptor.is_writable_data() || descriptor.dpl() != cpl {
        return Err(fault(code));
    }
    if !descriptor.present() {
        return Err(Exception::ss(code));
    }
    set_accessed(cpu, mem, &descriptor)?;
    Ok(descriptor.segment(selector))
}

/// #UD outside of protected mode and in virtual-8086 mode, for LLDT, LTR, SLDT, STR, LAR, LSL, VERR, VERW, ARPL.
pub fn require_protected(cpu: &CpuState) -> Result<(), Exception> {
    if !cpu.protected() || cpu.v8086() {
        return Err(Exception::ud());
    }
    Ok(())
}

/// #GP(0) unless CPL is 0 (always 0 in real mode, 3 in virtual-8086 mode).
pub fn require_ring0(cpu: &CpuState) -> Result<(), Exception> {
    if cpu.cpl != 0 {
        return Err(Exception::gp(0));
    }
    Ok(())
}

/// #GP(0) for SGDT, SIDT, SLDT, STR and SMSW at CPL > 0 with CR4.UMIP.
pub fn check_umip(cpu: &CpuState) -> Result<(), Exception> {
    if cpu.cr4 & Cr4::UMIP.bits() != 0 && cpu.cpl > 0 {
        return Err(Exception::gp(0));
    }
    Ok(())
}

/// Base of an LDT or TSS descriptor; long mode has 16-byte descriptors with 64-bit bases.
fn system_base(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
    low: &Descriptor,
) -> Result<u64, Exception> {
    if !cpu.long_mode() {
        return Ok(low.base());
    }
    let code = selector_code(selector);
    let high = read_upper_half(cpu, mem, selector, Exception::gp(code))?;
    let base = low.base() | (high << 32);
    // Bits 12:8 of the last doubleword would be type and S of a further descriptor.
    if (high >> 40) & 0x1f != 0 || !is_canonical(base) {
        return Err(Exception::gp(code));
    }
    Ok(base)
}

/// LLDT.
pub fn lldt(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
) -> Result<Effects, Exception> {
    require_protected(cpu)?;
    require_ring0(cpu)?;
    cpu.ldtr = check_ldt(cpu, mem, selector, Exception::gp, Exception::np)?;
    Ok(Effects::empty())
}

/// Checks a selector for LDTR and reads its segment. `fault` makes #GP(code) for LLDT and #TS(code)
/// for a task switch, `absent` the exception for a descriptor with P clear: #NP(code) or #TS(code).
pub fn check_ldt(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
    fault: fn(u32) -> Exception,
    absent: fn(u32) -> Exception,
) -> Result<Segment, Exception> {
    if is_null(selector) {
        return Ok(null_segment(selector));
    }
    let code = selector_code(selector);
    if selector & 4 != 0 {
        return Err(fault(code));
    }
    let descriptor = read_descriptor(cpu, mem, selector, fault(code))?;
    if !descriptor.is_system() || descriptor.kind() != system_type::LDT {
        return Err(fault(code));
    }
    if !descriptor.present() {
        return Err(absent(code));
    }
    let base = system_base(cpu, mem, selector, &descriptor)?;
    Ok(Segment {
        base,
        ..descriptor.segment(selector)
    })
}

/// LTR: the TSS must be available and becomes busy.
pub fn ltr(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
) -> Result<Effects, Exception> {
    require_protected(cpu)?;
    require_ring0(cpu)?;
    if is_null(selector) {
        return Err(Exception::gp(0));
    }
    let code = selector_code(selector);
    if selector & 4 != 0 {
        return Err(Exception::gp(code));
    }
    let descriptor = read_descriptor(cpu, mem, selector, Exception::gp(code))?;
    let available = descriptor.kind() == system_type::TSS_AVAILABLE
        || (!cpu.long_mode() && descriptor.kind() == system_type::TSS16_AVAILABLE);
    if !descriptor.is_system() || !available {
        return Err(Exception::gp(code));
    }
    if !descriptor.present() {
        return Err(Exception::np(code));
    }
    let base = system_base(cpu, mem, selector, &descriptor)?;
    write_type_byte(cpu, mem, &descriptor, (descriptor.raw >> 40) as u8 | 2)?;
    let segment = descriptor.segment(selector);
    cpu.tr = Segment {
        base,
        attr: segment.attr | 2,
        ..segment
    };
    Ok(Effects::empty())
}

/// SLDT and STR: the selector, after the checks.
pub fn store_selector(cpu: &CpuState, segment: &Segment) -> Result<u16, Exception> {
    require_protected(cpu)?;
    check_umip(cpu)?;
    Ok(segment.selector)
}

/// The value that LGDT or LIDT puts into GDTR or IDTR: `base` as read from memory (4 bytes, or 8 in 64-bit mode), and
/// `operand_size` in bytes. The caller stores it into `cpu.gdtr` or `cpu.idtr`.
pub fn load_table(
    cpu: &CpuState,
    limit: u16,
    base: u64,
    operand_size: usize,
) -> Result<TableRegister, Exception> {
    require_ring0(cpu)?;
    let base = if cpu.code64() {
        if !is_canonical(base) {
            return Err(Exception::gp(0));
        }
        base
    } else if operand_size == 2 {
        base & 0xff_ffff
    } else {
        base & 0xffff_ffff
    };
    Ok(TableRegister {
        base,
        limit,
        _pad: [0; 3],
    })
}

/// The descriptor behind LAR, LSL, VERR and VERW, if the selector may be looked at: within its table, of a
/// type in `system_types`, and with a DPL that CPL and RPL reach.
fn visible(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
    system_types: &[u16],
) -> Result<Option<Descriptor>, Exception> {
    require_protected(cpu)?;
    if is_null(selector) {
        return Ok(None);
    }
    let Some(descriptor) = find_descriptor(cpu, mem, selector)? else {
        return Ok(None);
    };
    if descriptor.is_system() && !system_types.contains(&descriptor.kind()) {
        return Ok(None);
    }
    let rpl = (selector & 3) as u8;
    if !descriptor.is_conforming() && (cpu.cpl > descriptor.dpl() || rpl > descriptor.dpl()) {
        return Ok(None);
    }
    Ok(Some(descriptor))
}

/// LAR: the access rights (00F0FF00H of the second doubleword), or None for ZF = 0.
pub fn lar(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
) -> Result<Option<u32>, Exception> {
    let types: &[u16] = if cpu.long_mode() {
        &[2, 9, 11, 12]
    } else {
        &[1, 2, 3, 4, 5, 9, 11, 12]
    };
    let found = visible(cpu, mem, selector, types)?;
    Ok(found.map(|d| (d.raw >> 32) as u32 & 0x00f0_ff00))
}

/// LSL: the scaled limit, or None for ZF = 0.
pub fn lsl(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
) -> Result<Option<u32>, Exception> {
    let types: &[u16] = if cpu.long_mode() {
        &[2, 9, 11]
    } else {
        &[1, 2, 3, 9, 11]
    };
    Ok(visible(cpu, mem, selector, types)?.map(|d| d.limit()))
}

/// VERR (`write` false) and VERW: the new ZF.
pub fn verify(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
    write: bool,
) -> Result<bool, Exception> {
    let found = visible(cpu, mem, selector, &[])?;
    Ok(found.is_some_and(|d| {
        if write {
            d.is_writable_data()
        } else {
            d.is_readable()
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn data_segments_are_checked_in_order() {
        let mut mem = Memory::with_tables();
        let mut cpu = protected(3);
        let gp = |s: u16| Err(Exception::gp(selector_code(s)));
        for (selector, result) in [
            (DATA0, gp(DATA0)),
            (DATA3, Ok(Effects::empty())),
            (CODE3, Ok(Effects::MODE_CHANGED)),
            (CONFORMING, Ok(Effects::MODE_CHANGED)),
            (0x100, gp(0x100)),
            (0x7, gp(0x4)),
            (TSS_SEL, gp(TSS_SEL)),
            (0, Ok(Effects::MODE_CHANGED)),
        ] {
            cpu.seg[sreg::ES] = cpu.seg[sreg::DS];
            assert_eq!(
                load_segment(&mut cpu, &mut mem, sreg::ES, selector),
                result,
                "{selector:#x}"
            );
        }
        assert!(!cpu.seg[sreg::ES].present());
        let mut cpu = protected(0);
        let absent = load_segment(&mut cpu, &mut mem, sreg::FS, NOT_PRESENT);
        assert_eq!(absent, Err(Exception::np(u32::from(NOT_PRESENT))));
        let absent = load_segment(&mut cpu, &mut mem, sreg::SS, NOT_PRESENT);
        assert_eq!(absent, Err(Exception::ss(u32::from(NOT_PRESENT))));
        assert_eq!(
            load_segment(&mut cpu, &mut mem, sreg::SS, 0),
            Err(Exception::gp(0))
        );
        let wrong = load_segment(&mut cpu, &mut mem, sreg::SS, DATA3);
        assert_eq!(wrong, Err(Exception::gp(selector_code(DATA3))));
    }

    #[test]
    fn loading_sets_the_accessed_bit() {
        let mut mem = Memory::with_tables();
        let mut cpu = protected(0);
        load_segment(&mut cpu, &mut mem, sreg::DS, DATA0).unwrap();
        assert_eq!(mem.take(GDT + u64::from(DATA0) + 5, 1), 0x93);
        assert_eq!(cpu.seg[sreg::DS].attr, 0xc093);
        assert_eq!(cpu.seg[sreg::DS].limit, u32::MAX);
    }

    #[test]
    fn real_and_v8086_segments_are_paragraphs() {
        let mut mem = Memory::new();
        let mut cpu = CpuState::reset(0);
        cpu.seg[sreg::DS].limit = u32::MAX;
        load_segment(&mut cpu, &mut mem, sreg::DS, 0x1234).unwrap();
        assert_eq!(
            (cpu.seg[sreg::DS].base, cpu.seg[sreg::DS].limit),
            (0x12340, u32::MAX)
        );
        let mut cpu = protected(3);
        cpu.rflags |= super::super::state::RFlags::VM.bits();
        load_segment(&mut cpu, &mut mem, sreg::SS, 0x2000).unwrap();
        assert_eq!(cpu.seg[sreg::SS], v8086_segment(0x2000));
    }

    #[test]
    fn a_null_stack_is_for_64_bit_kernels_only() {
        let mut mem = Memory::with_tables();
        map_long(&mut mem);
        let mut cpu = long(0);
        load_segment(&mut cpu, &mut mem, sreg::SS, 0).unwrap();
        assert_eq!(cpu.seg[sreg::SS], null_stack_segment(0, 0));
        let mut cpu = long(3);
        assert_eq!(
            load_segment(&mut cpu, &mut mem, sreg::SS, 3),
            Err(Exception::gp(0))
        );
    }

    #[test]
    fn ltr_makes_the_tss_busy_and_refuses_busy_ones() {
        let mut mem = Memory::with_tables();
        let mut cpu = protected(0);
        let code = u32::from(TSS_SEL);
        assert_eq!(ltr(&mut cpu, &mut mem, TSS_SEL), Err(Exception::gp(code)));
        ltr(&mut cpu, &mut mem, TSS2_SEL).unwrap();
        assert_eq!((cpu.tr.base, cpu.tr.attr), (0x4000, 0x8b));
        assert_eq!(mem.take(GDT + u64::from(TSS2_SEL) + 5, 1), 0x8b);
        assert_eq!(ltr(&mut cpu, &mut mem, 0), Err(Exception::gp(0)));
        cpu.cpl = 3;
        assert_eq!(lldt(&mut cpu, &mut mem, 0), Err(Exception::gp(0)));
        assert_eq!(
            ltr(&mut CpuState::reset(0), &mut mem, 0),
            Err(Exception::ud())
        );
    }

    #[test]
    fn long_mode_reads_sixteen_byte_descriptors() {
        let mut mem = Memory::with_tables();
        map_long(&mut mem);
        mem.descriptor(TSS2_SEL, 0xffff_8000_1234_5000, 0x67, 0x89);
        let mut cpu = long(0);
        ltr(&mut cpu, &mut mem, TSS2_SEL).unwrap();
        assert_eq!(cpu.tr.base, 0xffff_8000_1234_5000);
        mem.descriptor(TSS2_SEL, 1 << 47, 0x67, 0x89);
        let result = ltr(&mut cpu, &mut mem, TSS2_SEL);
        assert_eq!(result, Err(Exception::gp(u32::from(TSS2_SEL))));
        lldt(&mut cpu, &mut mem, LDT_SEL).unwrap();
        assert_eq!(cpu.ldtr.base, LDT);
    }

    #[test]
    fn looking_instructions_report_by_zf() {
        let mut mem = Memory::with_tables();
        let cpu = protected(3);
        assert_eq!(lar(&cpu, &mut mem, CODE3), Ok(Some(0x00c0_fa00)));
        assert_eq!(lar(&cpu, &mut mem, DATA0), Ok(None));
        assert_eq!(lsl(&cpu, &mut mem, DATA3), Ok(Some(u32::MAX)));
        assert_eq!(lsl(&protected(0), &mut mem, TSS_SEL), Ok(Some(0x67)));
        assert_eq!(verify(&cpu, &mut mem, CODE3, true), Ok(false));
        assert_eq!(verify(&cpu, &mut mem, DATA3, true), Ok(true));
        assert_eq!(verify(&cpu, &mut mem, 0, false), Ok(false));
        assert_eq!(lar(&CpuState::reset(0), &mut mem, 8), Err(Exception::ud()));
    }

    #[test]
    fn table_bases_follow_the_operand_size() {
        let cpu = protected(0);
        assert_eq!(load_table(&cpu, 7, 0xffff_ffff, 2).unwrap().base, 0xff_ffff);
        assert_eq!(
            load_table(&cpu, 7, 0xffff_ffff, 4).unwrap().base,
            0xffff_ffff
        );
        assert_eq!(load_table(&long(0), 7, 1 << 47, 8), Err(Exception::gp(0)));
        assert_eq!(load_table(&long(3), 7, 0, 8), Err(Exception::gp(0)));
    }
}
