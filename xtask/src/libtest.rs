//! Counts tests from what Rust's test harness and `weft-demo --once` print.

use std::fmt;

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed, and steps that could not run at all.
    pub(crate) failed: u64,
    /// Tests that were ignored.
    pub(crate) skipped: u64,
}

impl Tally {
    /// Adds another tally.
    pub(crate) const fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Counts what a line of output says, if it is a result.
    pub(crate) fn read(&mut self, line: &str) {
        if let Some(result) = summary(line) {
            self.add(result);
        }
    }

    /// Counts a row of `weft-demo --once`.
    pub(crate) fn read_row(&mut self, line: &str) {
        self.passed += u64::from(line.starts_with("ok    "));
        self.failed += u64::from(line.starts_with("FAIL  "));
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// Reads `test result: ok. 12 passed; 0 failed; 1 ignored; ...`.
fn summary(line: &str) -> Option<Tally> {
    let (_verdict, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut tally = Tally::default();
    for count in counts.split(';') {
        let (number, what) = count.trim().split_once(' ')?;
        let number = number.parse().unwrap_or(0);
        match what {
            "passed" => tally.passed = number,
            "failed" => tally.failed = number,
            "ignored" => tally.skipped = number,
            _other => {}
        }
    }
    Some(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_summed_and_other_lines_ignored() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test a ... ok",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 5 filtered out; finished in 0.1s",
            "12 passed",
        ] {
            tally.read(line);
        }
        for row in ["ok    nginx", "FAIL  redis   no answer", "checking it:"] {
            tally.read_row(row);
        }
        assert_eq!(tally.to_string(), "5 passed, 3 failed, 1 skipped");
    }
}
