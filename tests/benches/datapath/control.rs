//! What the control side costs: a ring built, and one change among many services planned and applied on real maps.

use std::{hint::black_box, time::Instant};

use anyhow::Result;
use lb_core::abi::backend::BackendKey;
use lb_userspace::plan::ring::{Member, build};

use crate::{
    report::{Promise, Target, median},
    scene::{BACKENDS, Family, Mode, Protocol, RING_SLOTS, Service, large_configuration, one_service},
    weir::Weir,
};

/// Backends of the ring that is timed; the figure of the Maglev paper, whose 1.8 ms are the target.
const RING_BACKENDS: u32 = 1000;
/// Services among which one changes.
pub const SERVICES: u16 = 1000;

/// `count` equal members whose slots are numbered from `first`.
fn members(count: u32, first: u32) -> Vec<Member> {
    (0..count)
        .map(|i| {
            let addr = lb_core::abi::mapped((0x0a00_0001 + i).to_be_bytes());
            let vip = lb_core::abi::mapped([192, 0, 2, 1]);
            let key = BackendKey { vip, addr, vip_port: 80, port: 80, proto: 6, pad: [0; 3] };
            Member { key, weight: 1, slot: first + i }
        })
        .collect()
}

/// The minimal program's ring: built like weir's, over the numbers of the targets.
pub fn minimal_ring() -> Box<[u32]> {
    build(0, RING_SLOTS, &members(BACKENDS.into(), 0))
}

/// Builds rings; the median in milliseconds.
pub fn ring_build(repeat: usize) -> Target {
    let members = members(RING_BACKENDS, 1);
    let times = (0..repeat as u64).map(|seed| {
        let start = Instant::now();
        black_box(build(black_box(seed), RING_SLOTS, black_box(&members)));
        start.elapsed().as_secs_f64() * 1e3
    });
    Target::at_most(
        Promise::Changes,
        format!("ring of {RING_SLOTS} slots for {RING_BACKENDS} backends"),
        " ms",
        median(times),
        1.8,
    )
}

/// Changes the weight of one backend of one service again and again; the median in milliseconds that the plan takes: the new
/// ring, what differs, and the windows of the slots that move, on top of the windows before.
pub fn ring_diff(interface: &str, egress: u32, repeat: usize) -> Result<Target> {
    let service = Service { family: Family::V4, protocol: Protocol::Tcp, mode: Mode::Ipip };
    let text = one_service(interface, service, "algo = \"maglev\"\nannounce_for = \"0s\"");
    let mut weir = Weir::load(&text, egress)?;
    let mut times = Vec::new();
    for n in 0..repeat {
        // Extents that the last change left are free again after their grace.
        weir.settle()?;
        times.push(weir.change_weight(0, 2 + (n % 2) as u16)?.as_secs_f64() * 1e3);
    }
    let what = format!("one backend changed among {BACKENDS} of a ring of {RING_SLOTS} slots: window planned");
    Ok(Target::at_most(Promise::Changes, what, " ms", median(times), 5.0))
}

/// Changes one backend at a time, each time in another service; the median in milliseconds from the changed
/// configuration to maps that were read back.
pub fn one_change(interface: &str, egress: u32, repeat: usize) -> Result<Target> {
    let mut weir = Weir::load(&large_configuration(interface, SERVICES), egress)?;
    let mut times = Vec::new();
    for service in 0..repeat {
        let start = Instant::now();
        weir.change_weight(service * usize::from(SERVICES) / repeat, 3)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let what = format!("one backend changed among {SERVICES} services of {BACKENDS}: planned and applied");
    Ok(Target::at_most(Promise::Changes, what, " ms", median(times), 50.0))
}
