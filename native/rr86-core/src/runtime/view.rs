//! Guest memory as helpers and the semantics in `cpu` reach it: by linear address, with the rights of one
//! vCPU, through the same TLB, hand-offs and write function as translated code.

use crate::cpu::exception::Exception;
use crate::cpu::memory::{LinearMemory, Privilege};
use crate::cpu::paging::Access;
use crate::cpu::state::CpuState;
use crate::memory::tlb::{slot_of, MmuIndex};
use crate::memory::{PAGE_MASK, PAGE_SIZE};
use crate::runtime::engine::Engine;
use crate::runtime::slow::{check_end, kind_of};
use crate::runtime::vcpu::Vcpu;
use crate::translate::mode::Mode;
use crate::translate::site::AccessKind;

/// Linear memory for the semantics in `cpu`, as one vCPU sees it.
pub struct View {
    pub vcpu: *mut Vcpu,
    pub engine: *mut Engine,
}

impl View {
    fn parts(
        &mut self,
        linear: u64,
        size: usize,
        access: Access,
        privilege: Privilege,
    ) -> Result<[(u64, usize); 2], Exception> {
        let mmu = self.mmu(privilege);
        // SAFETY: a `View` is made for the duration of one instruction or delivery, from pointers that stay
        // valid for it. Whoever made it keeps the references that they come from, and `cpu`'s semantics one
        // to the state inside of the vCPU; what that rests on is described at the top of `engine`.
        let (vcpu, engine) = unsafe { (&mut *self.vcpu, &mut *self.engine) };
        let long = vcpu.cpu.long_mode();
        let wrap = |a: u64| {
            if long {
                a
            } else {
                a & 0xffff_ffff
            }
        };
        let linear = wrap(linear);
        check_end(&vcpu.cpu, linear, size)?;
        let room = ((PAGE_SIZE - (linear & PAGE_MASK)) as usize).min(size);
        let first = engine.map(vcpu, mmu, linear, access, privilege)?;
        let mut parts = [(first | linear & PAGE_MASK, room), (0, 0)];
        if room < size {
            let next = wrap(linear.wrapping_add(room as u64));
            let second = engine.map(vcpu, mmu, next, access, privilege)?;
            parts[1] = (second, size - room);
        }
        Ok(parts)
    }

    fn mmu(&self, privilege: Privilege) -> MmuIndex {
        match privilege {
            // With SMAP, an implicit access ignores RFLAGS.AC.
            Privilege::System => MmuIndex::Supervisor,
            // SAFETY: as in `parts`.
            Privilege::Current => Mode::mmu_of(unsafe { &(*self.vcpu).cpu }),
        }
    }

    /// Host address of an access that the TLB allows without further care.
    fn known(
        &self,
        linear: u64,
        size: usize,
        write: bool,
        privilege: Privilege,
    ) -> Option<*mut u8> {
        // SAFETY: as in `parts`.
        let vcpu = unsafe { &*self.vcpu };
        let mmu = self.mmu(privilege);
        let entry = &vcpu.tlb.entries[slot_of(mmu, linear)];
        let tag = if write { entry.write } else { entry.read };
        let offset = linear.wrapping_sub(tag);
        if offset > PAGE_SIZE - size as u64 {
            return None;
        }
        Some((entry.host + offset) as *mut u8)
    }

    /// The same; a write is going to be made.
    fn quick(
        &self,
        linear: u64,
        size: usize,
        write: bool,
        privilege: Privilege,
    ) -> Option<*mut u8> {
        let host = self.known(linear, size, write, privilege)?;
        if write {
            self.note_write(host, size);
        }
        Some(host)
    }

    /// Notes a write to RAM at a host address.
    pub fn note_write(&self, host: *const u8, size: usize) {
        // SAFETY: as in `parts`.
        unsafe { (*self.engine).mark_lines(host, size) };
    }

    /// Fills the TLB for an access to one page of RAM; `None` if it is anything else.
    fn fill(
        &mut self,
        linear: u64,
        size: usize,
        kind: AccessKind,
        privilege: Privilege,
    ) -> Option<*mut u8> {
        let mmu = self.mmu(privilege);
        // SAFETY: as in `parts`.
        let (vcpu, engine) = unsafe { (&mut *self.vcpu, &mut *self.engine) };
        engine.plain = false;
        if size as u64 > PAGE_SIZE - (linear & PAGE_MASK) {
            return None;
        }
        let linear = if vcpu.cpu.long_mode() {
            linear
        } else {
            linear & 0xffff_ffff
        };
        let page = engine
            .map(vcpu, mmu, linear, kind_of(kind), privilege)
            .ok()?;
        engine
            .direct(vcpu, linear, page, size, kind, mmu)
            .map(|host| host as *mut u8)
    }

    /// Reads up to 4 KiB.
    pub fn read_bytes(
        &mut self,
        linear: u64,
        out: &mut [u8],
        privilege: Privilege,
    ) -> Result<(), Exception> {
        let quick = self
            .quick(linear, out.len(), false, privilege)
            .or_else(|| self.fill(linear, out.len(), AccessKind::Read, privilege));
        if let Some(host) = quick {
            // SAFETY: the TLB maps the page that holds all of these bytes to RAM of the guest.
            unsafe { std::ptr::copy_nonoverlapping(host, out.as_mut_ptr(), out.len()) };
            return Ok(());
        }
        // SAFETY: as in `parts`.
        let (vcpu, engine) = unsafe { (&mut *self.vcpu, &mut *self.engine) };
        engine.data_breakpoint(vcpu, linear, out.len(), false);
        let mut done = 0;
        for (paddr, len) in self.parts(linear, out.len(), Access::Read, privilege)? {
            if len > 0 {
                // SAFETY: as in `parts`.
                let (vcpu, engine) = unsafe { (&*self.vcpu, &mut *self.engine) };
                engine.load(vcpu, paddr, &mut out[done..done + len]);
                done += len;
            }
        }
        Ok(())
    }

    /// Writes up to 4 KiB.
    pub fn write_bytes(
        &mut self,
        linear: u64,
        data: &[u8],
        privilege: Privilege,
    ) -> Result<(), Exception> {
        let quick = self
            .quick(linear, data.len(), true, privilege)
            .or_else(|| self.fill(linear, data.len(), AccessKind::Write, privilege));
        if let Some(host) = quick {
            // SAFETY: the TLB maps the page that holds all of these bytes to RAM of the guest, and has a
            // tag for writing only where a write needs no further care.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), host, data.len()) };
            return Ok(());
        }
        let mut done = 0;
        // SAFETY: as in `parts`.
        let plain = unsafe { (*self.engine).plain };
        let parts = self.parts(linear, data.len(), Access::Write, privilege)?;
        let whole = parts[1].1 == 0;
        for (paddr, len) in parts {
            if len > 0 && plain {
                // SAFETY: as in `parts`.
                let (vcpu, engine) = unsafe { (&*self.vcpu, &mut *self.engine) };
                engine.helper_stop |= engine.commit_plain(vcpu.cpu.id, linear, paddr, data);
            } else if len > 0 {
                // SAFETY: as in `parts`.
                let (vcpu, engine) = unsafe { (&mut *self.vcpu, &mut *self.engine) };
                let at = linear.wrapping_add(done as u64);
                if engine.store(vcpu, at, paddr, &data[done..done + len], whole) {
                    engine.helper_stop = true;
                }
                done += len;
            }
        }
        // SAFETY: as in `parts`.
        let (vcpu, engine) = unsafe { (&mut *self.vcpu, &mut *self.engine) };
        engine.data_breakpoint(vcpu, linear, data.len(), true);
        Ok(())
    }
}

impl View {
    /// Raises what a read would raise, without reading.
    pub fn probe_read(&mut self, linear: u64, size: usize) -> Result<(), Exception> {
        self.parts(linear, size, Access::Read, Privilege::Current)
            .map(|_| ())
    }

    /// Host address of `size` bytes within one page for which the TLB allows an access. Nothing is filled,
    /// and no write noted.
    pub fn known_host(&self, linear: u64, size: usize, write: bool) -> Option<*mut u8> {
        self.known(linear, size, write, Privilege::Current)
    }

    /// Host address of `size` bytes within one page of RAM that may be read, or written, as they are.
    pub fn host(&mut self, linear: u64, size: usize, write: bool) -> Option<*mut u8> {
        let kind = if write {
            AccessKind::Write
        } else {
            AccessKind::Read
        };
        self.quick(linear, size, write, Privilege::Current)
            .or_else(|| self.fill(linear, size, kind, Privilege::Current))
    }
}

impl LinearMemory for View {
    fn read(
        &mut self,
        _cpu: &CpuState,
        linear: u64,
        size: usize,
        privilege: Privilege,
    ) -> Result<u64, Exception> {
        let mut bytes = [0; 8];
        self.read_bytes(linear, &mut bytes[..size], privilege)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn write(
        &mut self,
        _cpu: &CpuState,
        linear: u64,
        size: usize,
        value: u64,
        privilege: Privilege,
    ) -> Result<(), Exception> {
        self.write_bytes(linear, &value.to_le_bytes()[..size], privilege)
    }

    fn probe_write(
        &mut self,
        _cpu: &CpuState,
        linear: u64,
        len: usize,
        privilege: Privilege,
    ) -> Result<(), Exception> {
        self.parts(linear, len.max(1), Access::Write, privilege)
            .map(|_| ())
    }

    fn translation_changed(&mut self) {
        // SAFETY: as in `parts`.
        let (vcpu, engine) = unsafe { (&mut *self.vcpu, &mut *self.engine) };
        engine.flush_tlb(vcpu, true);
    }
}
