//! The way of a packet, in the two steps that the kernel program takes too: plain packets first, everything else after.

use crate::{
    packet::PacketEdit,
    parse,
    rewrite::{self, Exit},
    select,
    tables::Tables,
};

/// Forwards a plain packet of a service; `None`, and nothing changed, for every packet that needs a longer look.
#[inline(always)]
pub fn fast<P: PacketEdit, T: Tables>(p: &mut P, tables: &T) -> Option<Exit> {
    let packet = parse::plain(p)?;
    let choice = select::settled(&packet, tables)?;
    if rewrite::exceeded_mtu(&packet, choice.backend).is_some() {
        return None;
    }
    Some(rewrite::forward(p, &packet, &choice))
}

/// Handles any packet.
#[inline(always)]
pub fn full<P: PacketEdit, T: Tables>(p: &mut P, tables: &T) -> Exit {
    let packet = match parse::any(p) {
        Ok(packet) => packet,
        Err(reason) => return Exit::leave(reason),
    };
    let verdict = select::any(&packet, tables);
    rewrite::apply(p, &packet, &verdict, tables)
}

/// Both, as the program does it.
pub fn process<P: PacketEdit, T: Tables>(p: &mut P, tables: &T) -> Exit {
    match fast(p, tables) {
        Some(exit) => exit,
        None => full(p, tables),
    }
}
