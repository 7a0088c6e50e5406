//! `algo` and `algo_config` of a service, and the weights that an algorithm does not heed.

use super::{
    super::algo::{Algo, Kind},
    super::{diagnostic::shift, prime},
    At, Code, Diagnostic, Findings, Span, Table,
    reader::Section,
    service::BackendDraft,
};

/// An algorithm as far as it could be read.
pub(super) struct Draft {
    /// The algorithm; `None` if it was refused, and with it the meaning of `algo_config`.
    pub kind: Option<Kind>,
    /// Where `algo` stands, if it does.
    pub span: Option<Span>,
    /// Ring size and where it is set, if it is.
    pub ring_size: Option<(u32, Option<Span>)>,
}

impl Draft {
    /// The algorithm, if nothing in it was refused.
    pub fn algo(&self) -> Option<Algo> {
        Some(Algo::new(self.kind?, self.ring_size.as_ref()?.0))
    }

    /// Moves every place by `by` bytes, which wrap around.
    pub fn shift(&mut self, by: usize) {
        let Self { kind: _, span, ring_size } = self;
        let own = [span.as_mut(), ring_size.as_mut().and_then(|(_, span)| span.as_mut())];
        own.into_iter().flatten().for_each(|span| shift(span, by));
    }

    /// Whether flows are known to be chosen a backend.
    pub fn is_chosen(&self) -> bool {
        self.kind.is_some_and(|kind| !kind.is_hashed())
    }
}

/// Reads `algo` and `algo_config`.
pub(super) fn read(section: &Section<'_>, findings: &mut Findings) -> Draft {
    let words = Kind::ALL.map(|kind| (kind.word(), kind));
    let (kind, span) = match section.get("algo") {
        None => (Some(Kind::Maglev), None),
        Some(value) => (section.word("algo", &words, findings).map(|at| at.value), Some(value.span())),
    };
    // Parameters mean nothing under a name that weir does not know.
    let ring_size = kind.and_then(|kind| match section.get("algo_config") {
        None => Some((Algo::RING_SIZE, None)),
        Some(_) => ring_size(&section.table("algo_config", Table::AlgoConfig(kind), findings)?, findings),
    });
    Draft { kind, span, ring_size }
}

/// `ring_size` of `algo_config`.
fn ring_size(section: &Section<'_>, findings: &mut Findings) -> Option<(u32, Option<Span>)> {
    if section.get("ring_size").is_none() {
        return Some((Algo::RING_SIZE, None));
    }
    let At { value, span } = section.integer("ring_size", 0..=u32::MAX, findings)?;
    let wrong = if !prime::RING_SIZES.contains(&value) {
        format!("`ring_size` is out of range: {value}")
    } else if !prime::is_prime(value) {
        format!("`ring_size` is not prime: {value}")
    } else {
        return Some((value, Some(span)));
    };
    let hint = match prime::neighbours(value.into()) {
        (Some(below), Some(above)) => format!("the nearest primes are {below} and {above}"),
        (Some(prime), None) => format!("the largest ring has {prime} slots"),
        (None, Some(prime)) => format!("the smallest ring has {prime} slots"),
        (None, None) => String::new(),
    };
    findings.push(Diagnostic::new(Code::RingSize, span, wrong).hint(hint));
    None
}

/// Some algorithms know only weight 0: others that differ do not do what they seem to.
pub(super) fn weights(algo: &Draft, backends: &[BackendDraft], findings: &mut Findings) {
    let Some(kind) = algo.kind.filter(|kind| !kind.is_weighted()) else { return };
    let weights = || backends.iter().map(|backend| &backend.weight).filter(|weight| weight.value > 0);
    let (Some(least), Some(most)) = (weights().map(|w| w.value).min(), weights().map(|w| w.value).max()) else {
        return;
    };
    // Of two weights that differ, one is not the default and therefore stands in the file.
    let set = weights().filter(|_| least < most).find_map(|weight| Some((weight.value, weight.span.clone()?)));
    let Some((weight, span)) = set else { return };
    let message = format!("`{kind}` ignores the weight {weight}: backends take equal shares");
    let mut finding = Diagnostic::new(Code::WeightIgnored, span, message).hint(format!(
        "`algo = \"{}\"` heeds weights; `{kind}` knows only 0, which takes no new flows",
        kind.weighted()
    ));
    if let Some(span) = &algo.span {
        finding = finding.related(span.clone(), "the algorithm");
    }
    findings.push(finding);
}
