//! Shortens a failing sequence. Pure but for the clock that bounds it. Refuses to know what a step is.

use std::time::{Duration, Instant};

/// How long it takes at most.
const PATIENCE: Duration = Duration::from_secs(20);

/// Leaves out steps, in chunks that become smaller, for as long as `fails` still gives an error. Returns what is left and its error.
pub fn shrink<S: Copy, E>(mut steps: Vec<S>, mut fails: impl FnMut(&[S]) -> Option<E>) -> (Vec<S>, Option<E>) {
    let end = Instant::now() + PATIENCE;
    let mut last = None;
    let mut chunk = steps.len().div_ceil(2).max(1);
    loop {
        let before = steps.len();
        let mut at = 0;
        while at < steps.len() && Instant::now() < end {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + chunk).min(steps.len()));
            match fails(&fewer) {
                Some(error) => (steps, last) = (fewer, Some(error)),
                None => at += chunk,
            }
        }
        if Instant::now() >= end || (chunk == 1 && steps.len() == before) {
            return (steps, last);
        }
        chunk = (chunk / 2).max(1);
    }
}

#[test]
fn what_is_not_needed_goes() {
    let steps: Vec<u32> = (0..200).collect();
    let fails = |steps: &[u32]| (steps.contains(&17) && steps.contains(&140)).then_some("both");
    assert_eq!(shrink(steps, fails), (vec![17, 140], Some("both")));
}
