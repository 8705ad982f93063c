//! The way into generated code, and what that code calls.

use super::codebuf::CodeBuffer;
use super::vcpu::Vcpu;
use super::{execute, slow};
use crate::translate::lower::stubs::{self, Helpers, Stubs};

/// Puts the stubs into an empty code buffer. For tests, `mask` is what the host's FXSAVE is taken to store as
/// MXCSR_MASK.
pub fn place_stubs(buffer: &mut CodeBuffer, mask: Option<u32>) -> Stubs {
    let helpers = Helpers {
        access: slow::access as *const () as u64,
        commit: slow::commit as *const () as u64,
        segment: slow::segment as *const () as u64,
        helper: execute::helper as *const () as u64,
        hook: execute::hook as *const () as u64,
        entered: execute::entered as *const () as u64,
    };
    let base = buffer.address(0);
    let (code, stubs) = stubs::emit(base, &helpers, mask);
    let offset = buffer.append_stubs(&code);
    assert_eq!(buffer.address(offset), base);
    stubs
}

/// Runs translated code at `code` on `vcpu` until it comes back.
///
/// # Safety
/// `code` is the start of translated code in the buffer that `stubs` belongs to, the GS base points
/// to `vcpu`, and no reference to the vCPU or the engine is used while the code runs: it reaches both
/// through raw pointers.
pub unsafe fn enter(stubs: &Stubs, vcpu: *mut Vcpu, code: u64) {
    // SAFETY: `stubs.enter` is code with this signature; the caller vouches for the rest.
    unsafe {
        debug_assert_eq!((*vcpu).run.this, vcpu as u64);
        let enter: extern "sysv64" fn(u64) = std::mem::transmute(stubs.enter);
        enter(code);
    }
}
