//! What a bug in the core looks like to a person: one line that can be reported.
//!
//! A panic that unwinds reaches Python as `pyo3_runtime.PanicException`. One under translated code
//! cannot unwind through it, and ends the process.

use std::panic::PanicHookInfo;
use std::sync::Once;

const CANNOT_UNWIND: &str = "panic in a function that cannot unwind";

fn report(info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown");
    if text.starts_with(CANNOT_UNWIND) {
        // Its cause has been reported a moment ago; what is left is to abort, which says nothing more.
        std::process::exit(1);
    }
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let place = info
        .location()
        .map(|l| format!(" at {}:{}", l.file(), l.line()))
        .unwrap_or_default();
    eprintln!(
        "rr86: error: this is a bug in rr86, please report it with the trace, which is kept: {text}{place}"
    );
}

/// Makes panics one line; once a process.
pub fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| std::panic::set_hook(Box::new(report)));
}
