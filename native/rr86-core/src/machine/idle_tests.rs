//! Timers of boards whose vCPUs are all asleep: those that are passed over do nothing.

use super::*;
use crate::machine::{hpet, ioapic, BoardConfig};
use proptest::prelude::*;

const LAPIC: u64 = 0xfee0_0000;
const VCPUS: usize = 2;

fn board() -> Board {
    let mut board = Board::new(&BoardConfig {
        vcpus: VCPUS,
        memory: 512 << 20,
        start_time: 1_700_000_000,
        semantics: crate::cpu::semantics::Semantics::CURRENT,
        fw_cfg: Vec::new(),
        fw_cfg_files: Vec::new(),
    });
    for vcpu in 0..VCPUS {
        board.mmio_write(vcpu, LAPIC + 0xf0, 4, 0x1ff, 0);
    }
    board
}

fn route(board: &mut Board, pin: u64, entry: u64) {
    for (register, half) in [(0x11 + 2 * pin, entry >> 32), (0x10 + 2 * pin, entry)] {
        board.mmio_write(0, ioapic::BASE, 4, register, 0);
        board.mmio_write(0, ioapic::BASE + 0x10, 4, half & 0xffff_ffff, 0);
    }
}

fn start_pit(board: &mut Board, mode: u32, count: u32) {
    board.io_write(0, 0x43, 1, 0x30 | mode << 1, 0);
    board.io_write(0, 0x40, 1, count & 0xff, 0);
    board.io_write(0, 0x40, 1, count >> 8, 0);
}

fn start_lapic(board: &mut Board, vcpu: usize, entry: u64, count: u64) {
    board.mmio_write(vcpu, LAPIC + 0x3e0, 4, 0xb, 0);
    board.mmio_write(vcpu, LAPIC + 0x320, 4, entry, 0);
    board.mmio_write(vcpu, LAPIC + 0x380, 4, count, 0);
}

fn start_hpet(board: &mut Board, timer: u64, config: u64, ticks: u64) {
    board.mmio_write(0, hpet::BASE + 0x100 + 0x20 * timer, 8, config, 0);
    board.mmio_write(0, hpet::BASE + 0x108 + 0x20 * timer, 8, ticks, 0);
}

/// Nothing that the board asks for acts on anybody but these signals.
fn only(which: Signal) -> impl Fn(&Signal) -> bool {
    move |signal| *signal == which
}

fn unmoved(_: &Signal) -> bool {
    false
}

#[test]
fn a_timer_whose_interrupt_waits_already_has_no_effect() {
    let mut board = board();
    start_lapic(&mut board, 1, 1 << 17 | 0x40, 1000);
    let first = board.next_effect(&unmoved);
    assert_eq!(first, Some(1000));
    board.advance(1000);
    assert_eq!(board.next_deadline(), Some(2000));
    assert_eq!(board.next_effect(&unmoved), None);
}

#[test]
fn a_masked_timer_has_no_effect() {
    let mut board = board();
    start_lapic(&mut board, 0, 1 << 17 | 1 << 16 | 0x40, 1000);
    assert_eq!(board.next_deadline(), Some(1000));
    assert_eq!(board.next_effect(&unmoved), None);
}

#[test]
fn an_nmi_of_the_pit_has_an_effect_for_as_long_as_it_wakes() {
    let mut board = board();
    start_pit(&mut board, 2, 1000);
    // The 8259 keeps an edge.
    board.advance(10_000_000);
    assert_eq!(board.next_effect(&unmoved), None);
    route(&mut board, 2, 0x0100_0000_0000_0400);
    assert!(board.next_effect(&only(Signal::Nmi(1))).is_some());
    assert_eq!(board.next_effect(&only(Signal::Nmi(0))), None);
}

#[test]
fn a_fast_timer_without_effect_does_not_hold_up_a_slow_one() {
    let mut board = board();
    start_pit(&mut board, 2, 2);
    board.advance(10_000);
    start_hpet(&mut board, 0, 20 << 9 | 1 << 2, 100_000_000 * 3600);
    board.mmio_write(0, hpet::BASE + 0x10, 8, 1, 10_000);
    route(&mut board, 20, 0x400);
    let hour = 3_600_000_000_000;
    let at = board.next_effect(&only(Signal::Nmi(0)));
    assert!(at.is_some_and(|at| (hour..hour + 20_000).contains(&at)));
    let at = at.expect("just seen");
    board.pass_until(at);
    board.advance(at);
    assert!(board.take_signals().contains(&Signal::Nmi(0)));
}

#[derive(Clone, Debug)]
enum Setting {
    Pit(u32, u32),
    Lapic(usize, u64, u64),
    Hpet(u64, u64, u64),
    HpetRuns(u64),
    Route(u64, u64),
    PicMask(u32),
    Elcr(u32),
    Lint0(usize, u64),
    Rtc(u32, u32),
    Tpr(usize, u64),
}

fn setting() -> impl Strategy<Value = Setting> {
    let vcpu = || 0..VCPUS;
    let entry = (
        prop::sample::select(vec![0u64, 0x100, 0x400, 0x500, 0x600, 0x700]),
        any::<[bool; 3]>(),
        0u64..3,
    )
        .prop_map(|(mode, [masked, level, logical], to)| {
            mode | 0x40
                | u64::from(masked) << 16
                | u64::from(level) << 15
                | u64::from(logical) << 11
                | to << 56
        });
    prop_oneof![
        (0u32..6, 0u32..400).prop_map(|(mode, count)| Setting::Pit(mode, count)),
        (vcpu(), 0u64..4, any::<bool>(), 0u64..3000).prop_map(|(vcpu, mode, masked, count)| {
            Setting::Lapic(vcpu, mode << 17 | u64::from(masked) << 16 | 0x50, count)
        }),
        (0u64..3, any::<[bool; 3]>(), 0u64..24, 0u64..3000).prop_map(
            |(timer, [level, periodic, on], pin, ticks)| {
                let config = pin << 9
                    | u64::from(level) << 1
                    | u64::from(on) << 2
                    | u64::from(periodic) << 3
                    | u64::from(periodic) << 6;
                Setting::Hpet(timer, config, ticks)
            }
        ),
        (0u64..4).prop_map(Setting::HpetRuns),
        (prop::sample::select(vec![2u64, 8, 9, 20, 21, 22]), entry)
            .prop_map(|(pin, entry)| Setting::Route(pin, entry)),
        prop::sample::select(vec![0u32, 0xff, 0xfe, 1]).prop_map(Setting::PicMask),
        any::<u8>().prop_map(|bits| Setting::Elcr(bits.into())),
        (
            vcpu(),
            prop::sample::select(vec![0x10000u64, 0x60, 0x400, 0x700])
        )
            .prop_map(|(vcpu, entry)| Setting::Lint0(vcpu, entry)),
        (prop::sample::select(vec![0x0bu32, 0x0a]), any::<u8>())
            .prop_map(|(register, value)| Setting::Rtc(register, value.into())),
        (vcpu(), 0u64..256).prop_map(|(vcpu, value)| Setting::Tpr(vcpu, value)),
    ]
}

fn set(board: &mut Board, setting: &Setting) {
    match *setting {
        Setting::Pit(mode, count) => start_pit(board, mode, count),
        Setting::Lapic(vcpu, entry, count) => start_lapic(board, vcpu, entry, count),
        Setting::Hpet(timer, config, ticks) => start_hpet(board, timer, config, ticks),
        Setting::HpetRuns(bits) => board.mmio_write(0, hpet::BASE + 0x10, 8, bits, 0),
        Setting::Route(pin, entry) => route(board, pin, entry),
        Setting::PicMask(mask) => {
            for (port, value) in [
                (0x20, 0x11),
                (0x21, 0x20),
                (0x21, 4),
                (0x21, 1),
                (0x21, mask),
            ] {
                board.io_write(0, port, 1, value, 0);
            }
        }
        Setting::Elcr(bits) => board.io_write(0, 0x4d0, 1, bits, 0),
        Setting::Lint0(vcpu, entry) => board.mmio_write(vcpu, LAPIC + 0x350, 4, entry, 0),
        Setting::Rtc(register, value) => {
            board.io_write(0, 0x70, 1, register, 0);
            board.io_write(0, 0x71, 1, value, 0);
        }
        Setting::Tpr(vcpu, value) => board.mmio_write(vcpu, LAPIC + 0x80, 4, value, 0),
    }
}

/// Firings that are tried one by one.
const STEPS: usize = 300;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn nothing_happens_before_the_next_effect(
        settings in prop::collection::vec(setting(), 1..12),
        started in 0u64..5_000_000,
    ) {
        let (mut stepwise, mut at_once) = (board(), board());
        for setting in &settings {
            set(&mut stepwise, setting);
            set(&mut at_once, setting);
        }
        for board in [&mut stepwise, &mut at_once] {
            board.advance(started);
            board.take_signals();
        }
        let acts = |signal: &Signal| *signal != Signal::DeadlineChanged;
        let saved = stepwise.save();
        let effect = stepwise.next_effect(&acts);
        prop_assert_eq!(stepwise.save(), saved);
        prop_assert_eq!(stepwise.next_deadline(), at_once.next_deadline());
        prop_assert!(!stepwise.has_signals());
        let lapics = stepwise.bus.interrupts.lapics.clone();
        for step in 0.. {
            let Some(at) = stepwise.next_deadline() else { break };
            if step == STEPS {
                return Ok(());
            }
            if effect.is_some_and(|effect| at >= effect) {
                break;
            }
            stepwise.advance(at);
            let signals = stepwise.take_signals();
            prop_assert!(!signals.iter().any(acts), "{:?} at {}", signals, at);
            for (now, old) in stepwise.bus.interrupts.lapics.iter().zip(&lapics) {
                prop_assert!(now.differs_only_in_time(old), "at {}", at);
            }
        }
        if let Some(effect) = effect {
            at_once.pass_until(effect);
            for board in [&mut stepwise, &mut at_once] {
                board.advance(effect);
            }
            prop_assert_eq!(stepwise.save(), at_once.save());
            prop_assert_eq!(stepwise.take_signals(), at_once.take_signals());
        }
    }
}
