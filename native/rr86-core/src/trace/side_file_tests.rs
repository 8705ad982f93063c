//! The side file of a trace that was cut off: what it adds, and when it is left out.

use super::*;
use crate::trace::tail::{beside, file_header, FILE_HEADER};

/// Writes `chunks` and dies with the last of them under way: the trace's bytes and the side file's, as a
/// killed recorder leaves them. `kept` events of the last chunk are in the side file.
fn killed(path: &Path, chunks: &[Vec<(u64, Event)>], kept: usize) -> (Vec<u8>, Vec<u8>) {
    let images = [("kernel".to_owned(), b"small".into())];
    let mut writer = TraceWriter::create(path, b"the header", &images).expect("a writer");
    let (last, whole) = chunks.split_last().expect("a chunk");
    for chunk in whole {
        for (icount, event) in chunk {
            writer.push(*icount, event).expect("a push");
            writer.keep().expect("a side file");
        }
        writer.flush().expect("a flush");
    }
    for (icount, event) in &last[..kept] {
        writer.push(*icount, event).expect("a push");
        writer.keep().expect("a side file");
    }
    let side = std::fs::read(beside(path)).expect("a side file");
    let trace = std::fs::read(path).expect("a trace");
    drop(writer);
    assert!(!beside(path).exists(), "the side file outlives its use");
    (trace, side)
}

/// What a reader finds, with these bytes as trace and side file.
fn reopened(path: &Path, trace: &[u8], side: &[u8]) -> TraceReader {
    std::fs::write(path, trace).expect("a trace");
    std::fs::write(beside(path), side).expect("a side file");
    TraceReader::open(path).expect("a reader")
}

#[test]
fn a_trace_that_was_cut_off_goes_on_with_its_side_file() {
    let (_dir, path) = place();
    for kept in 0..=5 {
        let (trace, side) = killed(&path, &chunks(), kept);
        let reader = reopened(&path, &trace, &side);
        let expected = [chunks()[..3].concat(), chunks()[3][..kept].to_vec()].concat();
        assert_eq!(all(reader.stream()), expected);
        let found = reader.side_file().expect("a side file");
        assert_eq!((found.events, found.left_out), (kept as u64, None));
        assert!(!reader.complete());
        // Without it there are the whole chunks.
        std::fs::remove_file(beside(&path)).expect("a removal");
        let reader = TraceReader::open(&path).expect("a reader");
        assert_eq!(all(reader.stream()), chunks()[..3].concat());
        assert_eq!(reader.side_file(), None);
    }
}

/// Between "the trace has the chunk" and "its records are dropped", and wherever else the recorder dies.
#[test]
fn no_event_is_lost_or_twice_wherever_trace_and_side_file_end() {
    let (_dir, path) = place();
    let everything = chunks().concat();
    let images = [("kernel".to_owned(), b"small".into())];
    let mut writer = TraceWriter::create(&path, b"the header", &images).expect("a writer");
    let mut sides = vec![(0, std::fs::read(beside(&path)).expect("a side file"))];
    let mut traces = Vec::new();
    let mut pushed = 0;
    for chunk in chunks() {
        for (icount, event) in chunk {
            writer.push(icount, &event).expect("a push");
            writer.keep().expect("a side file");
            pushed += 1;
            sides.push((pushed, std::fs::read(beside(&path)).expect("a side file")));
        }
        writer.flush().expect("a flush");
        traces.push((pushed, std::fs::read(&path).expect("a trace")));
        sides.push((pushed, std::fs::read(beside(&path)).expect("a side file")));
    }
    drop(writer);
    for (in_trace, trace) in &traces {
        for (in_side, side) in &sides {
            // The side file is never more than a chunk behind what it was when the trace got its last.
            let reader = reopened(&path, trace, side);
            let events = all(reader.stream());
            let joined = *in_side <= in_trace + 5;
            let expected = if joined {
                *in_trace.max(in_side)
            } else {
                *in_trace
            };
            assert_eq!(events, everything[..expected], "{in_trace} {in_side}");
            let left_out = reader.side_file().expect("a side file").left_out;
            assert_eq!(left_out.is_some(), !joined, "{left_out:?}");
            // A record that is torn anywhere is none.
            for end in (0..side.len()).step_by(7) {
                let reader = reopened(&path, trace, &side[..end]);
                let events = all(reader.stream());
                assert!(events.len() >= *in_trace && events.len() <= expected);
                assert_eq!(events, everything[..events.len()]);
            }
        }
    }
}

#[test]
fn a_side_file_of_another_run_is_left_out() {
    let (_dir, path) = place();
    let (trace, side) = killed(&path, &chunks(), 3);
    let left_out = |reader: &TraceReader| reader.side_file().expect("a side file").left_out;
    // Of another trace.
    let mut other = side.clone();
    other[..36].copy_from_slice(&file_header(b"another header"));
    let reader = reopened(&path, &trace, &other);
    assert_eq!(left_out(&reader), Some("it belongs to another trace"));
    assert_eq!(all(reader.stream()), chunks()[..3].concat());
    // Of a run that went another way, of the same machine.
    let mut different = chunks();
    different[2][2] = (2001, slice(0, 99));
    different[2].push((2999, slice(1, 7)));
    let (_, other) = killed(&path, &different, 3);
    let reader = reopened(&path, &trace, &other);
    assert_eq!(left_out(&reader), Some("it belongs to another run"));
    assert_eq!(all(reader.stream()), chunks()[..3].concat());
    // A flipped bit anywhere takes at most what follows.
    for at in 36..side.len() {
        let mut bad = side.clone();
        bad[at] ^= 1 << (at % 8);
        let (events, error) = drain(reopened(&path, &trace, &bad).stream());
        assert!(error.is_none(), "{at} {error:?}");
        assert_eq!(events, chunks().concat()[..events.len()]);
    }
    // A finished trace does not look for one.
    write(&path, &chunks(), Some(b"the footer"));
    std::fs::write(beside(&path), &side).expect("a side file");
    let reader = TraceReader::open(&path).expect("a reader");
    assert_eq!((reader.complete(), reader.side_file()), (true, None));
    assert_eq!(all(reader.stream()), chunks().concat());
}

#[test]
fn when_the_side_file_is_written_changes_no_byte_of_a_trace() {
    let (_dir, path) = place();
    let written = |every: usize| {
        let mut writer = TraceWriter::create(&path, b"the header", &[]).expect("a writer");
        for (n, (icount, event)) in chunks().concat().iter().cycle().take(300_000).enumerate() {
            writer.push(*icount, event).expect("a push");
            if n % every == 0 {
                writer.keep().expect("a side file");
            }
        }
        writer.finish(b"the footer").expect("a finish");
        std::fs::read(&path).expect("the trace")
    };
    let rarely = written(usize::MAX);
    assert!(rarely == written(1000) && rarely == written(77_777));
}

#[test]
fn a_new_recording_takes_an_old_side_file_away_and_leaves_other_files_alone() {
    let (_dir, path) = place();
    let (_, side) = killed(&path, &chunks(), 3);
    std::fs::write(beside(&path), &side).expect("a side file");
    let mut writer = TraceWriter::create(&path, b"the header", &[]).expect("a writer");
    writer.flush().expect("a beginning");
    let new = std::fs::read(beside(&path)).expect("a side file");
    assert_eq!(new.len(), FILE_HEADER);
    writer.finish(b"").expect("a finish");
    assert!(!beside(&path).exists());

    std::fs::write(beside(&path), b"somebody's notes").expect("a file");
    let mut writer = TraceWriter::create(&path, b"the header", &[]).expect("a writer");
    let why = writer.without_tail().expect("a reason").to_string();
    assert!(why.ends_with("is not a side file of a trace, and is left as it is"));
    writer.push(0, &slice(0, 1)).expect("a push");
    writer.keep().expect("nothing to do");
    writer.finish(b"").expect("a finish");
    let left = std::fs::read(beside(&path)).expect("the file");
    assert_eq!(left, b"somebody's notes");
}

#[test]
fn two_recorders_do_not_write_one_trace() {
    let (_dir, path) = place();
    let mut first = TraceWriter::create(&path, b"first", &[]).expect("a writer");
    first.push(0, &slice(0, 1)).expect("a push");
    let second = TraceWriter::create(&path, b"second", &[]);
    assert!(matches!(second, Err(TraceError::InUse { .. })));
    first.finish(b"").expect("a finish");
    assert_eq!(
        TraceReader::open(&path).expect("a reader").header(),
        b"first"
    );
    TraceWriter::create(&path, b"second", &[]).expect("a writer");
}

#[test]
fn what_a_full_disk_kept_from_the_trace_is_in_the_side_file() {
    let (_dir, path) = place();
    let mut writer = TraceWriter::create(&path, b"the header", &[]).expect("a writer");
    for (icount, event) in &chunks()[0] {
        writer.push(*icount, event).expect("a push");
    }
    writer.flush().expect("a flush");
    writer.break_for_test();
    for (icount, event) in &chunks()[1] {
        writer.push(*icount, event).expect("a push");
    }
    assert!(writer.flush().is_err());
    drop(writer);
    let reader = TraceReader::open(&path).expect("a reader");
    assert_eq!(all(reader.stream()), chunks()[..2].concat());
}
