//! Whether backends got the shares that their weights ask for. Pure.

use std::{collections::BTreeMap, fmt::Write as _};

/// How far a share may lie from its expectation, in standard deviations.
pub const SIGMAS_MAX: f64 = 3.0;

/// One backend's share.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    /// Name of the backend.
    pub backend: String,
    /// Requests that it answered.
    pub requests: usize,
    /// Part of all requests, 0 to 1.
    pub actual: f64,
    /// Part that its weight asks for, 0 to 1.
    pub expected: f64,
    /// Deviation in standard deviations of the binomial distribution: each connection is one draw, as its source port is
    /// its own and the hash spreads ports evenly.
    pub sigmas: f64,
}

/// Compares answers by backend with weights. A backend without a weight, or that never answered, is in the result too.
pub fn shares(answers: &BTreeMap<String, usize>, weights: &[(&str, u16)]) -> Vec<Share> {
    let total: usize = answers.values().sum();
    let weight_sum: f64 = weights.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let mut all: BTreeMap<&str, f64> = answers.keys().map(|name| (name.as_str(), 0.0)).collect();
    all.extend(weights.iter().map(|(name, weight)| (*name, f64::from(*weight) / weight_sum)));
    all.into_iter()
        .map(|(backend, expected)| {
            let requests = answers.get(backend).copied().unwrap_or_default();
            let n = total as f64;
            let sigma = (n * expected * (1.0 - expected)).sqrt();
            let off = requests as f64 - n * expected;
            // A share that must be nothing or everything has no spread: any deviation is too much.
            let sigmas = if off == 0.0 { 0.0 } else { off / sigma };
            let actual = if total == 0 { 0.0 } else { requests as f64 / n };
            Share { backend: backend.to_owned(), requests, actual, expected, sigmas }
        })
        .collect()
}

/// The first share that is too far off.
pub fn outlier(shares: &[Share]) -> Option<&Share> {
    shares.iter().find(|share| share.sigmas.is_nan() || share.sigmas.abs() > SIGMAS_MAX)
}

/// The shares for the screen.
pub fn table(title: &str, shares: &[Share]) -> String {
    let mut text = format!("    {title:<22} requests    share  by weight  deviation\n");
    for share in shares {
        // Writing to a string cannot fail.
        writeln!(
            text,
            "      {:<20} {:>8}  {:>6.2} %   {:>6.2} %    {:>+5.2} sigma",
            share.backend,
            share.requests,
            100.0 * share.actual,
            100.0 * share.expected,
            share.sigmas
        )
        .ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(counts: &[(&str, usize)]) -> BTreeMap<String, usize> {
        counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    const WEIGHTS: [(&str, u16); 3] = [("b1", 1), ("b2", 2), ("b3", 3)];

    #[test]
    fn shares_by_weight_pass() {
        let shares = shares(&answers(&[("b1", 1010), ("b2", 1980), ("b3", 3010)]), &WEIGHTS);
        assert_eq!(outlier(&shares), None);
        // sqrt(6000 / 6 * 5 / 6) = 28.87
        assert!((shares[0].sigmas - 10.0 / 28.87).abs() < 0.01, "{shares:?}");
    }

    #[test]
    fn equal_shares_a_silent_backend_and_a_stranger_do_not() {
        for counts in [
            &[("b1", 2000), ("b2", 2000), ("b3", 2000)][..],
            &[("b1", 2000), ("b2", 4000)],
            &[("b1", 1000), ("b2", 2000), ("b3", 3000), ("b9", 1)],
            &[],
        ] {
            let shares = shares(&answers(counts), &WEIGHTS);
            if counts.is_empty() {
                assert!(shares.iter().all(|share| share.requests == 0));
            } else {
                assert!(outlier(&shares).is_some(), "{counts:?}");
            }
        }
    }
}
