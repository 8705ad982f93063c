//! The host CPU a second time, as a guest of /dev/kvm: cases run at CPL 3 in a small 64-bit address space whose
//! exception handlers are a HLT each. It shares nothing with [`crate::native`] but the silicon, so it
//! tests the harness, and it shows what an exception delivers without an operating system in between.
//!
//! That holds where KVM uses hardware virtualisation. A KVM backed by software (no `svm` or `vmx` among
//! the CPU's flags) emulates part of the guest's instructions; its mismatches then say
//! nothing about the host CPU: no x87, SSE or POPCNT, approximate string instructions.
//!
//! System structures live in the upper half of the linear address space, because a stray access to the
//! lower half must find it as empty as it is natively.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use crate::case::{layout, outcome_of_exception, Case, Fault, Outcome, Subject, SubjectError};

const MEMORY: usize = 0x40000;
/// Linear address of physical 0.
const HIGH: u64 = 0xffff_8000_0000_0000;
// Physical addresses of the system structures, a page each.
const PML4: u64 = 0x1000;
const PDPT_LOW: u64 = 0x2000;
const PD_LOW: u64 = 0x3000;
const PT_CODE: u64 = 0x4000;
const PT_ARENA: u64 = 0x5000;
const PDPT_HIGH: u64 = 0x6000;
const PD_HIGH: u64 = 0x7000;
const PT_HIGH: u64 = 0x8000;
const GDT: u64 = 0x9000;
const IDT: u64 = 0xa000;
const TSS: u64 = 0xb000;
const STUBS: u64 = 0xc000;
/// End of the CPL-0 stack.
const STACK_END: u64 = 0xe000;
const CODE_AT: usize = 0x10000;
const ARENA_AT: usize = 0x20000;
const STUB_SIZE: u64 = 16;

// Page-table bits; A and D are set so that the CPU never writes to the tables.
const PRESENT: u64 = 0x61;
const WRITE: u64 = 2;
const USER: u64 = 4;
const NO_EXECUTE: u64 = 1 << 63;

const GET_VCPU_MMAP_SIZE: u64 = 0xae04;
const CREATE_VM: u64 = 0xae01;
const CREATE_VCPU: u64 = 0xae41;
const SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
const RUN: u64 = 0xae80;
const GET_REGS: u64 = 0x8090_ae81;
const SET_REGS: u64 = 0x4090_ae82;
const GET_SREGS: u64 = 0x8138_ae83;
const SET_SREGS: u64 = 0x4138_ae84;
const GET_XSAVE: u64 = 0x9000_aea4;
const SET_XSAVE: u64 = 0x5000_aea5;
const GET_SUPPORTED_CPUID: u64 = 0xc008_ae05;
const SET_CPUID2: u64 = 0x4008_ae90;
const EXIT_HLT: u32 = 5;

#[repr(C)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest_phys_addr: u64,
    memory_size: u64,
    userspace_addr: u64,
}

/// rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8–r15, rip, rflags.
type Regs = [u64; 18];
/// For each encoding number, its place in [`Regs`].
const REG_ORDER: [usize; 16] = [0, 2, 3, 1, 6, 7, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15];

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Segment {
    base: u64,
    limit: u32,
    selector: u16,
    kind: u8,
    present: u8,
    dpl: u8,
    db: u8,
    s: u8,
    l: u8,
    g: u8,
    avl: u8,
    unusable: u8,
    padding: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Table {
    base: u64,
    limit: u16,
    padding: [u16; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sregs {
    cs: Segment,
    ds: Segment,
    es: Segment,
    fs: Segment,
    gs: Segment,
    ss: Segment,
    tr: Segment,
    ldt: Segment,
    gdt: Table,
    idt: Table,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    cr8: u64,
    efer: u64,
    apic_base: u64,
    interrupt_bitmap: [u64; 4],
}

/// A KVM guest that runs cases.
pub struct Kvm {
    _system: OwnedFd,
    _vm: OwnedFd,
    vcpu: OwnedFd,
    memory: *mut u8,
    run: *mut u8,
    run_size: usize,
    sregs: Sregs,
    /// Code bytes of the last case: offset and length.
    dirty: (usize, usize),
}

// SAFETY: both mappings belong to this value alone.
unsafe impl Send for Kvm {}

fn ioctl(
    fd: &OwnedFd,
    request: u64,
    argument: u64,
    what: &'static str,
) -> Result<i32, SubjectError> {
    // SAFETY: callers pass either a number or the address of the structure that the request names.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument) };
    if result < 0 {
        return Err(SubjectError::last(what));
    }
    Ok(result)
}

fn map(fd: i32, size: usize) -> Result<*mut u8, SubjectError> {
    let anonymous = if fd < 0 { libc::MAP_ANONYMOUS } else { 0 };
    // SAFETY: a new mapping at an address of the kernel's choice.
    let address = unsafe {
        libc::mmap(
            ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | anonymous,
            fd,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(SubjectError::last("mmap for the KVM guest"));
    }
    Ok(address.cast())
}

impl Kvm {
    /// Opens /dev/kvm and builds the guest.
    pub fn new() -> Result<Self, SubjectError> {
        // SAFETY: a constant path.
        let fd = unsafe { libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
        if fd < 0 {
            return Err(SubjectError::last("/dev/kvm"));
        }
        // SAFETY: freshly opened, owned by nothing else; the same holds for the two below.
        let system = unsafe { OwnedFd::from_raw_fd(fd) };
        let fd = ioctl(&system, CREATE_VM, 0, "KVM_CREATE_VM")?;
        // SAFETY: see above.
        let vm = unsafe { OwnedFd::from_raw_fd(fd) };
        let memory = map(-1, MEMORY)?;
        let region = MemoryRegion {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory as u64,
        };
        let address = ptr::addr_of!(region) as u64;
        ioctl(
            &vm,
            SET_USER_MEMORY_REGION,
            address,
            "KVM_SET_USER_MEMORY_REGION",
        )?;
        let fd = ioctl(&vm, CREATE_VCPU, 0, "KVM_CREATE_VCPU")?;
        // SAFETY: see above.
        let vcpu = unsafe { OwnedFd::from_raw_fd(fd) };
        let run_size = ioctl(&system, GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE")? as usize;
        let run = map(vcpu.as_raw_fd(), run_size)?;
        let mut cpuid = vec![0u32; 2 + 10 * 256];
        cpuid[0] = 256;
        let address = cpuid.as_mut_ptr() as u64;
        ioctl(
            &system,
            GET_SUPPORTED_CPUID,
            address,
            "KVM_GET_SUPPORTED_CPUID",
        )?;
        ioctl(&vcpu, SET_CPUID2, address, "KVM_SET_CPUID2")?;
        let mut kvm = Self {
            _system: system,
            _vm: vm,
            vcpu,
            memory,
            run,
            run_size,
            sregs: Sregs::default(),
            dirty: (CODE_AT, layout::CODE_SIZE),
        };
        kvm.build()?;
        Ok(kvm)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is that long, and the vCPU is not running.
        unsafe { std::slice::from_raw_parts_mut(self.memory, MEMORY) }
    }

    fn put(&mut self, address: u64, value: u64) {
        let at = address as usize;
        self.bytes()[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn build(&mut self) -> Result<(), SubjectError> {
        use layout::*;
        let table = PRESENT | WRITE | USER;
        self.put(PML4, PDPT_LOW | table);
        self.put(PML4 + 256 * 8, PDPT_HIGH | table);
        self.put(PDPT_LOW, PD_LOW | table);
        self.put(PD_LOW + (CODE >> 21) * 8, PT_CODE | table);
        self.put(PD_LOW + (ARENA >> 21) * 8, PT_ARENA | table);
        self.put(PDPT_HIGH, PD_HIGH | table);
        self.put(PD_HIGH, PT_HIGH | table);
        for page in 0..(CODE_SIZE / PAGE) as u64 {
            self.put(
                PT_CODE + page * 8,
                (CODE_AT as u64 + page * 0x1000) | PRESENT | USER,
            );
        }
        for page in (0..ARENA_SIZE / PAGE).filter(|&page| mapped(page)) {
            let write = if page == READ_ONLY_PAGE { 0 } else { WRITE };
            let physical = (ARENA_AT + page * PAGE) as u64;
            self.put(
                PT_ARENA + page as u64 * 8,
                physical | PRESENT | USER | write | NO_EXECUTE,
            );
        }
        for page in 0..16 {
            self.put(PT_HIGH + page * 8, (page * 0x1000) | PRESENT | WRITE);
        }
        // GDT: null, -, code 0, data 0, data 3, code 3 (0x2b), TSS (0x30).
        let entries = [
            0,
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
        ];
        for (index, entry) in entries.into_iter().enumerate() {
            self.put(GDT + index as u64 * 8, entry);
        }
        for vector in 0..32 {
            let handler = HIGH + STUBS + vector * STUB_SIZE;
            // Interrupt gates; #BP and #OF may be raised by user code.
            let dpl = if matches!(vector, 3 | 4) { 3 } else { 0 };
            let low = handler & 0xffff
                | 0x10 << 16
                | (0x8e | dpl << 5) << 40
                | (handler >> 16 & 0xffff) << 48;
            self.put(IDT + vector * 16, low);
            self.put(IDT + vector * 16 + 8, handler >> 32);
        }
        // RSP0 of the TSS.
        self.put(TSS + 4, HIGH + STACK_END);
        self.bytes()[STUBS as usize..STUBS as usize + 32 * STUB_SIZE as usize].fill(0xf4);

        let mut sregs = Sregs::default();
        self.ioctl(GET_SREGS, ptr::addr_of_mut!(sregs) as u64, "KVM_GET_SREGS")?;
        let data = Segment {
            limit: u32::MAX,
            selector: 0x23,
            kind: 3,
            present: 1,
            dpl: 3,
            db: 1,
            s: 1,
            g: 1,
            ..Segment::default()
        };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.cs = Segment {
            selector: 0x2b,
            kind: 11,
            db: 0,
            l: 1,
            ..data
        };
        sregs.tr = Segment {
            base: HIGH + TSS,
            limit: 0x67,
            selector: 0x30,
            kind: 11,
            present: 1,
            ..Segment::default()
        };
        sregs.gdt = Table {
            base: HIGH + GDT,
            limit: 6 * 8 - 1,
            padding: [0; 3],
        };
        sregs.idt = Table {
            base: HIGH + IDT,
            limit: 32 * 16 - 1,
            padding: [0; 3],
        };
        // PE, MP, ET, NE, WP, AM, PG; PAE, OSFXSR, OSXMMEXCPT; SCE, LME, LMA, NXE.
        sregs.cr0 = 0x8005_0033;
        sregs.cr3 = PML4;
        sregs.cr4 = 0x620;
        sregs.efer = 0xd01;
        self.sregs = sregs;
        Ok(())
    }

    fn ioctl(&self, request: u64, argument: u64, what: &'static str) -> Result<i32, SubjectError> {
        ioctl(&self.vcpu, request, argument, what)
    }

    fn exit_reason(&self) -> u32 {
        // SAFETY: kvm_run is longer than that; exit_reason is at offset 8.
        unsafe { ptr::read_volatile(self.run.add(8).cast()) }
    }
}

impl Drop for Kvm {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; the vCPU does not run.
        unsafe {
            libc::munmap(self.memory.cast(), MEMORY);
            libc::munmap(self.run.cast(), self.run_size);
        }
    }
}

impl Subject for Kvm {
    fn run(&mut self, case: &Case) -> Result<Outcome, SubjectError> {
        let offset = case.code_address.wrapping_sub(layout::CODE) as usize;
        if offset > layout::CODE_SIZE
            || offset + case.code.len() >= layout::CODE_SIZE
            || case.arena.len() != layout::ARENA_SIZE
        {
            return Err(SubjectError::Malformed(
                "code or arena outside of its region",
            ));
        }
        let (start, len) = self.dirty;
        self.bytes()[start..start + len].fill(0xf4);
        let start = CODE_AT + offset;
        self.bytes()[start..start + case.code.len()].copy_from_slice(&case.code);
        self.dirty = (start, case.code.len());
        self.bytes()[ARENA_AT..ARENA_AT + layout::ARENA_SIZE].copy_from_slice(&case.arena);

        let mut sregs = self.sregs;
        sregs.fs.base = case.entry.fs_base;
        sregs.gs.base = case.entry.gs_base;
        self.ioctl(SET_SREGS, ptr::addr_of!(sregs) as u64, "KVM_SET_SREGS")?;
        let mut regs: Regs = [0; 18];
        for (&place, value) in REG_ORDER.iter().zip(case.entry.gpr) {
            regs[place] = value;
        }
        regs[16] = case.code_address;
        regs[17] = case.entry.rflags & crate::case::FLAG_MASK | 0x202;
        self.ioctl(SET_REGS, ptr::addr_of!(regs) as u64, "KVM_SET_REGS")?;
        let mut xsave = vec![0u8; 4096];
        xsave[..crate::case::FXSAVE_USED]
            .copy_from_slice(&case.entry.fxsave[..crate::case::FXSAVE_USED]);
        xsave[512] = 3;
        self.ioctl(SET_XSAVE, xsave.as_ptr() as u64, "KVM_SET_XSAVE")?;

        self.ioctl(RUN, 0, "KVM_RUN")?;
        if self.exit_reason() != EXIT_HLT {
            let reason = self.exit_reason();
            return Err(SubjectError::Other(format!("KVM exit {reason}")));
        }
        self.ioctl(GET_REGS, ptr::addr_of_mut!(regs) as u64, "KVM_GET_REGS")?;
        self.ioctl(GET_SREGS, ptr::addr_of_mut!(sregs) as u64, "KVM_GET_SREGS")?;
        self.ioctl(GET_XSAVE, xsave.as_mut_ptr() as u64, "KVM_GET_XSAVE")?;
        // The stub's HLT has retired, so rip is one further.
        let vector = regs[16].wrapping_sub(HIGH + STUBS) / STUB_SIZE;
        let top = regs[6].wrapping_sub(HIGH);
        if vector >= 32 || !(STACK_END - 0x100..STACK_END).contains(&top) {
            return Err(SubjectError::Other(
                "the guest halted outside of a handler".into(),
            ));
        }
        let memory = self.bytes();
        let word = |index: u64| {
            let at = (top + index * 8) as usize;
            u64::from_le_bytes(memory[at..at + 8].try_into().unwrap_or([0; 8]))
        };
        let with_code = matches!(vector, 8 | 10..=14 | 17);
        let frame = u64::from(with_code);
        let fault = Fault {
            vector: vector as u8,
            error_code: if with_code { word(0) } else { 0 },
            cr2: sregs.cr2,
        };
        let mut gpr = [0; 16];
        for (value, &place) in gpr.iter_mut().zip(&REG_ORDER) {
            *value = regs[place];
        }
        gpr[4] = word(frame + 3);
        let (rip, rflags) = (word(frame), word(frame + 2));
        let arena = memory[ARENA_AT..ARENA_AT + layout::ARENA_SIZE].to_vec();
        let mut fxsave = [0; 512];
        fxsave.copy_from_slice(&xsave[..512]);
        Ok(outcome_of_exception(
            case, gpr, rip, rflags, fxsave, arena, fault,
        ))
    }
}
