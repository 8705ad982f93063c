use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::trace::codec::tests::event;
use crate::trace::event::{Block, Event, Kind, SliceEnd, NO_VCPU};
use crate::trace::format::{ChunkHeader, ChunkKind, Codec};

/// A directory that goes away, and a path in it.
fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("boot.rr86");
    (dir, path)
}

fn slice(vcpu: u8, instructions: u64) -> Event {
    Event::Slice {
        vcpu,
        instructions,
        stop: SliceEnd::Quantum,
    }
}

/// Events of a few kinds, a chunk's worth each.
fn chunks() -> Vec<Vec<(u64, Event)>> {
    (0..4u64)
        .map(|c| {
            let base = c * 1000;
            let block = Block {
                id: c,
                pc: 0xffff_ffff_8100_0000 + c * 64,
                paddr: 0x100_0000,
                len: 17,
                digest: 0x1234_5678,
                ..Block::default()
            };
            let digests = vec![("ram".into(), c), ("cpu0".into(), !c)];
            vec![
                (base + 5, Event::Fetch(block)),
                (base + 5, Event::Link(block)),
                (base, slice(0, 100)),
                (base + 100, slice(1, 250)),
                (base + 350, Event::Digests { list: digests }),
            ]
        })
        .collect()
}

/// Writes `chunks`, flushing after each; finishes the file if `footer` is given.
fn write(path: &Path, chunks: &[Vec<(u64, Event)>], footer: Option<&[u8]>) {
    let kernel: Vec<u8> = (0..300u32).flat_map(|n| (n * n).to_le_bytes()).collect();
    let images = [
        ("kernel".to_owned(), kernel.clone().into()),
        ("initrd".to_owned(), b"small".into()),
        ("kernel again".to_owned(), kernel.into()),
    ];
    let mut writer = TraceWriter::create(path, b"the header", &images).expect("a writer");
    for chunk in chunks {
        for (icount, event) in chunk {
            writer.push(*icount, event).expect("a push");
        }
        writer.flush().expect("a flush");
    }
    if let Some(footer) = footer {
        writer.finish(footer).expect("a finish");
    }
}

fn finished() -> Vec<u8> {
    let (_dir, path) = place();
    write(&path, &chunks(), Some(b"the footer"));
    std::fs::read(path).expect("the trace")
}

/// The events of a stream that ends without an error.
fn all(stream: EventStream) -> Vec<(u64, Event)> {
    let (events, error) = drain(stream);
    assert!(error.is_none(), "{error:?}");
    events
}

/// The events of a stream up to its end or its first error.
fn drain(stream: EventStream) -> (Vec<(u64, Event)>, Option<TraceError>) {
    let mut events = Vec::new();
    for item in stream {
        match item {
            Ok(event) => events.push(event),
            Err(error) => return (events, Some(error)),
        }
    }
    (events, None)
}

#[test]
fn a_finished_trace_gives_everything_back() {
    let (_dir, path) = place();
    write(&path, &chunks(), Some(b"the footer"));
    let reader = TraceReader::open(&path).expect("a reader");
    assert!(reader.complete());
    assert_eq!(reader.header(), b"the header");
    assert_eq!(
        reader.footer().expect("footer"),
        Some(b"the footer".to_vec())
    );
    assert_eq!(reader.chunk_count(), 4);
    for (n, expected) in chunks().iter().enumerate() {
        assert_eq!(&reader.chunk(n).expect("a chunk"), expected);
    }
    assert_eq!(all(reader.stream()), chunks().concat());
    assert_eq!(all(reader.stream_from(3)), chunks()[3].clone());
    assert!(matches!(
        reader.chunk(4),
        Err(TraceError::NoChunk { index: 4, count: 4 })
    ));
}

#[test]
fn images_come_back_and_equal_ones_are_stored_once() {
    let (_dir, path) = place();
    let large: Vec<u8> = (0..700_000u32)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    let images = [
        ("a".to_owned(), large.clone().into()),
        ("b".to_owned(), [].into()),
        ("c".to_owned(), large.clone().into()),
    ];
    let writer = TraceWriter::create(&path, b"", &images).expect("a writer");
    writer.finish(b"").expect("a finish");
    let reader = TraceReader::open(&path).expect("a reader");
    let names: Vec<_> = reader
        .images()
        .iter()
        .map(|i| (i.name.as_str(), i.len))
        .collect();
    assert_eq!(names, [("a", 2_800_000), ("b", 0), ("c", 2_800_000)]);
    assert!(reader.image("a").expect("a") == large);
    assert!(reader.image("c").expect("c") == large);
    assert_eq!(reader.image("b").expect("b"), b"");
    assert!(matches!(reader.image("d"), Err(TraceError::NoImage { .. })));
    assert!(reader.summary().expect("summary").image_bytes < 3_000_000);
}

#[test]
fn two_images_of_one_name_are_refused() {
    let (_dir, path) = place();
    let images = [("a".to_owned(), b"1".into()), ("a".to_owned(), b"2".into())];
    let result = TraceWriter::create(&path, b"", &images);
    assert!(matches!(result, Err(TraceError::DuplicateImage { .. })));
    assert!(!path.exists());
}

#[test]
fn the_summary_counts_by_kind() {
    let (_dir, path) = place();
    write(&path, &chunks(), Some(b""));
    let reader = TraceReader::open(&path).expect("a reader");
    let summary = reader.summary().expect("a summary");
    let counts: Vec<_> = summary.kinds.iter().map(|k| (k.kind, k.events)).collect();
    let expected = [
        (Kind::SLICE, 8),
        (Kind::DIGESTS, 4),
        (Kind::FETCH, 4),
        (Kind::LINK, 4),
    ];
    assert_eq!(counts, expected);
    assert_eq!(
        (summary.events, summary.chunks, summary.last_icount),
        (20, 4, 3350)
    );
    assert_eq!(
        summary.file_bytes,
        std::fs::metadata(&path).expect("metadata").len()
    );
    let columns: u64 = summary.kinds.iter().map(|k| k.stored_bytes).sum();
    assert_eq!(
        summary.event_bytes,
        columns + summary.order_bytes + summary.frame_bytes
    );
}

#[test]
fn a_chunk_is_found_by_its_moments() {
    let (_dir, path) = place();
    write(&path, &chunks(), Some(b""));
    let reader = TraceReader::open(&path).expect("a reader");
    let info = reader.chunk_info(2).expect("a chunk");
    assert_eq!(
        (info.first, info.last, info.events),
        ((2000, 0), (2350, NO_VCPU), 5)
    );
    let found: Vec<_> = [0, 350, 351, 3350, 3351].map(|i| reader.chunk_at(i)).into();
    assert_eq!(found, [0, 0, 1, 3, 4]);
}

#[test]
fn a_flush_makes_events_readable_while_the_recorder_runs() {
    let (_dir, path) = place();
    let mut writer = TraceWriter::create(&path, b"h", &[]).expect("a writer");
    writer.push(7, &slice(3, 9)).expect("a push");
    writer.flush().expect("a flush");
    writer.push(16, &slice(2, 9)).expect("a push");
    assert_eq!(
        writer.bytes_written(),
        std::fs::metadata(&path).expect("metadata").len()
    );
    let reader = TraceReader::open(&path).expect("a reader");
    assert!(!reader.complete());
    assert_eq!(all(reader.stream()), vec![(7, slice(3, 9))]);
}

#[test]
fn a_writer_that_is_dropped_leaves_its_events() {
    let (_dir, path) = place();
    let mut writer = TraceWriter::create(&path, b"h", &[]).expect("a writer");
    writer.push(7, &slice(3, 9)).expect("a push");
    drop(writer);
    let reader = TraceReader::open(&path).expect("a reader");
    assert!(matches!(
        reader.damage(),
        Some(TraceError::Truncated { .. })
    ));
    assert_eq!(reader.footer().expect("footer"), None);
    assert_eq!(all(reader.stream()), vec![(7, slice(3, 9))]);
}

#[test]
fn equal_pushes_make_equal_files() {
    assert!(finished() == finished());
}

#[test]
fn many_events_fill_several_chunks_of_bounded_size() {
    let (_dir, path) = place();
    let events: Vec<_> = (0..300_000u64)
        .map(|n| (n * 50, slice((n % 4) as u8, 50)))
        .collect();
    let mut writer = TraceWriter::create(&path, b"", &[]).expect("a writer");
    for (icount, event) in &events {
        writer.push(*icount, event).expect("a push");
    }
    writer.finish(b"").expect("a finish");
    let reader = TraceReader::open(&path).expect("a reader");
    assert_eq!(reader.chunk_count(), 3);
    let (read, error) = drain(reader.stream());
    assert!(error.is_none() && read == events);
}

#[test]
fn a_write_error_is_reported_by_a_later_call_and_stays() {
    let full = Path::new("/dev/full");
    if !full.exists() {
        return;
    }
    let error = TraceWriter::create(full, b"h", &[]).err().expect("no room");
    assert!(matches!(error, TraceError::Io { .. }));

    // The thread's own failure: a limit on the file's size would kill the process, so the file is
    // swapped for one without room after the header was written.
    let (_dir, path) = place();
    let mut writer = TraceWriter::create(&path, b"h", &[]).expect("a writer");
    writer.break_for_test();
    writer.push(1, &slice(0, 1)).expect("buffered");
    let first = writer.flush().expect_err("no room").to_string();
    assert_eq!(
        writer.push(2, &slice(0, 1)).expect_err("still").to_string(),
        first
    );
    assert_eq!(writer.flush().expect_err("still").to_string(), first);
    assert_eq!(writer.finish(b"").expect_err("still").to_string(), first);
}

#[test]
fn every_truncation_gives_a_prefix_or_a_clear_error() {
    let whole = finished();
    let (_dir, path) = place();
    let written = chunks();
    let mut lengths = std::collections::BTreeSet::new();
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).expect("a write");
        let reader = match TraceReader::open(&path) {
            Ok(reader) => reader,
            Err(TraceError::NotATrace { .. }) => {
                assert_eq!(len, 0);
                continue;
            }
            Err(TraceError::Truncated { .. }) => continue,
            Err(other) => panic!("cut to {len} bytes: {other}"),
        };
        assert!(!reader.complete(), "cut to {len} bytes");
        assert!(matches!(
            reader.damage(),
            Some(TraceError::Truncated { .. })
        ));
        let n = reader.chunk_count();
        lengths.insert(n);
        assert_eq!(
            all(reader.stream()),
            written[..n].concat(),
            "cut to {len} bytes"
        );
        if let Ok(kernel) = reader.image("kernel") {
            assert_eq!(kernel.len(), 1_200);
        } else {
            assert_eq!(n, 0, "cut to {len} bytes");
        }
    }
    assert_eq!(lengths, (0..=4).collect());
}

/// Asserts that nothing a reader says of these bytes is wrong: it refuses, or reports an error, or
/// gives the events that were written. `whole` says whether all of them must come without error.
fn assert_honest(path: &Path, bytes: &[u8], what: &str) {
    std::fs::write(path, bytes).expect("a write");
    let Ok(reader) = TraceReader::open(path) else {
        return;
    };
    let all = chunks().concat();
    let (events, error) = drain(reader.stream());
    assert!(all.starts_with(&events), "{what}: wrong events");
    if error.is_none() && reader.complete() {
        assert_eq!(events.len(), all.len(), "{what}: events are missing");
    }
    for n in 0..reader.chunk_count() {
        if let Ok(events) = reader.chunk(n) {
            assert_eq!(events, chunks()[n], "{what}: wrong chunk {n}");
        }
    }
    assert_eq!(reader.header(), b"the header", "{what}");
    if let Ok(Some(footer)) = reader.footer() {
        assert_eq!(footer, b"the footer", "{what}");
    }
    if let Ok(image) = reader.image("initrd") {
        assert_eq!(image, b"small", "{what}");
    }
    let _ = (reader.summary(), reader.image("kernel"));
}

#[test]
fn no_single_bit_flip_goes_unnoticed_or_gives_wrong_events() {
    let whole = finished();
    let (_dir, path) = place();
    for at in 0..whole.len() {
        // All bits of the frame's bytes take long; one of each byte, in turn, is a fair sample.
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        assert_honest(&path, &bytes, &format!("byte {at}"));
        // Without the index as well: then the chunks are walked.
        let cut = bytes.len() - format::TRAILER;
        assert_honest(&path, &bytes[..cut], &format!("byte {at}, without trailer"));
    }
}

#[test]
fn damage_in_one_chunk_names_it_and_leaves_the_others_readable() {
    let (_dir, path) = place();
    write(&path, &chunks(), Some(b""));
    let info = TraceReader::open(&path)
        .expect("a reader")
        .chunk_info(2)
        .expect("a chunk");
    let mut bytes = std::fs::read(&path).expect("the trace");
    bytes[(info.offset + info.stored_len - 1) as usize] ^= 1;
    std::fs::write(&path, &bytes).expect("a write");
    let reader = TraceReader::open(&path).expect("a reader");
    let expected = (info.sequence, info.offset);
    match reader.chunk(2) {
        Err(TraceError::Checksum { chunk, offset }) => assert_eq!((chunk, offset), expected),
        other => panic!("{other:?}"),
    }
    assert_eq!(reader.chunk(3).expect("intact"), chunks()[3]);
    let (events, error) = drain(reader.stream());
    assert_eq!(events, chunks()[..2].concat());
    assert!(matches!(error, Some(TraceError::Checksum { .. })));
}

#[test]
fn damage_that_may_hide_events_ends_the_stream_with_an_error() {
    let (_dir, path) = place();
    write(&path, &chunks(), None);
    let offset = TraceReader::open(&path)
        .expect("a reader")
        .chunk_info(1)
        .expect("a chunk")
        .offset;
    let mut bytes = std::fs::read(&path).expect("the trace");
    // The stored length: not taken for a file that ends early.
    bytes[offset as usize + 26] ^= 0x80;
    std::fs::write(&path, &bytes).expect("a write");
    let reader = TraceReader::open(&path).expect("a reader");
    let (events, error) = drain(reader.stream());
    assert_eq!(events, chunks()[0]);
    assert!(
        matches!(error, Some(TraceError::Malformed { .. })),
        "{error:?}"
    );
}

#[test]
fn a_stream_that_is_dropped_early_ends_its_thread() {
    let (_dir, path) = place();
    write(&path, &chunks(), Some(b""));
    let reader = TraceReader::open(&path).expect("a reader");
    // The drop waits for the thread, which by then is stuck with chunks that are not taken.
    let first: Vec<_> = reader.stream().take(1).flatten().collect();
    assert_eq!(first, chunks()[0][..1]);
}

#[test]
fn readers_and_writers_can_move_between_threads() {
    fn send<T: Send>() {}
    fn sync<T: Sync>() {}
    send::<(TraceWriter, TraceReader, EventStream)>();
    sync::<(TraceWriter, TraceReader, TraceError)>();
}

#[test]
fn a_missing_chunk_is_noticed_without_an_index() {
    let (_dir, path) = place();
    write(&path, &chunks(), None);
    let info = TraceReader::open(&path)
        .expect("a reader")
        .chunk_info(1)
        .expect("a chunk");
    let mut bytes = std::fs::read(&path).expect("the trace");
    bytes.drain(info.offset as usize..(info.offset + info.stored_len) as usize);
    assert_honest(&path, &bytes, "without chunk 1");
    let reader = TraceReader::open(&path).expect("a reader");
    assert!(matches!(
        reader.damage(),
        Some(TraceError::Malformed { .. })
    ));
}

#[test]
fn other_files_and_other_versions_are_told_apart() {
    let (dir, path) = place();
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("a write");
        TraceReader::open(&path).err().expect("an error")
    };
    assert!(matches!(open(b"#!/bin/sh\n"), TraceError::NotATrace { .. }));
    assert!(matches!(
        open(b"\x89RR86\n\x1a and more of it"),
        TraceError::NotATrace { .. }
    ));
    let mut later = finished();
    later[..16].copy_from_slice(&format::file_header(9, 7));
    match open(&later) {
        TraceError::OtherVersion { major, minor, .. } => assert_eq!((major, minor), (9, 7)),
        other => panic!("{other}"),
    }
    later[8] = 3;
    assert!(matches!(open(&later), TraceError::FileHeader { .. }));
    assert!(matches!(
        TraceReader::open(dir.path()).err(),
        Some(TraceError::NotATrace { .. })
    ));
    let missing = TraceReader::open(&dir.path().join("none")).err();
    assert!(matches!(missing, Some(TraceError::Io { .. })));

    let mut minor = finished();
    minor[..16].copy_from_slice(&format::file_header(format::MAJOR, format::MINOR + 1));
    std::fs::write(&path, &minor).expect("a write");
    assert!(TraceReader::open(&path)
        .expect("a later minor version")
        .complete());
}

#[test]
fn bytes_after_the_trailer_make_a_trace_incomplete_but_readable() {
    let (_dir, path) = place();
    let mut bytes = finished();
    bytes.extend_from_slice(b"\n");
    std::fs::write(&path, &bytes).expect("a write");
    let reader = TraceReader::open(&path).expect("a reader");
    assert!(!reader.complete());
    assert_eq!(all(reader.stream()), chunks().concat());
}

#[test]
fn a_chunk_that_declares_more_than_a_limit_is_refused_before_memory_is_taken() {
    let (_dir, path) = place();
    write(&path, &[], None);
    let mut bytes = std::fs::read(&path).expect("the trace");
    // A bomb: 64 MiB of zeros in one column, with true checksums.
    let zeros = vec![0; 64 << 20];
    let packed = zstd::bulk::compress(&zeros, 3).expect("a frame");
    let mut table = vec![1, 1, 1, 0, 0];
    crate::trace::varint::put(&mut table, zeros.len() as u64);
    crate::trace::varint::put(&mut table, packed.len() as u64);
    let sequence = TraceReader::open(&path)
        .expect("a reader")
        .summary()
        .expect("summary");
    assert_eq!(sequence.chunks, 0);
    for raw_len in [zeros.len() as u32, 1000] {
        let header = ChunkHeader {
            kind: ChunkKind::EVENTS,
            codec: Codec::Columns,
            sequence: 4,
            events: 1,
            raw_len,
            ..ChunkHeader::default()
        };
        let start = bytes.len();
        bytes.extend_from_slice(&header.chunk(&table, &packed));
        std::fs::write(&path, &bytes).expect("a write");
        let reader = TraceReader::open(&path).expect("a reader");
        assert_eq!(reader.chunk_count(), 1, "{:?}", reader.damage());
        assert!(matches!(
            reader.chunk(0),
            Err(TraceError::Malformed { chunk: 4, .. })
        ));
        bytes.truncate(start);
    }
}

#[test]
fn digests_with_ever_new_names_stay_readable() {
    let (_dir, path) = place();
    let mut writer = TraceWriter::create(&path, b"", &[]).expect("a writer");
    let events: Vec<_> = (0..6u64)
        .map(|n| {
            let name = |c| format!("{n}.{c}.{}", "x".repeat(200)).into();
            let list = (0..4096).map(|c| (name(c), c)).collect();
            (n, Event::Digests { list })
        })
        .collect();
    for (icount, event) in &events {
        writer.push(*icount, event).expect("a push");
    }
    writer.finish(b"").expect("a finish");
    let reader = TraceReader::open(&path).expect("a reader");
    assert!(all(reader.stream()) == events);
    // Two of these are more than a megabyte.
    assert_eq!(reader.chunk_count(), 3);
}

fn set(bytes: &mut [u8], at: &prop::sample::Index, byte: u8) {
    if !bytes.is_empty() {
        let at = at.index(bytes.len());
        bytes[at] = byte;
    }
}

/// A change to a chunk that keeps its length, made behind the back of its checksums.
fn forge(file: &mut [u8], chunk: usize, field: usize, changes: &[(prop::sample::Index, u8)]) {
    let mut offset = format::FILE_HEADER;
    for n in 0.. {
        let fixed = file[offset..].first_chunk().expect("a chunk header");
        let mut header = ChunkHeader::parse(fixed).expect("an intact header");
        let table_at = offset + format::CHUNK_HEADER;
        let payload_at = table_at + header.table_len as usize;
        let end = payload_at + header.stored_len as usize;
        if n < chunk {
            offset = end;
            continue;
        }
        let (mut table, mut payload) = (
            file[table_at..payload_at].to_vec(),
            file[payload_at..end].to_vec(),
        );
        for (at, byte) in changes {
            let number = u32::from(*byte) << (at.index(4) * 8);
            match field {
                0 => set(&mut table, at, *byte),
                1 => set(&mut payload, at, *byte),
                2 => header.kind = ChunkKind(*byte % 8),
                3 => header.codec = [Codec::Stored, Codec::Zstd, Codec::Columns][at.index(3)],
                4 => header.raw_len ^= number,
                5 => header.events ^= number,
                _ => header.sequence ^= number,
            }
        }
        file[offset..end].copy_from_slice(&header.chunk(&table, &payload));
        return;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    // With true checksums everything behind them has to hold its own.
    #[test]
    fn a_forged_chunk_never_panics(
        chunk in 0..10usize,
        field in 0..7usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        indexed in any::<bool>(),
    ) {
        let (_dir, path) = place();
        let mut file = finished();
        forge(&mut file, chunk, field, &changes);
        if !indexed {
            file.truncate(file.len() - format::TRAILER);
        }
        std::fs::write(&path, &file).expect("a write");
        if let Ok(reader) = TraceReader::open(&path) {
            let _ = drain(reader.stream());
            let _ = (reader.summary(), reader.footer(), reader.image("kernel"), reader.image("initrd"));
            for n in 0..reader.chunk_count() {
                let _ = (reader.chunk(n), reader.chunk_info(n));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_sequence_comes_back_however_it_is_flushed(
        events in prop::collection::vec((any::<u64>(), event(), prop::bool::weighted(0.1)), 0..80),
        header in prop::collection::vec(any::<u8>(), 0..50),
        finish in any::<bool>(),
    ) {
        let (_dir, path) = place();
        let mut writer = TraceWriter::create(&path, &header, &[]).expect("a writer");
        for (icount, event, flush) in &events {
            writer.push(*icount, event).expect("a push");
            if *flush {
                writer.flush().expect("a flush");
            }
        }
        if finish {
            writer.finish(b"").expect("a finish");
        } else {
            drop(writer);
        }
        let reader = TraceReader::open(&path).expect("a reader");
        prop_assert_eq!(reader.complete(), finish);
        prop_assert_eq!(reader.header(), &header[..]);
        let expected: Vec<_> = events.into_iter().map(|(i, e, _)| (i, e)).collect();
        prop_assert_eq!(all(reader.stream()), expected);
    }

    #[test]
    fn random_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        keep in 0..700usize,
    ) {
        let (_dir, path) = place();
        let mut file = finished();
        file.truncate(keep);
        file.extend_from_slice(&bytes);
        assert_honest(&path, &file, "random bytes");
        std::fs::write(&path, &bytes).expect("a write");
        prop_assert!(TraceReader::open(&path).is_err());
    }

    #[test]
    fn scattered_damage_is_noticed(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let (_dir, path) = place();
        let mut file = finished();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        assert_honest(&path, &file, "scattered damage");
    }
}

#[path = "side_file_tests.rs"]
mod side_file;
