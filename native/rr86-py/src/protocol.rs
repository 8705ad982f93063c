//! Block protocols as Python describes them: the properties of `rr86_core::runtime::protocol::Protocol`
//! by name.

use pyo3::prelude::*;
use rr86_core::runtime::protocol::{Protocol, PROTOCOLS};

#[derive(FromPyObject, IntoPyObject)]
#[pyo3(from_item_all)]
pub struct BlockProtocol {
    fetch_window: bool,
    guard_first: bool,
    store_waits: bool,
    store_window: bool,
    commit_first: bool,
    unguard_window: bool,
    second_page_untracked: bool,
    dma_unchecked: bool,
    helper_unchecked: bool,
    virtual_keyed: bool,
    chain_kept: bool,
    same_block_ignored: bool,
    walk_unchecked: bool,
}

impl From<BlockProtocol> for Protocol {
    fn from(given: BlockProtocol) -> Self {
        Self {
            fetch_window: given.fetch_window,
            guard_first: given.guard_first,
            store_waits: given.store_waits,
            store_window: given.store_window,
            commit_first: given.commit_first,
            unguard_window: given.unguard_window,
            second_page_untracked: given.second_page_untracked,
            dma_unchecked: given.dma_unchecked,
            helper_unchecked: given.helper_unchecked,
            virtual_keyed: given.virtual_keyed,
            chain_kept: given.chain_kept,
            same_block_ignored: given.same_block_ignored,
            walk_unchecked: given.walk_unchecked,
        }
    }
}

impl From<Protocol> for BlockProtocol {
    fn from(known: Protocol) -> Self {
        Self {
            fetch_window: known.fetch_window,
            guard_first: known.guard_first,
            store_waits: known.store_waits,
            store_window: known.store_window,
            commit_first: known.commit_first,
            unguard_window: known.unguard_window,
            second_page_untracked: known.second_page_untracked,
            dma_unchecked: known.dma_unchecked,
            helper_unchecked: known.helper_unchecked,
            virtual_keyed: known.virtual_keyed,
            chain_kept: known.chain_kept,
            same_block_ignored: known.same_block_ignored,
            walk_unchecked: known.walk_unchecked,
        }
    }
}

/// The block protocols that the core knows by name, `precise` first.
#[pyfunction]
pub fn block_protocols() -> Vec<(&'static str, BlockProtocol)> {
    let named = PROTOCOLS.into_iter();
    named.map(|(name, known)| (name, known.into())).collect()
}
