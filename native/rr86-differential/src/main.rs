//! Command line of the differential harness.

use std::collections::BTreeSet;
use std::process::ExitCode;

use rr86_core::translate::shortcuts::Shortcuts;
use rr86_differential::case::{Subject, SubjectError};
use rr86_differential::engine::{Setup, Translated};
use rr86_differential::forms::{Family, Forms, Model};
use rr86_differential::generate::Generator;
use rr86_differential::native::Native;
use rr86_differential::run::{Options, Run};
use rr86_differential::sweep;

const USAGE: &str = "usage: rr86-differential [options]
  --seed N            seed of the run (default 1)
  --start N           number of the first case (default 0)
  --count N           number of cases (default 100000)
  --families A,B      integer, control, string, x87, mmx, sse, state (default all)
  --only TEXT         forms whose name contains TEXT
  --subject NAME      engine (the translator, the default), native (a second child of the host
                      CPU), kvm (a guest at CPL 3) or flipped (wrong on purpose)
  --block-length N    most instructions in a block of the translator (default 64)
  --stretch N         run the translator N instructions at a time
  --disable A,B       switch shortcuts of translated code off (docs/performance.md)
  --strict            flags that the SDM leaves undefined must be equal as well
  --undefined-reads   let instructions read undefined flags
  --movbe             the CPU model has MOVBE
  --keep DIR          write a reproducer of each mismatch there
  --excluded          list the forms that are left out, with the reason, and stop
  --replay FILE       run one .case file instead
  --sweep N           try one of N encodings (1: all; of VEX, EVEX and XOP fewer) in every mode
                      against the CPU model and the host, and stop
  --modes A,B         of the sweep: long3, long0, compatible3, protected3, protected0, small3,
                      small0, real, virtual8086 (default all)
  --undefined-flags   measure what this host leaves in undefined flags, and stop";

struct Arguments {
    options: Options,
    families: BTreeSet<Family>,
    only: Option<String>,
    subject: String,
    setup: Setup,
    model: Model,
    undefined_reads: bool,
    excluded: bool,
    undefined_flags: bool,
    sweep: Option<usize>,
    modes: Vec<sweep::Mode>,
    replay: Option<String>,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments {
        options: Options {
            seed: 1,
            start: 0,
            count: 100_000,
            ..Options::default()
        },
        families: Family::ALL.into(),
        only: None,
        subject: "engine".into(),
        setup: Setup::default(),
        model: Model::default(),
        undefined_reads: false,
        excluded: false,
        undefined_flags: false,
        sweep: None,
        modes: sweep::Mode::ALL.into(),
        replay: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: String| {
            text.parse::<u64>()
                .map_err(|_| format!("not a number: {text}"))
        };
        match word.as_str() {
            "--seed" => parsed.options.seed = number(value()?)?,
            "--start" => parsed.options.start = number(value()?)?,
            "--count" => parsed.options.count = number(value()?)?,
            "--families" => {
                parsed.families = value()?
                    .split(',')
                    .map(str::parse)
                    .collect::<Result<_, _>>()?;
            }
            "--only" => parsed.only = Some(value()?),
            "--subject" => parsed.subject = value()?,
            "--block-length" => parsed.setup.block_length = number(value()?)?.clamp(1, 64) as usize,
            "--stretch" => parsed.setup.stretch = number(value()?)?,
            "--disable" => {
                parsed.setup.shortcuts = Shortcuts::without(value()?.split(','))
                    .map_err(|name| format!("no shortcut '{name}'"))?;
            }
            "--strict" => parsed.options.strict = true,
            "--undefined-reads" => parsed.undefined_reads = true,
            "--movbe" => parsed.model.movbe = true,
            "--keep" => parsed.options.keep = Some(value()?.into()),
            "--excluded" => parsed.excluded = true,
            "--replay" => parsed.replay = Some(value()?),
            "--undefined-flags" => parsed.undefined_flags = true,
            "--modes" => {
                parsed.modes = value()?
                    .split(',')
                    .map(|name| sweep::Mode::named(name).ok_or_else(|| format!("no mode '{name}'")))
                    .collect::<Result<_, _>>()?;
            }
            "--sweep" => parsed.sweep = Some(number(value()?)?.max(1) as usize),
            _ => return Err(format!("unknown option {word}\n{USAGE}")),
        }
    }
    Ok(parsed)
}

/// Subjects by name.
fn subject(name: &str, setup: Setup) -> Result<Box<dyn Subject>, String> {
    let text = |error: SubjectError| error.to_string();
    match name {
        "engine" => Ok(Box::new(Translated::new(setup).map_err(text)?)),
        "native" => Ok(Box::new(Native::new().map_err(text)?)),
        "kvm" => Ok(Box::new(rr86_differential::kvm::Kvm::new().map_err(text)?)),
        "flipped" => Ok(Box::new(rr86_differential::flipped::Flipped::new(
            Native::new().map_err(text)?,
        ))),
        _ => Err(format!("no subject '{name}'")),
    }
}

fn run() -> Result<bool, String> {
    let arguments = arguments()?;
    let forms = Forms::of(arguments.model);
    if arguments.excluded {
        for (code, reason) in &forms.excluded {
            println!("{code:?}: {reason}");
        }
        println!(
            "{} forms offered, {} left out",
            forms.offered.len(),
            forms.excluded.len()
        );
        return Ok(true);
    }
    if let Some(stride) = arguments.sweep {
        let options = sweep::Options {
            stride,
            seed: arguments.options.seed,
            host: true,
            modes: arguments.modes,
        };
        let summary = sweep::sweep(options, &mut |line| println!("{line}"));
        println!("{summary}");
        return Ok(summary.findings == 0);
    }
    let mut native = Native::new().map_err(|error| error.to_string())?;
    if arguments.undefined_flags {
        print!("{}", rr86_differential::undefined::measure(&mut native));
        return Ok(true);
    }
    let mut subject = subject(&arguments.subject, arguments.setup)?;
    if let Some(path) = &arguments.replay {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        let case =
            rr86_differential::text::parse(&text).map_err(|error| format!("{path}: {error}"))?;
        let summary = Run::new(arguments.options, &mut native, subject.as_mut()).replay(&case);
        println!("{summary}");
        return Ok(summary.is_clean());
    }
    let mut generator = Generator::new(&forms, &arguments.families, arguments.only.as_deref());
    generator.undefined_reads = arguments.undefined_reads;
    let mut run = Run::new(arguments.options, &mut native, subject.as_mut());
    let summary = run.all(&generator, &mut |line| println!("{line}"));
    println!("{summary}");
    Ok(summary.is_clean())
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(message) => {
            eprintln!("rr86-differential: {message}");
            ExitCode::from(2)
        }
    }
}
