//! Arithmetic that 64-bit mode lacks (BCD), and small instructions with fixed registers.

use iced_x86::{Mnemonic as M, Register};

use super::operand::{register, segment_number};
use super::{Context, Result};
use crate::cpu::exception::{vector, Exception};
use crate::cpu::segment;
use crate::cpu::state::{gpr, sreg, RFlags, STATUS_FLAGS};
use crate::runtime::slow::linear_address;
use crate::translate::site::AccessKind;

const CF: u64 = RFlags::CF.bits();
const AF: u64 = RFlags::AF.bits();
const ZF: u64 = RFlags::ZF.bits();

/// PF, ZF and SF of a byte.
fn byte_flags(value: u8) -> u64 {
    let mut flags = 0;
    if value.count_ones() % 2 == 0 {
        flags |= RFlags::PF.bits();
    }
    if value == 0 {
        flags |= ZF;
    }
    if value & 0x80 != 0 {
        flags |= RFlags::SF.bits();
    }
    flags
}

/// One match, a few lines for each instruction; it is long because they are many.
pub fn execute(c: &mut Context<'_>) -> Result {
    let rax = c.cpu.gpr[gpr::RAX];
    let al = rax as u8;
    let ah = (rax >> 8) as u8;
    let flags = c.cpu.rflags;
    let set_ax = |c: &mut Context<'_>, al: u8, ah: u8| {
        let value = u64::from(al) | u64::from(ah) << 8;
        c.cpu.gpr[gpr::RAX] = rax & !0xffff | value;
    };
    match c.insn.mnemonic() {
        M::Lahf => set_ax(c, al, (flags & 0xd5 | 2) as u8),
        M::Sahf => c.set_flags(0xd5, u64::from(ah)),
        M::Salc => set_ax(c, if flags & CF != 0 { 0xff } else { 0 }, ah),
        M::Xlatb => {
            let size = crate::translate::decode::operands::address_size(c.insn);
            let base = super::operand::truncate(c.cpu.gpr[gpr::RBX], size);
            let offset = super::operand::truncate(base.wrapping_add(u64::from(al)), size);
            let number = segment_number(c.insn.memory_segment()).unwrap_or(sreg::DS);
            let at = linear_address(c.cpu, number, offset, 1, AccessKind::Read)?;
            let value = c.load(at, 1)?;
            set_ax(c, value as u8, ah);
        }
        M::Aaa | M::Aas => {
            let adjust = al & 0xf > 9 || flags & AF != 0;
            let (mut al, mut ah) = (al, ah);
            if adjust {
                let ax = u16::from(al) | u16::from(ah) << 8;
                let ax = if c.insn.mnemonic() == M::Aaa {
                    ax.wrapping_add(0x106)
                } else {
                    ax.wrapping_sub(0x106)
                };
                al = ax as u8;
                ah = (ax >> 8) as u8;
            }
            let al = al & 0xf;
            set_ax(c, al, ah);
            let carry = if adjust { CF | AF } else { 0 };
            c.set_flags(STATUS_FLAGS, carry | byte_flags(al));
        }
        M::Daa | M::Das => {
            let add = c.insn.mnemonic() == M::Daa;
            let mut value = al;
            let mut carry = 0;
            if al & 0xf > 9 || flags & AF != 0 {
                value = if add {
                    value.wrapping_add(6)
                } else {
                    value.wrapping_sub(6)
                };
                carry |= AF;
                let wrapped = if add { al > 0xf9 } else { al < 6 };
                if wrapped || flags & CF != 0 {
                    carry |= CF;
                }
            }
            if al > 0x99 || flags & CF != 0 {
                value = if add {
                    value.wrapping_add(0x60)
                } else {
                    value.wrapping_sub(0x60)
                };
                carry |= CF;
            } else if add {
                carry &= !CF;
            }
            set_ax(c, value, ah);
            c.set_flags(STATUS_FLAGS, carry | byte_flags(value));
        }
        M::Aam => {
            let base = c.insn.immediate8();
            if base == 0 {
                return Err(Exception::new(vector::DE));
            }
            set_ax(c, al % base, al / base);
            c.set_flags(STATUS_FLAGS, byte_flags(al % base));
        }
        M::Aad => {
            let value = al.wrapping_add(ah.wrapping_mul(c.insn.immediate8()));
            set_ax(c, value, 0);
            c.set_flags(STATUS_FLAGS, byte_flags(value));
        }
        M::Bound => {
            let register_operand = c.insn.op0_register();
            let size = register_operand.size();
            let sign = |v: u64| {
                if size == 2 {
                    i64::from(v as i16)
                } else {
                    i64::from(v as i32)
                }
            };
            let index = sign(register(c.cpu, register_operand));
            let at = c.address(2 * size, AccessKind::Read)?;
            let low = sign(c.load(at, size)?);
            let high = sign(c.load(at.wrapping_add(size as u64) & 0xffff_ffff, size)?);
            if index < low || index > high {
                return Err(Exception::new(vector::BR));
            }
        }
        _ => {
            // ARPL: raises the destination's RPL to the source's.
            segment::require_protected(c.cpu)?;
            let destination = c.read_operand(0, 2)?;
            let source = register(c.cpu, c.insn.op1_register());
            if destination & 3 < source & 3 {
                let low = if c.insn.op0_register() == Register::None {
                    2
                } else {
                    c.insn.op0_register().size()
                };
                c.write_operand(0, low.min(2), destination & !3 | source & 3)?;
                c.set_flags(ZF, ZF);
            } else {
                c.set_flags(ZF, 0);
            }
        }
    }
    Ok(())
}
