//! What the events of a whole trace say together, without running anything.

use std::collections::BTreeMap;

use super::reader::TraceReader;
use crate::record::{Event, TraceError, NO_VCPU};

/// The lines that one agent wrote and another then got: a bit for each of the 64 lines of a page, by the
/// page's number (physical address / 4096).
///
/// # Errors
/// When the trace is damaged.
pub fn shared_lines(trace: &TraceReader) -> Result<BTreeMap<u64, u64>, TraceError> {
    let mut all = BTreeMap::new();
    for next in trace.stream() {
        if let Event::HandOff {
            page,
            from,
            to,
            lines,
            ..
        } = next?.1
        {
            if from != to && from != NO_VCPU {
                *all.entry(page).or_default() |= lines;
            }
        }
    }
    Ok(all)
}

/// Instructions that each vCPU retired.
///
/// # Errors
/// When the trace is damaged.
pub fn retired(trace: &TraceReader) -> Result<BTreeMap<u8, u64>, TraceError> {
    let mut all = BTreeMap::new();
    for next in trace.stream() {
        if let Event::Slice {
            vcpu, instructions, ..
        } = next?.1
        {
            let sum: &mut u64 = all.entry(vcpu).or_default();
            *sum = sum.saturating_add(instructions);
        }
    }
    Ok(all)
}
