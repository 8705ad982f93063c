//! Which device answers at an address.
//!
//! Ranges may overlap: the guest moves some of them where it likes. So the map cuts the address space into segments in
//! which the answer depends on the width of the access alone, and keeps for each segment who claims it, in the order
//! in which they are asked. Looking up is a binary search, or none at all where the last access was: guests poll.

use super::range::{Range, Takes};

/// What an access has met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// Number of the device.
    pub device: usize,
    /// The device's own number for the range.
    pub region: u8,
    /// Bytes from the range's base.
    pub offset: u64,
    pub takes: Takes,
    pub quiet: bool,
}

#[derive(Debug, Clone)]
struct Claim {
    device: usize,
    region: u8,
    base: u64,
    last: u64,
    takes: Takes,
    quiet: bool,
}

impl Claim {
    fn takes(&self, address: u64, size: usize) -> bool {
        match self.takes {
            Takes::Bytes => size <= 1,
            Takes::Within | Takes::Configuration => {
                (size as u64).saturating_sub(1) <= self.last - address
            }
            Takes::Beginning => true,
        }
    }
}

#[derive(Debug, Clone)]
struct Segment {
    first: u64,
    last: u64,
    claims: Vec<Claim>,
}

/// A map of one address space.
#[derive(Debug, Clone, Default)]
pub struct AddressMap {
    /// In rising order, without overlaps.
    segments: Vec<Segment>,
    /// The segment of the last access.
    recent: usize,
}

impl AddressMap {
    /// A map of the ranges of devices by number. At equal rank those that come first are asked first.
    #[must_use]
    pub fn new<'a>(ranges: impl Iterator<Item = (usize, &'a Range)>) -> Self {
        let mut ranges: Vec<_> = ranges
            .filter_map(|(device, range)| Some((device, range, range.last()?)))
            .collect();
        ranges.sort_by_key(|(_, range, _)| range.rank);
        let mut starts: Vec<u64> = ranges
            .iter()
            .flat_map(|(_, range, last)| [Some(range.base), last.checked_add(1)])
            .flatten()
            .collect();
        starts.sort_unstable();
        starts.dedup();
        let segments = starts.iter().enumerate().map(|(index, &first)| {
            let last = starts.get(index + 1).map_or(u64::MAX, |next| next - 1);
            let claims = ranges
                .iter()
                .filter(|(_, range, end)| range.base <= first && first <= *end)
                .map(|&(device, range, last)| Claim {
                    device,
                    region: range.region,
                    base: range.base,
                    last,
                    takes: range.takes,
                    quiet: range.quiet,
                })
                .collect();
            Segment {
                first,
                last,
                claims,
            }
        });
        Self {
            segments: segments.filter(|s| !s.claims.is_empty()).collect(),
            recent: 0,
        }
    }

    /// Who answers an access of `size` bytes.
    pub fn find(&mut self, address: u64, size: usize) -> Option<Hit> {
        let known = self.segments.get(self.recent);
        if !known.is_some_and(|s| s.first <= address && address <= s.last) {
            let after = self.segments.partition_point(|s| s.first <= address);
            let index = after.checked_sub(1)?;
            if self.segments[index].last < address {
                return None;
            }
            self.recent = index;
        }
        let claims = &self.segments[self.recent].claims;
        let claim = claims.iter().find(|claim| claim.takes(address, size))?;
        Some(Hit {
            device: claim.device,
            region: claim.region,
            offset: address - claim.base,
            takes: claim.takes,
            quiet: claim.quiet,
        })
    }

    /// Whether any device answers to accesses of one byte in a range.
    #[must_use]
    pub fn covers_any(&self, range: &Range) -> bool {
        let Some(end) = range.last() else {
            return false;
        };
        self.segments
            .iter()
            .any(|s| s.first <= end && range.base <= s.last)
    }
}

#[cfg(test)]
mod tests {
    use super::super::range::Rank;
    use super::*;
    use proptest::prelude::*;

    fn map(ranges: &[Range]) -> AddressMap {
        AddressMap::new(ranges.iter().enumerate())
    }

    fn device(map: &mut AddressMap, address: u64, size: usize) -> Option<(usize, u64)> {
        map.find(address, size).map(|hit| (hit.device, hit.offset))
    }

    #[test]
    fn the_lowest_rank_that_takes_the_width_answers() {
        let mut map = map(&[
            Range::isa(0x40, 8, 0),
            Range::ports(0x42, 4, 0),
            Range::ports(0x43, 1, 0)
                .taking(Takes::Bytes)
                .ranked(Rank::Fixed),
            Range::ports(0x45, 4, 0)
                .taking(Takes::Beginning)
                .ranked(Rank::Plugged),
        ]);
        assert_eq!(device(&mut map, 0x41, 1), Some((0, 1)));
        assert_eq!(device(&mut map, 0x41, 2), None);
        assert_eq!(device(&mut map, 0x42, 4), Some((1, 0)));
        assert_eq!(device(&mut map, 0x43, 2), Some((1, 1)));
        assert_eq!(device(&mut map, 0x43, 1), Some((2, 0)));
        assert_eq!(device(&mut map, 0x45, 1), Some((1, 3)));
        assert_eq!(device(&mut map, 0x46, 1), Some((0, 6)));
        assert_eq!(device(&mut map, 0x48, 4), Some((3, 3)));
        assert_eq!(device(&mut map, 0x49, 1), None);
        assert_eq!(device(&mut map, 0x3f, 1), None);
    }

    #[test]
    fn ranges_reach_to_the_end_of_the_address_space_and_not_beyond() {
        let mut map = map(&[
            Range::memory(u64::MAX - 3, 4, 0),
            Range::memory(u64::MAX - 3, 5, 0),
            Range::memory(7, 0, 0),
        ]);
        assert_eq!(device(&mut map, u64::MAX, 1), Some((0, 3)));
        assert_eq!(device(&mut map, u64::MAX, 2), None);
        assert_eq!(device(&mut map, 7, 1), None);
    }

    proptest! {
        #[test]
        fn every_address_is_answered_as_by_asking_all_ranges_in_order(
            ranges in prop::collection::vec((0u16..40, 0u16..12, 0usize..3, 0usize..4), 0..8),
            accesses in prop::collection::vec((0u64..60, prop::sample::select(vec![1usize, 2, 4])), 1..80),
        ) {
            let takes = [Takes::Bytes, Takes::Within, Takes::Beginning];
            let ranks = [Rank::Fixed, Rank::Chipset, Rank::Isa, Rank::Plugged];
            let ranges: Vec<Range> = ranges
                .into_iter()
                .map(|(base, length, t, r)| Range::ports(base, length, 0).taking(takes[t]).ranked(ranks[r]))
                .collect();
            let mut map = map(&ranges);
            for (address, size) in accesses {
                let mut expected: Vec<(Rank, usize, u64)> = Vec::new();
                for (device, range) in ranges.iter().enumerate() {
                    let end = range.base + range.length;
                    let begins = range.base <= address && address < end;
                    let fits = match range.takes {
                        Takes::Bytes => size == 1,
                        Takes::Beginning => true,
                        _ => address + size as u64 <= end,
                    };
                    if begins && fits {
                        expected.push((range.rank, device, address - range.base));
                    }
                }
                let expected = expected.into_iter().min().map(|(_, device, offset)| (device, offset));
                prop_assert_eq!(device(&mut map, address, size), expected);
            }
        }
    }
}
