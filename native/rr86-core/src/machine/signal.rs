//! What the board asks of vCPUs, or of the machine as a whole.

/// One request. The machine serves requests between two blocks, in the order in which they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// INIT: reset this vCPU and let it wait for a start-up IPI.
    Init(usize),
    /// Start-up IPI: real-mode code at page number × 4096.
    Sipi(usize, u8),
    /// Non-maskable interrupt.
    Nmi(usize),
    /// A maskable interrupt became deliverable: leave HLT.
    Interrupt(usize),
    /// The guest entered S5.
    PowerOff,
    /// The guest asked for a reset. The board has not been reset yet.
    Reset,
    /// isa-debug-exit with the exit status.
    DebugExit(u32),
    /// An access moved the earliest deadline: ask for it again.
    DeadlineChanged,
    /// A device could not do its work. It keeps the reason itself; nothing may run any more.
    DeviceFailed,
}
