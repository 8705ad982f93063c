//! Making an engine.

use super::bus::Bus;
use super::clock::Clock;
use super::code_cache::CodeCache;
use super::codebuf::CodeBuffer;
use super::coherence_state::Coherence;
use super::engine::Engine;
use super::entry::place_stubs;
use super::guest_memory::GuestMemory;
use super::host::{check_host, HostError};
use super::instruction::CurrentInstruction;
use super::observers::Observers;
use super::outside::Outside;
use super::progress::Progress;
use super::slice::Slice;
use super::stops::Stops;
use super::translator::{BlockLimits, Translator};
use super::vcpu::Vcpus;
use super::windows::Windows;
use crate::cpu::cpuid::CpuidTable;
use crate::cpu::msr::index;
use crate::cpu::semantics::Semantics;
use crate::memory::ram::GuestRam;

/// MXCSR as at power-on.
const MXCSR: u32 = 0x1f80;

impl Engine {
    /// A powered-off machine's worth of memory and vCPUs.
    ///
    /// # Errors
    /// [`HostError`] when the host lacks an instruction or refuses memory.
    pub fn new(
        memory: u64,
        vcpus: usize,
        model: CpuidTable,
        bus: Box<dyn Bus>,
        limits: BlockLimits,
    ) -> Result<Box<Self>, HostError> {
        check_host(&model)?;
        let ram = GuestRam::new(memory).map_err(|error| HostError::Refused {
            what: "memory for the guest",
            error,
        })?;
        let mut buffer = new_code_buffer()?;
        let stubs = place_stubs(&mut buffer, None);
        let pages = ram.pages();
        let mut engine = Box::new(Self {
            memory: GuestMemory::new(ram),
            cache: CodeCache::new(pages, buffer, stubs),
            translator: Translator::new(model, limits),
            vcpus: Vcpus::new(vcpus, pages),
            progress: vec![Progress::default(); vcpus],
            clock: Clock::default(),
            slice: Slice::default(),
            instruction: CurrentInstruction::default(),
            coherence: Coherence::new(limits.protocol),
            windows: Windows::default(),
            stops: Stops::default(),
            observers: Observers::default(),
            outside: Outside::new(bus),
            host_fault: None,
        });
        for number in 0..vcpus {
            let vcpu = engine.vcpus.vcpu_mut(number);
            vcpu.run.host_mxcsr = MXCSR;
            let msr = &mut vcpu.cpu.msr;
            for (slot, index) in [
                (&mut msr.feature_control, index::FEATURE_CONTROL),
                (&mut msr.bios_sign_id, index::BIOS_SIGN_ID),
                (&mut msr.misc_enable, index::MISC_ENABLE),
                (&mut msr.pat, index::PAT),
            ] {
                *slot = engine.translator.model().msr(index).unwrap_or(*slot);
            }
        }
        Ok(engine)
    }

    /// Sets the version of the semantics that all vCPUs follow; before any of them runs.
    pub fn set_semantics(&mut self, semantics: Semantics) {
        debug_assert!(self.cache.blocks.is_empty());
        self.translator.set_semantics(semantics);
        for index in 0..self.vcpus.count() {
            let vcpu = self.vcpus.vcpu_mut(index);
            vcpu.cpu.semantics = semantics;
            vcpu.run.host_mxcsr_mask = u8::from(semantics.keeps_host_mxcsr_mask());
        }
    }

    /// Has the host's FXSAVE store another MXCSR_MASK from now on, as on a processor of another maker: for tests,
    /// before any code is made.
    ///
    /// # Errors
    /// [`HostError`] when the host refuses memory.
    pub fn pretend_mxcsr_mask(&mut self, mask: u32) -> Result<(), HostError> {
        debug_assert!(self.cache.blocks.is_empty());
        let mut buffer = new_code_buffer()?;
        let stubs = place_stubs(&mut buffer, Some(mask));
        self.cache.replace_buffer(buffer, stubs);
        Ok(())
    }
}

fn new_code_buffer() -> Result<CodeBuffer, HostError> {
    CodeBuffer::new(128 << 20).map_err(|error| HostError::Refused {
        what: "memory for translated code",
        error,
    })
}
