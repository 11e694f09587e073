//! The choice itself.

/// Picks one of `len` endpoints: of two drawn at random the cheaper, unless it is not usable.
///
/// `draws` are two evenly distributed numbers. `cost` says what an endpoint would cost, or `None`
/// if it is not usable at present: such an endpoint is never picked, so nothing is when none is
/// usable.
pub fn pick(len: usize, draws: (u32, u32), cost: impl Fn(usize) -> Option<f64>) -> Option<usize> {
    let first = scale(draws.0, len)?;
    // The second is drawn among the others, so that the two differ.
    let second = match scale(draws.1, len - 1) {
        Some(other) if other >= first => other + 1,
        Some(other) => other,
        None => first,
    };
    match (cost(first), cost(second)) {
        (Some(a), Some(b)) if b < a => Some(second),
        (Some(_), _) => Some(first),
        (None, Some(_)) => Some(second),
        (None, None) => (first..len)
            .chain(0..first)
            .find(|index| cost(*index).is_some()),
    }
}

/// Maps an even draw to `0..len`.
fn scale(draw: u32, len: usize) -> Option<usize> {
    let len = u64::try_from(len).ok().filter(|len| *len > 0)?;
    usize::try_from((u64::from(draw) * len) >> 32).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheaper_of_two_is_picked_and_an_unusable_one_never() {
        let low = 0;
        let high = u32::MAX;
        for (costs, draws, expected) in [
            (&[][..], (low, low), None),
            (&[Some(1.0)], (high, high), Some(0)),
            (&[None], (low, high), None),
            (&[Some(2.0), Some(1.0)], (low, low), Some(1)),
            (&[Some(1.0), Some(2.0)], (high, high), Some(0)),
            (&[Some(9.0), None], (high, low), Some(0)),
            (&[None, None, Some(9.0), None], (low, low), Some(2)),
            (&[None, Some(1.0), None, None], (high, high), Some(1)),
        ] {
            assert_eq!(
                pick(costs.len(), draws, |index| costs[index]),
                expected,
                "{costs:?} {draws:?}"
            );
        }
    }

    #[test]
    fn every_pair_can_be_drawn() {
        let mut drawn = std::collections::BTreeSet::new();
        for first in (0..=u32::MAX).step_by(1 << 28) {
            for second in (0..=u32::MAX).step_by(1 << 28) {
                let pair = std::cell::RefCell::new(Vec::new());
                pick(3, (first, second), |index| {
                    pair.borrow_mut().push(index);
                    Some(0.0)
                });
                let pair = pair.into_inner();
                assert_ne!(pair[0], pair[1]);
                drawn.insert((pair[0], pair[1]));
            }
        }
        assert_eq!(drawn.len(), 6);
    }
}
