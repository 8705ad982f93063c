//! Behaviour of one local APIC: priorities, timer, errors, destinations and MSR faults.

use super::super::lapic_msr::GeneralProtection;
use super::*;

const TPR: u64 = 0x80;
const EOI: u64 = 0xb0;
const LDR: u64 = 0xd0;
const DFR: u64 = 0xe0;
const SVR: u64 = 0xf0;
const ESR: u64 = 0x280;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER_OFFSET: u64 = 0x320;
const LVT_LINT0_OFFSET: u64 = 0x350;
const LVT_ERROR_OFFSET: u64 = 0x370;
const INITIAL: u64 = 0x380;
const CURRENT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;

fn write(lapic: &mut Lapic, offset: u64, value: u32) -> Action {
    lapic.mmio_write(offset, 4, u64::from(value), 0)
}

fn enabled(id: u32) -> Lapic {
    let mut lapic = Lapic::new(id);
    write(&mut lapic, SVR, 0x1ff);
    lapic
}

fn x2apic(id: u32) -> Lapic {
    let mut lapic = Lapic::new(id);
    let base = lapic.base | BASE_EXTD;
    assert_eq!(lapic.write_msr(0x1b, base, 0), Ok(Action::None));
    assert_eq!(lapic.write_msr(0x80f, 0x1ff, 0), Ok(Action::None));
    lapic
}

#[test]
fn the_bootstrap_processor_starts_with_virtual_wire() {
    let lapic = Lapic::new(0);
    assert!(lapic.accepts_extint());
    assert_eq!(lapic.base, 0xfee0_0900);
    let other = Lapic::new(1);
    assert!(!other.accepts_extint());
    assert_eq!(other.base, 0xfee0_0800);
}

#[test]
fn higher_vectors_come_first_and_hold_back_their_class() {
    let mut lapic = enabled(0);
    lapic.accept(0x31, false);
    lapic.accept(0x41, false);
    assert_eq!(lapic.acknowledge(), Some(0x41));
    assert!(!lapic.pending());
    lapic.accept(0x4f, false);
    assert!(!lapic.pending(), "same class as the one in service");
    lapic.accept(0x50, false);
    assert_eq!(lapic.acknowledge(), Some(0x50));
    write(&mut lapic, EOI, 0);
    write(&mut lapic, EOI, 0);
    assert_eq!(lapic.acknowledge(), Some(0x4f));
    write(&mut lapic, EOI, 0);
    assert_eq!(lapic.acknowledge(), Some(0x31));
}

#[test]
fn task_priority_and_cr8_are_one_register() {
    let mut lapic = enabled(0);
    lapic.accept(0x45, false);
    lapic.set_cr8(4);
    assert_eq!(lapic.mmio_read(TPR, 4, 0), 0x40);
    assert!(!lapic.pending());
    write(&mut lapic, TPR, 0x3f);
    assert_eq!(lapic.cr8(), 3);
    assert!(lapic.pending());
}

#[test]
fn only_level_triggered_vectors_broadcast_their_eoi() {
    let mut lapic = enabled(0);
    lapic.accept(0x60, false);
    lapic.acknowledge();
    assert_eq!(write(&mut lapic, EOI, 0), Action::None);
    lapic.accept(0x60, true);
    lapic.acknowledge();
    assert_eq!(write(&mut lapic, EOI, 0), Action::Eoi(0x60));
}

#[test]
fn a_one_shot_counts_down_and_fires_once() {
    let mut lapic = enabled(0);
    write(&mut lapic, DIVIDE, 0x3); // by 16
    write(&mut lapic, LVT_TIMER_OFFSET, 0xec);
    lapic.mmio_write(INITIAL, 4, 1000, 50);
    assert_eq!(lapic.mmio_read(CURRENT, 4, 50), 1000);
    assert_eq!(lapic.mmio_read(CURRENT, 4, 50 + 160), 990);
    assert_eq!(lapic.next_deadline(), Some(16_050));
    lapic.advance(16_049);
    assert!(!lapic.pending());
    lapic.advance(16_050);
    assert_eq!(lapic.acknowledge(), Some(0xec));
    assert_eq!(lapic.next_deadline(), None);
    assert_eq!(lapic.mmio_read(CURRENT, 4, 20_000), 0);
}

#[test]
fn a_periodic_timer_keeps_its_phase_when_asked_late() {
    let mut lapic = enabled(0);
    write(&mut lapic, DIVIDE, 0xb); // by 1
    write(&mut lapic, LVT_TIMER_OFFSET, 0x2_00ec);
    lapic.mmio_write(INITIAL, 4, 1000, 0);
    lapic.advance(3500);
    assert_eq!(lapic.acknowledge(), Some(0xec));
    assert_eq!(lapic.next_deadline(), Some(4000));
}

#[test]
fn the_tsc_deadline_fires_once_and_reads_back_as_zero() {
    let mut lapic = enabled(0);
    assert_eq!(lapic.write_msr(0x6e0, 77, 0), Ok(Action::None));
    assert_eq!(lapic.next_deadline(), None, "not in deadline mode");
    write(&mut lapic, LVT_TIMER_OFFSET, 0x4_00ec);
    lapic.write_msr(0x6e0, 5000, 0).unwrap();
    assert_eq!(lapic.read_msr(0x6e0, 0), Ok(5000));
    assert_eq!(lapic.mmio_read(CURRENT, 4, 0), 0);
    lapic.advance(5000);
    assert!(lapic.pending());
    assert_eq!(lapic.read_msr(0x6e0, 5000), Ok(0));
    lapic.write_msr(0x6e0, 9000, 5000).unwrap();
    write(&mut lapic, LVT_TIMER_OFFSET, 0xec);
    assert_eq!(lapic.next_deadline(), None, "a change of mode disarms");
}

#[test]
fn software_disable_masks_the_table_and_refuses_vectors() {
    let mut lapic = enabled(0);
    write(&mut lapic, LVT_TIMER_OFFSET, 0xec);
    write(&mut lapic, SVR, 0xff);
    assert_eq!(lapic.mmio_read(LVT_TIMER_OFFSET, 4, 0), 0x1_00ec);
    write(&mut lapic, LVT_TIMER_OFFSET, 0xec);
    assert_eq!(lapic.mmio_read(LVT_TIMER_OFFSET, 4, 0), 0x1_00ec);
    lapic.accept(0x80, false);
    assert!(!lapic.pending());
}

#[test]
fn errors_are_latched_by_a_write_and_interrupt() {
    let mut lapic = enabled(0);
    write(&mut lapic, LVT_ERROR_OFFSET, 0xfe);
    assert_eq!(write(&mut lapic, ICR_LOW, 0x0005), Action::None);
    assert_eq!(lapic.mmio_read(ESR, 4, 0), 0);
    assert_eq!(lapic.acknowledge(), Some(0xfe));
    write(&mut lapic, ESR, 0);
    assert_eq!(lapic.mmio_read(ESR, 4, 0), 0x20);
    write(&mut lapic, ESR, 0);
    assert_eq!(lapic.mmio_read(ESR, 4, 0), 0);
}

#[test]
fn a_read_of_no_register_is_an_error() {
    let mut lapic = enabled(0);
    assert_eq!(lapic.mmio_read(0x40, 4, 0), 0);
    write(&mut lapic, ESR, 0);
    assert_eq!(lapic.mmio_read(ESR, 4, 0), 0x80);
}

#[test]
fn flat_and_cluster_destinations_match_as_the_manual_says() {
    let mut lapic = enabled(1);
    write(&mut lapic, LDR, 0x0200_0000);
    assert!(lapic.matches(Destination::from_byte(0x06, true)));
    assert!(!lapic.matches(Destination::from_byte(0x04, true)));
    assert!(lapic.matches(Destination::from_byte(0x01, false)));
    assert!(lapic.matches(Destination::from_byte(0xff, false)));
    write(&mut lapic, DFR, 0);
    write(&mut lapic, LDR, 0x3200_0000);
    assert!(lapic.matches(Destination::from_byte(0x3a, true)));
    assert!(!lapic.matches(Destination::from_byte(0x2a, true)));
    assert!(lapic.matches(Destination::from_byte(0xf2, true)));
}

#[test]
fn x2apic_destinations_are_clusters_of_sixteen() {
    let lapic = x2apic(0x23);
    assert_eq!(lapic.read_msr(0x802, 0), Ok(0x23));
    assert_eq!(lapic.read_msr(0x80d, 0), Ok(0x0002_0008));
    assert!(lapic.matches(Destination::Logical(0x0002_000c)));
    assert!(!lapic.matches(Destination::Logical(0x0001_0008)));
    assert!(lapic.matches(Destination::Physical(0x23)));
    assert!(lapic.matches(Destination::Physical(u32::MAX)));
}

#[test]
fn the_icr_sends_with_the_destination_of_its_mode() {
    let mut lapic = enabled(0);
    write(&mut lapic, ICR_HIGH, 0x0300_0000);
    let Action::Ipi(message) = write(&mut lapic, ICR_LOW, 0x4600 | 0x9a) else {
        panic!("no message");
    };
    assert_eq!(message.destination, Destination::Physical(3));
    assert_eq!(message.delivery, Delivery::StartUp);
    assert_eq!(message.vector, 0x9a);

    let mut lapic = x2apic(0);
    let sent = lapic.write_msr(0x830, 0x0001_0002_0000_08fb, 0);
    let Ok(Action::Ipi(message)) = sent else {
        panic!("no message");
    };
    assert_eq!(message.destination, Destination::Logical(0x0001_0002));
    assert_eq!(lapic.read_msr(0x830, 0), Ok(0x0001_0002_0000_08fb));
}

#[test]
fn self_ipis_arrive_at_once() {
    let mut lapic = x2apic(0);
    lapic.write_msr(0x83f, 0xf6, 0).unwrap();
    assert_eq!(lapic.acknowledge(), Some(0xf6));
    lapic.write_msr(0x80b, 0, 0).unwrap();
    lapic.write_msr(0x830, 0x0004_00f7, 0).unwrap();
    assert_eq!(lapic.acknowledge(), Some(0xf7));
}

#[test]
fn init_level_deassert_is_ignored() {
    let mut lapic = enabled(0);
    write(&mut lapic, ICR_HIGH, 0x0100_0000);
    assert_eq!(write(&mut lapic, ICR_LOW, 0x8500), Action::None);
    assert!(matches!(write(&mut lapic, ICR_LOW, 0xc500), Action::Ipi(_)));
}

#[test]
fn msr_accesses_fault_where_the_manual_says() {
    let gp = Err(GeneralProtection);
    let mut lapic = Lapic::new(0);
    assert_eq!(lapic.read_msr(0x802, 0), Err(GeneralProtection));
    assert_eq!(lapic.write_msr(0x1b, 0xfee0_0d01, 0), gp, "reserved bit");
    assert_eq!(lapic.write_msr(0x1b, 0xfee0_0500, 0), gp, "EXTD without EN");
    lapic.write_msr(0x1b, 0xfee0_0d00, 0).unwrap();
    assert_eq!(lapic.write_msr(0x1b, 0xfee0_0900, 0), gp, "back to xAPIC");
    for msr in [0x802, 0x803, 0x80a, 0x80d, 0x80e, 0x831, 0x839] {
        assert_eq!(lapic.write_msr(msr, 0, 0), gp, "{msr:#x}");
    }
    for msr in [0x80b, 0x80e, 0x831, 0x83f, 0x840] {
        assert_eq!(lapic.read_msr(msr, 0), Err(GeneralProtection), "{msr:#x}");
    }
    assert_eq!(lapic.write_msr(0x80b, 1, 0), gp);
    assert_eq!(lapic.write_msr(0x808, 1 << 32, 0), gp);
    lapic.write_msr(0x1b, 0xfee0_0100, 0).unwrap();
    assert_eq!(lapic.write_msr(0x1b, 0xfee0_0d00, 0), gp, "off to x2APIC");
    lapic.write_msr(0x1b, 0xfee0_0900, 0).unwrap();
    assert_eq!(lapic.mmio_page(), Some(0xfee0_0000));
}

#[test]
fn a_fixed_lint0_takes_the_edge_as_its_vector() {
    let mut lapic = enabled(0);
    write(&mut lapic, LVT_LINT0_OFFSET, 0x30);
    assert!(!lapic.set_lint0(true));
    assert_eq!(lapic.acknowledge(), Some(0x30));
    assert!(!lapic.set_lint0(true));
    assert!(!lapic.pending());
    write(&mut lapic, LVT_LINT0_OFFSET, 0x400);
    lapic.set_lint0(false);
    assert!(lapic.set_lint0(true), "an NMI");
}
