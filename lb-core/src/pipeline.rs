//! The way of a packet, in the two steps that the kernel program takes too: plain packets first, everything else after.

use crate::{
    packet::PacketEdit,
    parse::{self, Packet},
    rewrite::{self, Egress, Exit},
    select::{self, Verdict},
    tables::Tables,
    wire::eth,
};

/// Forwards a plain packet of a service; `None`, and nothing changed, for every packet that needs a longer look. The caller
/// says what it recognised, so that each family has code of its own.
#[inline(always)]
pub fn fast<P: PacketEdit, T: Tables>(p: &mut P, plain: Option<Packet>, tables: &T) -> Option<Exit> {
    let packet = plain?;
    let (choice, target) = select::settled(&packet, tables)?;
    if rewrite::exceeded_mtu(&packet, target.backend).is_some() {
        return None;
    }
    let (ifindex, backend) = (target.backend.ifindex, choice.backend);
    // The exit is made where its kind is known: a reason's class is a table, and looking it up a call.
    Some(match rewrite::forward(p, &packet, &choice, &target) {
        Ok(reason) => Exit::Forward { reason, ifindex, backend },
        Err(reason) => Exit::Drop(reason),
    })
}

/// Handles any packet.
#[inline(always)]
pub fn full<P: PacketEdit, T: Tables>(p: &mut P, tables: &T) -> Exit {
    let mut packet = Packet::unknown();
    let mut verdict = Verdict::Echo;
    let decided = parse::any(p, &mut packet).and_then(|()| select::any(&packet, tables, &mut verdict));
    match decided {
        Ok(()) => rewrite::apply(p, &packet, &verdict, tables),
        Err(reason) => Exit::new(reason, Egress::default()),
    }
}

/// Both, as the program does it.
pub fn process<P: PacketEdit, T: Tables>(p: &mut P, tables: &T) -> Exit {
    let plain = match parse::ethertype(p) {
        eth::IPV4 => parse::plain_v4(p),
        eth::IPV6 => parse::plain_v6(p),
        _ => None,
    };
    match fast(p, plain, tables) {
        Some(exit) => exit,
        None => full(p, tables),
    }
}
