//! The oracle: a slow second opinion on the log of cross-vCPU writes.
//!
//! It keeps, for every byte of RAM, who wrote it last and when, and reads the hand-offs of a trace beside
//! the run. Whenever somebody reads, writes or fetches bytes that another has written, a hand-off must
//! lie between the two that names the page, the writer and the line. It knows nothing of how rr86
//! tracks pages: the places that make accesses report each of them, while the engine gives no
//! access the fast path and asks at every entry of a block.

use std::collections::{BTreeMap, VecDeque};

use crate::memory::ram::LINE_SHIFT;
use crate::memory::{PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};

const LINES: usize = 1 << (PAGE_SHIFT - LINE_SHIFT);
/// Gaps that are kept; more are only counted.
const MOST_GAPS: usize = 100;

/// What somebody does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Read,
    Write,
    Fetch,
}

impl Seen {
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Fetch => "fetch",
        }
    }
}

/// Accesses of one agent to bytes of one page that another wrote, which no hand-off tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Who wrote ([`DEVICE`] for a device or a loader), and the moment of the first such write.
    pub writer: u8,
    pub written: u64,
    /// The first access: who, how, when, where in the code, and its first byte that was not told.
    pub agent: u8,
    pub access: Seen,
    pub icount: u64,
    pub rip: Option<u64>,
    pub paddr: u64,
    /// Lines of the page in which such bytes were met; bit n is line n.
    pub lines: u64,
    pub accesses: u64,
}

/// What the oracle has to say.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Accesses reported to it.
    pub accesses: u64,
    /// Those that met bytes which another agent wrote last.
    pub foreign: u64,
    /// Hand-offs that have been reached.
    pub hand_offs: u64,
    /// Those of `foreign` that are not in the log.
    pub missing: u64,
    pub gaps: Vec<Gap>,
}

/// A moment, and how many hand-offs of this moment came before: `icount << 8 | number`.
type Clock = u64;

/// One page: who wrote each byte last, and which writes the log has told.
struct Book {
    /// [`Stamp`]s.
    last: [u64; PAGE_SIZE as usize],
    /// By writer: the latest hand-off that tells of each line.
    told: BTreeMap<u8, [Clock; LINES]>,
}

/// The bits of a stamp that are a clock.
const CLOCK: u64 = (1 << 56) - 1;

/// A writer's number plus one in the top byte, and below it the clock of the write. 0 is no one's.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp(u64);

impl Stamp {
    fn new(writer: u8, clock: Clock) -> Self {
        Self((u64::from(writer) + 1) << 56 | clock & CLOCK)
    }
    fn writer(self) -> Option<u8> {
        ((self.0 >> 56) as u8).checked_sub(1)
    }
    fn clock(self) -> Clock {
        self.0 & CLOCK
    }
}

struct Told {
    icount: u64,
    page: u64,
    from: u8,
    lines: u64,
}

/// The oracle's memory.
#[derive(Default)]
pub struct Oracle {
    books: Vec<Option<Box<Book>>>,
    /// Hand-offs that the run has not reached.
    ahead: VecDeque<Told>,
    /// Of the hand-off reached last.
    clock: Clock,
    verdict: Verdict,
    /// rip between blocks; none while code runs.
    between: Option<u64>,
}

/// An access within one page.
pub(in crate::runtime) struct Access {
    pub agent: u8,
    pub seen: Seen,
    pub paddr: u64,
    pub len: usize,
    pub icount: u64,
}

impl Oracle {
    /// Reads a hand-off of the log. They come in order, and before the run reaches them.
    pub fn read_log(&mut self, icount: u64, page: u64, from: u8, lines: u64) {
        self.ahead.push_back(Told {
            icount,
            page,
            from,
            lines,
        });
    }

    /// Whether somebody was seen to write the byte at a physical address.
    pub(in crate::runtime) fn saw_write(&self, paddr: u64) -> bool {
        let book = self.books.get((paddr >> PAGE_SHIFT) as usize);
        let book = book.and_then(Option::as_deref);
        book.is_some_and(|book| book.last[(paddr & PAGE_MASK) as usize] != 0)
    }

    /// Says where the running vCPU stands between two blocks; `None` while code runs.
    pub(in crate::runtime) fn stand_between(&mut self, rip: Option<u64>) {
        self.between = rip;
    }

    /// rip between blocks; none while code runs.
    pub(in crate::runtime) fn between(&self) -> Option<u64> {
        self.between
    }

    /// What was found so far.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    fn book(&mut self, page: u64) -> &mut Book {
        let page = page as usize;
        if page >= self.books.len() {
            self.books.resize_with(page + 1, || None);
        }
        self.books[page].get_or_insert_with(|| {
            Box::new(Book {
                last: [0; PAGE_SIZE as usize],
                told: BTreeMap::new(),
            })
        })
    }

    /// Takes what the log says up to a moment, and gives the clock of what happens now.
    fn advance(&mut self, icount: u64) -> Clock {
        while self.ahead.front().is_some_and(|told| told.icount <= icount) {
            let Some(told) = self.ahead.pop_front() else {
                break;
            };
            self.clock = self.clock.max(told.icount << 8) + 1;
            self.verdict.hand_offs += 1;
            let clock = self.clock;
            let book = self.book(told.page);
            let lines = book.told.entry(told.from).or_insert([0; LINES]);
            for (line, at) in lines.iter_mut().enumerate() {
                if told.lines >> line & 1 != 0 {
                    *at = clock;
                }
            }
        }
        self.clock.max(icount << 8)
    }

    /// An access to bytes of one page. `rip` is asked only where the log has a gap.
    pub(in crate::runtime) fn access(
        &mut self,
        access: &Access,
        rip: impl FnOnce() -> Option<u64>,
    ) {
        let now = self.advance(access.icount);
        let start = (access.paddr & PAGE_MASK) as usize;
        let book = self.book(access.paddr >> PAGE_SHIFT);
        let mut foreign = false;
        let mut missing: Option<(usize, Stamp, u64)> = None;
        let mut before = Stamp(0);
        for at in start..start + access.len {
            let stamp = Stamp(book.last[at]);
            let line = at >> LINE_SHIFT;
            if stamp == before && at % (1 << LINE_SHIFT) != 0 {
                continue;
            }
            before = stamp;
            let Some(writer) = stamp.writer().filter(|&w| w != access.agent) else {
                continue;
            };
            foreign = true;
            let told = book.told.get(&writer).map_or(0, |lines| lines[line]);
            if told > stamp.clock() {
                continue;
            }
            let (_, first, lines) = missing.get_or_insert((at, stamp, 0));
            if first.writer() == Some(writer) {
                *lines |= 1 << line;
            }
        }
        if access.seen == Seen::Write {
            book.last[start..start + access.len].fill(Stamp::new(access.agent, now).0);
        }
        self.verdict.accesses += 1;
        self.verdict.foreign += u64::from(foreign);
        if let Some((at, stamp, lines)) = missing {
            self.note_gap(access, at, stamp, lines, rip);
        }
    }

    fn note_gap(
        &mut self,
        access: &Access,
        at: usize,
        stamp: Stamp,
        lines: u64,
        rip: impl FnOnce() -> Option<u64>,
    ) {
        self.verdict.missing += 1;
        let writer = stamp.writer().expect("a stamp of somebody");
        let page = access.paddr & !PAGE_MASK;
        let known = self.verdict.gaps.iter_mut().find(|gap| {
            gap.paddr & !PAGE_MASK == page && gap.writer == writer && gap.agent == access.agent
        });
        if let Some(gap) = known {
            gap.lines |= lines;
            gap.accesses += 1;
        } else if self.verdict.gaps.len() < MOST_GAPS {
            self.verdict.gaps.push(Gap {
                writer,
                written: stamp.clock() >> 8,
                agent: access.agent,
                access: access.seen,
                icount: access.icount,
                rip: rip(),
                paddr: page | at as u64,
                lines,
                accesses: 1,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::pages::DEVICE;

    const LINE: u64 = 64;

    fn access(agent: u8, seen: Seen, paddr: u64, icount: u64) -> Access {
        Access {
            agent,
            seen,
            paddr,
            len: 4,
            icount,
        }
    }

    /// The gaps that these accesses and hand-offs `(icount, page, from, lines)` leave.
    fn gaps(log: &[(u64, u64, u8, u64)], accesses: &[Access]) -> Vec<Gap> {
        let mut oracle = Oracle::default();
        for &(icount, page, from, lines) in log {
            oracle.read_log(icount, page, from, lines);
        }
        for each in accesses {
            oracle.access(each, || Some(7));
        }
        oracle.verdict.gaps
    }

    #[test]
    fn a_write_that_another_reads_must_be_told_between_the_two() {
        let run = [
            access(0, Seen::Write, 0x1040, 10),
            access(1, Seen::Read, 0x1040, 20),
        ];
        assert_eq!(gaps(&[(20, 1, 0, 2)], &run), []);
        assert_eq!(gaps(&[(11, 1, 0, u64::MAX)], &run), []);
        // Too early, too late, another page, line or writer.
        for wrong in [
            (10, 1, 0, 2),
            (21, 1, 0, 2),
            (20, 2, 0, 2),
            (20, 1, 0, 1),
            (20, 1, 1, 2),
        ] {
            let found = gaps(&[wrong], &run);
            assert_eq!(found.len(), 1, "{wrong:?}");
            let gap = found[0];
            assert_eq!((gap.writer, gap.written), (0, 10));
            assert_eq!((gap.agent, gap.access, gap.icount), (1, Seen::Read, 20));
            assert_eq!((gap.paddr, gap.lines, gap.rip), (0x1040, 2, Some(7)));
        }
    }

    #[test]
    fn no_hand_off_is_needed_for_own_writes_or_for_bytes_that_were_never_written() {
        let run = [
            access(0, Seen::Write, 0x1040, 10),
            access(0, Seen::Read, 0x1040, 20),
            access(1, Seen::Read, 0x1044, 20),
            access(1, Seen::Fetch, 0x2000, 20),
        ];
        assert_eq!(gaps(&[], &run), []);
    }

    #[test]
    fn one_hand_off_tells_all_readers_until_the_next_write() {
        let run = [
            access(0, Seen::Write, 0x1000, 10),
            access(1, Seen::Read, 0x1000, 20),
            access(2, Seen::Fetch, 0x1000, 30),
            access(DEVICE, Seen::Read, 0x1000, 40),
            access(0, Seen::Write, 0x1000, 50),
            access(2, Seen::Read, 0x1000, 60),
        ];
        let found = gaps(&[(20, 1, 0, 1)], &run);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].written, found[0].icount), (50, 60));
    }

    #[test]
    fn an_overwritten_byte_is_its_last_writer_s() {
        let run = [
            access(0, Seen::Write, 0x1000, 10),
            access(1, Seen::Write, 0x1002, 20),
            access(0, Seen::Read, 0x1000, 30),
        ];
        // vCPU 1 met what vCPU 0 wrote, and the other way round.
        assert_eq!(gaps(&[(20, 1, 0, 1), (30, 1, 1, 1)], &run), []);
        assert_eq!(gaps(&[(30, 1, 1, 1)], &run).len(), 1);
        let second = gaps(&[(20, 1, 0, 1)], &run);
        assert_eq!((second[0].writer, second[0].paddr), (1, 0x1002));
    }

    #[test]
    fn a_hand_off_before_a_write_of_the_same_moment_does_not_tell_of_it() {
        let run = [
            access(0, Seen::Read, 0x1000, 10),
            access(0, Seen::Write, 0x1000, 10),
            access(1, Seen::Read, 0x1000, 11),
        ];
        assert_eq!(gaps(&[(10, 1, 0, 1)], &run).len(), 1);
    }

    #[test]
    fn gaps_of_one_page_are_told_together() {
        let run = [
            access(0, Seen::Write, 0x1000, 10),
            access(0, Seen::Write, 0x1000 + 3 * LINE, 11),
            access(1, Seen::Read, 0x1000, 20),
            access(1, Seen::Read, 0x1000 + 3 * LINE, 21),
            access(1, Seen::Read, 0x1000, 22),
        ];
        let found = gaps(&[], &run);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].lines, found[0].accesses), (0b1001, 3));
    }
}
