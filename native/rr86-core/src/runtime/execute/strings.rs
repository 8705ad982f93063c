//! String instructions, repeated or not (SDM vol. 1, section 7.3.9).
//!
//! Each iteration counts as an instruction. A repeated instruction does as many iterations as the
//! budget allows and leaves rip where it is until it is done, so where it is cut does not show.
//! Moves and fills of RAM are done a stretch at a time, up to the end of a page.

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

use crate::cpu::memory::{LinearMemory, Privilege};
use crate::cpu::state::{gpr, sreg, CpuState, RFlags, STATUS_FLAGS};
use crate::memory::{PAGE_MASK, PAGE_SIZE};
use crate::runtime::execute::{Context, Result};
use crate::runtime::slow::linear_address;
use crate::runtime::view::View;
use crate::translate::decode::classify::repeated;
use crate::translate::site::AccessKind;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Move,
    Store,
    Load,
    Compare,
    Scan,
    In,
    Out,
}

struct Shape {
    kind: Kind,
    size: usize,
    /// Bytes of SI, DI and CX in use.
    address: usize,
    source: usize,
}

fn shape(insn: &Instruction) -> Shape {
    let (kind, size) = match insn.mnemonic() {
        M::Movsb => (Kind::Move, 1),
        M::Movsw => (Kind::Move, 2),
        M::Movsd => (Kind::Move, 4),
        M::Movsq => (Kind::Move, 8),
        M::Stosb => (Kind::Store, 1),
        M::Stosw => (Kind::Store, 2),
        M::Stosd => (Kind::Store, 4),
        M::Stosq => (Kind::Store, 8),
        M::Lodsb => (Kind::Load, 1),
        M::Lodsw => (Kind::Load, 2),
        M::Lodsd => (Kind::Load, 4),
        M::Lodsq => (Kind::Load, 8),
        M::Cmpsb => (Kind::Compare, 1),
        M::Cmpsw => (Kind::Compare, 2),
        M::Cmpsd => (Kind::Compare, 4),
        M::Cmpsq => (Kind::Compare, 8),
        M::Scasb => (Kind::Scan, 1),
        M::Scasw => (Kind::Scan, 2),
        M::Scasd => (Kind::Scan, 4),
        M::Scasq => (Kind::Scan, 8),
        M::Insb => (Kind::In, 1),
        M::Insw => (Kind::In, 2),
        M::Insd => (Kind::In, 4),
        M::Outsb => (Kind::Out, 1),
        M::Outsw => (Kind::Out, 2),
        _ => (Kind::Out, 4),
    };
    let address = (0..insn.op_count())
        .find_map(|i| match insn.op_kind(i) {
            OpKind::MemorySegSI | OpKind::MemoryESDI => Some(2),
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(4),
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(8),
            _ => None,
        })
        .unwrap_or(8);
    let source = match insn.memory_segment() {
        Register::None => sreg::DS,
        s => s.number(),
    };
    Shape {
        kind,
        size,
        address,
        source,
    }
}

fn part(value: u64, size: usize) -> u64 {
    match size {
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

fn merge(register: &mut u64, value: u64, size: usize) {
    *register = match size {
        2 => *register & !0xffff | value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    };
}

/// Flags of `a - b` in `size` bytes.
fn compare_flags(a: u64, b: u64, size: usize) -> u64 {
    let bits = 8 * size as u32;
    let mask = u64::MAX >> (64 - bits);
    let (a, b) = (a & mask, b & mask);
    let r = a.wrapping_sub(b) & mask;
    let sign = 1u64 << (bits - 1);
    let mut flags = RFlags::empty();
    flags.set(RFlags::CF, a < b);
    flags.set(RFlags::PF, (r as u8).count_ones() % 2 == 0);
    flags.set(RFlags::AF, (a ^ b ^ r) & 0x10 != 0);
    flags.set(RFlags::ZF, r == 0);
    flags.set(RFlags::SF, r & sign != 0);
    flags.set(RFlags::OF, (a ^ b) & (a ^ r) & sign != 0);
    flags.bits()
}

/// Executes a string instruction, and for a repeated one sets rip.
pub(super) fn execute(c: &mut Context<'_>) -> Result {
    let shape = shape(c.insn);
    if matches!(shape.kind, Kind::In | Kind::Out) {
        let port = c.cpu.gpr[gpr::RDX] as u16;
        c.check_port(port, shape.size)?;
    }
    if !repeated(c.insn) {
        let result = iterate_once(c, &shape, c.left);
        if matches!(shape.kind, Kind::In | Kind::Out) && result.is_ok() {
            c.cpu.rip = c.insn.next_ip();
        }
        return result;
    }
    let rip = c.cpu.rip;
    let allowed = c.machine.repetition().allowed();
    let start = c.machine.repetition().icount();
    let own_moments = c.cpu.semantics.iterations_have_moments();
    let mut done = 0u64;
    let mut finished = false;
    let mut fault = Ok(());
    while done < allowed {
        if own_moments {
            c.machine.repetition().set_icount(start + done);
        }
        let count = part(c.cpu.gpr[gpr::RCX], shape.address);
        if count == 0 {
            finished = true;
            break;
        }
        let most = count.min(allowed - done);
        let bulk = if c.cpu.rflags & RFlags::DF.bits() == 0 {
            bulk(c, &shape, most)
        } else {
            bulk_down(c, &shape, most)
        };
        if bulk > 0 {
            merge(&mut c.cpu.gpr[gpr::RCX], count - bulk, shape.address);
            done += bulk;
        } else {
            // Each iteration counts; the first has been paid for.
            if let Err(e) = iterate_once(c, &shape, c.left - done as i64) {
                fault = Err(e);
                break;
            }
            merge(
                &mut c.cpu.gpr[gpr::RCX],
                count.wrapping_sub(1),
                shape.address,
            );
            done += 1;
            if matches!(shape.kind, Kind::Compare | Kind::Scan) {
                let equal = c.cpu.rflags & RFlags::ZF.bits() != 0;
                if equal != c.insn.has_rep_prefix() {
                    finished = true;
                    break;
                }
            }
        }
        if part(c.cpu.gpr[gpr::RCX], shape.address) == 0 {
            finished = true;
            break;
        }
        if c.machine.repetition().is_interrupted() {
            break;
        }
        if done < allowed && c.machine.repetition().is_time_up(c.cpu) {
            break;
        }
    }
    if fault.is_err() {
        // Iterations before the faulting one have retired; the fault gives the paid one back.
        c.machine.repetition().pay(done);
        c.cpu.rip = rip;
        return fault;
    }
    c.machine.repetition().pay(done.max(1) - 1);
    c.cpu.rip = if finished { c.insn.next_ip() } else { rip };
    if !finished {
        c.machine.repetition().cut_off(done < allowed);
    }
    Ok(())
}

/// Addresses of the source and destination of one iteration.
fn addresses(cpu: &CpuState, s: &Shape, length: usize) -> Result<(u64, u64)> {
    let reads = matches!(s.kind, Kind::Move | Kind::Load | Kind::Compare | Kind::Out);
    let writes = matches!(s.kind, Kind::Move | Kind::Store | Kind::In);
    let uses_destination = writes || matches!(s.kind, Kind::Compare | Kind::Scan);
    let source = if reads {
        let offset = part(cpu.gpr[gpr::RSI], s.address);
        linear_address(cpu, s.source, offset, length, AccessKind::Read)?
    } else {
        0
    };
    let destination = if uses_destination {
        let kind = if writes {
            AccessKind::Write
        } else {
            AccessKind::Read
        };
        linear_address(
            cpu,
            sreg::ES,
            part(cpu.gpr[gpr::RDI], s.address),
            length,
            kind,
        )?
    } else {
        0
    };
    Ok((source, destination))
}

fn advance(cpu: &mut CpuState, s: &Shape, iterations: u64) {
    let mut step = iterations.wrapping_mul(s.size as u64);
    if cpu.rflags & RFlags::DF.bits() != 0 {
        step = step.wrapping_neg();
    }
    if !matches!(s.kind, Kind::Store | Kind::Scan | Kind::In) {
        let value = cpu.gpr[gpr::RSI].wrapping_add(step);
        merge(&mut cpu.gpr[gpr::RSI], value, s.address);
    }
    if !matches!(s.kind, Kind::Load | Kind::Out) {
        let value = cpu.gpr[gpr::RDI].wrapping_add(step);
        merge(&mut cpu.gpr[gpr::RDI], value, s.address);
    }
}

/// One iteration, after which so much of the budget is left.
fn iterate_once(c: &mut Context<'_>, s: &Shape, left: i64) -> Result {
    c.machine.repetition().begin_iteration(left);
    let result = iterate(c, s);
    c.machine.repetition().end_iteration();
    result
}

/// One iteration.
fn iterate(c: &mut Context<'_>, s: &Shape) -> Result {
    let (source, destination) = addresses(c.cpu, s, s.size)?;
    match s.kind {
        Kind::Move => {
            let value = c.load(source, s.size)?;
            c.save(destination, s.size, value)?;
        }
        Kind::Store => {
            let value = c.cpu.gpr[gpr::RAX];
            c.save(destination, s.size, value)?;
        }
        Kind::Load => {
            let value = c.load(source, s.size)?;
            let rax = &mut c.cpu.gpr[gpr::RAX];
            *rax = match s.size {
                1 => *rax & !0xff | value,
                2 => *rax & !0xffff | value,
                _ => value,
            };
        }
        Kind::Compare => {
            // Where both fault, processors report the second operand, but for REPE CMPSB.
            let source_first = s.size == 1 && c.insn.has_repe_prefix();
            let early = if source_first {
                Some(c.load(source, s.size)?)
            } else {
                None
            };
            let b = c.load(destination, s.size)?;
            let a = match early {
                Some(a) => a,
                None => c.load(source, s.size)?,
            };
            c.set_flags(STATUS_FLAGS, compare_flags(a, b, s.size));
        }
        Kind::Scan => {
            let b = c.load(destination, s.size)?;
            let a = c.cpu.gpr[gpr::RAX];
            c.set_flags(STATUS_FLAGS, compare_flags(a, b, s.size));
        }
        Kind::In => {
            // The destination is checked first, because a port read cannot be taken back.
            c.with_memory(|cpu, mem| {
                mem.probe_write(cpu, destination, s.size, Privilege::Current)
            })?;
            let port = c.cpu.gpr[gpr::RDX] as u16;
            let value = c.machine.ports().read(port, s.size);
            c.save(destination, s.size, u64::from(value))?;
        }
        Kind::Out => {
            let value = c.load(source, s.size)?;
            let port = c.cpu.gpr[gpr::RDX] as u16;
            c.machine.ports().write(port, s.size, value as u32);
        }
    }
    advance(c.cpu, s, 1);
    Ok(())
}

/// Iterations that lie in one page of RAM on each side, done at once. 0 when there is none, and
/// `iterate` has to see to the next.
fn bulk(c: &mut Context<'_>, s: &Shape, most: u64) -> u64 {
    if !matches!(s.kind, Kind::Move | Kind::Store) || s.address == 2 {
        return 0;
    }
    let room = |at: u64| (PAGE_SIZE - (at & PAGE_MASK)) / s.size as u64;
    let Ok((source, destination)) = addresses(c.cpu, s, s.size) else {
        return 0;
    };
    let mut count = most.min(room(destination));
    if s.kind == Kind::Move {
        count = count.min(room(source));
    }
    // An index register of 32 bits must not wrap inside the stretch.
    if s.address == 4 {
        let left = |r: u64| ((1u64 << 32) - part(r, 4)) / s.size as u64;
        count = count.min(left(c.cpu.gpr[gpr::RDI]));
        if s.kind == Kind::Move {
            count = count.min(left(c.cpu.gpr[gpr::RSI]));
        }
    }
    let length = count as usize * s.size;
    // In 64-bit mode segments have no limits.
    if count < 2 || !c.cpu.code64() && addresses(c.cpu, s, length).is_err() {
        return 0;
    }
    if s.kind == Kind::Move {
        // A destination shortly after the source repeats what it has written.
        if destination.wrapping_sub(source) < length as u64 {
            return 0;
        }
        let old = c.cpu.semantics.strings_take_destinations_first();
        let places = if old {
            both(c, source, destination, length)
        } else {
            // How many iterations there are depends on the slice. So nothing is done here that another number
            // would not do: `iterate` makes the first access to each page.
            let known = |cpu: &mut CpuState, mem: &mut View<'_>| {
                let to = mem.known_host(cpu, destination, length, true);
                Ok(to.zip(mem.known_host(cpu, source, length, false)))
            };
            c.with_memory(known).ok().flatten()
        };
        let Some((to, from)) = places else {
            return 0;
        };
        // The same page may be mapped twice, so the order is looked at again.
        if to > from && (to as usize - from as usize) < length {
            return 0;
        }
        if !old {
            let mark = |_: &mut CpuState, mem: &mut View<'_>| {
                mem.note_write(to, length);
                Ok(())
            };
            if c.with_memory(mark).is_err() {
                return 0;
            }
        }
        // SAFETY: both are `length` bytes of guest RAM within a page each; going forward, an overlap
        // with the destination first gives what `copy` gives.
        unsafe { std::ptr::copy(from, to, length) };
    } else {
        let place = c.with_memory(|cpu, mem| Ok(mem.host(cpu, destination, length, true)));
        let Ok(Some(to)) = place else { return 0 };
        let value = c.cpu.gpr[gpr::RAX];
        // SAFETY: `length` bytes of guest RAM within a page; the element types have the sizes by
        // which `length` was computed, and unaligned writes are used.
        unsafe {
            match s.size {
                1 => to.write_bytes(value as u8, length),
                2 => fill(to.cast::<u16>(), value as u16, count),
                4 => fill(to.cast::<u32>(), value as u32, count),
                _ => fill(to.cast::<u64>(), value, count),
            }
        }
    }
    advance(c.cpu, s, count);
    count
}

/// Host addresses of a destination and a source, whose pages are made accessible, the destination's first.
fn both(
    c: &mut Context<'_>,
    source: u64,
    destination: u64,
    length: usize,
) -> Option<(*mut u8, *mut u8)> {
    let to = |c: &mut Context<'_>| {
        let place = c.with_memory(|cpu, mem| Ok(mem.host(cpu, destination, length, true)));
        place.ok().flatten()
    };
    let first = to(c)?;
    // The source last: nothing may take its page away before it is used.
    let from = c.with_memory(|cpu, mem| Ok(mem.host(cpu, source, length, false)));
    let from = from.ok().flatten()?;
    // The first fill may have made room for the second.
    (to(c) == Some(first)).then_some((first, from))
}

/// The same for a move towards lower addresses in 64-bit mode, by which a kernel's decompressor gets out of
/// its own way. `iterate` has made the first access to each page.
fn bulk_down(c: &mut Context<'_>, s: &Shape, most: u64) -> u64 {
    if s.kind != Kind::Move || s.address != 8 || !c.cpu.code64() {
        return 0;
    }
    let Ok((source, destination)) = addresses(c.cpu, s, s.size) else {
        return 0;
    };
    let room = |at: u64| (at & PAGE_MASK) / s.size as u64 + 1;
    let count = most.min(room(source)).min(room(destination));
    let length = count as usize * s.size;
    let below = (length - s.size) as u64;
    if count < 2 {
        return 0;
    }
    let moved = c.with_memory(|cpu, mem| {
        let (source, destination) = (source - below, destination - below);
        let to = mem.known_host(cpu, destination, length, true);
        let Some((to, from)) = to.zip(mem.known_host(cpu, source, length, false)) else {
            return Ok(false);
        };
        // A destination shortly before the source repeats what it has written.
        if to < from && (from as usize - to as usize) < length {
            return Ok(false);
        }
        mem.note_write(to, length);
        // SAFETY: both are `length` bytes of guest RAM within a page each; going down, an overlap with
        // the source first gives what `copy` gives.
        unsafe { std::ptr::copy(from, to, length) };
        Ok(true)
    });
    if moved != Ok(true) {
        return 0;
    }
    advance(c.cpu, s, count);
    count
}

/// Stores `count` copies of a value.
///
/// # Safety
/// `to` points to room for them.
unsafe fn fill<T: Copy>(to: *mut T, value: T, count: u64) {
    for n in 0..count as usize {
        // SAFETY: by the contract of this function.
        unsafe { to.add(n).write_unaligned(value) };
    }
}
