//! Has the blocks that a trace tells of translated before the guest gets to them.

use std::thread::available_parallelism;

use super::machine::Machine;
use crate::runtime::ahead::Prediction;
use crate::trace::{Block, EventStream};

/// A block that the trace tells of, as the thread that translates ahead wants it.
fn prediction(block: Block) -> Prediction {
    Prediction {
        serial: block.id,
        linear: block.pc,
        paddr: block.paddr,
        len: block.len,
        mode: block.mode,
        digest: block.digest,
    }
}

/// Begins to translate the blocks of a trace ahead, at the first call. Not for the oracle, whose code is special; and
/// not on a single processor, of which the thread would take more from the guest than it gives back.
pub(super) fn translate_ahead(machine: &mut Machine, events: &mut EventStream) {
    if let Some(blocks) = events.take_blocks() {
        let single = available_parallelism().is_ok_and(|n| n.get() == 1);
        if !single && machine.engine.oracle_mut().is_none() {
            let predictions = blocks.map(|next| next.map(prediction));
            machine.engine.translate_ahead(predictions);
        }
    }
}
