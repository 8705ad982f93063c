//! Block protocols: in which order the steps of a block's life are taken, and which of them are left
//! out (docs/block-protocols.md).
//!
//! `precise` cannot miss a write. Every other protocol that has a name is a mistake that a real
//! translator has made, rebuilt so that a run under it can be recorded, replayed and bisected. Users
//! describe others, in `rr86/translate/protocols.py`; the table here is checked against the one there.

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

/// What a protocol does otherwise than `precise`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// The source bytes are read before the page is guarded, and other vCPUs may run in between
    /// (W1, W1′).
    pub fetch_window: bool,
    /// With that window: the page is guarded before the bytes are read (closes W1′).
    pub guard_first: bool,
    /// A store that sees the guard waits for fetches in flight (closes W1, not W1′).
    pub store_waits: bool,
    /// A store invalidates first and commits its data later, and other vCPUs may run in between (W2).
    pub store_window: bool,
    /// With that window: the data comes first, and blocks are looked for later.
    pub commit_first: bool,
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

/// The one that cannot miss a write.
pub const PRECISE: Protocol = Protocol {
    fetch_window: false,
    guard_first: false,
    store_waits: false,
    store_window: false,
    commit_first: false,
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
    fetch_window: true,
    store_window: true,
    unguard_window: true,
    ..PRECISE
};

/// All protocols that have a name, `precise` first.
pub const PROTOCOLS: [(&str, Protocol); 10] = [
    ("precise", PRECISE),
    ("qemu-7.2", QEMU_7_2),
    (
        "qemu-10",
        Protocol {
            store_waits: true,
            ..QEMU_7_2
        },
    ),
    (
        "crossing-untracked",
        Protocol {
            second_page_untracked: true,
            ..PRECISE
        },
    ),
    (
        "dma-unchecked",
        Protocol {
            dma_unchecked: true,
            ..PRECISE
        },
    ),
    (
        "helper-unchecked",
        Protocol {
            helper_unchecked: true,
            ..PRECISE
        },
    ),
    (
        "virtual-keyed",
        Protocol {
            virtual_keyed: true,
            ..PRECISE
        },
    ),
    (
        "chain-kept",
        Protocol {
            chain_kept: true,
            ..PRECISE
        },
    ),
    (
        "same-block-ignored",
        Protocol {
            same_block_ignored: true,
            ..PRECISE
        },
    ),
    (
        "walk-unchecked",
        Protocol {
            walk_unchecked: true,
            ..PRECISE
        },
    ),
];

impl Protocol {
    /// The protocol with this name.
    pub fn named(name: &str) -> Option<Self> {
        PROTOCOLS
            .into_iter()
            .find(|(known, _)| *known == name)
            .map(|(_, protocol)| protocol)
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
