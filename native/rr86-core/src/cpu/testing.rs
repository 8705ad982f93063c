//! A small memory and ready-made modes for the tests of this directory.

use super::exception::Exception;
use super::memory::{LinearMemory, PhysicalMemory, Privilege};
use super::paging::{walk, Access};
use super::state::{sreg, CpuState, Cr0, Cr4, Efer, Segment, TableRegister};

pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
pub const LDT: u64 = 0x3800;
/// Selectors of the GDT that [`Memory::with_tables`] builds.
pub const CODE0: u16 = 0x08;
pub const DATA0: u16 = 0x10;
pub const CODE3: u16 = 0x18 | 3;
pub const DATA3: u16 = 0x20 | 3;
pub const CODE64: u16 = 0x28;
pub const CODE64_3: u16 = 0x30 | 3;
pub const TSS_SEL: u16 = 0x40;
pub const NOT_PRESENT: u16 = 0x50;
pub const CONFORMING: u16 = 0x58;
pub const LDT_SEL: u16 = 0x60;
pub const TSS2_SEL: u16 = 0x70;
pub const GATE_SEL: u16 = 0x80;

/// One MiB of RAM; everything above reads as ones. Linear accesses go through the page walker.
#[derive(Clone)]
pub struct Memory {
    pub ram: Vec<u8>,
}

impl Memory {
    pub fn new() -> Self {
        Self {
            ram: vec![0; 1 << 20],
        }
    }

    pub fn put(&mut self, at: u64, size: usize, value: u64) {
        for n in 0..size {
            if let Some(byte) = self.ram.get_mut((at as usize).wrapping_add(n)) {
                *byte = (value >> (8 * n)) as u8;
            }
        }
    }

    pub fn take(&self, at: u64, size: usize) -> u64 {
        (0..size).fold(0, |value, n| {
            let byte = self
                .ram
                .get((at as usize).wrapping_add(n))
                .copied()
                .unwrap_or(0xff);
            value | u64::from(byte) << (8 * n)
        })
    }

    /// A descriptor from base, scaled limit and attributes.
    pub fn descriptor(&mut self, selector: u16, base: u64, limit: u32, attr: u16) {
        let raw_limit = u64::from(if attr & Segment::G != 0 {
            limit >> 12
        } else {
            limit
        });
        let raw = (raw_limit & 0xffff)
            | (raw_limit & 0xf_0000) << 32
            | (base & 0xff_ffff) << 16
            | (base & 0xff00_0000) << 32
            | u64::from(attr) << 40;
        self.put(GDT + u64::from(selector & !7), 8, raw);
        if attr & Segment::S == 0 {
            self.put(GDT + u64::from(selector & !7) + 8, 8, base >> 32);
        }
    }

    /// An IDT gate; `slot` is 8 or 16 bytes.
    pub fn gate(&mut self, vector: u8, selector: u16, offset: u64, attr: u16, ist: u64, slot: u64) {
        self.gate_at(IDT + u64::from(vector) * slot, selector, offset, attr, ist);
        if slot == 16 {
            self.put(IDT + u64::from(vector) * 16 + 8, 8, offset >> 32);
        }
    }

    pub fn gate_at(&mut self, at: u64, selector: u16, offset: u64, attr: u16, ist: u64) {
        let raw = (offset & 0xffff)
            | u64::from(selector) << 16
            | ist << 32
            | u64::from(attr) << 40
            | (offset & 0xffff_0000) << 32;
        self.put(at, 8, raw);
    }

    pub fn with_tables() -> Self {
        let mut mem = Self::new();
        mem.descriptor(CODE0, 0, u32::MAX, 0xc09a);
        mem.descriptor(DATA0, 0, u32::MAX, 0xc092);
        mem.descriptor(CODE3, 0, u32::MAX, 0xc0fa);
        mem.descriptor(DATA3, 0, u32::MAX, 0xc0f2);
        mem.descriptor(CODE64, 0, u32::MAX, 0xa09a);
        mem.descriptor(CODE64_3, 0, u32::MAX, 0xa0fa);
        mem.descriptor(TSS_SEL, TSS, 0x67, 0x008b);
        mem.descriptor(NOT_PRESENT, 0, u32::MAX, 0xc012);
        mem.descriptor(CONFORMING, 0, u32::MAX, 0xc09e);
        mem.descriptor(LDT_SEL, LDT, 0x3f, 0x0082);
        mem.descriptor(TSS2_SEL, 0x4000, 0x67, 0x0089);
        mem
    }
}

impl PhysicalMemory for Memory {
    fn read_u32(&mut self, paddr: u64) -> u32 {
        self.take(paddr, 4) as u32
    }
    fn read_u64(&mut self, paddr: u64) -> u64 {
        self.take(paddr, 8)
    }
    fn write_u32(&mut self, paddr: u64, value: u32) {
        self.put(paddr, 4, u64::from(value));
    }
    fn write_u64(&mut self, paddr: u64, value: u64) {
        self.put(paddr, 8, value);
    }
}

impl Memory {
    fn each(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: usize,
        access: Access,
        privilege: Privilege,
    ) -> Result<Vec<u64>, Exception> {
        let translate = |n| {
            let at = linear.wrapping_add(n as u64);
            let found = walk(cpu, self, at, access, privilege)?;
            Ok(found.paddr | (at & 0xfff))
        };
        (0..size).map(translate).collect()
    }
}

impl LinearMemory for Memory {
    fn read(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: usize,
        privilege: Privilege,
    ) -> Result<u64, Exception> {
        let places = self.each(cpu, linear, size, Access::Read, privilege)?;
        Ok(places
            .iter()
            .rev()
            .fold(0, |value, &at| value << 8 | self.take(at, 1)))
    }

    fn write(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: usize,
        value: u64,
        privilege: Privilege,
    ) -> Result<(), Exception> {
        let places = self.each(cpu, linear, size, Access::Write, privilege)?;
        for (n, at) in places.into_iter().enumerate() {
            self.put(at, 1, value >> (8 * n));
        }
        Ok(())
    }

    fn probe_write(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        len: usize,
        privilege: Privilege,
    ) -> Result<(), Exception> {
        self.each(cpu, linear, len, Access::Write, privilege)
            .map(|_| ())
    }
}

fn flat(selector: u16, attr: u16) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        attr,
    }
}

/// 32-bit protected mode without paging, at `cpl` 0 or 3, with the tables of [`Memory::with_tables`].
pub fn protected(cpl: u8) -> CpuState {
    let mut cpu = CpuState::reset(0);
    let dpl = u16::from(cpl) << 5;
    let (code, data) = if cpl == 0 {
        (CODE0, DATA0)
    } else {
        (CODE3, DATA3)
    };
    cpu.cr0 = (Cr0::PE | Cr0::ET | Cr0::NE).bits();
    cpu.seg = [flat(data, 0xc093 | dpl); 6];
    cpu.seg[sreg::CS] = flat(code, 0xc09b | dpl);
    cpu.gdtr = TableRegister {
        base: GDT,
        limit: 0xff,
        _pad: [0; 3],
    };
    cpu.idtr = TableRegister {
        base: IDT,
        limit: 0xfff,
        _pad: [0; 3],
    };
    cpu.tr = Segment {
        base: TSS,
        limit: 0x67,
        selector: TSS_SEL,
        attr: 0x8b,
    };
    cpu.ldtr = Segment::default();
    cpu.cpl = cpl;
    cpu.rip = 0x1234;
    cpu.gpr[super::state::gpr::RSP] = 0x9000;
    cpu
}

/// Page tables at 80000H that map the first 2 MiB and the same again at FFFFFFFF80000000H; user
/// pages, read/write.
pub fn map_long(mem: &mut Memory) {
    mem.put(0x8_0000, 8, 0x8_1007);
    mem.put(0x8_0ff8, 8, 0x8_1007);
    mem.put(0x8_1000, 8, 0x8_2007);
    mem.put(0x8_1ff0, 8, 0x8_2007);
    mem.put(0x8_2000, 8, 0x87);
}

/// 64-bit mode with the page tables of [`map_long`].
pub fn long(cpl: u8) -> CpuState {
    let mut cpu = protected(cpl);
    cpu.cr0 |= (Cr0::PG | Cr0::WP).bits();
    cpu.cr3 = 0x8_0000;
    cpu.cr4 = Cr4::PAE.bits();
    cpu.efer = (Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE).bits();
    let dpl = u16::from(cpl) << 5;
    let code = if cpl == 0 { CODE64 } else { CODE64_3 };
    cpu.seg[sreg::CS] = flat(code, 0xa09b | dpl);
    cpu
}
