//! The one way in which tests wait: ask again until the answer is there, or patience ends.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::Instant;

/// How long a test waits for something that should happen soon, on a slow and busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Time between two questions: short, so that waiting costs no time; long enough to cost no CPU.
const STEP: Duration = Duration::from_millis(20);

/// Asks until `check` succeeds.
///
/// # Errors
/// The last error of `check`, with `what`, when [`PATIENCE`] is at its end.
pub fn eventually<T>(what: &str, check: impl FnMut() -> Result<T>) -> Result<T> {
    eventually_within(PATIENCE, what, check)
}

/// Asks until `check` succeeds or `limit` has passed.
///
/// # Errors
/// The last error of `check`, with `what`.
pub fn eventually_within<T>(
    limit: Duration,
    what: &str,
    mut check: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("{what}: not within {limit:?}"));
            }
            Err(_too_early) => pause(STEP),
        }
    }
}

/// Lets `step` pass between two looks at the same thing.
pub(crate) fn pause(step: Duration) {
    #[expect(
        clippy::disallowed_methods,
        reason = "the only wait of the suites; no runtime runs here"
    )]
    std::thread::sleep(step);
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn the_first_success_ends_the_wait_and_the_last_error_is_told() {
        let mut asked = 0;
        let answer = eventually("the third answer", || {
            asked += 1;
            if asked < 3 {
                bail!("too early");
            }
            Ok(asked)
        });
        assert_eq!(answer.unwrap(), 3);

        let error = eventually_within(Duration::ZERO, "the world's end", || -> Result<()> {
            bail!("not yet")
        })
        .unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "the world's end: not within 0ns: not yet"
        );
    }
}
