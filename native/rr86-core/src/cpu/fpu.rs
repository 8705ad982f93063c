//! Saving and restoring x87, SSE and AVX state (SDM vol. 1, chapters 8, 10 and 13).
//!
//! The functions convert between `CpuState::fpu` and images in the formats of guest memory, which
//! the caller moves. FIP, FDP and FOP are zero, or what the guest itself restored: the host's last
//! instruction pointers never appear. FCS and FDS are always zero, as on processors with
//! CPUID.(7,0):EBX[13]. The header of `CpuState::fpu` stays zero: XINUSE is derived from the
//! contents, so that it cannot depend on history.

use super::exception::Exception;
use super::state::{CpuState, Cr0, Cr4, XsaveArea, XSAVE_SIZE};

/// MXCSR bits that exist (the MXCSR_MASK of every image).
pub const MXCSR_MASK: u32 = 0xffff;

/// XCR0 bits.
pub mod xcr0 {
    pub const X87: u64 = 1 << 0;
    pub const SSE: u64 = 1 << 1;
    pub const AVX: u64 = 1 << 2;
}

const FCW_INITIAL: u16 = 0x37f;
const ST: usize = 32;
const XMM: usize = 160;
const XMM_END: usize = 416;
const YMM: usize = 576;
/// Size of an FXSAVE image.
pub const FXSAVE_SIZE: usize = 512;
/// Size of the header-and-legacy part of an XSAVE area.
const HEADER: usize = 512;

/// Byte ranges of an image that an instruction writes; bytes outside keep what memory holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    ranges: [(usize, usize); 6],
    count: usize,
}

impl Ranges {
    fn add(&mut self, start: usize, end: usize) {
        self.ranges[self.count] = (start, end);
        self.count += 1;
    }

    /// The ranges as (start, end), in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.ranges[..self.count].iter().copied()
    }
}

fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from(get_u16(bytes, at)) | u32::from(get_u16(bytes, at + 2)) << 16
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from(get_u32(bytes, at)) | u64::from(get_u32(bytes, at + 4)) << 32
}

fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

/// XINUSE: the components that are not in their initial configuration. SSE counts its XMM registers
/// only, not MXCSR.
pub fn in_use(cpu: &CpuState) -> u64 {
    let area = &cpu.fpu.0;
    let x87_initial = get_u16(area, 0) == FCW_INITIAL
        && is_zero(&area[2..24])
        && (0..8).all(|n| is_zero(&area[ST + 16 * n..ST + 16 * n + 10]));
    let mut mask = 0;
    if !x87_initial {
        mask |= xcr0::X87;
    }
    if !is_zero(&area[XMM..XMM_END]) {
        mask |= xcr0::SSE;
    }
    if !is_zero(&area[YMM..XSAVE_SIZE]) {
        mask |= xcr0::AVX;
    }
    mask
}

/// #NM for x87 instructions (and FXSAVE, FXRSTOR) under CR0.EM or CR0.TS.
pub fn check_x87(cpu: &CpuState) -> Result<(), Exception> {
    if cpu.cr0 & (Cr0::EM | Cr0::TS).bits() != 0 {
        return Err(Exception::nm());
    }
    Ok(())
}

/// #NM for WAIT/FWAIT: TS counts with MP only, and EM not at all.
pub fn check_wait(cpu: &CpuState) -> Result<(), Exception> {
    let both = (Cr0::TS | Cr0::MP).bits();
    if cpu.cr0 & both == both {
        return Err(Exception::nm());
    }
    Ok(())
}

/// Whether an unmasked x87 exception is pending (FSW.ES), which the next waiting x87 instruction
/// reports: #MF with CR0.NE, the external FERR# line (IRQ 13) without.
pub fn pending_x87_error(cpu: &CpuState) -> bool {
    get_u16(&cpu.fpu.0, 2) & 0x80 != 0
}

/// #UD and #NM for legacy SSE instructions.
pub fn check_sse(cpu: &CpuState) -> Result<(), Exception> {
    if cpu.cr0 & Cr0::EM.bits() != 0 || cpu.cr4 & Cr4::OSFXSR.bits() == 0 {
        return Err(Exception::ud());
    }
    if cpu.cr0 & Cr0::TS.bits() != 0 {
        return Err(Exception::nm());
    }
    Ok(())
}

/// #UD and #NM for VEX-encoded vector instructions.
pub fn check_avx(cpu: &CpuState) -> Result<(), Exception> {
    let needed = xcr0::SSE | xcr0::AVX;
    if cpu.cr4 & Cr4::OSXSAVE.bits() == 0
        || cpu.xcr0 & needed != needed
        || !cpu.protected()
        || cpu.v8086()
    {
        return Err(Exception::ud());
    }
    if cpu.cr0 & Cr0::TS.bits() != 0 {
        return Err(Exception::nm());
    }
    Ok(())
}

/// #UD, #NM and #GP(0) for the XSAVE family; `address` is the linear address of the operand.
pub fn check_xsave(cpu: &CpuState, address: u64) -> Result<(), Exception> {
    if cpu.cr4 & Cr4::OSXSAVE.bits() == 0 {
        return Err(Exception::ud());
    }
    if cpu.cr0 & Cr0::TS.bits() != 0 {
        return Err(Exception::nm());
    }
    if address & 63 != 0 {
        return Err(Exception::gp(0));
    }
    Ok(())
}

/// #NM and #GP(0) for FXSAVE and FXRSTOR; `address` is the linear address of the operand.
pub fn check_fxsave(cpu: &CpuState, address: u64) -> Result<(), Exception> {
    check_x87(cpu)?;
    if address & 15 != 0 {
        return Err(Exception::gp(0));
    }
    Ok(())
}

/// Whether a value may be loaded into MXCSR.
pub const fn is_valid_mxcsr(value: u32) -> bool {
    value & !MXCSR_MASK == 0
}

/// STMXCSR: the value.
pub fn mxcsr(cpu: &CpuState) -> u32 {
    get_u32(&cpu.fpu.0, 24)
}

/// Clears the last-instruction opcode and pointers (SDM vol. 1, section 8.1.8).
pub fn clear_pointers(cpu: &mut CpuState) {
    cpu.fpu.0[6..24].fill(0);
}

/// LDMXCSR: #GP(0) for reserved bits.
pub fn set_mxcsr(cpu: &mut CpuState, value: u32) -> Result<(), Exception> {
    if !is_valid_mxcsr(value) {
        return Err(Exception::gp(0));
    }
    put_u32(&mut cpu.fpu.0, 24, value);
    Ok(())
}

/// End of the XMM registers that the mode has: 16 in 64-bit mode, otherwise 8.
const fn xmm_end(cpu: &CpuState) -> usize {
    if cpu.code64() {
        XMM_END
    } else {
        XMM + 128
    }
}

const fn ymm_end(cpu: &CpuState) -> usize {
    if cpu.code64() {
        XSAVE_SIZE
    } else {
        YMM + 128
    }
}

/// Bytes 0–23: control words and pointers; without REX.W the pointers have 32 bits and a zero
/// selector.
fn store_control(cpu: &CpuState, rex_w: bool, image: &mut [u8]) {
    image[..24].copy_from_slice(&cpu.fpu.0[..24]);
    image[5] = 0;
    if !rex_w {
        put_u32(image, 12, 0);
        put_u32(image, 20, 0);
    }
}

fn load_control(cpu: &mut CpuState, rex_w: bool, image: &[u8]) {
    let area = &mut cpu.fpu.0;
    area[..24].copy_from_slice(&image[..24]);
    area[5] = 0;
    if !rex_w {
        put_u32(area, 12, 0);
        put_u32(area, 20, 0);
    }
    normalise_control(area);
}

/// Makes FCW, FSW and FOP what the processor holds after loading them: reserved bits as they read,
/// and ES and B as the unmasked exception flags imply.
fn normalise_control(area: &mut [u8; XSAVE_SIZE]) {
    let fcw = (get_u16(area, 0) & 0x1f7f) | 0x40;
    let mut fsw = get_u16(area, 2) & 0x7f7f;
    if fsw & !fcw & 0x3f != 0 {
        fsw |= 0x8080;
    }
    let fop = get_u16(area, 6) & 0x7ff;
    put_u16(area, 0, fcw);
    put_u16(area, 2, fsw);
    put_u16(area, 6, fop);
}

/// ST0–ST7: ten bytes each; the six above them are zero.
fn copy_st(from: &[u8], to: &mut [u8]) {
    for n in 0..8 {
        let at = ST + 16 * n;
        to[at..at + 10].copy_from_slice(&from[at..at + 10]);
        to[at + 10..at + 16].fill(0);
    }
}

/// FXSAVE and FXSAVE64 (`rex_w`): fills the image; the caller stores the given ranges.
pub fn fxsave(cpu: &CpuState, rex_w: bool, image: &mut [u8; FXSAVE_SIZE]) -> Ranges {
    let end = xmm_end(cpu);
    store_control(cpu, rex_w, image);
    put_u32(image, 24, mxcsr(cpu));
    put_u32(image, 28, MXCSR_MASK);
    copy_st(&cpu.fpu.0, image);
    image[XMM..end].copy_from_slice(&cpu.fpu.0[XMM..end]);
    let mut written = Ranges::default();
    written.add(0, end);
    written
}

/// FXRSTOR and FXRSTOR64 (`rex_w`): #GP(0) for reserved bits of MXCSR.
pub fn fxrstor(
    cpu: &mut CpuState,
    rex_w: bool,
    image: &[u8; FXSAVE_SIZE],
) -> Result<(), Exception> {
    set_mxcsr(cpu, get_u32(image, 24))?;
    let end = xmm_end(cpu);
    load_control(cpu, rex_w, image);
    copy_st(image, &mut cpu.fpu.0);
    cpu.fpu.0[XMM..end].copy_from_slice(&image[XMM..end]);
    Ok(())
}

/// Bytes of an XSAVE area that an instruction with this EDX:EAX may touch.
pub const fn xsave_extent(cpu: &CpuState, requested: u64) -> usize {
    if requested & cpu.xcr0 & xcr0::AVX != 0 {
        ymm_end(cpu)
    } else {
        HEADER + 64
    }
}

/// XSAVE and XSAVEOPT (`optimise`: components in their initial configuration are not written; the
/// other optimisation, skipping what has not changed, would depend on history and is never used).
///
/// `requested` is EDX:EAX, `old_xstate_bv` what the area's header holds now. Fills parts of the
/// image; the caller stores the given ranges.
pub fn xsave(
    cpu: &CpuState,
    rex_w: bool,
    requested: u64,
    optimise: bool,
    old_xstate_bv: u64,
    image: &mut [u8; XSAVE_SIZE],
) -> Ranges {
    let area = &cpu.fpu.0;
    let wanted = requested & cpu.xcr0;
    let used = in_use(cpu);
    let stored = if optimise { wanted & used } else { wanted };
    let mut written = Ranges::default();
    if stored & xcr0::X87 != 0 {
        store_control(cpu, rex_w, image);
        written.add(0, 24);
    }
    if wanted & (xcr0::SSE | xcr0::AVX) != 0 {
        put_u32(image, 24, mxcsr(cpu));
        put_u32(image, 28, MXCSR_MASK);
        written.add(24, 32);
    }
    if stored & xcr0::X87 != 0 {
        copy_st(area, image);
        written.add(ST, XMM);
    }
    if stored & xcr0::SSE != 0 {
        let end = xmm_end(cpu);
        image[XMM..end].copy_from_slice(&area[XMM..end]);
        written.add(XMM, end);
    }
    put_u64(image, HEADER, (old_xstate_bv & !wanted) | (used & wanted));
    written.add(HEADER, HEADER + 8);
    if stored & xcr0::AVX != 0 {
        let end = ymm_end(cpu);
        image[YMM..end].copy_from_slice(&area[YMM..end]);
        written.add(YMM, end);
    }
    written
}

/// XRSTOR, standard format (the compacted one is not offered and raises #GP(0)). `requested` is
/// EDX:EAX. The caller reads [`xsave_extent`] bytes; the rest of the image does not matter.
pub fn xrstor(
    cpu: &mut CpuState,
    rex_w: bool,
    requested: u64,
    image: &[u8; XSAVE_SIZE],
) -> Result<(), Exception> {
    let xstate_bv = get_u64(image, HEADER);
    if xstate_bv & !cpu.xcr0 != 0 || !is_zero(&image[HEADER + 8..HEADER + 24]) {
        return Err(Exception::gp(0));
    }
    let wanted = requested & cpu.xcr0;
    if wanted & (xcr0::SSE | xcr0::AVX) != 0 {
        set_mxcsr(cpu, get_u32(image, 24))?;
    }
    if wanted & xcr0::X87 != 0 {
        if xstate_bv & xcr0::X87 != 0 {
            load_control(cpu, rex_w, image);
            copy_st(image, &mut cpu.fpu.0);
        } else {
            fninit(cpu);
            cpu.fpu.0[ST..XMM].fill(0);
        }
    }
    let parts = [
        (xcr0::SSE, XMM, xmm_end(cpu)),
        (xcr0::AVX, YMM, ymm_end(cpu)),
    ];
    for (component, start, end) in parts {
        if wanted & component == 0 {
            continue;
        }
        if xstate_bv & component != 0 {
            cpu.fpu.0[start..end].copy_from_slice(&image[start..end]);
        } else {
            cpu.fpu.0[start..end].fill(0);
        }
    }
    Ok(())
}

/// Top of the x87 stack.
fn top(area: &[u8; XSAVE_SIZE]) -> usize {
    usize::from((get_u16(area, 2) >> 11) & 7)
}

/// Moves ST0–ST7 to where they belong after the top of the stack was `old` and has changed: the
/// physical registers keep their contents, and the area holds them from the top on.
fn turn_stack(area: &mut [u8; XSAVE_SIZE], old: usize) {
    let by = (top(area) + 8 - old) & 7;
    area[ST..XMM].rotate_left(16 * by);
}

/// Place in the area of MMX register `number`, which is a physical x87 register.
pub fn mmx_offset(cpu: &CpuState, number: usize) -> usize {
    ST + 16 * ((number + 8 - top(&cpu.fpu.0)) & 7)
}

/// What every MMX instruction but EMMS does to the x87 state: the top of the stack is 0 and all
/// registers are valid.
pub fn enter_mmx(cpu: &mut CpuState) {
    let XsaveArea(area) = &mut cpu.fpu;
    let old = top(area);
    let fsw = get_u16(area, 2) & !0x3800;
    put_u16(area, 2, fsw);
    area[4] = 0xff;
    turn_stack(area, old);
}

/// FNINIT: control, status and tags; the registers keep their contents.
pub fn fninit(cpu: &mut CpuState) {
    let XsaveArea(area) = &mut cpu.fpu;
    let old = top(area);
    area[..24].fill(0);
    put_u16(area, 0, FCW_INITIAL);
    turn_stack(area, old);
}

/// The layout of an x87 environment: operand size and mode decide (SDM vol. 1, figures 8-9 to
/// 8-12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Environment {
    wide: bool,
    protected: bool,
}

impl Environment {
    fn of(cpu: &CpuState, size: usize) -> Self {
        Self {
            wide: size != 2,
            protected: cpu.protected() && !cpu.v8086(),
        }
    }
}

/// Size in bytes of an x87 environment for operands of `size` bytes.
pub const fn environment_size(size: usize) -> usize {
    if size == 2 {
        14
    } else {
        28
    }
}

/// Most bytes that FSAVE writes.
pub const FSAVE_MAX: usize = 108;

/// The full tag word: 0 valid, 1 zero, 2 special, 3 empty, two bits for each physical register.
fn full_tags(area: &[u8; XSAVE_SIZE]) -> u16 {
    let top = top(area);
    let mut tags = 0;
    for physical in 0..8 {
        let tag = if area[4] & (1 << physical) == 0 {
            3
        } else {
            let at = ST + 16 * ((physical + 8 - top) & 7);
            let mantissa = get_u64(area, at);
            match get_u16(area, at + 8) & 0x7fff {
                0 if mantissa == 0 => 1,
                1..=0x7ffe if mantissa >> 63 != 0 => 0,
                _ => 2,
            }
        };
        tags |= tag << (2 * physical);
    }
    tags
}

fn store_environment(cpu: &CpuState, environment: Environment, image: &mut [u8]) {
    let area = &cpu.fpu.0;
    let (fip, fdp) = (get_u32(area, 8), get_u32(area, 16));
    let fop = u32::from(get_u16(area, 6) & 0x7ff);
    let head = [get_u16(area, 0), get_u16(area, 2), full_tags(area)];
    if environment.wide {
        for (n, value) in head.into_iter().enumerate() {
            put_u32(image, 4 * n, 0xffff_0000 | u32::from(value));
        }
        let tail = if environment.protected {
            [fip, fop << 16, fdp, 0xffff_0000]
        } else {
            let high = |pointer: u32| (pointer >> 16) << 12;
            [
                0xffff_0000 | (fip & 0xffff),
                high(fip) | fop,
                0xffff_0000 | (fdp & 0xffff),
                high(fdp),
            ]
        };
        for (n, value) in tail.into_iter().enumerate() {
            put_u32(image, 12 + 4 * n, value);
        }
    } else {
        for (n, value) in head.into_iter().enumerate() {
            put_u16(image, 2 * n, value);
        }
        let tail = if environment.protected {
            [fip, 0, fdp, 0]
        } else {
            let high = |pointer: u32| (pointer >> 4) & 0xf000;
            [fip, high(fip) | fop, fdp, high(fdp)]
        };
        for (n, value) in tail.into_iter().enumerate() {
            put_u16(image, 6 + 2 * n, value as u16);
        }
    }
}

fn load_environment(cpu: &mut CpuState, environment: Environment, image: &[u8]) {
    let area = &mut cpu.fpu.0;
    let slot = if environment.wide { 4 } else { 2 };
    let tags = get_u16(image, 2 * slot);
    let word = |n: usize| {
        if environment.wide {
            get_u32(image, 4 * n)
        } else {
            u32::from(get_u16(image, 2 * n))
        }
    };
    let (fip, fop, fdp) = match (environment.wide, environment.protected) {
        (true, true) => (word(3), word(4) >> 16, word(5)),
        (true, false) => {
            let join = |low: u32, high: u32| (low & 0xffff) | ((high >> 12) & 0xffff) << 16;
            (join(word(3), word(4)), word(4), join(word(5), word(6)))
        }
        // The 16-bit protected format has no opcode.
        (false, true) => (word(3), 0, word(5)),
        (false, false) => {
            let join = |low: u32, high: u32| low | (high & 0xf000) << 4;
            (join(word(3), word(4)), word(4), join(word(5), word(6)))
        }
    };
    let old = top(area);
    put_u16(area, 0, get_u16(image, 0));
    put_u16(area, 2, get_u16(image, slot));
    area[4] = (0..8).fold(0, |mask, n| {
        if (tags >> (2 * n)) & 3 == 3 {
            mask
        } else {
            mask | 1 << n
        }
    });
    area[5] = 0;
    put_u16(area, 6, fop as u16);
    put_u64(area, 8, u64::from(fip));
    put_u64(area, 16, u64::from(fdp));
    normalise_control(area);
    turn_stack(area, old);
}

/// FNSTENV with operands of `size` bytes (2 or 4): fills [`environment_size`] bytes of the image.
/// All exceptions are masked afterwards; the caller calls [`mask_exceptions`] once the image is
/// stored.
pub fn fnstenv(cpu: &CpuState, size: usize, image: &mut [u8; FSAVE_MAX]) -> usize {
    store_environment(cpu, Environment::of(cpu, size), image);
    environment_size(size)
}

/// What FNSTENV does after its store.
pub fn mask_exceptions(cpu: &mut CpuState) {
    let area = &mut cpu.fpu.0;
    let fcw = get_u16(area, 0) | 0x3f;
    let fsw = get_u16(area, 2) & 0x7f7f;
    put_u16(area, 0, fcw);
    put_u16(area, 2, fsw);
}

/// FLDENV with operands of `size` bytes; the image holds [`environment_size`] bytes.
pub fn fldenv(cpu: &mut CpuState, size: usize, image: &[u8; FSAVE_MAX]) {
    load_environment(cpu, Environment::of(cpu, size), image);
}

/// FNSAVE with operands of `size` bytes: fills the image and gives its length. The caller calls
/// [`fninit`] once the image is stored.
pub fn fnsave(cpu: &CpuState, size: usize, image: &mut [u8; FSAVE_MAX]) -> usize {
    let start = fnstenv(cpu, size, image);
    for n in 0..8 {
        let (to, from) = (start + 10 * n, ST + 16 * n);
        image[to..to + 10].copy_from_slice(&cpu.fpu.0[from..from + 10]);
    }
    start + 80
}

/// FRSTOR with operands of `size` bytes; the image holds [`environment_size`] + 80 bytes.
pub fn frstor(cpu: &mut CpuState, size: usize, image: &[u8; FSAVE_MAX]) {
    fldenv(cpu, size, image);
    let start = environment_size(size);
    for n in 0..8 {
        let (from, to) = (start + 10 * n, ST + 16 * n);
        cpu.fpu.0[to..to + 10].copy_from_slice(&image[from..from + 10]);
        cpu.fpu.0[to + 10..to + 16].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::{sreg, Efer, Segment};
    use super::*;

    /// A vCPU in 64-bit mode with a recognisable x87 and vector state.
    fn cpu64() -> CpuState {
        let mut cpu = CpuState::reset(0);
        cpu.cr0 = 0x8000_0033;
        cpu.efer = (Efer::LME | Efer::LMA).bits();
        cpu.seg[sreg::CS].attr |= Segment::L;
        cpu.xcr0 = 7;
        for (n, byte) in cpu.fpu.0.iter_mut().enumerate().skip(ST) {
            *byte = n as u8 | 1;
        }
        for n in 0..8 {
            cpu.fpu.0[ST + 16 * n + 10..ST + 16 * n + 16].fill(0);
        }
        cpu.fpu.0[XMM_END..YMM].fill(0);
        cpu.fpu.0[..2].copy_from_slice(&FCW_INITIAL.to_le_bytes());
        cpu.fpu.0[2..4].copy_from_slice(&0x3800u16.to_le_bytes());
        cpu.fpu.0[4] = 0x81;
        cpu
    }

    #[test]
    fn xsave_then_xrstor_gives_the_state_back() {
        let cpu = cpu64();
        let mut image = [0; XSAVE_SIZE];
        xsave(&cpu, true, u64::MAX, false, 0, &mut image);
        let mut other = cpu64();
        other.fpu = XsaveArea::default();
        xrstor(&mut other, true, u64::MAX, &image).unwrap();
        assert_eq!(other.fpu, cpu.fpu);
    }

    #[test]
    fn xrstor_initialises_components_absent_from_the_image() {
        let mut cpu = cpu64();
        let mut image = [0; XSAVE_SIZE];
        image[24] = 0x80;
        xrstor(&mut cpu, true, 7, &image).unwrap();
        assert_eq!(in_use(&cpu), 0);
        assert_eq!(mxcsr(&cpu), 0x80);
    }

    #[test]
    fn xrstor_refuses_bad_headers_and_changes_nothing() {
        for (at, value) in [
            (512, 8),
            (519, 0x80),
            (520, 1),
            (527, 0x80),
            (535, 1),
            (26, 1),
        ] {
            let mut cpu = cpu64();
            let before = cpu.clone();
            let mut image = [0; XSAVE_SIZE];
            image[at] = value;
            assert_eq!(
                xrstor(&mut cpu, true, 7, &image),
                Err(Exception::gp(0)),
                "{at}"
            );
            assert_eq!(cpu, before);
        }
    }

    #[test]
    fn xsave_keeps_header_bits_it_was_not_asked_for() {
        let mut cpu = cpu64();
        cpu.fpu.0[YMM..].fill(0);
        let mut image = [0; XSAVE_SIZE];
        let written = xsave(&cpu, true, 6, true, 0x11, &mut image);
        assert_eq!(get_u64(&image, 512), 0x13);
        let ranges: Vec<_> = written.iter().collect();
        assert_eq!(ranges, [(24, 32), (160, 416), (512, 520)]);
    }

    #[test]
    fn outside_of_64_bit_mode_the_upper_registers_are_left_alone() {
        let mut cpu = cpu64();
        cpu.seg[sreg::CS].attr &= !Segment::L;
        let mut image = [0; FXSAVE_SIZE];
        assert_eq!(
            fxsave(&cpu, false, &mut image).iter().collect::<Vec<_>>(),
            [(0, 288)]
        );
        let upper = cpu.fpu.0[288];
        fxrstor(&mut cpu, false, &image).unwrap();
        assert_eq!(cpu.fpu.0[288], upper);
        image[27] = 1;
        assert_eq!(fxrstor(&mut cpu, false, &image), Err(Exception::gp(0)));
    }

    #[test]
    fn fnsave_then_frstor_gives_the_x87_state_back_in_every_format() {
        for (size, protected) in [(2, true), (4, true), (2, false), (4, false)] {
            let mut cpu = cpu64();
            if !protected {
                cpu.cr0 &= !1;
            }
            cpu.fpu.0[8..12].copy_from_slice(&[0x34, 0x12, 0, 0]);
            let mut image = [0; FSAVE_MAX];
            assert_eq!(fnsave(&cpu, size, &mut image), environment_size(size) + 80);
            let mut other = cpu.clone();
            other.fpu.0[..XMM].fill(0);
            other.fpu.0[24..32].copy_from_slice(&cpu.fpu.0[24..32]);
            frstor(&mut other, size, &image);
            assert_eq!(other.fpu, cpu.fpu, "{size} {protected}");
        }
    }

    #[test]
    fn tag_word_tells_zero_special_and_empty() {
        let mut cpu = cpu64();
        // TOP = 7: ST0 is physical 7, ST1 is physical 0.
        cpu.fpu.0[ST..ST + 10].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
        cpu.fpu.0[ST + 16..ST + 26].fill(0);
        assert_eq!(full_tags(&cpu.fpu.0), 0b00_11_11_11_11_11_11_01);
        cpu.fpu.0[ST + 8..ST + 10].copy_from_slice(&0x7fffu16.to_le_bytes());
        assert_eq!(full_tags(&cpu.fpu.0) >> 14, 2);
    }

    #[test]
    fn unmasked_exceptions_in_a_loaded_status_word_become_pending() {
        let mut cpu = cpu64();
        let mut image = [0; FXSAVE_SIZE];
        put_u16(&mut image, 0, 0x37e);
        put_u16(&mut image, 2, 1);
        fxrstor(&mut cpu, true, &image).unwrap();
        assert!(pending_x87_error(&cpu));
        mask_exceptions(&mut cpu);
        assert!(!pending_x87_error(&cpu));
    }

    #[test]
    fn availability_follows_the_control_registers() {
        let mut cpu = cpu64();
        assert_eq!(check_sse(&cpu), Err(Exception::ud()));
        cpu.cr4 |= (Cr4::OSFXSR | Cr4::OSXSAVE).bits();
        assert_eq!((check_sse(&cpu), check_avx(&cpu)), (Ok(()), Ok(())));
        assert_eq!(check_xsave(&cpu, 32), Err(Exception::gp(0)));
        cpu.cr0 |= Cr0::TS.bits();
        assert_eq!(
            (check_sse(&cpu), check_x87(&cpu)),
            (Err(Exception::nm()), Err(Exception::nm()))
        );
        assert_eq!(check_wait(&cpu), Err(Exception::nm()));
        cpu.xcr0 = 3;
        assert_eq!(check_avx(&cpu), Err(Exception::ud()));
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config {
            failure_persistence: None,
            ..proptest::test_runner::Config::with_cases(300)
        })]

        /// What a guest restores comes out of every save format as it went in, and restoring a
        /// second time changes nothing.
        #[test]
        fn restored_images_are_stable(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), XSAVE_SIZE),
            size in 0usize..2,
            protected in proptest::prelude::any::<bool>(),
        ) {
            let mut image: [u8; XSAVE_SIZE] = bytes.try_into().unwrap();
            image[26..28].fill(0);
            image[513..576].fill(0);
            image[512] &= 7;
            let mut cpu = cpu64();
            xrstor(&mut cpu, true, u64::MAX, &image).unwrap();
            let once = cpu.clone();
            let mut saved = [0; XSAVE_SIZE];
            xsave(&cpu, true, u64::MAX, true, 0, &mut saved);
            xrstor(&mut cpu, true, u64::MAX, &saved).unwrap();
            proptest::prop_assert_eq!(&cpu, &once);

            cpu.cr0 = (cpu.cr0 & !1) | u64::from(protected);
            let size = 2 + 2 * size;
            let mut old: [u8; FSAVE_MAX] = image[..FSAVE_MAX].try_into().unwrap();
            frstor(&mut cpu, size, &old);
            let once = cpu.clone();
            fnsave(&cpu, size, &mut old);
            frstor(&mut cpu, size, &old);
            proptest::prop_assert_eq!(&cpu, &once);
        }
    }
}
