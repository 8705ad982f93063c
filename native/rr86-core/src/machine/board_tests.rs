//! The board as Linux uses it, and one suite over all devices: states survive a save and a load,
//! the same accesses give the same states, and no access panics.

use super::super::lapic::BASE_EXTD;
use super::super::{hpet, ioapic};
use super::*;
use crate::cpu::semantics::Semantics;
use proptest::prelude::*;

const LAPIC: u64 = 0xfee0_0000;
const IOAPIC: u64 = ioapic::BASE;
const HPET: u64 = hpet::BASE;

fn board(vcpus: usize) -> Board {
    Board::new(&BoardConfig {
        vcpus,
        memory: 512 << 20,
        start_time: 1_700_000_000,
        semantics: Semantics::CURRENT,
        fw_cfg: Vec::new(),
        fw_cfg_files: vec![("opt/name".to_string(), b"value".to_vec())],
    })
}

fn enable_lapics(board: &mut Board) {
    for vcpu in 0..board.bus.interrupts.lapics.len() {
        board.mmio_write(vcpu, LAPIC + 0xf0, 4, 0x1ff, 0);
    }
}

fn route(board: &mut Board, pin: u64, entry: u64) {
    board.mmio_write(0, IOAPIC, 4, 0x11 + 2 * pin, 0);
    board.mmio_write(0, IOAPIC + 0x10, 4, entry >> 32, 0);
    board.mmio_write(0, IOAPIC, 4, 0x10 + 2 * pin, 0);
    board.mmio_write(0, IOAPIC + 0x10, 4, entry & 0xffff_ffff, 0);
}

fn start_pit(board: &mut Board, control: u32, count: u32, now: u64) {
    board.io_write(0, 0x43, 1, control, now);
    board.io_write(0, 0x40, 1, count & 0xff, now);
    board.io_write(0, 0x40, 1, count >> 8, now);
}

#[test]
fn a_new_board_is_quiet() {
    let board = board(4);
    assert_eq!(board.next_deadline(), None);
    assert!(!board.has_signals());
    assert!((0..4).all(|vcpu| !board.pending_interrupt(vcpu)));
}

#[test]
fn the_timer_reaches_pin_2_of_the_io_apic() {
    let mut board = board(2);
    enable_lapics(&mut board);
    route(&mut board, 2, 0x0100_0000_0000_0030);
    start_pit(&mut board, 0x34, 4773, 0);
    let signals = board.take_signals();
    assert!(signals.contains(&Signal::DeadlineChanged));
    while !board.has_signals() {
        let at = board.next_deadline().expect("the timer runs");
        board.advance(at);
    }
    assert_eq!(board.take_signals(), [Signal::Interrupt(1)]);
    assert_eq!(board.acknowledge_interrupt(1), Some(0x30));
    assert!(!board.pending_interrupt(1));
}

#[test]
fn the_timer_reaches_the_bootstrap_processor_through_the_8259_pair() {
    let mut board = board(2);
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 0x04),
        (0x21, 0x01),
        (0x21, 0xfe),
    ] {
        board.io_write(0, port, 1, value, 0);
    }
    start_pit(&mut board, 0x34, 1000, 0);
    board.advance(1_000_000);
    assert!(board.pending_interrupt(0));
    assert!(!board.pending_interrupt(1));
    assert_eq!(board.acknowledge_interrupt(0), Some(0x20));
    assert!(!board.pending_interrupt(0), "in service");
    board.mmio_write(0, LAPIC + 0x350, 4, 0x1_0700, 1_000_000);
    board.io_write(0, 0x20, 1, 0x60, 1_000_000);
    board.advance(2_000_000);
    assert!(!board.pending_interrupt(0), "LINT0 is masked");
}

#[test]
fn a_read_of_the_pm_timer_fires_what_is_due_and_nothing_else() {
    let started = || {
        let mut board = board(2);
        enable_lapics(&mut board);
        route(&mut board, 2, 0x0100_0000_0000_0030);
        start_pit(&mut board, 0x30, 1000, 0);
        board.take_signals();
        board
    };
    let (mut asked, mut other) = (started(), started());
    let due = asked.next_deadline().unwrap();
    for now in [due - 1, due, due + 5] {
        let ticks = asked.io_read(0, 0x608, 4, now);
        assert_eq!(u64::from(ticks), now * 3_579_545 / 1_000_000_000);
        other.io_read(0, 0x80, 1, now);
        assert_eq!(asked.save(), other.save());
        assert_eq!(asked.take_signals(), other.take_signals());
        assert_eq!(asked.pending_interrupt(1), now >= due);
    }
}

#[test]
fn the_hpet_replaces_the_timer_in_legacy_mode() {
    let mut board = board(1);
    route(&mut board, 2, 0x30);
    board.mmio_write(0, HPET + 0x10, 4, 3, 0);
    board.mmio_write(0, HPET + 0x100, 4, 0x104, 0);
    board.mmio_write(0, HPET + 0x108, 4, 5000, 0);
    start_pit(&mut board, 0x34, 100, 0);
    board.advance(49_999);
    assert!(!board.pending_interrupt(0), "the PIT is cut off");
    board.advance(50_000);
    assert_eq!(board.acknowledge_interrupt(0), Some(0x30));
}

#[test]
fn init_and_start_up_reach_the_addressed_processor() {
    let mut board = board(3);
    board.mmio_write(0, LAPIC + 0x310, 4, 0x0200_0000, 0);
    for command in [0xc500, 0x8500, 0x4699, 0x4699] {
        board.mmio_write(0, LAPIC + 0x300, 4, command, 0);
    }
    assert_eq!(
        board.take_signals(),
        [
            Signal::Init(2),
            Signal::Sipi(2, 0x99),
            Signal::Sipi(2, 0x99)
        ]
    );
}

#[test]
fn an_nmi_to_all_others_leaves_the_sender_out() {
    let mut board = board(3);
    board.mmio_write(1, LAPIC + 0x300, 4, 0xc_4400, 0);
    assert_eq!(board.take_signals(), [Signal::Nmi(0), Signal::Nmi(2)]);
}

#[test]
fn x2apic_logical_ipis_wake_their_cluster_members() {
    let mut board = board(4);
    for vcpu in 0..4 {
        let base = board.apic_msr_read(vcpu, 0x1b, 0).unwrap();
        board
            .apic_msr_write(vcpu, 0x1b, base | BASE_EXTD, 0)
            .unwrap();
        board.apic_msr_write(vcpu, 0x80f, 0x1ff, 0).unwrap();
    }
    assert_eq!(board.mmio_read(0, LAPIC + 0x20, 4, 0), 0xffff_ffff);
    board.take_signals();
    board
        .apic_msr_write(0, 0x830, 0x0000_000a_0000_08fd, 0)
        .unwrap();
    assert_eq!(
        board.take_signals(),
        [Signal::Interrupt(1), Signal::Interrupt(3)]
    );
    assert_eq!(board.acknowledge_interrupt(3), Some(0xfd));
}

#[test]
fn a_tsc_deadline_in_the_past_fires_at_once() {
    let mut board = board(1);
    board.mmio_write(0, LAPIC + 0x320, 4, 0x4_00ec, 0);
    board.apic_msr_write(0, 0x6e0, 500, 1000).unwrap();
    assert_eq!(board.take_signals(), [Signal::Interrupt(0)]);
    assert_eq!(board.next_deadline(), None);
    assert_eq!(board.acknowledge_interrupt(0), Some(0xec));
    board.apic_msr_write(0, 0x6e0, 2000, 1000).unwrap();
    assert_eq!(board.take_signals(), [Signal::DeadlineChanged]);
    assert_eq!(board.next_deadline(), Some(2000));
}

#[test]
fn lowest_priority_goes_to_the_least_busy_processor() {
    let mut board = board(3);
    enable_lapics(&mut board);
    board.set_cr8(0, 5);
    board.set_cr8(1, 2);
    board.set_cr8(2, 3);
    board.send_msi(0xfeef_f000, 0x0161, 0);
    assert!(board.pending_interrupt(1));
    assert!(!board.pending_interrupt(0) && !board.pending_interrupt(2));
}

#[test]
fn the_console_interrupts_on_pin_4_and_talks() {
    let mut board = board(1);
    route(&mut board, 4, 0x34);
    board.io_write(0, 0x3f9, 1, 1, 0);
    board.serial_receive(b"x", 10);
    assert_eq!(board.acknowledge_interrupt(0), Some(0x34));
    assert_eq!(board.io_read(0, 0x3f8, 1, 20), u32::from(b'x'));
    board.io_write(0, 0x3f8, 1, u32::from(b'y'), 30);
    assert_eq!(board.take_serial_output(), b"y");
}

#[test]
fn wide_accesses_to_byte_devices_are_split() {
    let mut board = board(1);
    board.io_write(0, 0x4d0, 2, 0x0e20, 0);
    assert_eq!(board.io_read(0, 0x4d0, 1, 0), 0x20);
    assert_eq!(board.io_read(0, 0x4d0, 4, 0), 0xffff_0e20);
    assert_eq!(board.io_read(0, 0x1234, 2, 0), 0xffff);
    assert_eq!(board.mmio_read(0, 0xd000_0000, 2, 0), 0xffff);
}

#[test]
fn the_ways_out_are_signalled() {
    let mut board = board(1);
    board.io_write(0, 0xf4, 4, 3, 0);
    board.io_write(0, 0xcf9, 1, 6, 0);
    board.io_write(0, 0x64, 1, 0xfe, 0);
    board.io_write(0, 0x604, 2, 0x2001, 0);
    let signals = board.take_signals();
    assert_eq!(
        signals[..3],
        [Signal::DebugExit(7), Signal::Reset, Signal::Reset]
    );
    assert_eq!(signals[3..], [Signal::PowerOff]);
}

#[test]
fn the_firmware_configuration_shows_its_signature() {
    let mut board = board(1);
    board.io_write(0, 0x510, 2, 0, 0);
    let bytes: Vec<u8> = (0..4)
        .map(|_| board.io_read(0, 0x511, 1, 0) as u8)
        .collect();
    assert_eq!(bytes, b"QEMU");
}

#[test]
fn a_dma_request_waits_for_the_machine_and_survives_a_save() {
    let mut first = board(1);
    first.io_write(0, 0x514, 4, 1u32.swap_bytes(), 0);
    assert!(!first.has_signals());
    first.io_write(0, 0x518, 4, 0x2000u32.swap_bytes(), 0);
    assert!(first.has_signals());
    let mut second = board(1);
    assert_eq!(second.load(&first.save()), Ok(()));
    assert!(second.has_signals());
    let descriptor = DmaAccess::Read {
        paddr: 0x1_0000_2000,
        length: 16,
    };
    assert_eq!(second.dma_access(), Some(descriptor));
    // No RAM there: the error goes where the descriptor should have been.
    second.dma_done(None, 0);
    let status = DmaAccess::Write {
        paddr: 0x1_0000_2000,
        data: vec![0, 0, 0, 1],
    };
    assert_eq!(second.dma_access(), Some(status));
    second.dma_done(None, 0);
    assert!(!second.has_signals());
}

#[test]
fn the_host_bridge_is_on_both_configuration_paths() {
    let mut board = board(1);
    board.io_write(0, 0xcf8, 4, 0x8000_0000, 0);
    assert_eq!(board.io_read(0, 0xcfc, 4, 0), 0x29c0_8086);
    assert_eq!(board.io_read(0, 0xcfe, 2, 0), 0x29c0);
    assert_eq!(board.mmio_read(0, 0xb000_0000, 4, 0), 0x29c0_8086);
}

#[test]
fn a_reset_board_is_like_a_new_one() {
    let mut board = board(2);
    let fresh = board.save();
    enable_lapics(&mut board);
    route(&mut board, 2, 0x30);
    start_pit(&mut board, 0x34, 100, 0);
    board.advance(1_000_000);
    assert_ne!(board.save(), fresh);
    board.reset();
    assert_eq!(board.save(), fresh);
    assert_eq!(board.next_deadline(), None);
    assert!(!board.has_signals());
}

#[test]
fn a_damaged_state_is_an_error() {
    let mut board = board(1);
    let mut parts = board.save();
    parts[0].1.push(0);
    assert_eq!(board.load(&parts), Err(LoadError::TrailingBytes(1)));
    let mut parts = board.save();
    let removed = parts.pop().map(|(name, _)| name);
    assert_eq!(
        board.load(&parts).err(),
        removed.map(LoadError::MissingComponent)
    );
    let mut parts = board.save();
    parts.push(("vga".to_string(), Vec::new()));
    assert_eq!(
        board.load(&parts),
        Err(LoadError::UnknownComponent("vga".to_string()))
    );
}

/// One thing that a guest or a host can do to the board.
#[derive(Debug, Clone)]
enum Step {
    In(u16, usize),
    Out(u16, usize, u32),
    Load(u64, usize),
    Store(u64, usize, u64),
    ReadMsr(u32),
    WriteMsr(u32, u64),
    Acknowledge,
    Receive(Vec<u8>),
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        prop::sample::select(vec![
            0x20u16, 0x21, 0x40, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0xa0, 0xa1, 0xb2,
            0xb3, 0xf4, 0x402, 0x4d0, 0x4d1, 0x510, 0x511, 0x514, 0x518, 0xcf8, 0xcf9, 0xcfc,
        ]),
        0x3f8u16..0x400,
        0x600u16..0x630,
        0xcf8u16..0xd00,
        any::<u16>(),
    ]
}

fn address() -> impl Strategy<Value = u64> {
    let register = |base: u64, count: u64, stride: u64| {
        (0..count, 0u64..20).prop_map(move |(index, low)| {
            // Mostly aligned, as drivers do it.
            base + index * stride + if low < 8 { low } else { 0 }
        })
    };
    prop_oneof![
        register(LAPIC, 0x40, 0x10),
        register(IOAPIC, 5, 0x10),
        register(HPET, 0x40, 8),
        register(0xb000_0000, 0x400, 4),
        register(0xb00f_8000, 0x400, 4),
        register(0xfed1_c000, 0x1000, 4),
        any::<u64>(),
    ]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..0x100,
        any::<u16>().prop_map(u64::from),
        any::<u32>().prop_map(u64::from),
        any::<u64>(),
        (0u32..64).prop_map(|bit| 1 << bit),
    ]
}

fn msr() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0x1b), Just(0x6e0), 0x800u32..0x840, 0x800u32..0x900]
}

fn step() -> impl Strategy<Value = Step> {
    let size = || prop::sample::select(vec![1usize, 2, 4]);
    let wide = || prop::sample::select(vec![1usize, 2, 4, 4, 4, 8]);
    prop_oneof![
        2 => (port(), size()).prop_map(|(port, size)| Step::In(port, size)),
        6 => (port(), size(), value())
            .prop_map(|(port, size, value)| Step::Out(port, size, value as u32)),
        2 => (address(), wide()).prop_map(|(paddr, size)| Step::Load(paddr, size)),
        6 => (address(), wide(), value())
            .prop_map(|(paddr, size, value)| Step::Store(paddr, size, value)),
        1 => msr().prop_map(Step::ReadMsr),
        3 => (msr(), value()).prop_map(|(msr, value)| Step::WriteMsr(msr, value)),
        2 => Just(Step::Acknowledge),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Step::Receive),
    ]
}

/// Does a step and gives what can be seen of it.
fn perform(board: &mut Board, vcpu: usize, step: &Step, now: u64) -> u64 {
    match step {
        Step::In(port, size) => u64::from(board.io_read(vcpu, *port, *size, now)),
        Step::Out(port, size, value) => {
            board.io_write(vcpu, *port, *size, *value, now);
            0
        }
        Step::Load(paddr, size) => board.mmio_read(vcpu, *paddr, *size, now),
        Step::Store(paddr, size, value) => {
            board.mmio_write(vcpu, *paddr, *size, *value, now);
            0
        }
        Step::ReadMsr(msr) => board.apic_msr_read(vcpu, *msr, now).unwrap_or(1),
        Step::WriteMsr(msr, value) => {
            u64::from(board.apic_msr_write(vcpu, *msr, *value, now).is_ok())
        }
        Step::Acknowledge => {
            board.advance(now);
            board
                .acknowledge_interrupt(vcpu)
                .map_or(u64::MAX, u64::from)
        }
        Step::Receive(bytes) => {
            board.serial_receive(bytes, now);
            0
        }
    }
}

type Script = Vec<(usize, u64, Step)>;

fn script() -> impl Strategy<Value = Script> {
    let delay = prop_oneof![4 => 0u64..2000, 1 => 0u64..200_000];
    prop::collection::vec((0usize..3, delay, step()), 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn random_accesses_never_panic_and_repeat_exactly(script in script()) {
        let (mut one, mut two) = (board(3), board(3));
        let mut now = 0;
        for (vcpu, delay, step) in &script {
            now += delay;
            let seen = perform(&mut one, *vcpu, step, now);
            prop_assert_eq!(seen, perform(&mut two, *vcpu, step, now));
            prop_assert!(one.next_deadline().is_none_or(|at| at > now));
        }
        prop_assert_eq!(one.save(), two.save());
        prop_assert_eq!(one.take_signals(), two.take_signals());
    }

    #[test]
    fn a_loaded_board_goes_on_like_the_saved_one(before in script(), after in script()) {
        let mut one = board(3);
        let mut now = 0;
        for (vcpu, delay, step) in &before {
            now += delay;
            perform(&mut one, *vcpu, step, now);
        }
        let saved = one.save();
        let mut two = board(3);
        prop_assert_eq!(two.load(&saved), Ok(()));
        prop_assert_eq!(&two.save(), &saved);
        prop_assert_eq!(one.next_deadline(), two.next_deadline());
        one.take_signals();
        for (vcpu, delay, step) in &after {
            now += delay;
            let seen = perform(&mut one, *vcpu, step, now);
            prop_assert_eq!(seen, perform(&mut two, *vcpu, step, now));
            prop_assert_eq!(one.take_signals(), two.take_signals());
        }
        prop_assert_eq!(one.save(), two.save());
    }

    #[test]
    fn it_does_not_matter_when_timers_are_asked(script in script()) {
        let (mut lazy, mut eager) = (board(3), board(3));
        let mut now = 0;
        for (vcpu, delay, step) in &script {
            let until = now + delay;
            while now < until {
                now = until.min(now + 1 + delay / 7);
                eager.advance(now);
            }
            let seen = perform(&mut lazy, *vcpu, step, now);
            prop_assert_eq!(seen, perform(&mut eager, *vcpu, step, now));
            prop_assert_eq!(lazy.save(), eager.save());
        }
    }

    #[test]
    fn random_states_are_refused_or_harmless(
        noise in prop::collection::vec((0usize..15, 0usize..200, any::<u8>()), 1..12),
        script in script(),
    ) {
        let mut victim = board(3);
        let mut parts = victim.save();
        for (part, index, byte) in noise {
            let bytes = &mut parts[part].1;
            if let Some(slot) = bytes.get_mut(index) {
                *slot = byte;
            }
        }
        if victim.load(&parts).is_ok() {
            let mut now = 0;
            for (vcpu, delay, step) in &script {
                now += delay;
                perform(&mut victim, *vcpu, step, now);
            }
        }
    }
}

#[test]
fn debug_console_output_is_told_apart_by_what_came_before_the_serial_port_was_used() {
    let mut board = board(1);
    let say = |board: &mut Board, port: u16, byte: u8| {
        board.io_write(0, port, 1, u32::from(byte), 0);
    };
    say(&mut board, 0xe9, b'a');
    say(&mut board, 0x402, b'\n');
    assert!(board.has_debugcon_line());
    assert_eq!(board.take_debugcon_output(), (b"a\n".to_vec(), 2));
    assert!(!board.has_debugcon_line());
    say(&mut board, 0xe9, b'b');
    // A byte that a driver sends to itself is not for the outside.
    say(&mut board, 0x3fc, 0x10);
    say(&mut board, 0x3f8, b'?');
    say(&mut board, 0xe9, b'c');
    say(&mut board, 0x3fc, 0);
    say(&mut board, 0x3f8, b's');
    say(&mut board, 0xe9, b'd');
    assert_eq!(board.take_debugcon_output(), (b"bcd".to_vec(), 2));
    say(&mut board, 0xe9, b'e');
    assert_eq!(board.take_debugcon_output(), (b"e".to_vec(), 0));
    assert_eq!(board.take_serial_output(), b"s");
}
