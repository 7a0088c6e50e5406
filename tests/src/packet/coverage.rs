//! Every reason is shown by a packet, or it says why none can.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use lb_core::{
    host::Frame,
    packet::{PacketEdit, PacketView},
    pipeline,
    reason::Reason,
};

use super::{Packet, fixtures, from_hex, node};
use crate::oracle::program;

/// Reasons that no packet can have, and where they are tested.
const BY_NO_PACKET: &[(Reason, &str)] = &[
    (
        Reason::FrameTruncated,
        "BPF_PROG_RUN refuses frames below 14 bytes: `every_truncation_has_a_reason` shows that, and lb-core's answer",
    ),
    (
        Reason::RewriteFailed,
        "parsing has compared all bounds that rewriting compares again for the verifier: only a frame that cannot be \
         written shows it, below",
    ),
];

/// Needs no root: a reason that is added without a packet is noticed everywhere.
#[test]
fn every_reason_has_a_packet_or_an_excuse() -> Result<()> {
    let mut shown: BTreeSet<Reason> = BTreeSet::new();
    for (path, fixture) in fixtures()? {
        for packet in fixture.case.iter().flat_map(|case| &case.packet) {
            let known = Reason::ALL.iter().find(|reason| reason.name() == packet.reason);
            ensure!(known.is_some(), "{}: there is no reason {}", path.display(), packet.reason);
            shown.extend(known);
        }
    }
    for reason in Reason::ALL {
        let excuse = BY_NO_PACKET.iter().find(|(excused, _)| excused == reason);
        match (shown.contains(reason), excuse) {
            (false, None) => anyhow::bail!("no fixture shows {reason:?}, and nothing says why"),
            (true, Some((_, why))) => anyhow::bail!("a fixture shows {reason:?}, which is excused: {why}"),
            _ => {}
        }
    }
    Ok(())
}

/// A frame that can be read and not written.
struct Frozen(Frame);

impl PacketView for Frozen {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.bytes(offset)
    }

    fn bytes_at<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.bytes_at(offset)
    }
}

impl PacketEdit for Frozen {
    fn put<const N: usize>(&mut self, _: usize, _: [u8; N]) -> Option<()> {
        None
    }

    fn put_at<const N: usize>(&mut self, _: usize, _: [u8; N]) -> Option<()> {
        None
    }

    fn grow_head(&mut self, n: usize) -> Option<()> {
        self.0.grow_head(n)
    }

    fn truncate(&mut self, len: usize) -> Option<()> {
        self.0.truncate(len)
    }
}

/// Whatever would have been changed is dropped, never sent half-written.
#[test]
fn what_cannot_be_written_is_dropped() -> Result<()> {
    let snapshot = node::node(program::next_hops(7));
    let mut reasons = BTreeSet::new();
    for (path, fixture) in fixtures()?.into_iter().filter(|(_, fixture)| fixture.setting.is_usual()) {
        for Packet { frame, reason, out, .. } in fixture.case.iter().flat_map(|case| &case.packet) {
            let exit = pipeline::process(&mut Frozen(Frame::new(&from_hex(frame)?)), &snapshot);
            let expected = if out.is_some() { Reason::RewriteFailed.name() } else { reason };
            ensure!(exit.reason().name() == expected, "{}: {frame}: {:?}", path.display(), exit.reason());
            reasons.extend(out.is_some().then_some(reason.clone()));
        }
    }
    ensure!(reasons.len() >= 8, "only {reasons:?} were to be rewritten");
    Ok(())
}
