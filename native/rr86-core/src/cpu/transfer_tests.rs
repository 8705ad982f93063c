//! Interrupt delivery, IRET, far transfers and task switches, which belong together: what one
//! pushes another pops.

use proptest::prelude::*;

use super::effects::Effects;
use super::exception::{vector, Exception};
use super::far::{far_call, far_jmp, far_ret};
use super::interrupt::{deliver, Event};
use super::iret::iret;
use super::segment::{self, selector_code};
use super::semantics::Semantics;
use super::state::{gpr, sreg, Activity, CpuState, Cr0, RFlags, Segment};
use super::testing::*;
use super::{control, cpuid::CpuidTable, io};

const RSP: usize = gpr::RSP;

fn gp(code: u16) -> Exception {
    Exception::gp(u32::from(code))
}

/// Protected-mode tables with an interrupt gate for each vector to 5000H + vector.
fn with_gates() -> Memory {
    let mut mem = Memory::with_tables();
    for v in 0..=255u8 {
        mem.gate(v, CODE0, 0x5000 + u64::from(v), 0x8e, 0, 8);
    }
    mem.put(TSS + 4, 4, 0x8000);
    mem.put(TSS + 8, 2, u64::from(DATA0));
    mem
}

/// Long-mode tables with an interrupt gate for each vector to FFFFFFFF80005000H + vector.
fn with_long_gates() -> Memory {
    let mut mem = Memory::with_tables();
    map_long(&mut mem);
    for v in 0..=255u8 {
        mem.gate(v, CODE64, 0xffff_ffff_8000_5000 + u64::from(v), 0x8e, 0, 16);
    }
    mem.put(TSS + 4, 8, 0x8000);
    mem.put(TSS + 36, 8, 0x7008);
    mem
}

#[test]
fn real_mode_interrupts_use_the_vector_table_and_iret_returns() {
    let mut mem = Memory::new();
    mem.put(0x80 * 4, 4, 0x1000_0042);
    let mut cpu = CpuState::reset(0);
    cpu.seg[sreg::CS] = segment::real_mode_segment(&cpu.seg[sreg::CS], 0x200);
    cpu.rip = 0x10;
    cpu.rflags = 0x246;
    cpu.activity = Activity::Halted;
    let before = cpu.clone();
    deliver(&mut cpu, &mut mem, Event::External(0x80), 0x12).unwrap();
    assert_eq!(
        (cpu.seg[sreg::CS].base, cpu.rip, cpu.rflags),
        (0x10000, 0x42, 0x46)
    );
    assert_eq!(cpu.activity, Activity::Active);
    assert_eq!((cpu.gpr[RSP], mem.take(0xfffa, 4)), (0xfffa, 0x0200_0012));
    let effects = iret(&mut cpu, &mut mem, 2, 0).unwrap();
    assert!(effects.contains(Effects::INTERRUPTS_ENABLED));
    assert_eq!((cpu.rip, cpu.rflags, cpu.gpr[RSP]), (0x12, 0x246, 0));
    assert_eq!(cpu.seg[sreg::CS], before.seg[sreg::CS]);
}

#[test]
fn a_fault_from_user_code_switches_to_the_inner_stack_and_iret_returns() {
    let mut mem = with_gates();
    let mut cpu = protected(3);
    cpu.rflags = 0x202;
    let before = cpu.clone();
    let effects = deliver(
        &mut cpu,
        &mut mem,
        Event::Exception(Exception::page_fault(0x77, 6)),
        0x1234,
    )
    .unwrap();
    assert!(effects.contains(Effects::MODE_CHANGED));
    assert_eq!(
        (cpu.cpl, cpu.rip, cpu.cr2, cpu.gpr[RSP]),
        (0, 0x500e, 0x77, 0x8000 - 24)
    );
    let frame: Vec<_> = (0..6).map(|n| mem.take(0x8000 - 24 + 4 * n, 4)).collect();
    // The saved image of a fault has RF.
    assert_eq!(
        frame,
        [6, 0x1234, CODE3.into(), 0x1_0202, 0x9000, DATA3.into()]
    );
    assert_eq!(cpu.rflags & RFlags::IF.bits(), 0);
    cpu.gpr[RSP] += 4;
    cpu.seg[sreg::ES] = Segment {
        attr: 0xc093,
        ..cpu.seg[sreg::ES]
    };
    iret(&mut cpu, &mut mem, 4, 0).unwrap();
    assert_eq!((cpu.cpl, cpu.rip, cpu.gpr[RSP]), (3, 0x1234, 0x9000));
    assert_eq!(
        (cpu.seg[sreg::CS], cpu.seg[sreg::SS]),
        (before.seg[sreg::CS], before.seg[sreg::SS])
    );
    assert!(!cpu.seg[sreg::ES].present() && cpu.seg[sreg::DS].present());
}

#[test]
fn software_interrupts_need_the_gates_permission() {
    let mut mem = with_gates();
    let mut cpu = protected(3);
    deliver(&mut cpu, &mut mem, Event::Software(0x30), 0x1236).unwrap();
    // #GP(30H * 8 + 2) without EXT, returning to the INT itself.
    assert_eq!(
        (cpu.rip, mem.take(0x8000 - 24, 4), mem.take(0x8000 - 20, 4)),
        (0x500d, 0x182, 0x1234)
    );
    let mut cpu = protected(3);
    mem.gate(3, CODE0, 0x6000, 0xee, 0, 8);
    deliver(&mut cpu, &mut mem, Event::Int3, 0x1235).unwrap();
    assert_eq!((cpu.rip, mem.take(0x8000 - 20, 4)), (0x6000, 0x1235));
    let mut cpu = protected(3);
    deliver(&mut cpu, &mut mem, Event::External(0x30), 0x1234).unwrap();
    assert_eq!(cpu.rip, 0x5030);
}

#[test]
fn faults_during_external_delivery_carry_ext() {
    let mut mem = with_gates();
    mem.gate(0x30, CODE0, 0x6000, 0x0e, 0, 8);
    let mut cpu = protected(0);
    deliver(&mut cpu, &mut mem, Event::External(0x30), 0x1234).unwrap();
    assert_eq!((cpu.rip, mem.take(cpu.gpr[RSP], 4)), (0x500b, 0x183));
}

#[test]
fn contributory_faults_double_and_triple() {
    let mut mem = with_gates();
    mem.gate(13, CODE0, 0, 0x0e, 0, 8);
    let mut cpu = protected(0);
    deliver(&mut cpu, &mut mem, Event::Exception(gp(0)), 0x1234).unwrap();
    assert_eq!((cpu.rip, mem.take(cpu.gpr[RSP], 4)), (0x5008, 0));
    // A #PF while #GP is delivered is handled on its own; #NP while #PF is delivered doubles.
    let mut cpu = protected(0);
    mem.gate(14, CODE0, 0, 0x0e, 0, 8);
    deliver(
        &mut cpu,
        &mut mem,
        Event::Exception(Exception::page_fault(1, 0)),
        1,
    )
    .unwrap();
    assert_eq!(cpu.rip, 0x5008);
    // A benign exception is never part of a double fault.
    let mut cpu = protected(0);
    mem.gate(6, CODE0, 0, 0x0e, 0, 8);
    deliver(
        &mut cpu,
        &mut mem,
        Event::Exception(Exception::ud()),
        0x1234,
    )
    .unwrap();
    assert_eq!((cpu.rip, mem.take(cpu.gpr[RSP], 4)), (0x500b, 6 * 8 + 3));
    let mut cpu = protected(0);
    cpu.idtr.limit = 0;
    let before = cpu.clone();
    let shutdown = deliver(&mut cpu, &mut mem, Event::Exception(gp(0)), 0x1234);
    assert_eq!(shutdown.unwrap_err().0, gp(8 * 8 + 3));
    assert_eq!(cpu, before);
}

#[test]
fn long_mode_aligns_the_frame_and_iretq_returns() {
    let mut mem = with_long_gates();
    let mut cpu = long(0);
    cpu.gpr[RSP] = 0x9009;
    cpu.rflags = 0x246;
    let before = cpu.clone();
    let effects = deliver(&mut cpu, &mut mem, Event::External(0x40), 0x1234).unwrap();
    assert_eq!(effects, Effects::empty());
    assert_eq!(
        (cpu.rip, cpu.gpr[RSP]),
        (0xffff_ffff_8000_5040, 0x9000 - 40)
    );
    let frame: Vec<_> = (0..5).map(|n| mem.take(0x9000 - 40 + 8 * n, 8)).collect();
    assert_eq!(frame, [0x1234, CODE64.into(), 0x246, 0x9009, DATA0.into()]);
    let effects = iret(&mut cpu, &mut mem, 8, 0).unwrap();
    assert_eq!(effects, Effects::INTERRUPTS_ENABLED);
    assert_eq!(cpu, before);
}

#[test]
fn long_mode_switches_stacks_by_level_and_by_ist() {
    let mut mem = with_long_gates();
    let mut cpu = long(3);
    deliver(&mut cpu, &mut mem, Event::Exception(gp(0x10)), 0x1234).unwrap();
    assert_eq!(
        (cpu.cpl, cpu.gpr[RSP], mem.take(0x8000 - 48, 8)),
        (0, 0x8000 - 48, 0x10)
    );
    assert_eq!(cpu.seg[sreg::SS], segment::null_stack_segment(0, 0));
    cpu.gpr[RSP] += 8;
    iret(&mut cpu, &mut mem, 8, 0).unwrap();
    assert_eq!(
        (cpu.cpl, cpu.gpr[RSP], cpu.seg[sreg::SS].selector),
        (3, 0x9000, DATA3)
    );
    let mut cpu = long(0);
    mem.gate(2, CODE64, 0x5000, 0x8e, 1, 16);
    deliver(&mut cpu, &mut mem, Event::Nmi, 0x1234).unwrap();
    assert_eq!((cpu.gpr[RSP], cpu.nmi_blocked), (0x7000 - 40, 1));
    iret(&mut cpu, &mut mem, 8, 0).unwrap();
    assert_eq!((cpu.gpr[RSP], cpu.nmi_blocked), (0x9000, 0));
}

#[test]
fn iret_to_user_keeps_the_gs_base_behind_a_null_selector() {
    let mut mem = with_long_gates();
    let mut cpu = long(3);
    cpu.seg[sreg::GS] = Segment {
        base: 0x1111,
        ..segment::null_segment(0)
    };
    deliver(&mut cpu, &mut mem, Event::External(0x20), 0x1234).unwrap();
    iret(&mut cpu, &mut mem, 8, 0).unwrap();
    assert_eq!(cpu.seg[sreg::GS].base, 0x1111);
}

#[test]
fn a_return_to_user_makes_null_selectors_zero_and_drops_inner_segments() {
    for semantics in [Semantics::CURRENT, Semantics::FIRST] {
        let mut mem = with_long_gates();
        let mut cpu = long(3);
        cpu.semantics = semantics;
        deliver(&mut cpu, &mut mem, Event::External(0x20), 0x1234).unwrap();
        let at = |base, segment| Segment { base, ..segment };
        let inner = Segment {
            selector: DATA0,
            attr: 0x93 | Segment::G,
            ..Segment::default()
        };
        cpu.seg[sreg::ES] = segment::null_segment(3);
        cpu.seg[sreg::FS] = at(0x1111, segment::null_segment(1));
        cpu.seg[sreg::GS] = at(0x2222, inner);
        cpu.seg[sreg::DS] = cpu.seg[sreg::SS];
        cpu.seg[sreg::DS].attr |= Segment::P | 3 << 5;
        let kept = cpu.seg[sreg::DS];
        iret(&mut cpu, &mut mem, 8, 0).unwrap();
        assert_eq!((cpu.cpl, cpu.seg[sreg::DS]), (3, kept));
        let null = segment::null_segment;
        let (es, fs, gs) = if semantics == Semantics::FIRST {
            (null(3), at(0x1111, null(1)), null(0))
        } else {
            (null(0), at(0x1111, null(0)), at(0x2222, null(0)))
        };
        assert_eq!(cpu.seg[sreg::ES], es);
        assert_eq!(cpu.seg[sreg::FS], fs);
        assert_eq!(cpu.seg[sreg::GS], gs);
    }
}

#[test]
fn iretq_faults_leave_everything_but_nmi_blocking() {
    let mut mem = with_long_gates();
    let base = long(0);
    let sp = base.gpr[RSP];
    let good = [0x1234, u64::from(CODE64_3), 0x202, 0x5000, u64::from(DATA3)];
    for (slot, value, fault) in [
        (0, 1 << 47, gp(0)),
        (1, 0, gp(0)),
        (1, u64::from(CODE64_3 & !3), gp(CODE64_3 & !3)),
        (1, u64::from(DATA3), gp(DATA3 & !3)),
        (4, u64::from(DATA0), gp(DATA0)),
        (4, 3, gp(0)),
    ] {
        for (n, v) in good.into_iter().enumerate() {
            mem.put(sp + 8 * n as u64, 8, if n == slot { value } else { v });
        }
        let mut cpu = base.clone();
        cpu.nmi_blocked = 1;
        assert_eq!(
            iret(&mut cpu, &mut mem, 8, 0),
            Err(fault),
            "{slot} {value:#x}"
        );
        assert_eq!(cpu, base);
    }
    let mut cpu = base.clone();
    cpu.rflags |= RFlags::NT.bits();
    assert_eq!(iret(&mut cpu, &mut mem, 8, 0), Err(gp(0)));
}

#[test]
fn user_iret_cannot_raise_iopl_or_if() {
    let mut mem = with_long_gates();
    let mut cpu = long(3);
    let values = [
        0x1234,
        u64::from(CODE64_3),
        0x3202 | 1 << 18,
        0x5000,
        u64::from(DATA3),
    ];
    for (n, v) in values.into_iter().enumerate() {
        mem.put(0x9000 + 8 * n as u64, 8, v);
    }
    let effects = iret(&mut cpu, &mut mem, 8, 0).unwrap();
    assert_eq!(cpu.rflags, 2 | RFlags::AC.bits());
    assert_eq!(effects, Effects::MODE_CHANGED);
}

#[test]
fn v8086_code_is_entered_by_iret_and_left_by_an_interrupt() {
    let mut mem = with_gates();
    let mut cpu = protected(0);
    let flags = (RFlags::VM | RFlags::IF).bits() | 2;
    let values = [0x10, 0x2000, flags, 0xfff0, 0x3000, 0x11, 0x22, 0x33, 0x44];
    for (n, v) in values.into_iter().enumerate() {
        mem.put(0x9000 + 4 * n as u64, 4, v);
    }
    assert!(iret(&mut cpu, &mut mem, 4, 0)
        .unwrap()
        .contains(Effects::MODE_CHANGED));
    assert_eq!(
        (cpu.cpl, cpu.rip, cpu.rflags, cpu.gpr[RSP]),
        (3, 0x10, flags, 0xfff0)
    );
    assert_eq!(cpu.seg[sreg::GS], segment::v8086_segment(0x44));
    let v8086 = cpu.clone();
    deliver(&mut cpu, &mut mem, Event::Software(0x21), 0x12).unwrap();
    // IOPL < 3: #GP(0).
    assert_eq!(
        (cpu.rip, cpu.cpl, mem.take(cpu.gpr[RSP], 4)),
        (0x500d, 0, 0)
    );
    assert!(!cpu.v8086() && !cpu.seg[sreg::DS].present());
    cpu.gpr[RSP] += 4;
    iret(&mut cpu, &mut mem, 4, 0).unwrap();
    assert_eq!(
        cpu,
        CpuState {
            rflags: v8086.rflags | RFlags::RF.bits(),
            ..v8086
        }
    );
}

#[test]
fn debug_exceptions_set_dr6_and_drop_general_detect() {
    let mut mem = with_gates();
    let mut cpu = protected(0);
    cpu.dr[6] |= 0xf;
    cpu.dr[7] |= 1 << 13;
    deliver(
        &mut cpu,
        &mut mem,
        Event::Exception(Exception::db(1 << 14)),
        0x1235,
    )
    .unwrap();
    assert_eq!((cpu.dr[6], cpu.dr[7]), (0xffff_4ff0, 0x400));
    assert_eq!(mem.take(cpu.gpr[RSP] + 8, 4) & RFlags::RF.bits(), 0);
}

#[test]
fn a_detected_access_to_debug_registers_is_a_fault() {
    for (semantics, rf) in [
        (Semantics::CURRENT, RFlags::RF.bits()),
        (Semantics::FIRST, 0),
    ] {
        let mut mem = with_gates();
        let mut cpu = protected(0);
        cpu.semantics = semantics;
        cpu.dr[7] |= 1 << 13;
        let fault = control::read_dr(&cpu, 6).unwrap_err();
        deliver(&mut cpu, &mut mem, Event::Exception(fault), 0x1235).unwrap();
        assert_eq!((cpu.dr[6] & 0xe00f, cpu.dr[7]), (1 << 13, 0x400));
        assert_eq!(mem.take(cpu.gpr[RSP] + 8, 4) & RFlags::RF.bits(), rf);
    }
}

#[test]
fn int1_leaves_dr6_alone_asks_no_dpl_and_marks_faults_as_external() {
    let mut mem = with_long_gates();
    let mut cpu = long(3);
    let before = cpu.dr[6];
    mem.gate(1, CODE64, 0x5000, 0x8e, 0, 16);
    deliver(&mut cpu, &mut mem, Event::Icebp, 0x1235).unwrap();
    assert_eq!((cpu.rip, cpu.cpl, cpu.dr[6]), (0x5000, 0, before));
    mem.gate(1, CODE64, 0x5000, 0x0e, 0, 16);
    deliver(&mut cpu, &mut mem, Event::Icebp, 0x1235).unwrap();
    // #NP of the gate: vector 1, in the IDT, from outside of the program.
    assert_eq!(mem.take(cpu.gpr[RSP], 8), 1 << 3 | 2 | 1);
}

#[test]
fn write_protection_flushes_what_hangs_on_it() {
    let model = CpuidTable::new([]);
    let mut cpu = long(0);
    cpu.cr0 |= Cr0::WP.bits();
    let toggled = |cpu: &mut CpuState| {
        let effects = control::write_cr(cpu, &model, 0, cpu.cr0 ^ Cr0::WP.bits()).unwrap();
        effects & (Effects::FLUSH_TLB | Effects::FLUSH_UNPROTECTED)
    };
    assert_eq!(toggled(&mut cpu), Effects::empty());
    assert_eq!(toggled(&mut cpu), Effects::FLUSH_UNPROTECTED);
    cpu.semantics = Semantics::FIRST;
    assert_eq!(toggled(&mut cpu), Effects::FLUSH_TLB);
}

#[test]
fn far_jumps_load_code_and_refuse_the_rest() {
    let mut mem = with_gates();
    let mut cpu = protected(0);
    for (selector, fault) in [
        (0, gp(0)),
        (DATA0, gp(DATA0)),
        (CODE3, gp(selector_code(CODE3) as u16)),
        (0x200, gp(0x200)),
        (LDT_SEL, gp(LDT_SEL)),
    ] {
        assert_eq!(far_jmp(&mut cpu, &mut mem, selector, 0, 4, 0), Err(fault));
    }
    far_jmp(&mut cpu, &mut mem, CONFORMING | 3, 0x4444, 4, 0).unwrap();
    assert_eq!((cpu.seg[sreg::CS].selector, cpu.rip), (CONFORMING, 0x4444));
    let mut cpu = CpuState::reset(0);
    far_jmp(&mut cpu, &mut mem, 0xf000, 0xe05b, 2, 0).unwrap();
    assert_eq!((cpu.seg[sreg::CS].base, cpu.rip), (0xf0000, 0xe05b));
}

#[test]
fn a_far_jump_enters_64_bit_mode_from_compatibility_mode() {
    let mut mem = with_long_gates();
    let mut cpu = long(0);
    cpu.seg[sreg::CS] = Segment {
        attr: 0xc09b,
        selector: CODE0,
        ..cpu.seg[sreg::CS]
    };
    let effects = far_jmp(&mut cpu, &mut mem, CODE64, 0x7777, 4, 0).unwrap();
    assert!(cpu.code64() && effects.contains(Effects::MODE_CHANGED));
}

#[test]
fn far_calls_return() {
    let mut mem = with_long_gates();
    for base in [CpuState::reset(0), protected(0), long(0)] {
        let mut cpu = base.clone();
        let (selector, size) = if cpu.code64() {
            (CODE64, 8)
        } else {
            (CODE0, 2)
        };
        cpu.gpr[RSP] = 0x9000;
        cpu.rip = 0x1234;
        if !cpu.protected() {
            cpu.seg[sreg::CS] = segment::real_mode_segment(&cpu.seg[sreg::CS], selector);
        }
        let before = cpu.clone();
        far_call(&mut cpu, &mut mem, selector, 0x4000, size, 0x1234).unwrap();
        assert_eq!((cpu.rip, cpu.gpr[RSP]), (0x4000, 0x9000 - 2 * size as u64));
        far_ret(&mut cpu, &mut mem, size, 0).unwrap();
        assert_eq!(cpu, before);
    }
}

#[test]
fn call_gates_copy_parameters_and_far_returns_release_them() {
    let mut mem = with_gates();
    mem.gate_at(GDT + u64::from(GATE_SEL), CODE0, 0x6000, 0xec, 2);
    let mut cpu = protected(3);
    mem.put(0x9000, 8, 0x2222_2222_1111_1111);
    let before = cpu.clone();
    far_call(&mut cpu, &mut mem, GATE_SEL | 3, 0, 4, 0x1234).unwrap();
    let frame: Vec<_> = (0..6).map(|n| mem.take(0x8000 - 24 + 4 * n, 4)).collect();
    let expected = [
        0x1234,
        CODE3.into(),
        0x1111_1111,
        0x2222_2222,
        0x9000,
        DATA3.into(),
    ];
    assert_eq!(
        (frame.as_slice(), cpu.cpl, cpu.rip),
        (expected.as_slice(), 0, 0x6000)
    );
    far_ret(&mut cpu, &mut mem, 4, 8).unwrap();
    assert_eq!(cpu.gpr[RSP], 0x9008);
    cpu.gpr[RSP] = before.gpr[RSP];
    assert_eq!(cpu, before);
    let mut cpu = protected(3);
    let jump = far_jmp(&mut cpu, &mut mem, GATE_SEL | 3, 0, 4, 0);
    assert_eq!(jump, Err(gp(CODE0)));
}

/// Fills the TSS at 4000H with a ring 0 task.
fn second_task(mem: &mut Memory) {
    for (at, value) in [
        (0x20, 0x6000),
        (0x24, 0x46),
        (0x28, 0xaaaa),
        (0x38, 0xb000),
        (0x48, DATA0.into()),
        (0x4c, CODE0.into()),
        (0x50, DATA0.into()),
        (0x54, DATA0.into()),
    ] {
        mem.put(0x4000 + at, 4, value);
    }
}

#[test]
fn a_called_task_returns_by_iret() {
    let mut mem = with_gates();
    second_task(&mut mem);
    let mut cpu = protected(0);
    cpu.gpr[gpr::RBX] = 0x1_2345;
    far_call(&mut cpu, &mut mem, TSS2_SEL, 0, 4, 0x1240).unwrap();
    assert_eq!(
        (cpu.rip, cpu.gpr[gpr::RAX], cpu.gpr[RSP]),
        (0x6000, 0xaaaa, 0xb000)
    );
    assert_eq!(
        (cpu.tr.selector, cpu.rflags),
        (TSS2_SEL, 0x46 | RFlags::NT.bits())
    );
    assert_ne!(cpu.cr0 & Cr0::TS.bits(), 0);
    assert!(!cpu.seg[sreg::FS].present());
    let type_of = |mem: &Memory, s: u16| mem.take(GDT + u64::from(s) + 5, 1) & 0xf;
    assert_eq!((type_of(&mem, TSS_SEL), type_of(&mem, TSS2_SEL)), (11, 11));
    assert_eq!(mem.take(0x4000, 2), TSS_SEL.into());
    iret(&mut cpu, &mut mem, 4, 0x6002).unwrap();
    assert_eq!(
        (cpu.rip, cpu.gpr[gpr::RBX], cpu.tr.selector),
        (0x1240, 0x1_2345, TSS_SEL)
    );
    assert_eq!((type_of(&mem, TSS_SEL), type_of(&mem, TSS2_SEL)), (11, 9));
    assert_eq!(
        (mem.take(0x4020, 4), cpu.rflags & RFlags::NT.bits()),
        (0x6002, 0)
    );
}

#[test]
fn a_task_gate_delivers_the_error_code_on_the_new_stack() {
    let mut mem = with_gates();
    second_task(&mut mem);
    mem.gate(8, TSS2_SEL, 0, 0x85, 0, 8);
    let mut cpu = protected(0);
    let double = Exception::with_code(vector::DF, 0);
    deliver(&mut cpu, &mut mem, Event::Exception(double), 0x1234).unwrap();
    assert_eq!(
        (cpu.rip, cpu.gpr[RSP], mem.take(0xaffc, 4)),
        (0x6000, 0xaffc, 0)
    );
    assert_eq!(mem.take(TSS + 0x20, 4), 0x1234);
}

#[test]
fn a_bad_segment_of_a_new_task_faults_in_that_task() {
    let mut mem = with_gates();
    second_task(&mut mem);
    mem.put(0x4050, 4, u64::from(CODE0));
    let mut cpu = protected(0);
    let fault = far_jmp(&mut cpu, &mut mem, TSS2_SEL, 0, 4, 0x1240);
    assert_eq!(fault, Err(Exception::ts(u32::from(CODE0))));
    assert_eq!((cpu.rip, cpu.tr.selector), (0x6000, TSS2_SEL));
}

#[test]
fn the_permission_bitmap_guards_ports() {
    let mut mem = with_gates();
    let mut cpu = protected(3);
    cpu.tr.limit = 0x68 + 0x80;
    mem.put(TSS + 0x66, 2, 0x68);
    mem.put(TSS + 0x68 + 0x3f8 / 8, 1, 0x10);
    assert_eq!(io::check_port(&cpu, &mut mem, 0x3f8, 4), Ok(()));
    assert_eq!(io::check_port(&cpu, &mut mem, 0x3fc, 1), Err(gp(0)));
    assert_eq!(io::check_port(&cpu, &mut mem, 0x3fb, 2), Err(gp(0)));
    assert_eq!(io::check_port(&cpu, &mut mem, 0x400, 1), Err(gp(0)));
    cpu.rflags |= RFlags::IOPL.bits();
    assert_eq!(io::check_port(&cpu, &mut mem, 0x3fc, 1), Ok(()));
}

/// A vCPU in any mode with its tables in random memory.
fn random_cpu(kind: u8, words: &[u64]) -> CpuState {
    let cpl = if kind & 1 != 0 { 3 } else { 0 };
    let mut cpu = match kind >> 1 & 3 {
        0 => CpuState::reset(0),
        1 => protected(cpl),
        2 => long(cpl),
        _ => {
            let mut cpu = protected(3);
            cpu.rflags |= RFlags::VM.bits();
            cpu
        }
    };
    if !cpu.protected() {
        cpu.cpl = 0;
    }
    cpu.rflags |= words[0] & (RFlags::NT | RFlags::IOPL | RFlags::IF).bits();
    cpu.ldtr = Segment {
        base: words[1],
        limit: words[2] as u32,
        selector: 0,
        attr: words[3] as u16,
    };
    if words[4] & 3 == 0 {
        cpu.seg[sreg::SS].attr = words[5] as u16;
        cpu.seg[sreg::SS].limit = words[6] as u32;
        cpu.tr.limit = words[7] as u32;
        cpu.tr.base = words[7];
        cpu.gdtr.base = words[6];
        cpu.gpr[RSP] = words[5];
    }
    cpu
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// Whatever a guest puts into its tables: no panic, and what faults outside of a task switch
    /// changes nothing.
    #[test]
    fn random_tables_never_panic(
        kind in 0u8..8,
        operation in 0u8..9,
        selector in 0u16..0x100,
        words in prop::collection::vec(any::<u64>(), 8),
        tables in prop::collection::vec(any::<u64>(), 32),
        attrs in prop::collection::vec(prop::sample::select(vec![
            0x81u16, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x89, 0x8b, 0x8c, 0x8e, 0x8f, 0xee, 0xec,
            0x93, 0x9b, 0x9f, 0xf3, 0xfb, 0x97, 0x1a, 0xc09b, 0xa09b, 0xc093,
        ]), 32),
    ) {
        let mut mem = Memory::new();
        map_long(&mut mem);
        for (n, (raw, attr)) in tables.iter().zip(&attrs).enumerate() {
            let raw = raw & !0x00f0_ff00_0000_0000 | u64::from(*attr) << 40;
            mem.put(GDT + 8 * n as u64, 8, raw);
            mem.put(IDT + 8 * n as u64, 8, raw.rotate_right(16) ^ raw);
            mem.put(0x9000 + 8 * n as u64, 8, raw & words[n % 8]);
            mem.put(TSS + 4 * n as u64, 4, raw & 0xff);
        }
        let mut cpu = random_cpu(kind, &words);
        cpu.nmi_blocked = 0;
        let before = cpu.clone();
        let size = [2, 4, 8][words[1] as usize % 3];
        let result = match operation {
            0 => segment::load_segment(&mut cpu, &mut mem, words[0] as usize % 6, selector),
            1 => segment::lldt(&mut cpu, &mut mem, selector),
            2 => segment::ltr(&mut cpu, &mut mem, selector),
            3 => far_jmp(&mut cpu, &mut mem, selector, words[2], size, 0x10),
            4 => far_call(&mut cpu, &mut mem, selector, words[2], size, 0x10),
            5 => far_ret(&mut cpu, &mut mem, size, words[2] as u16),
            6 => iret(&mut cpu, &mut mem, size, 0x10),
            7 => segment::lar(&cpu, &mut mem, selector).map(|_| Effects::empty()),
            _ => {
                let event = match words[2] % 3 {
                    0 => Event::Exception(Exception::page_fault(words[3], 2)),
                    1 => Event::External(words[3] as u8 & 0x1f),
                    _ => Event::Software(words[3] as u8 & 0x1f),
                };
                let _ = deliver(&mut cpu, &mut mem, event, 0x10);
                Ok(Effects::empty())
            }
        };
        prop_assert!(cpu.cpl < 4);
        if result.is_err() && cpu.tr.selector == before.tr.selector {
            prop_assert_eq!(cpu, before);
        }
    }
}

#[test]
fn long_mode_is_entered_and_left_through_paging() {
    let mut row = super::cpuid::CpuidRow {
        leaf: 1,
        subleaf: None,
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: !0,
    };
    let basic = row;
    row.leaf = 0x8000_0001;
    let model = CpuidTable::new([basic, row]);
    let mut cpu = protected(0);
    let pg = Cr0::PG.bits();
    cpu.efer = 0x100;
    assert_eq!(
        control::write_cr(&mut cpu, &model, 0, 0x31 | pg),
        Err(gp(0))
    );
    assert_eq!(control::write_cr(&mut cpu, &model, 4, 1 << 17), Err(gp(0)));
    control::write_cr(&mut cpu, &model, 4, 0x20).unwrap();
    let effects = control::write_cr(&mut cpu, &model, 0, 0x31 | pg).unwrap();
    assert!(effects.contains(Effects::FLUSH_TLB | Effects::MODE_CHANGED) && cpu.long_mode());
    assert_eq!(control::write_cr(&mut cpu, &model, 4, 0), Err(gp(0)));
    assert_eq!(control::write_cr(&mut cpu, &model, 3, 1 << 40), Err(gp(0)));
    control::write_cr(&mut cpu, &model, 0, 0x31).unwrap();
    assert!(!cpu.long_mode() && cpu.efer == 0x100);
    assert_eq!(control::write_cr(&mut cpu, &model, 0, pg), Err(gp(0)));
    assert_eq!(
        control::write_cr(&mut cpu, &model, 1, 0),
        Err(Exception::ud())
    );
    control::lmsw(&mut cpu, 0).unwrap();
    assert!(cpu.protected());
    cpu.cpl = 3;
    assert_eq!(control::read_cr(&cpu, 0), Err(gp(0)));
}

#[test]
fn popf_changes_what_the_level_may_change() {
    let all = 0x003f_ffff;
    let mut cpu = protected(3);
    control::popf(&mut cpu, all, 4).unwrap();
    assert_eq!(cpu.rflags, 0x24_4dd7);
    let mut cpu = protected(0);
    control::popf(&mut cpu, all, 4).unwrap();
    assert_eq!(cpu.rflags, 0x24_7fd7);
    let mut cpu = protected(0);
    control::popf(&mut cpu, all, 2).unwrap();
    assert_eq!(cpu.rflags, 0x7fd7);
    let mut cpu = protected(3);
    cpu.rflags |= RFlags::VM.bits();
    assert_eq!(control::popf(&mut cpu, 0, 2), Err(gp(0)));
    assert_eq!(control::pushf(&cpu), Err(gp(0)));
    assert_eq!(control::cli(&mut cpu), Err(gp(0)));
}

#[test]
fn sti_shadows_one_instruction_only_when_if_was_clear() {
    let mut cpu = protected(0);
    assert_eq!(control::sti(&mut cpu), Ok(Effects::INTERRUPTS_ENABLED));
    assert_eq!(cpu.shadow, 1);
    cpu.shadow = 0;
    control::sti(&mut cpu).unwrap();
    assert_eq!(cpu.shadow, 0);
}

#[test]
fn debug_registers_alias_and_detect() {
    let mut cpu = protected(0);
    control::write_dr(&mut cpu, 5, 0xffff_dfff).unwrap();
    assert_eq!(cpu.dr[7], 0xffff_07ff);
    control::write_dr(&mut cpu, 4, 0).unwrap();
    assert_eq!(control::read_dr(&cpu, 6), Ok(0xffff_0ff0));
    assert_eq!(control::write_dr(&mut cpu, 7, 1 << 32), Err(gp(0)));
    cpu.cr4 = 8;
    assert_eq!(control::read_dr(&cpu, 4), Err(Exception::ud()));
    cpu.dr[7] |= 1 << 13;
    assert_eq!(control::read_dr(&cpu, 0), Err(Exception::db(1 << 13)));
}
