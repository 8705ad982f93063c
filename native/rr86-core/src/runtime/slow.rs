//! The slow path of memory accesses: TLB fills, devices, accesses across pages, pages with code.
//!
//! An access that may go straight to RAM gets a host address, and a TLB entry so that the next one does
//! not come here. Any other access takes place in a bounce buffer: what is read is put there first,
//! the copied instruction runs on it, and `commit` then makes the store happen. So no instruction
//! needs a second description for the special cases.

use crate::cpu::exception::{vector, Exception};
use crate::cpu::fpu;
use crate::cpu::memory::{PhysicalMemory, Privilege};
use crate::cpu::paging::is_canonical;
use crate::cpu::paging::{self, Access, Permissions, Translation};
use crate::cpu::state::{sreg, CpuState};
use crate::memory::pages::{HandOffKind, PageFlags};
use crate::memory::tlb::{Fill, MmuIndex};
use crate::memory::{PAGE_MASK, PAGE_SIZE};
use crate::runtime::agent::Agent;
use crate::runtime::agent::Writer;
use crate::runtime::cache::{BlockId, NO_BLOCK};
use crate::runtime::engine::Engine;
use crate::runtime::flags::flags_to_ax;
use crate::runtime::oracle::Seen;
use crate::runtime::progress::Resume;
use crate::runtime::protocol::Source;
use crate::runtime::vcpu::PendingAccess;
use crate::runtime::vcpu::Vcpu;
use crate::runtime::windows::{Unchecked, Uncommitted, Unguard, Window};
use crate::runtime::writelog::{Commit, Passage};
use crate::translate::decode::classify::{needs_alignment, waits};
use crate::translate::layout::Exit;
use crate::translate::mode::Mode;
use crate::translate::site::{AccessKind, Site};

/// What `access` gives back: the address to use, and whether the data must be committed.
#[repr(C)]
pub struct AccessResult {
    host: u64,
    commit: u64,
}

const LEAVE: AccessResult = AccessResult { host: 0, commit: 0 };

/// Sets rip and the budget to a fault at `site` and leaves the code.
fn fault(vcpu: &mut Vcpu, engine: &Engine, site: Site, exception: Exception) {
    vcpu.cpu.rip = engine
        .cache
        .blocks
        .get(vcpu.run.site_block)
        .rip
        .wrapping_add(u64::from(site.offset));
    vcpu.run.budget += i64::from(site.remaining);
    vcpu.pending.fault = Some(exception);
    vcpu.run.exit = Exit::Fault as u32;
}

/// What an instruction raises before its access can fault, for those where the host would find out only
/// when the access has been made: a pending x87 exception, or a misaligned SSE operand.
fn earlier_fault(vcpu: &Vcpu, engine: &Engine, site: Site, linear: u64) -> Option<Exception> {
    let block = engine.cache.blocks.get(vcpu.run.site_block);
    let insn = engine
        .translator
        .instruction_in(block, usize::from(site.offset));
    if waits(&insn) && fpu::pending_x87_error(&vcpu.cpu) {
        return Some(Exception::new(vector::MF));
    }
    (linear & 15 != 0 && needs_alignment(&insn)).then(|| Exception::gp(0))
}

/// Called by translated code: makes an access possible.
///
/// # Safety
/// As for [`Engine::running`].
pub unsafe extern "sysv64" fn access(vcpu: *mut Vcpu, linear: u64, site: u32) -> AccessResult {
    // SAFETY: the contracts are the same.
    let (vcpu, engine) = unsafe { Engine::running(vcpu) };
    let site = Site::unpack(site);
    engine.observers.stats.slow_accesses += 1;
    engine.slow_step(vcpu);
    engine.clock.note_position(&vcpu.run, site);
    vcpu.run.target_code = engine.cache.stubs().lookup;
    vcpu.run.commit = engine.cache.stubs().commit;
    let mode = engine.cache.blocks.get(vcpu.run.site_block).mode;
    engine.stops.begin_access();
    match engine.resolve(vcpu, linear, usize::from(site.size), site.kind, mode) {
        Ok(_) if engine.stops.concerns_access() && engine.stops_before_access(vcpu, site) => LEAVE,
        Ok(result) => {
            if result.host == vcpu.run.bounce.0[(linear & 63) as usize..].as_ptr() as u64 {
                engine.after_bus(vcpu);
            }
            result
        }
        Err(mut exception) => {
            if let Some(earlier) = earlier_fault(vcpu, engine, site, linear) {
                fault(vcpu, engine, site, earlier);
                return LEAVE;
            }
            // A non-canonical address on the stack is #SS(0) (SDM vol. 1, section 3.3.7.1).
            if site.stack && exception.vector == vector::GP {
                exception.vector = vector::SS;
            }
            fault(vcpu, engine, site, exception);
            LEAVE
        }
    }
}

/// Called by translated code after the instruction has run on the bounce buffer: makes its store
/// happen. Returns 0 when the block has to end here.
///
/// # Safety
/// As for [`access`].
pub unsafe extern "sysv64" fn commit(vcpu: *mut Vcpu, rflags: u64, site: u32) -> u64 {
    // SAFETY: the contracts are the same.
    let (vcpu, engine) = unsafe { Engine::running(vcpu) };
    let site = Site::unpack(site);
    engine.clock.note_position(&vcpu.run, site);
    vcpu.run.target_code = engine.cache.stubs().lookup;
    let pending = vcpu.pending.access;
    engine.slice.set_vcpu(vcpu.cpu.id);
    let stop = engine.finish_store(vcpu, site, &pending);
    let size = usize::from(site.size);
    vcpu.pending.debug_hits |= engine.breakpoints_hit(&vcpu.cpu, pending.linear, size, true);
    engine.after_bus(vcpu);
    if !stop {
        return 1;
    }
    if site.host_flags {
        vcpu.run.flags_ax = flags_to_ax(rflags);
    }
    engine.end_after(vcpu, site);
    0
}

/// Called by translated code outside of flat modes: checks an offset against its segment and gives the
/// linear address.
///
/// # Safety
/// As for [`access`].
pub unsafe extern "sysv64" fn segment(vcpu: *mut Vcpu, offset: u64, site: u32) -> AccessResult {
    // SAFETY: the contracts are the same.
    let (vcpu, engine) = unsafe { Engine::running(vcpu) };
    let site = Site::unpack(site);
    let number = vcpu.run.site as usize;
    match linear_address(&vcpu.cpu, number, offset, usize::from(site.size), site.kind) {
        // 0 means leaving, so the address travels with its complement as the other half.
        Ok(linear) => AccessResult {
            host: linear | 1 << 63,
            commit: 0,
        },
        Err(exception) => {
            fault(vcpu, engine, site, exception);
            LEAVE
        }
    }
}

/// Linear address of an access through a segment, with the checks of SDM vol. 3A, section 5.3, outside
/// of 64-bit mode; in 64-bit mode FS and GS add their bases.
///
/// # Errors
/// #GP(0), or #SS(0) for the stack segment.
pub fn linear_address(
    cpu: &CpuState,
    number: usize,
    offset: u64,
    size: usize,
    kind: AccessKind,
) -> Result<u64, Exception> {
    let segment = &cpu.seg[number];
    if cpu.code64() {
        let base = if number >= sreg::FS { segment.base } else { 0 };
        return Ok(offset.wrapping_add(base));
    }
    let error = if number == sreg::SS {
        Exception::with_code(vector::SS, 0)
    } else {
        Exception::gp(0)
    };
    let last = offset + size as u64 - 1;
    if cpu.protected() && !cpu.v8086() {
        let code = segment.attr & 8 != 0;
        let readable_or_writable = segment.attr & 2 != 0;
        let forbidden = !segment.present()
            || if code {
                kind.writes() || !readable_or_writable
            } else {
                kind.writes() && !readable_or_writable
            };
        if forbidden {
            return Err(error);
        }
        let expand_down = !code && segment.attr & 4 != 0;
        if expand_down {
            let top = if segment.big() {
                u64::from(u32::MAX)
            } else {
                0xffff
            };
            if offset <= u64::from(segment.limit) || last > top {
                return Err(error);
            }
            return Ok(offset.wrapping_add(segment.base) & 0xffff_ffff);
        }
    }
    if last > u64::from(segment.limit) {
        return Err(error);
    }
    Ok(offset.wrapping_add(segment.base) & 0xffff_ffff)
}

/// #GP(0) when the last byte of an access is not canonical, which comes before any page fault.
pub(in crate::runtime) fn check_end(
    cpu: &CpuState,
    linear: u64,
    size: usize,
) -> Result<(), Exception> {
    if cpu.long_mode() && !is_canonical(linear.wrapping_add(size.max(1) as u64 - 1)) {
        return Err(Exception::gp(0));
    }
    Ok(())
}

pub(in crate::runtime) fn kind_of(kind: AccessKind) -> Access {
    if kind.writes() {
        Access::Write
    } else {
        Access::Read
    }
}

impl Engine {
    /// Leaves the code before the instruction at `site`, of whose access the debugger wants to know, unless the run has
    /// stopped for it already. Nothing of the instruction has happened yet but its page walk, as where an access faults.
    fn stops_before_access(&mut self, vcpu: &mut Vcpu, site: Site) -> bool {
        let moment = self.icount();
        let stops = self.stops.stop_before_access(moment);
        if stops {
            self.stop_inside(vcpu, site);
        }
        stops
    }

    /// Leaves the code before the instruction at `site`, to go on there.
    pub(in crate::runtime) fn stop_inside(&mut self, vcpu: &mut Vcpu, site: Site) {
        let id = vcpu.run.site_block;
        let offset = usize::from(site.offset);
        vcpu.cpu.rip = self.cache.blocks.get(id).rip.wrapping_add(offset as u64);
        vcpu.run.budget += i64::from(site.remaining);
        vcpu.run.exit = Exit::Stopped as u32;
        // Not by what remains: of a part of a block, that is less.
        let block = self.cache.blocks.get(id);
        let index = self.translator.index_after(block, offset) - 1;
        self.progress[usize::from(vcpu.cpu.id)].stop_inside(Resume { block: id, index });
    }

    /// Makes the store in the bounce buffer happen, or as much of it as comes before a window in which
    /// the vCPU is switched out. Tells whether the block has to end.
    fn finish_store(&mut self, vcpu: &mut Vcpu, site: Site, pending: &PendingAccess) -> bool {
        let mut at = pending.offset;
        let mut stop = false;
        let agent = Agent::Vcpu(vcpu.cpu.id);
        let source = if site.kind == AccessKind::Modify {
            Source::Modify
        } else {
            Source::Store
        };
        let whole = pending.parts[1].1 == 0;
        for (paddr, len) in pending.parts {
            if len == 0 {
                continue;
            }
            let bytes = vcpu.run.bounce.0;
            let data = &bytes[at..at + len];
            at += len;
            let Some(page) = self.memory.ram.page_index(paddr) else {
                self.store_to_device(vcpu.cpu.id, paddr, data);
                continue;
            };
            if pending.plain {
                stop |= self.commit_plain(vcpu.cpu.id, pending.linear, paddr, data);
                continue;
            }
            let writer = Writer {
                agent,
                source,
                linear: Some(pending.linear),
                running: Some(vcpu.run.site_block),
            };
            // A store to two pages is made in one step.
            let left = whole.then(|| self.left_after(vcpu, site));
            stop |= self.store_in_steps(&writer, page, paddr, data, left);
        }
        stop
    }

    /// A store of the running vCPU to a page of RAM, or as much of it as comes before a window in which
    /// the vCPU is switched out. `left` is what is left of the budget after the instruction, if there can
    /// be windows. Tells whether the block has to end.
    fn store_in_steps(
        &mut self,
        writer: &Writer,
        page: usize,
        paddr: u64,
        data: &[u8],
        left: Option<i64>,
    ) -> bool {
        let vcpu = usize::from(writer.agent.number());
        let linear = writer.linear.unwrap_or(paddr);
        let mmu = writer.running.map_or(MmuIndex::Supervisor, |id| {
            self.cache.blocks.get(id).mode.mmu()
        });
        let passage = self.passage(writer.source, page);
        let windowed = passage == Passage::Checked && self.coherence.protocol().store_window;
        let commit_first = self.coherence.protocol().commit_first;
        if windowed && commit_first {
            // Without a switch in between, the order of the two shows nowhere.
            if left.is_some_and(|left| self.switch_in(Window::Store, left)) {
                let commit = Commit {
                    agent: writer.agent,
                    linear: writer.linear,
                    late: None,
                    passage,
                };
                self.commit(&commit, paddr, data);
                self.progress[vcpu].begin_check(Unchecked {
                    paddr,
                    linear,
                    mmu,
                    len: data.len(),
                    source: writer.source,
                });
                self.windows.enter(Window::Store);
                return true;
            }
        }
        let checked = self.check(*writer, paddr, data.len());
        let emptied = checked.emptied && self.coherence.protocol().unguard_window;
        if let Some(left) = left {
            if windowed && !commit_first && self.switch_in(Window::Store, left) {
                let store = Uncommitted {
                    paddr,
                    linear,
                    mmu,
                    data: data.to_vec(),
                    emptied,
                };
                let checked = (self.icount(), self.position_rip().unwrap_or(0));
                self.progress[vcpu].begin_commit(checked, store);
                self.windows.enter(Window::Store);
                return true;
            }
        }
        let commit = Commit {
            agent: writer.agent,
            linear: writer.linear,
            late: None,
            passage,
        };
        let stop = self.commit(&commit, paddr, data) | checked.stop;
        if let Some(left) = left {
            if emptied && self.switch_in(Window::Unguard, left) {
                self.progress[vcpu].begin_unguard(Unguard { linear, mmu, page });
                self.windows.enter(Window::Unguard);
                return true;
            }
        }
        stop
    }

    /// What is left of the budget after the instruction at `site`.
    pub(in crate::runtime) fn left_after(&self, vcpu: &Vcpu, site: Site) -> i64 {
        self.slice.plain_budget(&vcpu.run) + i64::from(site.remaining) - 1
    }

    /// Finds out how an access can be made.
    fn resolve(
        &mut self,
        vcpu: &mut Vcpu,
        linear: u64,
        size: usize,
        kind: AccessKind,
        mode: Mode,
    ) -> Result<AccessResult, Exception> {
        let linear = if mode.code64() {
            linear
        } else {
            linear & 0xffff_ffff
        };
        check_end(&vcpu.cpu, linear, size)?;
        let room = (PAGE_SIZE - (linear & PAGE_MASK)) as usize;
        let mmu = mode.mmu();
        let first = self.map(&vcpu.cpu, mmu, linear, kind_of(kind), Privilege::Current)?;
        let paddr = first | linear & PAGE_MASK;
        let mut parts = [(paddr, size.min(room)), (0, 0)];
        self.instruction.begin_access();
        if size > room {
            let next = linear.wrapping_add(room as u64);
            let next = if mode.code64() {
                next
            } else {
                next & 0xffff_ffff
            };
            let second = self.map(&vcpu.cpu, mmu, next, kind_of(kind), Privilege::Current)?;
            parts[1] = (second, size - room);
        } else if let Some(host) = self.direct(&vcpu.cpu, linear, first, size, kind, mmu) {
            return Ok(AccessResult { host, commit: 0 });
        }
        self.observers.stats.bounced_accesses += 1;
        let offset = (linear & 63) as usize;
        let plain = self.instruction.was_watched_only();
        vcpu.pending.access = PendingAccess {
            offset,
            parts,
            linear,
            plain,
        };
        if kind != AccessKind::Write {
            let mut at = offset;
            for (paddr, len) in parts {
                if len > 0 {
                    let mut bytes = [0; 64];
                    self.load(vcpu.cpu.id, paddr, &mut bytes[..len]);
                    vcpu.run.bounce.0[at..at + len].copy_from_slice(&bytes[..len]);
                    at += len;
                }
            }
            if kind == AccessKind::Read {
                vcpu.pending.debug_hits |= self.breakpoints_hit(&vcpu.cpu, linear, size, false);
            }
        }
        let host = vcpu.run.bounce.0[offset..].as_ptr() as u64;
        Ok(AccessResult {
            host,
            commit: u64::from(kind.writes()),
        })
    }

    /// Physical address of the page at `linear`, from the TLB or by a walk that fills it.
    pub(in crate::runtime) fn map(
        &mut self,
        cpu: &CpuState,
        mmu: MmuIndex,
        linear: u64,
        access: Access,
        privilege: Privilege,
    ) -> Result<u64, Exception> {
        let tlb = &self.vcpus.mmu(usize::from(cpu.id)).tlb;
        if let Some(fill) = tlb.get(mmu, linear, access == Access::Write) {
            return Ok(self.memory.ram.page_address(fill.page as usize));
        }
        let found = self.translate(cpu, linear, access, privilege)?;
        if let Some(page) = self.memory.ram.page_index(found.paddr) {
            let (may_read, may_write) = if mmu == MmuIndex::User {
                (Permissions::USER_READ, Permissions::USER_WRITE)
            } else {
                (Permissions::SUPERVISOR_READ, Permissions::SUPERVISOR_WRITE)
            };
            let fill = Fill {
                page: page as u32,
                read: found.permissions.contains(may_read),
                write: found.permissions.contains(may_write) && found.dirty,
                unprotected: !found.writable,
                global: found.global,
                size: found.page_size,
            };
            self.observers.stats.tlb_fills += 1;
            let host = self.memory.ram.page_pointer(page) as u64;
            let tlb = &mut self.vcpus.mmu_mut(usize::from(cpu.id)).tlb;
            tlb.insert(mmu, linear, host, &fill);
        }
        Ok(found.paddr)
    }

    /// Host address of an access to RAM that needs no further care, after letting the next one take the
    /// fast path. `paddr` is where `map` has found the page.
    pub(in crate::runtime) fn direct(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        paddr: u64,
        size: usize,
        kind: AccessKind,
        mmu: MmuIndex,
    ) -> Option<u64> {
        let page = self.memory.ram.page_index(paddr)?;
        if self.breakpoint_in_page(cpu, linear) {
            return None;
        }
        let number = cpu.id;
        let writes = kind.writes();
        let access = if writes {
            HandOffKind::Write
        } else {
            HandOffKind::Read
        };
        self.acquire(number, page, access);
        let flags = self.memory.pages.info[page].flags;
        let read_watched = flags.contains(PageFlags::READ_WATCHED);
        let watched = read_watched || flags.intersects(PageFlags::WATCHED.union(PageFlags::LOGGED));
        let guarded = flags.contains(PageFlags::CODE)
            && !self
                .vcpus
                .mmu(usize::from(number))
                .tlb
                .is_unguarded(mmu, linear, page);
        if writes && guarded {
            return None;
        }
        if writes {
            self.memory.pages.mark_dirty(page);
        }
        let write = !watched
            && !guarded
            && (writes || self.memory.may_write(page, number) && flags.contains(PageFlags::DIRTY));
        if !self.observers.asks_oracle() && !read_watched {
            let tlb = &mut self.vcpus.mmu_mut(usize::from(number)).tlb;
            tlb.allow(mmu, linear, write);
        }
        if kind != AccessKind::Write {
            self.seen(number, Seen::Read, paddr | linear & PAGE_MASK, size);
        }
        if writes && watched {
            self.instruction.is_watched_only();
            return None;
        }
        if read_watched {
            return None;
        }
        let host = self.memory.ram.page_pointer(page) as u64 + (linear & PAGE_MASK);
        if writes {
            self.memory.mark_lines(host as *const u8, size);
            self.seen(number, Seen::Write, paddr | linear & PAGE_MASK, size);
        }
        Some(host)
    }

    /// Walks the page tables of a vCPU.
    pub fn translate(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        access: Access,
        privilege: Privilege,
    ) -> Result<Translation, Exception> {
        if cpu.long_mode() && !is_canonical(linear) {
            return Err(Exception::gp(0));
        }
        self.observers.stats.page_walks += 1;
        let mut physical = Walker {
            engine: self,
            agent: cpu.id,
        };
        paging::walk(cpu, &mut physical, linear, access, privilege)
    }

    /// Reads physical memory or devices as a vCPU.
    pub fn load(&mut self, vcpu: u8, paddr: u64, out: &mut [u8]) {
        if let Some(page) = self.memory.ram.page_index(paddr) {
            self.acquire(vcpu, page, HandOffKind::Read);
            self.seen(vcpu, Seen::Read, paddr, out.len());
            self.memory.ram.read(paddr, out);
            if self.memory.pages.info[page]
                .flags
                .contains(PageFlags::READ_WATCHED)
            {
                self.stops.note_read(paddr, out.len() as u64);
            }
            return;
        }
        let id = usize::from(vcpu);
        let mut done = 0;
        while done < out.len() {
            let n = piece(paddr + done as u64, out.len() - done);
            let value = self
                .outside
                .mmio_read(id, paddr + done as u64, n, &self.clock);
            out[done..done + n].copy_from_slice(&value.to_le_bytes()[..n]);
            done += n;
        }
    }

    /// Writes physical memory or devices as a vCPU that runs this block; tells whether the block must end. `whole`:
    /// it is all of the instruction's store, and lies in one page.
    pub fn store(
        &mut self,
        (vcpu, running): (u8, BlockId),
        linear: u64,
        paddr: u64,
        data: &[u8],
        whole: bool,
    ) -> bool {
        let Some(page) = self.memory.ram.page_index(paddr) else {
            self.store_to_device(vcpu, paddr, data);
            return false;
        };
        self.slice.set_vcpu(vcpu);
        let writer = Writer {
            agent: Agent::Vcpu(vcpu),
            source: Source::Helper,
            linear: Some(linear),
            running: Some(running).filter(|&id| id != NO_BLOCK),
        };
        let left = self.instruction.iteration_left().filter(|_| whole);
        self.store_in_steps(&writer, page, paddr, data, left)
    }

    fn store_to_device(&mut self, vcpu: u8, paddr: u64, data: &[u8]) {
        let id = usize::from(vcpu);
        let mut done = 0;
        while done < data.len() {
            let at = paddr + done as u64;
            let n = piece(at, data.len() - done);
            let mut bytes = [0; 8];
            bytes[..n].copy_from_slice(&data[done..done + n]);
            let value = u64::from_le_bytes(bytes);
            self.outside.mmio_write(id, at, n, value, &self.clock);
            self.note_ipis(id);
            done += n;
        }
    }
}

/// Size of the naturally aligned device access at `paddr` when `left` bytes remain.
fn piece(paddr: u64, left: usize) -> usize {
    [8, 4, 2]
        .into_iter()
        .find(|&n| left >= n && paddr % n as u64 == 0)
        .unwrap_or(1)
}

/// Physical memory as a vCPU's page walker reaches it.
struct Walker<'a> {
    engine: &'a mut Engine,
    agent: u8,
}

impl Walker<'_> {
    fn read<const N: usize>(&mut self, paddr: u64) -> [u8; N] {
        let mut bytes = [0; N];
        if let Some(page) = self.engine.memory.ram.page_index(paddr) {
            self.engine.acquire(self.agent, page, HandOffKind::Read);
            self.engine.seen(self.agent, Seen::Read, paddr, N);
        }
        self.engine.memory.ram.read(paddr, &mut bytes);
        bytes
    }

    fn write(&mut self, paddr: u64, data: &[u8]) {
        // The bits are part of an access that is still being made; a block that they invalidate ends
        // with its instruction in any case, because table entries are not executed from.
        let writer = Writer {
            agent: Agent::Vcpu(self.agent),
            source: Source::Walk,
            linear: None,
            running: None,
        };
        self.engine.write(writer, paddr, data);
    }
}

impl PhysicalMemory for Walker<'_> {
    fn read_u32(&mut self, paddr: u64) -> u32 {
        u32::from_le_bytes(self.read(paddr))
    }
    fn read_u64(&mut self, paddr: u64) -> u64 {
        u64::from_le_bytes(self.read(paddr))
    }
    fn write_u32(&mut self, paddr: u64, value: u32) {
        self.write(paddr, &value.to_le_bytes());
    }
    fn write_u64(&mut self, paddr: u64, value: u64) {
        self.write(paddr, &value.to_le_bytes());
    }
}
