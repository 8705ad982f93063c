//! A PCI function as a driver uses it, on a board.

use super::super::board::{Board, PlugError};
use super::super::pci_config::BAR0;
use super::super::probe::{probe, DEVICE, VENDOR};
use super::super::q35::BoardConfig;
use super::super::signal::Signal;
use crate::cpu::semantics::Semantics;

use super::*;

const MMCONFIG: u64 = 0xb000_0000;
const SLOT: u8 = 3;
const REGISTERS: u64 = 0xfeb0_0000;
const TABLE: u64 = 0xfeb1_0000;
const PORTS: u16 = 0xc000;
const CAPABILITY: u64 = 0x40;
const DATA: u64 = 0x40;

fn board() -> Board {
    let mut board = Board::new(&BoardConfig {
        vcpus: 2,
        memory: 512 << 20,
        start_time: 1_700_000_000,
        semantics: Semantics::CURRENT,
        fw_cfg: Vec::new(),
        fw_cfg_files: Vec::new(),
    });
    board.plug(Box::new(probe(SLOT))).unwrap();
    for vcpu in 0..2 {
        board.mmio_write(vcpu, 0xfee0_00f0, 4, 0x1ff, 0);
    }
    board
}

fn register(offset: u64) -> u64 {
    MMCONFIG | u64::from(SLOT) << 15 | offset
}

fn config(board: &mut Board, offset: u64, size: usize, value: u64) {
    board.mmio_write(0, register(offset), size, value, 0);
}

/// What firmware and driver do first: place the registers, allow everything.
fn started() -> Board {
    let mut board = board();
    config(&mut board, BAR0 as u64, 4, REGISTERS);
    config(&mut board, BAR0 as u64 + 4, 4, PORTS.into());
    config(&mut board, BAR0 as u64 + 8, 4, TABLE);
    config(&mut board, COMMAND as u64, 2, 7);
    board
}

/// Sends vector 0x40 + number to processor 1, unmasked.
fn route(board: &mut Board, vector: u64) {
    let entry = TABLE + 16 * vector;
    board.mmio_write(0, entry, 8, 0xfee0_1000, 0);
    board.mmio_write(0, entry + 8, 8, DATA + vector, 0);
}

fn mask(board: &mut Board, vector: u64, masked: u64) {
    board.mmio_write(0, TABLE + 16 * vector + 12, 4, masked, 0);
}

fn enable_msix(board: &mut Board, control: u64) {
    config(board, CAPABILITY + 2, 2, control);
}

fn notify(board: &mut Board, vector: u64) {
    board.mmio_write(0, REGISTERS + 8, 8, vector, 0);
}

fn pending(board: &mut Board) -> u64 {
    board.mmio_read(0, TABLE + 0x800, 8, 0)
}

#[test]
fn a_driver_finds_the_function_and_sizes_its_registers() {
    let mut board = board();
    let id = board.mmio_read(0, register(0), 4, 0);
    assert_eq!(id, u64::from(DEVICE) << 16 | u64::from(VENDOR));
    for (bar, size) in [
        (0, 0xffff_ff00),
        (1, 0xffff_fff9),
        (2, 0xffff_f000),
        (3, 0),
        (4, 0xffff_f00c),
    ] {
        let at = BAR0 as u64 + 4 * bar;
        config(&mut board, at, 4, 0xffff_ffff);
        assert_eq!(board.mmio_read(0, register(at), 4, 0), size);
    }
    let capability = board.mmio_read(0, register(0x34), 1, 0);
    assert_eq!(capability, CAPABILITY);
    assert_eq!(board.mmio_read(0, register(capability), 4, 0), 0x0002_0011);
    assert_eq!(
        board.mmio_read(0, register(capability + 4), 8, 0),
        0x0000_0802_0000_0002
    );
}

#[test]
fn registers_answer_where_they_were_placed_and_only_while_decoding_is_on() {
    let mut board = started();
    board.io_write(0, PORTS, 4, 0x1234_5678, 0);
    assert_eq!(board.io_read(0, PORTS, 2, 0), 0x5678);
    config(&mut board, BAR0 as u64 + 4, 4, 0xd000);
    assert_eq!(board.io_read(0, PORTS, 2, 0), 0xffff);
    assert_eq!(board.io_read(0, 0xd002, 2, 0), 0x1234);
    board.mmio_write(0, REGISTERS, 8, 1, 0);
    config(&mut board, BAR0 as u64, 4, REGISTERS + 0x100);
    assert_eq!(board.mmio_read(0, REGISTERS, 8, 0), u64::MAX);
    assert_eq!(board.mmio_read(0, REGISTERS + 0x100, 8, 0), 1);
    // A 64-bit register beyond 4 GiB.
    config(&mut board, BAR0 as u64 + 16, 8, 0x8_0000_0000);
    board.mmio_write(0, 0x8_0000_0ff8, 8, 77, 0);
    assert_eq!(board.mmio_read(0, 0x8_0000_0000, 8, 0), 77);
    config(&mut board, COMMAND as u64, 2, 0);
    assert_eq!(board.io_read(0, 0xd000, 4, 0), u32::MAX);
    assert_eq!(board.mmio_read(0, 0x8_0000_0000, 8, 0), u64::MAX);
}

#[test]
fn a_register_cannot_cover_what_the_board_has() {
    let mut board = started();
    config(&mut board, BAR0 as u64 + 4, 4, 0x3f8);
    assert_eq!(board.io_read(0, 0x3fd, 1, 0), 0x60);
    config(&mut board, BAR0 as u64, 4, 0xfec0_0000);
    assert_eq!(board.mmio_read(0, 0xfec0_0000, 4, 0), 0);
    board.mmio_write(0, 0xfec0_0000, 4, 1, 0);
    assert_eq!(board.mmio_read(0, 0xfec0_0010, 4, 0), 0x0017_0020);
}

#[test]
fn the_interrupt_pin_goes_to_its_line_until_it_falls() {
    let mut board = started();
    // INTA of slot 3 is PIRQH, which is pin 23.
    for (register, half) in [(0x11 + 2 * 23, 0u64), (0x10 + 2 * 23, 0x80a1)] {
        board.mmio_write(0, 0xfec0_0000, 4, register, 0);
        board.mmio_write(0, 0xfec0_0010, 4, half, 0);
    }
    board.mmio_write(0, REGISTERS, 8, 1, 0);
    assert_eq!(board.mmio_read(0, register(6), 2, 0) & 8, 8);
    assert_eq!(board.acknowledge_interrupt(0), Some(0xa1));
    board.mmio_write(0, 0xfee0_00b0, 4, 0, 0);
    assert_eq!(board.acknowledge_interrupt(0), Some(0xa1), "still high");
    board.mmio_write(0, REGISTERS, 8, 0, 0);
    board.mmio_write(0, 0xfee0_00b0, 4, 0, 0);
    assert!(!board.pending_interrupt(0));
    // Routed to the 8259 pair, too, as the guest's firmware may.
    board.mmio_write(0, REGISTERS, 8, 1, 0);
    board.mmio_write(0, MMCONFIG | 31 << 15 | 0x6b, 1, 11, 0);
    board.io_write(0, 0xa0, 1, 0x0a, 0);
    assert_eq!(board.io_read(0, 0xa0, 1, 0) & 8, 8);
    // Switched off in the command register, or replaced by messages.
    config(&mut board, COMMAND as u64, 2, 0x407);
    assert_eq!(board.bus.interrupts.wires.pirqs, 0);
    config(&mut board, COMMAND as u64, 2, 7);
    assert_eq!(board.bus.interrupts.wires.pirqs, 0x80);
    enable_msix(&mut board, 0x8000);
    assert_eq!(board.bus.interrupts.wires.pirqs, 0);
}

#[test]
fn a_message_goes_to_the_processor_that_its_entry_names() {
    let mut board = started();
    route(&mut board, 2);
    enable_msix(&mut board, 0x8000);
    board.take_signals();
    notify(&mut board, 2);
    assert_eq!(board.take_signals(), [Signal::Interrupt(1)]);
    assert_eq!(board.acknowledge_interrupt(1), Some(0x42));
    notify(&mut board, 3);
    assert!(!board.pending_interrupt(1), "there is no vector 3");
    assert_eq!(pending(&mut board), 0);
}

#[test]
fn a_masked_vector_waits_and_comes_once_when_unmasked() {
    let mut board = started();
    enable_msix(&mut board, 0x8000);
    notify(&mut board, 1);
    assert_eq!(pending(&mut board), 2, "masked after power-on");
    route(&mut board, 1);
    assert_eq!(pending(&mut board), 0);
    assert_eq!(board.acknowledge_interrupt(1), Some(0x41));
    mask(&mut board, 1, 1);
    for _ in 0..3 {
        notify(&mut board, 1);
    }
    // Pending bits are read-only.
    board.mmio_write(0, TABLE + 0x800, 8, 0, 0);
    assert_eq!(pending(&mut board), 2);
    assert!(!board.pending_interrupt(1));
    board.mmio_write(0, 0xfee0_00b0, 4, 0, 0);
    board.mmio_write(1, 0xfee0_00b0, 4, 0, 0);
    mask(&mut board, 1, 0);
    assert_eq!(board.acknowledge_interrupt(1), Some(0x41));
    board.mmio_write(1, 0xfee0_00b0, 4, 0, 0);
    assert!(!board.pending_interrupt(1));
}

#[test]
fn what_is_dealt_with_while_masked_sends_nothing() {
    let mut board = started();
    enable_msix(&mut board, 0x8000);
    notify(&mut board, 0);
    board.mmio_write(0, REGISTERS + 0x10, 8, 0, 0);
    assert_eq!(pending(&mut board), 0);
    route(&mut board, 0);
    assert!(!board.pending_interrupt(1));
}

#[test]
fn all_vectors_wait_while_the_function_is_masked_or_may_not_write() {
    let mut board = started();
    for vector in 0..2 {
        route(&mut board, vector);
    }
    enable_msix(&mut board, 0xc000);
    notify(&mut board, 0);
    notify(&mut board, 1);
    assert_eq!(pending(&mut board), 3);
    config(&mut board, COMMAND as u64, 2, 3);
    enable_msix(&mut board, 0x8000);
    assert_eq!(pending(&mut board), 3);
    config(&mut board, COMMAND as u64, 2, 7);
    assert_eq!(pending(&mut board), 0);
    assert_eq!(board.acknowledge_interrupt(1), Some(0x41));
    assert!(!board.pending_interrupt(1), "same class");
    board.mmio_write(1, 0xfee0_00b0, 4, 0, 0);
    assert_eq!(board.acknowledge_interrupt(1), Some(0x40));
}

#[test]
fn without_msix_an_event_leaves_nothing_behind() {
    let mut board = started();
    route(&mut board, 0);
    notify(&mut board, 0);
    enable_msix(&mut board, 0x8000);
    assert_eq!(pending(&mut board), 0);
    assert!(!board.pending_interrupt(1));
}

#[test]
fn a_message_to_elsewhere_goes_nowhere() {
    let mut board = started();
    route(&mut board, 0);
    board.mmio_write(0, TABLE + 4, 4, 1, 0);
    enable_msix(&mut board, 0x8000);
    notify(&mut board, 0);
    assert!(!board.pending_interrupt(0) && !board.pending_interrupt(1));
    assert_eq!(pending(&mut board), 0);
}

#[test]
fn a_transfer_waits_for_bus_mastering_and_then_interrupts() {
    let mut board = started();
    route(&mut board, 1);
    enable_msix(&mut board, 0x8000);
    config(&mut board, COMMAND as u64, 2, 3);
    board.mmio_write(0, REGISTERS + 0x20, 8, 0x5000, 0);
    assert_eq!(board.dma_access(), None);
    config(&mut board, COMMAND as u64, 2, 7);
    assert!(board.has_signals());
    let wanted = DmaAccess::Read {
        paddr: 0x5000,
        length: 8,
    };
    assert_eq!(board.dma_access(), Some(wanted));
    board.dma_done(Some(&5u64.to_le_bytes()), 10);
    let wanted = DmaAccess::Write {
        paddr: 0x5008,
        data: (!5u64).to_le_bytes().into(),
    };
    assert_eq!(board.dma_access(), Some(wanted));
    board.dma_done(Some(&[]), 10);
    assert_eq!(board.dma_access(), None);
    assert_eq!(board.acknowledge_interrupt(1), Some(0x41));
    assert_eq!(board.mmio_read(0, REGISTERS + 0x20, 8, 20), 5);
}

#[test]
fn a_timer_of_the_device_fires_with_those_of_the_board() {
    let mut board = started();
    route(&mut board, 0);
    enable_msix(&mut board, 0x8000);
    board.mmio_write(0, REGISTERS + 0x18, 8, 500, 100);
    assert_eq!(board.next_deadline(), Some(600));
    // Whatever it does, a timer like this has an effect.
    assert_eq!(board.next_effect(&|_| false), Some(600));
    board.advance(599);
    assert!(!board.pending_interrupt(1));
    board.advance(600);
    assert_eq!(board.acknowledge_interrupt(1), Some(0x40));
    assert_eq!(board.next_deadline(), None);
}

#[test]
fn the_device_is_saved_and_loaded_with_the_board() {
    let mut one = started();
    route(&mut one, 0);
    enable_msix(&mut one, 0xc000);
    notify(&mut one, 0);
    one.mmio_write(0, REGISTERS, 8, 1, 0);
    let saved = one.save();
    let names: Vec<&str> = saved.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[names.len() - 3..], ["misc", "probe", "wires"]);
    let mut two = board();
    assert_eq!(two.load(&saved), Ok(()));
    assert_eq!(two.save(), saved);
    enable_msix(&mut two, 0x8000);
    assert_eq!(two.acknowledge_interrupt(1), Some(0x40));
    two.reset();
    assert_eq!(two.save(), {
        let mut fresh = board();
        fresh.reset();
        fresh.save()
    });
    assert_eq!(two.mmio_read(0, REGISTERS, 8, 0), u64::MAX);
}

#[test]
fn a_second_device_of_the_same_name_or_place_is_refused() {
    let mut board = board();
    let name = PlugError::Name("probe".to_string());
    assert_eq!(board.plug(Box::new(probe(4))), Err(name));
}
