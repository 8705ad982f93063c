//! A short run of every target; `rr86-fuzz` makes long ones.

use std::path::{Path, PathBuf};

use rr86_fuzz::campaign::Campaign;
use rr86_fuzz::targets::{Targets, TARGETS};

fn traces() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces");
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the reference traces")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "rr86"))
        .collect();
    found.sort();
    found
}

#[test]
fn hostile_traces_are_refused_or_read_without_harm() {
    let mut targets = Targets::new(&traces());
    for (name, share) in TARGETS {
        let outcome = Campaign {
            seed: 20,
            from: 0,
            inputs: 30 * share.min(100) as u64,
            only: Some(name.to_owned()),
            progress: false,
        }
        .run(&mut targets);
        assert!(
            outcome.findings.is_empty(),
            "{name}: {:?}",
            outcome.findings
        );
        assert!(outcome.inputs[name] > 0);
    }
}
