//! Linear to physical translation by the guest's page tables (SDM vol. 3A, chapter 4).
//!
//! One walk answers one access and tells in addition what else the same translation permits, so that the
//! caller can fill a TLB entry. PDPTEs of PAE paging are read from memory on every walk, not held
//! in registers: software has to reload CR3 after changing them in any case, and a walk then
//! depends on nothing but CR3 and memory. Accessed and dirty bits are set only when the access is permitted.

use bitflags::bitflags;

use super::exception::Exception;
use super::memory::{PhysicalMemory, Privilege};
use super::state::{CpuState, Cr0, Cr4, Efer, RFlags};

/// Width of physical addresses that the CPU models declare (CPUID 80000008H:EAX[7:0]).
pub const MAXPHYADDR: u32 = 40;

/// Kind of an access, as page permissions distinguish them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Fetch,
}

bitflags! {
    /// Which accesses a translation permits in the present state of the vCPU (CR0.WP,
    /// CR4.SMEP/SMAP, EFER.NXE, RFLAGS.AC). `SYSTEM` ones are implicit supervisor accesses.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Permissions: u16 {
        const USER_READ = 1 << 0;
        const USER_WRITE = 1 << 1;
        const USER_FETCH = 1 << 2;
        const SUPERVISOR_READ = 1 << 3;
        const SUPERVISOR_WRITE = 1 << 4;
        const SUPERVISOR_FETCH = 1 << 5;
        const SYSTEM_READ = 1 << 6;
        const SYSTEM_WRITE = 1 << 7;
    }
}

/// Bits of a page-fault error code (SDM vol. 3A, section 4.7).
pub mod error_code {
    pub const P: u32 = 1 << 0;
    pub const W: u32 = 1 << 1;
    pub const U: u32 = 1 << 2;
    pub const RSVD: u32 = 1 << 3;
    pub const I: u32 = 1 << 4;
}

/// A successful translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Physical address of the 4 KiB page that holds the linear address.
    pub paddr: u64,
    /// Size in bytes of the page that maps it: 4 KiB, 2 MiB, 4 MiB or 1 GiB.
    pub page_size: u64,
    /// R/W is set on every level.
    pub writable: bool,
    /// U/S is set on every level.
    pub user: bool,
    /// XD is set on some level.
    pub nx: bool,
    /// The translation survives a CR3 write (G with CR4.PGE).
    pub global: bool,
    /// D is set after this access. A TLB must not let writes pass while it is clear, so that the
    /// first write comes here and sets it.
    pub dirty: bool,
    /// What may be done through this translation now, D left aside.
    pub permissions: Permissions,
}

const P: u64 = 1 << 0;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const XD: u64 = 1 << 63;

const ADDRESS: u64 = ((1 << MAXPHYADDR) - 1) & !0xfff;
/// Address bits beyond MAXPHYADDR in an entry of 4-level paging.
const RESERVED_HIGH: u64 = ((1 << 52) - 1) & !((1 << MAXPHYADDR) - 1);

/// Whether bits 63–47 of the address are all equal.
pub const fn is_canonical(linear: u64) -> bool {
    ((linear as i64) << 16 >> 16) as u64 == linear
}

/// The entries that a walk went through, topmost first.
struct Path {
    entries: [(u64, u64); 4],
    count: usize,
    /// Entries have 8 bytes, not 4.
    wide: bool,
    paddr: u64,
    page_size: u64,
    writable: bool,
    user: bool,
    nx: bool,
    global: bool,
}

/// Why a walk has no path: the P and RSVD bits of the error code.
struct Missing(u32);

impl Path {
    fn new(wide: bool) -> Self {
        Self {
            entries: [(0, 0); 4],
            count: 0,
            wide,
            paddr: 0,
            page_size: 4096,
            writable: true,
            user: true,
            nx: false,
            global: false,
        }
    }

    fn step(&mut self, address: u64, entry: u64) {
        self.entries[self.count] = (address, entry);
        self.count += 1;
        self.writable &= entry & RW != 0;
        self.user &= entry & US != 0;
    }

    fn leaf(&mut self, cpu: &CpuState, linear: u64, frame: u64, page_size: u64, entry: u64) {
        self.page_size = page_size;
        self.paddr = (frame & !(page_size - 1)) | (linear & (page_size - 1) & !0xfff);
        self.global = entry & G != 0 && cpu.cr4 & Cr4::PGE.bits() != 0;
    }
}

fn walk_32(cpu: &CpuState, mem: &mut dyn PhysicalMemory, linear: u64) -> Result<Path, Missing> {
    let mut path = Path::new(false);
    let pde_addr = (cpu.cr3 & 0xffff_f000) | ((linear >> 20) & 0xffc);
    let pde = u64::from(mem.read_u32(pde_addr));
    if pde & P == 0 {
        return Err(Missing(0));
    }
    path.step(pde_addr, pde);
    if pde & PS != 0 && cpu.cr4 & Cr4::PSE.bits() != 0 {
        // PSE-36: bits 20:13 are physical address bits 39:32; bit 21 is reserved.
        if pde & (1 << 21) != 0 {
            return Err(Missing(error_code::P | error_code::RSVD));
        }
        let frame = (pde & 0xffc0_0000) | ((pde & 0x1f_e000) << 19);
        path.leaf(cpu, linear, frame, 4 << 20, pde);
        return Ok(path);
    }
    let pte_addr = (pde & 0xffff_f000) | ((linear >> 10) & 0xffc);
    let pte = u64::from(mem.read_u32(pte_addr));
    if pte & P == 0 {
        return Err(Missing(0));
    }
    path.step(pte_addr, pte);
    path.leaf(cpu, linear, pte & 0xffff_f000, 4096, pte);
    Ok(path)
}

/// PAE and 4-level paging, which differ in the top and in reserved bits only.
fn walk_wide(cpu: &CpuState, mem: &mut dyn PhysicalMemory, linear: u64) -> Result<Path, Missing> {
    let reserved = Missing(error_code::P | error_code::RSVD);
    let long = cpu.long_mode();
    let mut always_reserved = RESERVED_HIGH;
    if !long {
        always_reserved |= 0x7ff << 52;
    }
    if cpu.efer & Efer::NXE.bits() == 0 {
        always_reserved |= XD;
    }
    let mut path = Path::new(true);
    let mut table;
    let mut level;
    if long {
        table = cpu.cr3 & ADDRESS;
        level = 4;
    } else {
        let pdpte = mem.read_u64((cpu.cr3 & 0xffff_ffe0) | ((linear >> 27) & 0x18));
        if pdpte & P == 0 {
            return Err(Missing(0));
        }
        // PDPTEs of PAE paging have no permissions and no accessed bit.
        if pdpte & (0x1e6 | !((1u64 << MAXPHYADDR) - 1)) != 0 {
            return Err(reserved);
        }
        table = pdpte & ADDRESS;
        level = 2;
    }
    loop {
        let shift = 12 + 9 * (level - 1);
        let address = table | (((linear >> shift) & 0x1ff) << 3);
        let entry = mem.read_u64(address);
        if entry & P == 0 {
            return Err(Missing(0));
        }
        let large = level > 1 && level < 4 && entry & PS != 0;
        let mut must_be_zero = always_reserved;
        if level == 4 {
            must_be_zero |= PS;
        }
        if large {
            must_be_zero |= ((1 << shift) - 1) & !0x1fff;
        }
        if entry & must_be_zero != 0 {
            return Err(reserved);
        }
        path.step(address, entry);
        path.nx |= entry & XD != 0;
        if large || level == 1 {
            path.leaf(cpu, linear, entry & ADDRESS, 1 << shift, entry);
            return Ok(path);
        }
        table = entry & ADDRESS;
        level -= 1;
    }
}

fn resolve(cpu: &CpuState, mem: &mut dyn PhysicalMemory, linear: u64) -> Result<Path, Missing> {
    if cpu.cr4 & Cr4::PAE.bits() != 0 || cpu.long_mode() {
        walk_wide(cpu, mem, linear)
    } else {
        walk_32(cpu, mem, linear)
    }
}

fn permissions(cpu: &CpuState, path: &Path) -> Permissions {
    let mut allowed = Permissions::SUPERVISOR_READ | Permissions::SYSTEM_READ;
    if path.user {
        allowed |= Permissions::USER_READ;
        if path.writable {
            allowed |= Permissions::USER_WRITE;
        }
        if !path.nx {
            allowed |= Permissions::USER_FETCH;
        }
    }
    if path.writable || cpu.cr0 & Cr0::WP.bits() == 0 {
        allowed |= Permissions::SUPERVISOR_WRITE | Permissions::SYSTEM_WRITE;
    }
    if !path.nx && !(path.user && cpu.cr4 & Cr4::SMEP.bits() != 0) {
        allowed |= Permissions::SUPERVISOR_FETCH;
    }
    if path.user && cpu.cr4 & Cr4::SMAP.bits() != 0 {
        allowed -= Permissions::SYSTEM_READ | Permissions::SYSTEM_WRITE;
        if cpu.rflags & RFlags::AC.bits() == 0 {
            allowed -= Permissions::SUPERVISOR_READ | Permissions::SUPERVISOR_WRITE;
        }
    }
    allowed
}

/// The permission that an access needs. Implicit supervisor accesses never fetch.
fn needed(access: Access, user: bool, privilege: Privilege) -> Permissions {
    match (access, user, privilege) {
        (Access::Read, true, _) => Permissions::USER_READ,
        (Access::Write, true, _) => Permissions::USER_WRITE,
        (Access::Fetch, true, _) => Permissions::USER_FETCH,
        (Access::Read, false, Privilege::Current) => Permissions::SUPERVISOR_READ,
        (Access::Write, false, Privilege::Current) => Permissions::SUPERVISOR_WRITE,
        (Access::Fetch, false, _) => Permissions::SUPERVISOR_FETCH,
        (Access::Read, false, Privilege::System) => Permissions::SYSTEM_READ,
        (Access::Write, false, Privilege::System) => Permissions::SYSTEM_WRITE,
    }
}

/// Translates one access to the byte at `linear` and sets accessed and dirty bits.
///
/// The access is a user access if `privilege` is `Current` and CPL is 3. Outside of long mode the
/// address is cut to 32 bits. A non-canonical address gives #GP(0); that stack accesses raise #SS(0)
/// instead is up to the caller, who knows which segment is used.
pub fn walk(
    cpu: &CpuState,
    mem: &mut dyn PhysicalMemory,
    linear: u64,
    access: Access,
    privilege: Privilege,
) -> Result<Translation, Exception> {
    let long = cpu.long_mode();
    if long && !is_canonical(linear) {
        return Err(Exception::gp(0));
    }
    let linear = if long { linear } else { linear & 0xffff_ffff };
    if !cpu.paging() {
        return Ok(Translation {
            paddr: linear & !0xfff,
            page_size: 4096,
            writable: true,
            user: true,
            nx: false,
            global: false,
            dirty: true,
            permissions: Permissions::all(),
        });
    }
    let user = privilege == Privilege::Current && cpu.cpl == 3;
    let mut code = 0;
    if access == Access::Write {
        code |= error_code::W;
    }
    if user {
        code |= error_code::U;
    }
    let nx_enabled = cpu.efer & Efer::NXE.bits() != 0 && cpu.cr4 & Cr4::PAE.bits() != 0;
    if access == Access::Fetch && (nx_enabled || cpu.cr4 & Cr4::SMEP.bits() != 0) {
        code |= error_code::I;
    }
    let path = resolve(cpu, mem, linear)
        .map_err(|Missing(bits)| Exception::page_fault(linear, code | bits))?;
    let permissions = permissions(cpu, &path);
    if !permissions.contains(needed(access, user, privilege)) {
        return Err(Exception::page_fault(linear, code | error_code::P));
    }
    let dirty = mark(mem, &path, access == Access::Write);
    Ok(Translation {
        paddr: path.paddr,
        page_size: path.page_size,
        writable: path.writable,
        user: path.user,
        nx: path.nx,
        global: path.global,
        dirty,
        permissions,
    })
}

/// Sets A on every level and, for a write, D on the last. Returns D of the last.
fn mark(mem: &mut dyn PhysicalMemory, path: &Path, write: bool) -> bool {
    let last = path.count - 1;
    for (level, &(address, entry)) in path.entries[..path.count].iter().enumerate() {
        let mut new = entry | A;
        if write && level == last {
            new |= D;
        }
        if new != entry {
            if path.wide {
                mem.write_u64(address, new);
            } else {
                mem.write_u32(address, new as u32);
            }
        }
    }
    write || path.entries[last].1 & D != 0
}

/// Physical address of `linear` as the vCPU maps it now, whatever the permissions, without any
/// side effect: for debuggers. `read(paddr, size)` reads 4 or 8 bytes of physical memory.
pub fn peek(cpu: &CpuState, read: &mut dyn FnMut(u64, usize) -> u64, linear: u64) -> Option<u64> {
    struct ReadOnly<'a>(&'a mut dyn FnMut(u64, usize) -> u64);
    impl PhysicalMemory for ReadOnly<'_> {
        fn read_u32(&mut self, paddr: u64) -> u32 {
            (self.0)(paddr, 4) as u32
        }
        fn read_u64(&mut self, paddr: u64) -> u64 {
            (self.0)(paddr, 8)
        }
        // A walk without `mark` writes nothing.
        fn write_u32(&mut self, _: u64, _: u32) {}
        fn write_u64(&mut self, _: u64, _: u64) {}
    }
    let long = cpu.long_mode();
    if long && !is_canonical(linear) {
        return None;
    }
    let linear = if long { linear } else { linear & 0xffff_ffff };
    if !cpu.paging() {
        return Some(linear);
    }
    let path = resolve(cpu, &mut ReadOnly(read), linear).ok()?;
    Some(path.paddr | (linear & 0xfff))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{long, map_long, protected, Memory};
    use super::*;

    const PT: u64 = 0x8_3000;
    const FLAGS: u64 = 0x7;

    /// Long mode with one 4 KiB page at 5000H → 9000H and entry bits `leaf`.
    fn one_page(leaf: u64) -> (CpuState, Memory) {
        let mut mem = Memory::new();
        map_long(&mut mem);
        mem.put(0x8_2000, 8, PT | FLAGS);
        mem.put(PT + 5 * 8, 8, 0x9000 | leaf);
        (long(0), mem)
    }

    fn go(
        cpu: &CpuState,
        mem: &mut Memory,
        access: Access,
        privilege: Privilege,
    ) -> Result<u64, u32> {
        match walk(cpu, mem, 0x5678, access, privilege) {
            Ok(t) => Ok(t.paddr),
            Err(e) => {
                assert_eq!((e.vector, e.cr2), (14, 0x5678));
                Err(e.error_code.unwrap())
            }
        }
    }

    #[test]
    fn error_codes_name_the_cause() {
        use Access::{Fetch, Read, Write};
        let current = Privilege::Current;
        let (mut cpu, mut mem) = one_page(0);
        assert_eq!(go(&cpu, &mut mem, Fetch, current), Err(0x10));
        let (_, mut mem) = one_page(P);
        assert_eq!(go(&cpu, &mut mem, Read, current), Ok(0x9000));
        assert_eq!(go(&cpu, &mut mem, Write, current), Err(3));
        cpu.cpl = 3;
        assert_eq!(go(&cpu, &mut mem, Read, current), Err(5));
        assert_eq!(go(&cpu, &mut mem, Read, Privilege::System), Ok(0x9000));
        let (_, mut mem) = one_page(P | US | RW | XD);
        assert_eq!(go(&cpu, &mut mem, Write, current), Ok(0x9000));
        assert_eq!(go(&cpu, &mut mem, Fetch, current), Err(0x15));
        cpu.efer &= !Efer::NXE.bits();
        assert_eq!(go(&cpu, &mut mem, Read, current), Err(0xd));
        let (cpu, mut mem) = one_page(P | 1 << MAXPHYADDR);
        assert_eq!(go(&cpu, &mut mem, Write, current), Err(0xb));
    }

    #[test]
    fn write_protection_binds_supervisors_only_with_wp() {
        let (mut cpu, mut mem) = one_page(P);
        cpu.cr0 &= !Cr0::WP.bits();
        assert_eq!(
            go(&cpu, &mut mem, Access::Write, Privilege::Current),
            Ok(0x9000)
        );
    }

    #[test]
    fn smap_spares_explicit_accesses_with_ac_and_no_implicit_ones() {
        let (mut cpu, mut mem) = one_page(P | US | RW);
        cpu.cr4 |= (Cr4::SMAP | Cr4::SMEP).bits();
        assert_eq!(go(&cpu, &mut mem, Access::Read, Privilege::Current), Err(1));
        assert_eq!(
            go(&cpu, &mut mem, Access::Fetch, Privilege::Current),
            Err(0x11)
        );
        cpu.rflags |= RFlags::AC.bits();
        assert_eq!(
            go(&cpu, &mut mem, Access::Read, Privilege::Current),
            Ok(0x9000)
        );
        assert_eq!(go(&cpu, &mut mem, Access::Write, Privilege::System), Err(3));
        assert_eq!(
            go(&cpu, &mut mem, Access::Fetch, Privilege::Current),
            Err(0x11)
        );
    }

    #[test]
    fn accessed_and_dirty_bits_are_set_when_the_access_is_allowed() {
        let (cpu, mut mem) = one_page(P);
        let entries = [0x8_0000, 0x8_1000, 0x8_2000, PT + 40];
        assert!(go(&cpu, &mut mem, Access::Write, Privilege::Current).is_err());
        assert!(entries.iter().all(|&e| mem.take(e, 8) & (A | D) == 0));
        let read = walk(&cpu, &mut mem, 0x5000, Access::Read, Privilege::Current).unwrap();
        assert!(!read.dirty && !read.writable);
        assert!(entries.iter().all(|&e| mem.take(e, 8) & (A | D) == A));
        mem.put(PT + 40, 8, 0x9000 | P | RW);
        let write = walk(&cpu, &mut mem, 0x5000, Access::Write, Privilege::Current).unwrap();
        assert!(write.dirty);
        assert_eq!(mem.take(PT + 40, 8), 0x9000 | P | RW | A | D);
        assert_eq!(mem.take(0x8_2000, 8) & D, 0);
    }

    #[test]
    fn large_pages_keep_the_offset() {
        let mut mem = Memory::new();
        map_long(&mut mem);
        let mut cpu = long(0);
        cpu.cr4 |= Cr4::PGE.bits();
        mem.put(0x8_1008, 8, 0x4000_0000 | FLAGS | PS | G);
        let t = walk(
            &cpu,
            &mut mem,
            0x4123_4567,
            Access::Read,
            Privilege::Current,
        )
        .unwrap();
        assert_eq!(
            (t.paddr, t.page_size, t.global),
            (0x4123_4000, 1 << 30, true)
        );
        let t = walk(&cpu, &mut mem, 0x12_3456, Access::Read, Privilege::Current).unwrap();
        assert_eq!(
            (t.paddr, t.page_size, t.global),
            (0x12_3000, 2 << 20, false)
        );
        mem.put(0x8_1008, 8, 0x4000_2000 | FLAGS | PS);
        let fault = walk(
            &cpu,
            &mut mem,
            0x4123_4567,
            Access::Read,
            Privilege::Current,
        );
        assert_eq!(fault.unwrap_err().error_code, Some(9));
    }

    #[test]
    fn legacy_paging_knows_pse36_and_pae() {
        let mut mem = Memory::new();
        let mut cpu = protected(0);
        cpu.cr0 |= Cr0::PG.bits();
        cpu.cr3 = 0x8_0000;
        cpu.cr4 = Cr4::PSE.bits();
        mem.put(0x8_0004, 4, 0x0080_0000 | 1 << 13 | FLAGS | PS);
        let t = walk(&cpu, &mut mem, 0x41_2345, Access::Write, Privilege::Current).unwrap();
        assert_eq!((t.paddr, t.page_size), (0x1_0081_2000, 4 << 20));
        assert_eq!(mem.take(0x8_0004, 4) & (A | D), A | D);
        cpu.cr4 = 0;
        mem.put(0x8_0004, 4, 0x8_3000 | FLAGS | PS);
        mem.put(0x8_3048, 4, 0x7000 | P);
        let t = walk(&cpu, &mut mem, 0x41_2345, Access::Read, Privilege::Current).unwrap();
        assert_eq!((t.paddr, t.writable), (0x7000, false));
        cpu.cr4 = Cr4::PAE.bits();
        mem.put(0x8_0008, 8, 0x8_4001);
        mem.put(0x8_4000, 8, 0x20_0000 | FLAGS | PS);
        let t = walk(
            &cpu,
            &mut mem,
            0x4001_2345,
            Access::Read,
            Privilege::Current,
        )
        .unwrap();
        assert_eq!((t.paddr, t.page_size), (0x21_2000, 2 << 20));
        mem.put(0x8_0008, 8, 0x8_4003);
        let fault = walk(
            &cpu,
            &mut mem,
            0x4001_2345,
            Access::Read,
            Privilege::Current,
        );
        assert_eq!(fault.unwrap_err().error_code, Some(9));
    }

    #[test]
    fn noncanonical_addresses_are_general_protection_faults() {
        let mut mem = Memory::new();
        let fault = walk(
            &long(0),
            &mut mem,
            1 << 47,
            Access::Read,
            Privilege::Current,
        );
        assert_eq!(fault, Err(Exception::gp(0)));
    }

    #[test]
    fn peek_ignores_permissions_and_changes_nothing() {
        let (mut cpu, mem) = one_page(P);
        cpu.cpl = 3;
        let mut read = |at, size| mem.take(at, size);
        assert_eq!(peek(&cpu, &mut read, 0x5678), Some(0x9678));
        assert_eq!(peek(&cpu, &mut read, 0x6000), None);
        assert_eq!(mem.take(PT + 40, 8), 0x9000 | P);
    }
}
