//! Guest memory as helpers and the semantics in `cpu` reach it: by linear address, with the rights of one
//! vCPU, through the same TLB, hand-offs and write function as translated code.
//!
//! A view holds nothing of the vCPU's registers. They belong to the semantics, which show them with each access.

use super::engine::Engine;
use super::slow::{check_end, kind_of};
use super::vcpu::Vcpu;
use crate::cpu::exception::Exception;
use crate::cpu::memory::{LinearMemory, Privilege};
use crate::cpu::paging::Access;
use crate::cpu::state::CpuState;
use crate::memory::tlb::{slot_of, MmuIndex};
use crate::memory::{PAGE_MASK, PAGE_SIZE};
use crate::translate::code::BlockId;
use crate::translate::mode::Mode;
use crate::translate::site::AccessKind;

/// Linear memory for the semantics in `cpu`, as one vCPU sees it.
pub struct View<'a> {
    engine: &'a mut Engine,
    vcpu: u8,
    /// The block that the vCPU runs.
    block: BlockId,
    debug_hits: &'a mut u64,
}

impl<'a> View<'a> {
    /// The registers of a vCPU, and memory as it sees it.
    #[inline]
    pub fn of(v: &'a mut Vcpu, engine: &'a mut Engine) -> (&'a mut CpuState, Self) {
        let hits = &mut v.pending.debug_hits;
        let view = Self::new(engine, v.cpu.id, v.run.site_block, hits);
        (&mut v.cpu, view)
    }

    /// Memory as a vCPU sees it that runs this block. Data breakpoints that accesses hit are noted.
    #[inline]
    pub(in crate::runtime) fn new(
        engine: &'a mut Engine,
        vcpu: u8,
        block: BlockId,
        debug_hits: &'a mut u64,
    ) -> Self {
        Self {
            engine,
            vcpu,
            block,
            debug_hits,
        }
    }

    fn parts(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: usize,
        access: Access,
        privilege: Privilege,
    ) -> Result<[(u64, usize); 2], Exception> {
        let mmu = mmu(cpu, privilege);
        let long = cpu.long_mode();
        let wrap = |a: u64| {
            if long {
                a
            } else {
                a & 0xffff_ffff
            }
        };
        let linear = wrap(linear);
        check_end(cpu, linear, size)?;
        let room = ((PAGE_SIZE - (linear & PAGE_MASK)) as usize).min(size);
        let first = self.engine.map(cpu, mmu, linear, access, privilege)?;
        let mut parts = [(first | linear & PAGE_MASK, room), (0, 0)];
        if room < size {
            let next = wrap(linear.wrapping_add(room as u64));
            let second = self.engine.map(cpu, mmu, next, access, privilege)?;
            parts[1] = (second, size - room);
        }
        Ok(parts)
    }

    /// Host address of an access that the TLB allows without further care.
    fn known(
        &self,
        cpu: &CpuState,
        linear: u64,
        size: usize,
        write: bool,
        privilege: Privilege,
    ) -> Option<*mut u8> {
        let mmu = mmu(cpu, privilege);
        let tlb = &self.engine.vcpus.mmu(usize::from(self.vcpu)).tlb;
        let entry = &tlb.entries[slot_of(mmu, linear)];
        let tag = if write { entry.write } else { entry.read };
        let offset = linear.wrapping_sub(tag);
        if offset > PAGE_SIZE - size as u64 {
            return None;
        }
        Some((entry.host + offset) as *mut u8)
    }

    /// The same; a write is going to be made.
    fn quick(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: usize,
        write: bool,
        privilege: Privilege,
    ) -> Option<*mut u8> {
        let host = self.known(cpu, linear, size, write, privilege)?;
        if write {
            self.note_write(host, size);
        }
        Some(host)
    }

    /// Notes a write to RAM at a host address.
    pub fn note_write(&mut self, host: *const u8, size: usize) {
        self.engine.memory.mark_lines(host, size);
    }

    /// Fills the TLB for an access to one page of RAM; `None` if it is anything else.
    fn fill(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: usize,
        kind: AccessKind,
        privilege: Privilege,
    ) -> Option<*mut u8> {
        let mmu = mmu(cpu, privilege);
        self.engine.instruction.begin_access();
        if size as u64 > PAGE_SIZE - (linear & PAGE_MASK) {
            return None;
        }
        let linear = if cpu.long_mode() {
            linear
        } else {
            linear & 0xffff_ffff
        };
        let page = self
            .engine
            .map(cpu, mmu, linear, kind_of(kind), privilege)
            .ok()?;
        self.engine
            .direct(cpu, linear, page, size, kind, mmu)
            .map(|host| host as *mut u8)
    }

    /// Reads up to 4 KiB.
    pub fn read_bytes(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        out: &mut [u8],
        privilege: Privilege,
    ) -> Result<(), Exception> {
        let quick = self
            .quick(cpu, linear, out.len(), false, privilege)
            .or_else(|| self.fill(cpu, linear, out.len(), AccessKind::Read, privilege));
        if let Some(host) = quick {
            // SAFETY: the TLB maps the page that holds all of these bytes to RAM of the guest, to which there are no
            // references while a view exists.
            unsafe { std::ptr::copy_nonoverlapping(host, out.as_mut_ptr(), out.len()) };
            return Ok(());
        }
        *self.debug_hits |= self.engine.breakpoints_hit(cpu, linear, out.len(), false);
        let mut done = 0;
        for (paddr, len) in self.parts(cpu, linear, out.len(), Access::Read, privilege)? {
            if len > 0 {
                self.engine
                    .load(self.vcpu, paddr, &mut out[done..done + len]);
                done += len;
            }
        }
        if !self.engine.stops.reads().is_empty() {
            self.engine.stops.stop_after_reads();
            self.engine.instruction.stop();
        }
        Ok(())
    }

    /// Writes up to 4 KiB.
    pub fn write_bytes(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        data: &[u8],
        privilege: Privilege,
    ) -> Result<(), Exception> {
        let quick = self
            .quick(cpu, linear, data.len(), true, privilege)
            .or_else(|| self.fill(cpu, linear, data.len(), AccessKind::Write, privilege));
        if let Some(host) = quick {
            // SAFETY: as in `read_bytes`; and the TLB has a tag for writing only where a write needs no further care.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), host, data.len()) };
            return Ok(());
        }
        let mut done = 0;
        let plain = self.engine.instruction.was_watched_only();
        let parts = self.parts(cpu, linear, data.len(), Access::Write, privilege)?;
        let whole = parts[1].1 == 0;
        for (paddr, len) in parts {
            if len > 0 && plain {
                if self.engine.commit_plain(self.vcpu, linear, paddr, data) {
                    self.engine.instruction.stop();
                }
            } else if len > 0 {
                let at = linear.wrapping_add(done as u64);
                let part = &data[done..done + len];
                if self
                    .engine
                    .store((self.vcpu, self.block), at, paddr, part, whole)
                {
                    self.engine.instruction.stop();
                }
                done += len;
            }
        }
        *self.debug_hits |= self.engine.breakpoints_hit(cpu, linear, data.len(), true);
        Ok(())
    }

    /// Raises what a read would raise, without reading.
    pub fn probe_read(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: usize,
    ) -> Result<(), Exception> {
        self.parts(cpu, linear, size, Access::Read, Privilege::Current)
            .map(|_| ())
    }

    /// Host address of `size` bytes within one page for which the TLB allows an access. Nothing is filled,
    /// and no write noted.
    pub fn known_host(
        &self,
        cpu: &CpuState,
        linear: u64,
        size: usize,
        write: bool,
    ) -> Option<*mut u8> {
        self.known(cpu, linear, size, write, Privilege::Current)
    }

    /// Host address of `size` bytes within one page of RAM that may be read, or written, as they are.
    pub fn host(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: usize,
        write: bool,
    ) -> Option<*mut u8> {
        let kind = if write {
            AccessKind::Write
        } else {
            AccessKind::Read
        };
        self.quick(cpu, linear, size, write, Privilege::Current)
            .or_else(|| self.fill(cpu, linear, size, kind, Privilege::Current))
    }
}

fn mmu(cpu: &CpuState, privilege: Privilege) -> MmuIndex {
    match privilege {
        // With SMAP, an implicit access ignores RFLAGS.AC.
        Privilege::System => MmuIndex::Supervisor,
        Privilege::Current => Mode::mmu_of(cpu),
    }
}

impl LinearMemory for View<'_> {
    fn read(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: usize,
        privilege: Privilege,
    ) -> Result<u64, Exception> {
        let mut bytes = [0; 8];
        self.read_bytes(cpu, linear, &mut bytes[..size], privilege)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn write(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: usize,
        value: u64,
        privilege: Privilege,
    ) -> Result<(), Exception> {
        self.write_bytes(cpu, linear, &value.to_le_bytes()[..size], privilege)
    }

    fn probe_write(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        len: usize,
        privilege: Privilege,
    ) -> Result<(), Exception> {
        self.parts(cpu, linear, len.max(1), Access::Write, privilege)
            .map(|_| ())
    }

    fn translation_changed(&mut self) {
        self.engine.flush_tlb(self.vcpu, true);
    }
}
