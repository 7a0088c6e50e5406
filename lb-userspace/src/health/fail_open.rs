//! Which backends of a service count as up.
//!
//! Pure. The rule of `on_below_min = fail_open` at zero: when health finds no backend that may take traffic, the likeliest
//! cause is the check itself (a renamed path, a firewall), and dropping everything is certain to be wrong.

use super::state::State;
use crate::model::AdminState;

/// A backend as the decision sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Weight in force, before health.
    pub weight: u16,
    /// Administrative state in force.
    pub admin_state: AdminState,
    /// Observed health; `None` if the service has no health check.
    pub health: Option<State>,
}

impl Candidate {
    /// Whether configuration and operator let it take new flows at all.
    pub fn eligible(&self) -> bool {
        self.weight > 0 && self.admin_state == AdminState::Ready
    }
}

/// The decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effective {
    /// For each candidate, in order, whether its health lets it take new flows. Says nothing about weight and
    /// administrative state: those apply on top.
    pub up: Vec<bool>,
    /// No eligible backend was up and at least one was judged down, so that all eligible ones count as up.
    pub fail_open: bool,
}

/// Decides for the backends of one service.
///
/// A backend without health check counts as up. One without a first result does not, as long as another eligible one is up
/// (whether it takes flows meanwhile is [`crate::plan::Standing`]'s to say); if none is, all eligible ones count as up. That is failing open if any was judged down, and a plain start if none has
/// been judged yet.
pub fn effective(candidates: &[Candidate]) -> Effective {
    let is_up = |candidate: &Candidate| matches!(candidate.health, None | Some(State::Up));
    let mut eligible = candidates.iter().filter(|candidate| candidate.eligible()).peekable();
    if eligible.peek().is_none() || eligible.clone().any(is_up) {
        return Effective { up: candidates.iter().map(is_up).collect(), fail_open: false };
    }
    Effective {
        up: candidates.iter().map(|candidate| candidate.eligible() || is_up(candidate)).collect(),
        fail_open: eligible.any(|candidate| candidate.health == Some(State::Down)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `u` up, `d` down, `n` unknown, `-` unchecked; upper case: drained; a following `0`: weight 0.
    fn candidates(text: &str) -> Vec<Candidate> {
        let mut out: Vec<Candidate> = Vec::new();
        for c in text.chars() {
            let health = match c.to_ascii_lowercase() {
                'u' => Some(State::Up),
                'd' => Some(State::Down),
                'n' => Some(State::Unknown),
                '-' => None,
                _ => {
                    out.last_mut().expect("a weight follows a backend").weight = 0;
                    continue;
                }
            };
            let admin_state = if c.is_ascii_uppercase() { AdminState::Drain } else { AdminState::Ready };
            out.push(Candidate { weight: 1, admin_state, health });
        }
        out
    }

    #[test]
    fn decisions() {
        for (backends, up, fail_open) in [
            ("", "", false),
            ("ud", "10", false),
            ("un", "10", false),
            ("-d", "10", false),
            ("dd", "11", true),
            ("dn", "11", true),
            ("nn", "11", false),
            ("u0dd", "111", true),
            ("Udd", "111", true),
            ("Ddd", "011", true),
            ("DD", "00", false),
            ("d0d0", "00", false),
        ] {
            let got = effective(&candidates(backends));
            let bits: String = got.up.iter().map(|&up| if up { '1' } else { '0' }).collect();
            assert_eq!((bits.as_str(), got.fail_open), (up, fail_open), "{backends}");
        }
    }
}
