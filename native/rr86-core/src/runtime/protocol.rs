//! Block protocols: in which order the steps of a block's life are taken, and which of them are left
//! out (docs/block-protocols.md).
//!
//! `precise` cannot miss a write. Every other protocol is a mistake that a real translator has made,
//! rebuilt so that a run under it can be recorded, replayed and bisected.

/// Where a write to guest RAM comes from, as far as protocols tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A plain store instruction.
    Store,
    /// A read-modify-write instruction.
    Modify,
    /// A helper: string instructions, pushes of far transfers, state saves.
    Helper,
    /// Accessed and dirty bits set by the page walker.
    Walk,
    /// DMA, or the loader.
    Device,
}

/// A protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    pub name: &'static str,
    /// The source bytes are read before the page is guarded, and other vCPUs may run in between
    /// (W1, W1′).
    pub fetch_window: bool,
    /// A store that sees the guard waits for fetches in flight (closes W1, not W1′).
    pub store_waits: bool,
    /// A store invalidates first and commits its data later, and other vCPUs may run in between (W2).
    pub store_window: bool,
    /// The guard of a page that a store has emptied is dropped later, without looking again (W3).
    pub unguard_window: bool,
    /// Only the first page of a crossing block is tracked.
    pub second_page_untracked: bool,
    /// Writes by DMA are not checked.
    pub dma_unchecked: bool,
    /// Writes by string helpers and atomics are not checked.
    pub helper_unchecked: bool,
    /// Blocks are invalidated by virtual address, so writes through an alias miss them.
    pub virtual_keyed: bool,
    /// Chains and jump caches still lead to a block that was invalidated.
    pub chain_kept: bool,
    /// A store into the running block lets it run on.
    pub same_block_ignored: bool,
    /// The page walker's writes are not checked.
    pub walk_unchecked: bool,
}

const PRECISE: Protocol = Protocol {
    name: "precise",
    fetch_window: false,
    store_waits: false,
    store_window: false,
    unguard_window: false,
    second_page_untracked: false,
    dma_unchecked: false,
    helper_unchecked: false,
    virtual_keyed: false,
    chain_kept: false,
    same_block_ignored: false,
    walk_unchecked: false,
};

const QEMU_7_2: Protocol = Protocol {
    name: "qemu-7.2",
    fetch_window: true,
    store_window: true,
    unguard_window: true,
    ..PRECISE
};

/// All protocols, `precise` first.
pub const PROTOCOLS: [Protocol; 10] = [
    PRECISE,
    QEMU_7_2,
    Protocol {
        name: "qemu-10",
        store_waits: true,
        ..QEMU_7_2
    },
    Protocol {
        name: "crossing-untracked",
        second_page_untracked: true,
        ..PRECISE
    },
    Protocol {
        name: "dma-unchecked",
        dma_unchecked: true,
        ..PRECISE
    },
    Protocol {
        name: "helper-unchecked",
        helper_unchecked: true,
        ..PRECISE
    },
    Protocol {
        name: "virtual-keyed",
        virtual_keyed: true,
        ..PRECISE
    },
    Protocol {
        name: "chain-kept",
        chain_kept: true,
        ..PRECISE
    },
    Protocol {
        name: "same-block-ignored",
        same_block_ignored: true,
        ..PRECISE
    },
    Protocol {
        name: "walk-unchecked",
        walk_unchecked: true,
        ..PRECISE
    },
];

impl Protocol {
    /// The protocol with this name.
    pub fn named(name: &str) -> Option<Self> {
        PROTOCOLS.into_iter().find(|p| p.name == name)
    }

    /// Whether writes of this kind go unchecked.
    pub fn skips(&self, source: Source) -> bool {
        match source {
            Source::Store => false,
            Source::Modify | Source::Helper => self.helper_unchecked,
            Source::Walk => self.walk_unchecked,
            Source::Device => self.dma_unchecked,
        }
    }

    /// Whether a block can be executed although its source has changed.
    pub fn can_be_stale(&self) -> bool {
        *self != PRECISE
    }
}
