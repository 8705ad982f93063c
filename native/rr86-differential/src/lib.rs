//! Compares user-mode instruction semantics with the host CPU: random instruction sequences run natively in a
//! child process and in a [`case::Subject`], and everything that a program can see must be equal.

pub mod case;
pub mod compare;
pub mod engine;
pub mod flipped;
pub mod forms;
pub mod generate;
pub mod kvm;
pub mod makers;
pub mod minimise;
pub mod native;
mod operands;
pub mod rng;
pub mod run;
pub mod state;
pub mod sweep;
pub mod text;
pub mod undefined;
