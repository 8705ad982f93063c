use proptest::prelude::*;

use super::*;
use crate::trace::event::{Access, Block, Event, SliceEnd, Value};
use crate::trace::format::{ChunkHeader, EventTable, CHUNK_HEADER};

/// Numbers of every magnitude: small ones, neighbours of powers of two, any.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..40u64,
        (0..64u32).prop_map(|s| (1u64 << s).wrapping_sub(1)),
        any::<u64>()
    ]
}

fn block() -> impl Strategy<Value = Block> {
    (
        number(),
        any::<u8>(),
        number(),
        number(),
        any::<u16>(),
        any::<u32>(),
        any::<u32>(),
    )
        .prop_map(|(id, vcpu, pc, paddr, len, mode, digest)| Block {
            id,
            vcpu,
            pc,
            paddr,
            len,
            mode,
            digest,
        })
}

fn lines() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(u64::MAX),
        (0..64u32).prop_map(|n| 1 << n),
        (1..=64u32, 0..64u32).prop_map(|(n, s)| (u64::MAX >> (64 - n)) << s),
        any::<u64>()
    ]
}

/// Any event that a writer accepts.
pub(crate) fn event() -> impl Strategy<Value = Event> {
    let vcpu = || prop_oneof![0..4u8, any::<u8>()];
    let slice =
        (vcpu(), number(), any::<u8>()).prop_map(|(vcpu, instructions, code)| Event::Slice {
            vcpu,
            instructions,
            stop: SliceEnd::from_code(code),
        });
    let input = (any::<u8>(), prop::collection::vec(any::<u8>(), 0..40))
        .prop_map(|(source, bytes)| Event::Input { source, bytes });
    let digests = prop::collection::vec(("[a-zé0-9]{0,6}", any::<u64>()), 0..6).prop_map(|list| {
        Event::Digests {
            list: list.into_iter().map(|(n, d)| (n.into(), d)).collect(),
        }
    });
    let invalidate = (number(), vcpu(), number(), any::<u32>(), any::<u8>()).prop_map(
        |(id, by, paddr, len, reason)| Event::Invalidate {
            id,
            by,
            paddr,
            len,
            reason,
        },
    );
    let hand_off = (
        prop_oneof![0..9u64, number()],
        vcpu(),
        vcpu(),
        any::<bool>(),
        lines(),
    )
        .prop_map(|(page, from, to, write, lines)| Event::HandOff {
            page,
            from,
            to,
            access: if write { Access::Write } else { Access::Read },
            lines,
        });
    let cross = (
        vcpu(),
        number(),
        prop::collection::vec(any::<u8>(), 0..=Value::MAX),
    )
        .prop_map(|(vcpu, paddr, bytes)| Event::CrossWrite {
            vcpu,
            paddr,
            value: Value::new(&bytes).expect("at most 64 bytes"),
        });
    let stop =
        (vcpu(), any::<u8>(), any::<u32>(), ".{0,12}").prop_map(|(vcpu, reason, code, detail)| {
            Event::Stop {
                vcpu,
                reason,
                code,
                detail,
            }
        });
    prop_oneof![
        slice,
        number().prop_map(|to_ns| Event::TimeSkip { to_ns }),
        input,
        digests,
        block().prop_map(Event::Fetch),
        block().prop_map(Event::Link),
        invalidate,
        (vcpu(), any::<u8>()).prop_map(|(vcpu, reason)| Event::Flush { vcpu, reason }),
        (vcpu(), any::<u64>(), any::<u8>()).prop_map(|(vcpu, id, what)| Event::Stale {
            id,
            vcpu,
            what
        }),
        hand_off,
        cross,
        stop,
    ]
}

fn encode(events: &[(u64, Event)]) -> Vec<u8> {
    let mut builder = ChunkBuilder::new();
    for (icount, event) in events {
        builder
            .push(*icount, event)
            .expect("an event of legal size");
    }
    let mut compressor = zstd::bulk::Compressor::new(3).expect("a compressor");
    builder.to_chunk(0, &mut compressor).expect("a chunk")
}

fn split(chunk: &[u8]) -> (ChunkHeader, &[u8], &[u8]) {
    let (fixed, rest) = chunk.split_first_chunk::<CHUNK_HEADER>().expect("a header");
    let header = ChunkHeader::parse(fixed).expect("an intact header");
    let (table, payload) = rest.split_at(header.table_len as usize);
    (header, table, payload)
}

fn decode_all(chunk: &[u8]) -> Result<Vec<(u64, Event)>, &'static str> {
    let (header, table, payload) = split(chunk);
    decode(&EventTable::parse(table, &header)?, payload)
}

proptest! {
    #[test]
    fn any_events_come_back_in_the_order_of_their_pushes(
        events in prop::collection::vec((number(), event()), 0..60),
    ) {
        prop_assert_eq!(decode_all(&encode(&events)), Ok(events));
    }

    #[test]
    fn the_header_has_the_lowest_and_highest_moment(
        events in prop::collection::vec((number(), event()), 1..30),
    ) {
        let chunk = encode(&events);
        let (header, ..) = split(&chunk);
        let moment = |icount: u64, vcpu: u8| {
            events.iter().any(|(i, e)| (*i, e.vcpu()) == (icount, vcpu))
        };
        prop_assert_eq!(header.first_icount, events.iter().map(|e| e.0).min().unwrap());
        prop_assert_eq!(header.last_icount, events.iter().map(|e| e.0).max().unwrap());
        prop_assert!(moment(header.first_icount, header.first_vcpu));
        prop_assert!(moment(header.last_icount, header.last_vcpu));
    }

    // Behind the checksums, too: a decoder that is fed nonsense must refuse or decode something,
    // but never panic.
    #[test]
    fn a_payload_of_nonsense_is_refused_or_decoded(
        events in prop::collection::vec((number(), event()), 1..40),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        in_table in any::<bool>(),
    ) {
        let chunk = encode(&events);
        let (header, table, payload) = split(&chunk);
        let (mut table, mut payload) = (table.to_vec(), payload.to_vec());
        for (at, byte) in changes {
            let part = if in_table { &mut table } else { &mut payload };
            let at = at.index(part.len());
            part[at] = byte;
        }
        if let Ok(table) = EventTable::parse(&table, &header) {
            let _ = decode(&table, &payload);
        }
    }

    #[test]
    fn random_columns_are_refused_or_decoded(
        columns in prop::collection::vec(
            (0..14u8, 0..9u8, prop::collection::vec(any::<u8>(), 0..12)), 0..40),
        order in prop::collection::vec(0..14u8, 0..20),
    ) {
        let mut columns = columns;
        columns.push((0, 0, order.clone()));
        columns.sort();
        columns.dedup_by_key(|c| (c.0, c.1));
        let mut counts = [0; 256];
        order.iter().for_each(|k| counts[usize::from(*k)] += 1);
        let table = EventTable {
            counts,
            columns: columns
                .iter()
                .map(|(kind, column, bytes)| crate::trace::format::Column {
                    kind: *kind,
                    column: *column,
                    raw_len: bytes.len() as u32,
                    stored_len: bytes.len() as u32,
                })
                .collect(),
        };
        let payload: Vec<u8> = columns.into_iter().flat_map(|c| c.2).collect();
        let _ = decode(&table, &payload);
    }
}

#[test]
fn kinds_and_columns_of_a_later_version_are_passed_over() {
    use crate::trace::format::Column;
    // Slice, an event of kind 200, slice; kind 200 has a second column and slices have a ninth.
    let parts: [(u8, u8, &[u8]); 8] = [
        (0, 0, &[1, 200, 1]),
        (1, 0, &[20, 0]),
        (1, 1, &[2, 0]),
        (1, 2, &[5, 6]),
        (1, 3, &[0, 2]),
        (1, 8, &[9, 9, 9]),
        (200, 0, &[4]),
        (200, 1, &[1, 2, 3]),
    ];
    let mut counts = [0; 256];
    (counts[1], counts[200]) = (2, 1);
    let table = EventTable {
        counts,
        columns: parts
            .iter()
            .map(|(kind, column, bytes)| Column {
                kind: *kind,
                column: *column,
                raw_len: bytes.len() as u32,
                stored_len: bytes.len() as u32,
            })
            .collect(),
    };
    let payload: Vec<u8> = parts.iter().flat_map(|p| p.2.to_vec()).collect();
    let slice = |instructions, stop| Event::Slice {
        vcpu: 2,
        instructions,
        stop,
    };
    assert_eq!(
        decode(&table, &payload),
        Ok(vec![
            (10, slice(5, SliceEnd::Quantum)),
            (15, slice(6, SliceEnd::Halt)),
        ])
    );
}

#[test]
fn a_link_that_equals_its_fetch_costs_next_to_nothing() {
    let block = |n: u64| Block {
        id: n,
        vcpu: (n % 4) as u8,
        pc: n.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        paddr: n * 77,
        len: 20,
        mode: 3,
        digest: (n * 0x1234_5671) as u32,
    };
    let fetches: Vec<_> = (0..1000).map(|n| (n, Event::Fetch(block(n)))).collect();
    let both: Vec<_> = (0..1000)
        .flat_map(|n| [(n, Event::Fetch(block(n))), (n, Event::Link(block(n)))])
        .collect();
    let (alone, linked) = (encode(&fetches).len(), encode(&both).len());
    assert!(linked < alone + 400, "{alone} bytes grew to {linked}");
}

#[test]
fn an_event_that_is_too_large_is_refused_and_leaves_the_chunk_as_it_was() {
    let mut builder = ChunkBuilder::new();
    let bytes = vec![0; encode::MAX_BLOB + 1];
    let list = vec![("x".repeat(256).into(), 1)];
    let digests = (0..=encode::MAX_DIGESTS as u64)
        .map(|n| ("a".into(), n))
        .collect();
    for event in [
        Event::Input { source: 0, bytes },
        Event::Digests { list },
        Event::Digests { list: digests },
    ] {
        assert!(builder.push(1, &event).is_err());
    }
    assert!(builder.is_empty());
}

#[test]
fn an_event_takes_at_most_96_bytes_of_memory() {
    // The limit on events per chunk bounds a reader's memory only as long as events are small.
    assert!(std::mem::size_of::<(u64, Event)>() <= 96);
}
