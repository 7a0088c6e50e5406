//! `cargo xtask bench`.

mod lab;
mod scene;

use anyhow::Result;
use scene::{Family, Mode, Protocol, Service};

fn main() -> Result<()> {
    lab::enter()?;
    let ring: Vec<u32> = (0..scene::RING_SLOTS).map(|i| (i.wrapping_mul(2654435761) >> 9) % 100).collect();
    let mut lab = lab::Lab::new(&ring)?;
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            let service = Service { family, protocol, mode: Mode::Ipip };
            lab.serve_minimal(service)?;
            for flows in [1, 1000, 100_000, 1_000_000] {
                for name in ["bench_floor", "bench_minimal"] {
                    lab.install(name)?;
                    let s = lab.run(service, flows, 1_000_000, |lab| lab.info(name))?;
                    println!(
                        "{family:?} {protocol:?} {flows:8} {name:14} {:6.1} ns {:.3} Mpps lost {:.4}",
                        s.gross_ns,
                        s.pps / 1e6,
                        s.lost
                    );
                }
            }
        }
    }
    Ok(())
}
