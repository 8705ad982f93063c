//! Which guest exception a host signal stands for.

use super::code_cache::Found;
use super::engine::Engine;
use super::flags::flags_to_ax;
use super::signals::{HostFault, Place};
use super::vcpu::Vcpu;
use crate::cpu::exception::{vector, Exception};
use crate::translate::site::Site;

/// The guest exception that a caught signal stands for; puts rip, flags and the budget where the
/// instruction was.
///
/// # Errors
/// [`HostFault`] when it stands for none. The vCPU then has the registers that the code had.
pub(in crate::runtime) fn exception(
    engine: &mut Engine,
    v: &mut Vcpu,
) -> Result<Exception, Box<HostFault>> {
    let caught = v.pending.signal;
    let Found { block, site } = engine.cache.find(caught.address);
    if let (Some((block, _)), Some(site)) = (block, site) {
        let exception = match u8::try_from(caught.vector) {
            Ok(vector::DE) => Some(Exception::new(vector::DE)),
            Ok(vector::MF) => Some(Exception::new(vector::MF)),
            Ok(vector::XM) => Some(Exception::new(vector::XM)),
            Ok(vector::AC) => Some(Exception::with_code(vector::AC, 0)),
            Ok(vector::GP) => Some(Exception::gp(0)),
            _ => None,
        };
        let site = Site::unpack(site);
        v.cpu.rip = engine
            .cache
            .blocks
            .get(block)
            .rip
            .wrapping_add(u64::from(site.offset));
        v.run.budget += i64::from(site.remaining);
        if site.host_flags {
            v.run.flags_ax = flags_to_ax(caught.rflags);
        }
        if let Some(exception) = exception {
            return Ok(exception);
        }
    }
    let place = block.map(|(block, at)| {
        let known = match site {
            Some(site) => Some(Site::unpack(site).offset),
            None => engine.instruction_of(block, at).map(|(offset, left)| {
                v.run.budget += i64::from(left);
                offset
            }),
        };
        let block = engine.cache.blocks.get(block);
        v.cpu.rip = block.rip.wrapping_add(u64::from(known.unwrap_or(0)));
        let bytes = match known {
            Some(offset) => {
                let rest = &block.bytes[usize::from(offset)..];
                let insn = engine.translator.instruction_in(block, usize::from(offset));
                rest[..insn.len().clamp(1, rest.len())].to_vec()
            }
            None => block.bytes.to_vec(),
        };
        Place {
            rip: v.cpu.rip,
            bytes,
            block: block.serial,
            block_rip: block.rip,
            code_bits: block.mode.bits(),
        }
    });
    engine.slice.clear_exit_request(&mut v.run);
    engine.clock.note_boundary(&v.run);
    Err(Box::new(HostFault {
        vector: caught.vector,
        address: caught.address,
        vcpu: v.cpu.id,
        icount: engine.icount(),
        place,
    }))
}
