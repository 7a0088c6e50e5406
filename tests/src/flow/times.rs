//! Records expire by the program alone, each in the time of its protocol and state: no agent runs, nothing is swept, nothing grows older
//! by hand.
//!
//! The node entry says how many ticks of the kernel are a second: here they are few, so that the program's seconds pass quickly.

use std::{
    collections::BTreeMap,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lb_core::abi::{service::Algo, stats::FlowEvent};
use lb_userspace::{
    dataplane::{
        clock,
        engine::{Clock, Engine},
    },
    model::{Protocol, ServiceKey},
    plan::Wanted,
};
use xtask::capability::{PINNED, available};

use super::{
    packet::{flag, frame},
    place::{Place, Sent},
    play::TIMES,
    program::Loaded,
    setup::{SECRETS, Setup, WEB, sizes, wanted},
};

/// How many of the program's seconds are one of the kernel's.
const FASTER: u32 = 25;
/// Seconds that an established flow of the TCP service may be silent, and one of the UDP service.
const TCP_S: u32 = 20;
const UDP_S: u32 = 28;
/// By how many seconds a record may expire early, as its seconds are whole ones, and what a tick makes of a second.
const EARLY_S: f64 = 1.0;
const TICK_S: f64 = 0.3;
/// Tries on a machine that does everything at once.
const TRIES: u16 = 6;

/// What was seen of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A SYN.
    HalfOpen,
    /// A SYN and an ACK.
    Established,
    /// These and a FIN.
    Closing,
    /// An ACK of a connection that began before.
    Once,
    /// One datagram.
    Datagram,
    /// Two of them.
    Datagrams,
}

impl Kind {
    const ALL: [Self; 6] =
        [Self::HalfOpen, Self::Established, Self::Closing, Self::Once, Self::Datagram, Self::Datagrams];

    const fn timeout_s(self) -> u32 {
        match self {
            // What is promised, whatever the program's constants are.
            Self::HalfOpen | Self::Closing => 10,
            Self::Established | Self::Once => TCP_S,
            Self::Datagram | Self::Datagrams => UDP_S,
        }
    }

    /// What brings a flow there, and the packet that asks whether its record is still there.
    fn packets(self, port: u16) -> (Vec<Vec<u8>>, Vec<u8>) {
        let packet = |service, flags| frame(service, [198, 51, 100, 1], port, flags);
        let (syn, ack, fin) = (packet(&WEB, flag::SYN), packet(&WEB, flag::ACK), packet(&WEB, flag::FIN | flag::ACK));
        let datagram = packet(&DATAGRAMS, 0);
        match self {
            Self::HalfOpen => (vec![syn.clone()], syn),
            Self::Established => (vec![syn, ack.clone()], ack),
            Self::Closing => (vec![syn, ack.clone(), fin], ack),
            Self::Once => (vec![ack.clone()], ack),
            Self::Datagram => (vec![datagram.clone()], datagram),
            Self::Datagrams => (vec![datagram.clone(); 2], datagram),
        }
    }
}

/// The UDP service.
const DATAGRAMS: ServiceKey = ServiceKey { protocol: Protocol::Udp, ..WEB };

/// A TCP service and a UDP one, of which every flow is recorded.
fn both() -> Wanted {
    let service = |key, established_s| Setup { key, algo: Algo::Turns, established_s, ..Setup::new(4, 4, 251, TIMES) };
    wanted([&service(WEB, TCP_S), &service(DATAGRAMS, UDP_S)])
}

/// A flow, and when it is asked for.
struct Flow {
    kind: Kind,
    asks: Vec<u8>,
    /// Before and after its last packet.
    sent: [Instant; 2],
    due: Instant,
}

/// How many flows were found for certain before their time, and gone for certain after it.
type Told = BTreeMap<Kind, [u32; 2]>;

/// Flows of every kind, each of which is silent for a while and is then asked for.
fn ask(loaded: &Loaded, second: Duration, first: u16) -> Result<Told> {
    let mut flows = Vec::new();
    let mut port = first;
    for kind in Kind::ALL {
        let timeout_s = kind.timeout_s();
        for after_s in [timeout_s / 2, timeout_s - 4, timeout_s - 2, timeout_s + 1, timeout_s + 3, timeout_s + 6] {
            let (packets, asks) = kind.packets(port);
            port += 1;
            let mut sent = [Instant::now(); 2];
            for packet in packets {
                sent[0] = Instant::now();
                ensure!(matches!(loaded.run(&packet)?, Sent::To(_)), "{kind:?}: a packet goes nowhere");
                sent[1] = Instant::now();
            }
            flows.push(Flow { kind, asks, sent, due: sent[1] + second * after_s });
        }
    }
    flows.sort_by_key(|flow| flow.due);
    let inserts = || anyhow::Ok(loaded.events()?.get(&FlowEvent::Insert).copied().unwrap_or(0));
    let mut told = Told::new();
    for Flow { kind, asks, sent, due } in flows {
        sleep(due.saturating_duration_since(Instant::now()));
        let (before, asked) = (inserts()?, Instant::now());
        ensure!(matches!(loaded.run(&asks)?, Sent::To(_)), "{kind:?}: the packet goes nowhere");
        let answered = Instant::now();
        // Of what has no record any more a new one is made.
        let found = inserts()? == before;
        let silent = |from: Instant, to: Instant| (to - from).as_secs_f64() / second.as_secs_f64();
        let (least_s, most_s) = (silent(sent[1], asked), silent(sent[0], answered));
        let timeout_s = f64::from(kind.timeout_s());
        let of_kind = told.entry(kind).or_default();
        if most_s <= timeout_s - EARLY_S - TICK_S {
            ensure!(found, "{kind:?}: gone after {most_s:.1} s of {timeout_s} s");
            of_kind[0] += u32::from(least_s >= timeout_s / 2.0);
        }
        if least_s >= timeout_s + TICK_S {
            ensure!(!found, "{kind:?}: still there after {least_s:.1} s of {timeout_s} s");
            of_kind[1] += u32::from(most_s <= timeout_s * 1.5);
        }
    }
    Ok(told)
}

#[test]
fn records_expire_in_their_time_while_no_agent_runs() -> Result<()> {
    if !available(&PINNED, "time-outs of the loaded program") {
        return Ok(());
    }
    let loaded = Loaded::new(sizes())?;
    let hz = (clock::hz() / FASTER).max(1);
    let second = Duration::from_secs(1) * hz / clock::hz();
    let mut engine = Engine::start(loaded.memory()?, loaded.sizes(), SECRETS, Clock { hz, now_s: 10 })?;
    let plan = engine.plan(&both(), 1, 10, &|_| 0)?;
    engine.apply(plan, Instant::now(), 10).map_err(|error| anyhow!("{error}"))?;
    drop(engine);
    for n in 0..TRIES {
        let told = ask(&loaded, second, 1024 + n * 100).with_context(|| format!("a second is {second:?}"))?;
        println!("{told:?}");
        if told.values().all(|told| told.iter().all(|n| *n > 0)) {
            return Ok(());
        }
    }
    bail!("every packet came too late to tell anything")
}
