//! Which shortcuts translated code takes. Each changes how fast a guest runs and nothing that it, or a
//! trace, can see; each can be switched off by name, to measure it or to find out whether it is at fault.

/// A set of shortcuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortcuts(u32);

impl Shortcuts {
    /// Code reaches its vCPU through the stack pointer, which lets the host forward a store to the
    /// next load of the same word without delay; otherwise through the GS base.
    pub const FRAME: Self = Self(1);
    /// An aligned store marks one line; whether it may touch two is asked and not assumed.
    pub const MARKS: Self = Self(1 << 1);

    /// Neighbouring accesses around one address share a check.
    pub const RUNS: Self = Self(1 << 2);

    /// A guest register that lives in memory is operand of a copied instruction where it is.
    pub const WORDS: Self = Self(1 << 3);

    /// Accesses that stay in a page for long find it in a pin and not in the table.
    pub const PINS: Self = Self(1 << 4);

    /// A replay has blocks translated before the guest gets to them.
    pub const AHEAD: Self = Self(1 << 5);

    /// Loops of one block run iterations without checks.
    pub const LOOPS: Self = Self(1 << 6);

    /// A load adds its page and its offset in its operand, which is a step less until its value is there.
    pub const APART: Self = Self(1 << 7);

    /// Blocks that run often, one after the other, have common code.
    pub const PATHS: Self = Self(1 << 8);

    /// An access across two pages of which nothing is special is made without Rust.
    pub const ACROSS: Self = Self(1 << 9);

    /// The names by which they are switched off.
    pub const NAMES: [(&'static str, Self); 10] = [
        ("frame", Self::FRAME),
        ("marks", Self::MARKS),
        ("runs", Self::RUNS),
        ("words", Self::WORDS),
        ("pins", Self::PINS),
        ("ahead", Self::AHEAD),
        ("loops", Self::LOOPS),
        ("apart", Self::APART),
        ("paths", Self::PATHS),
        ("across", Self::ACROSS),
    ];

    pub const ALL: Self = Self((1 << Self::NAMES.len()) - 1);

    pub fn has(self, one: Self) -> bool {
        self.0 & one.0 != 0
    }

    /// All of these but one.
    pub(in crate::translate) fn less(self, one: Self) -> Self {
        Self(self.0 & !one.0)
    }

    /// All but those named.
    ///
    /// # Errors
    /// The first name that there is not.
    pub fn without<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, &'a str> {
        let mut left = Self::ALL.0;
        for name in names {
            let (_, one) = Self::NAMES.iter().find(|(n, _)| *n == name).ok_or(name)?;
            left &= !one.0;
        }
        Ok(Self(left))
    }
}

impl Default for Shortcuts {
    fn default() -> Self {
        Self::ALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_takes_its_shortcut_away_and_no_other() {
        for (name, one) in Shortcuts::NAMES {
            let left = Shortcuts::without([name]).unwrap();
            assert!(!left.has(one));
            assert_eq!(left.0 | one.0, Shortcuts::ALL.0);
        }
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert_eq!(Shortcuts::without(["frame", "speed"]), Err("speed"));
    }
}
