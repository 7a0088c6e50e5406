//! Reasons and losses in the words of the API.

use std::collections::BTreeMap;

use lb_core::{
    abi::{loss::LossKind, stats::Counter},
    reason::{Class, Reason},
};

use crate::{api, net::Interface};

const fn action(class: Class) -> api::Action {
    match class {
        Class::Pass => api::Action::Pass,
        Class::Drop => api::Action::Drop,
        Class::Transmit => api::Action::Tx,
        Class::Forward => api::Action::Forward,
    }
}

/// Every reason with its counter, in the order of its number.
pub fn reasons(counters: &BTreeMap<u32, Counter>) -> Vec<api::ReasonCount> {
    Reason::ALL
        .iter()
        .map(|reason| {
            let counter = counters.get(&u32::from(*reason as u8)).copied().unwrap_or_default();
            api::ReasonCount {
                reason: reason.name().into(),
                action: action(reason.class()),
                help: reason.help().into(),
                packets: counter.packets,
                bytes: counter.bytes,
            }
        })
        .collect()
}

const fn help(kind: LossKind) -> &'static str {
    match kind {
        LossKind::Exception => "The program was aborted, or the frame that it sent back had no place to go.",
        LossKind::Redirect => {
            "A redirect found no target, or one that cannot transmit: is XDP ready on the other interface?"
        }
        LossKind::Transmit => {
            "The driver of the interface refused frames that were redirected to it: its queue is full."
        }
        LossKind::BulkTransmit => "The driver refused frames that were sent back: its queue is full.",
    }
}

/// What was lost after the verdict on the interface `ifindex`, as the tracepoints and the interface itself count it.
pub fn losses(
    ifindex: u32,
    counted: &BTreeMap<(u32, LossKind), u64>,
    interface: Option<&Interface>,
) -> Vec<api::LossCount> {
    let traced = LossKind::ALL.into_iter().map(|kind| api::LossCount {
        loss: kind.name().into(),
        help: help(kind).into(),
        packets: counted.get(&(ifindex, kind)).copied().unwrap_or(0),
    });
    let own = interface.map(|i| {
        [
            (
                "interface_rx_dropped",
                "The interface's own count of dropped frames; many drivers count the program's drops too.",
                i.counters.rx_dropped,
            ),
            ("interface_rx_missed", "Frames for which the hardware had no buffer.", i.counters.rx_missed),
            ("interface_tx_dropped", "Frames that the interface dropped on their way out.", i.counters.tx_dropped),
            ("interface_tx_errors", "Frames that the interface could not send.", i.counters.tx_errors),
        ]
    });
    let own = own.into_iter().flatten().map(|(loss, help, packets)| api::LossCount {
        loss: loss.into(),
        help: help.into(),
        packets,
    });
    traced.chain(own).collect()
}
