//! A sample of the opcode sweep; `rr86-differential --sweep 1` tries every encoding.

use rr86_differential::sweep::{sweep, Mode, Options};

#[test]
fn every_encoding_does_what_the_model_says_and_none_is_a_signal_on_the_host() {
    let options = Options {
        stride: 397,
        seed: 1,
        host: true,
        modes: Mode::ALL.into(),
    };
    let summary = sweep(options, &mut |_| ());
    assert!(summary.cases > 100_000, "{summary}");
    assert_eq!((summary.signals, summary.findings), (0, 0), "{summary}");
}
