//! `rr86-fuzz --inputs 10000000 --seed 1 traces/*.rr86`: hostile traces by the million.

use std::path::PathBuf;
use std::process::ExitCode;

use rr86_fuzz::campaign::Campaign;
use rr86_fuzz::targets::{Targets, TARGETS};

const USAGE: &str = "rr86-fuzz [--seed S] [--from N] [--inputs N] [--target NAME] [TRACE …]";

fn parse() -> Result<(Campaign, Vec<PathBuf>), String> {
    let mut campaign = Campaign {
        seed: 1,
        from: 0,
        inputs: 100_000,
        only: None,
        progress: true,
    };
    let mut traces = Vec::new();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if !word.starts_with("--") {
            traces.push(word.into());
            continue;
        }
        let value = words
            .next()
            .ok_or_else(|| format!("{word} needs a value"))?;
        let number = || value.parse().map_err(|_| format!("{word} needs a number"));
        match word.as_str() {
            "--seed" => campaign.seed = number()?,
            "--from" => campaign.from = number()?,
            "--inputs" => campaign.inputs = number()?,
            "--target" if TARGETS.iter().any(|(name, _)| *name == value) => {
                campaign.only = Some(value);
            }
            "--target" => {
                let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
                return Err(format!("the targets are {}", names.join(", ")));
            }
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok((campaign, traces))
}

fn main() -> ExitCode {
    let (campaign, traces) = match parse() {
        Ok(parsed) => parsed,
        Err(message) => {
            eprintln!("rr86-fuzz: {message}");
            return ExitCode::from(2);
        }
    };
    eprintln!("seed {}, from {}", campaign.seed, campaign.from);
    let mut targets = Targets::new(&traces);
    let outcome = campaign.run(&mut targets);
    for (name, count) in &outcome.inputs {
        println!("{name:<12} {count}");
    }
    println!(
        "{} findings, seed {}",
        outcome.findings.len(),
        campaign.seed
    );
    ExitCode::from(u8::from(!outcome.findings.is_empty()))
}
