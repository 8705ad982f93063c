//! What the host's CPU must have.

use crate::cpu::cpuid::{CpuidTable, Feature};
use std::io;

use thiserror::Error;

/// The host cannot run the engine.
#[derive(Debug, Error)]
pub enum HostError {
    #[error("this host's CPU lacks {0}, which rr86 needs (Intel Haswell, AMD Zen or later)")]
    MissingFeature(&'static str),
    #[error("this host's CPU lacks {0}, which the guest's CPU model offers")]
    MissingForModel(&'static str),
    #[error("the host refused {what}: {error}")]
    Refused {
        what: &'static str,
        error: io::Error,
    },
}

/// Whether the host's user code has a feature.
fn has_feature(name: &str) -> bool {
    match name {
        "BMI2" => is_x86_feature_detected!("bmi2"),
        "SSE3" => is_x86_feature_detected!("sse3"),
        "SSSE3" => is_x86_feature_detected!("ssse3"),
        "SSE4.1" => is_x86_feature_detected!("sse4.1"),
        "SSE4.2" => is_x86_feature_detected!("sse4.2"),
        "POPCNT" => is_x86_feature_detected!("popcnt"),
        "CMPXCHG16B" => is_x86_feature_detected!("cmpxchg16b"),
        "AES" => is_x86_feature_detected!("aes"),
        "PCLMULQDQ" => is_x86_feature_detected!("pclmulqdq"),
        _ => false,
    }
}

/// Refuses a host without the instructions that translated code relies on: those that it is made of, and those
/// of the model, which are copied.
///
/// # Errors
/// [`HostError`] with the name of what is missing.
pub(in crate::runtime) fn check_host(model: &CpuidTable) -> Result<(), HostError> {
    check(model, has_feature)
}

/// The same for a host that has these features.
fn check(model: &CpuidTable, has: impl Fn(&str) -> bool) -> Result<(), HostError> {
    const COPIED: [(Feature, &str); 8] = [
        (Feature::SSE3, "SSE3"),
        (Feature::SSSE3, "SSSE3"),
        (Feature::SSE4_1, "SSE4.1"),
        (Feature::SSE4_2, "SSE4.2"),
        (Feature::POPCNT, "POPCNT"),
        (Feature::CMPXCHG16B, "CMPXCHG16B"),
        (Feature::AES, "AES"),
        (Feature::PCLMULQDQ, "PCLMULQDQ"),
    ];
    if !has("BMI2") {
        return Err(HostError::MissingFeature("BMI2"));
    }
    // Without a model, whatever can be translated may be asked for.
    let without_model = model.find(1, 0).is_none();
    let missing = COPIED
        .iter()
        .find(|(feature, name)| (without_model || model.has(*feature)) && !has(name));
    match missing {
        Some((_, name)) => Err(HostError::MissingForModel(name)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::cpuid::CpuidRow;

    /// A model with these bits in leaf 1, ECX.
    fn model(ecx: u32) -> CpuidTable {
        CpuidTable::new([CpuidRow {
            leaf: 1,
            subleaf: None,
            eax: 0,
            ebx: 0,
            ecx,
            edx: 0,
        }])
    }

    #[test]
    fn a_host_needs_what_the_model_offers_and_no_more() {
        let lacking = |what: &'static str| move |name: &str| name != what;
        let with_aes = model(1 << 25 | 1 << 20);
        let without = model(1 << 20);
        assert!(check(&with_aes, |_| true).is_ok());
        assert!(check(&without, lacking("AES")).is_ok());
        let error = check(&with_aes, lacking("AES")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this host's CPU lacks AES, which the guest's CPU model offers"
        );
        assert!(check(&without, lacking("SSE4.2")).is_err());
        let error = check(&without, lacking("BMI2")).unwrap_err();
        assert!(error.to_string().contains("lacks BMI2, which rr86 needs"));
    }
}
