//! The clients of a sequence, and the reference that remembers every flow's rightful server.
//!
//! Owns: which packets clients send, what is promised to their flows, and until when. Refuses to know who changes services.

use anyhow::{Result, ensure};
use lb_userspace::{model::Protocol, plan::Window};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    super::{
        packet::flag,
        place::{Place, Sent},
        step::{ATTEMPTS, Answer, Flood},
    },
    Hosted, Play, Promise,
};

/// By how much the reference promises less than the times say, as clocks of seconds are read at different moments.
const MARGIN_MS: u64 = 4000;
/// When a client sends each of its SYNs.
const SYNS_MS: [u64; ATTEMPTS] = [0, 1000, 3000, 7000];
/// When a client that was not answered gives up.
const GIVES_UP_MS: u64 = 20_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// The client waits for an answer.
    Opening,
    /// It has a rightful server, numbered as in [`Sent::To`].
    Open(u16),
    /// Over, or nothing is promised to it any more.
    Over,
}

pub(super) struct Flow {
    pub(super) tuple: u16,
    /// Another flow had that tuple before.
    pub(super) reused: bool,
    pub(super) answer: Answer,
    pub(super) life: Life,
    pub(super) born_ms: u64,
    /// When it last sent.
    pub(super) sent_ms: u64,
    /// Of datagrams: what was promised to the last one, and to how many of them in a row.
    pub(super) promised: (Promise, u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    Syn(usize, usize),
    Duplicate(usize),
    Answered(usize, u16),
}

impl<P: Place> Play<'_, P> {
    /// The number of a tuple's service. Tuples that follow each other are the same client's towards one service after the other.
    fn service_of(&self, tuple: u16) -> u8 {
        (usize::from(tuple) % self.services.len()) as u8
    }

    /// Address and port of a tuple's client.
    fn address(&self, tuple: u16) -> ([u8; 4], u16) {
        let client = tuple / self.services.len() as u16;
        ([198, 51, 100, (client % 32) as u8], 1024 + client / 32)
    }

    fn protocol_of(&self, tuple: u16) -> Protocol {
        self.hosted(self.service_of(tuple)).setup.key.protocol
    }

    fn hosted(&self, service: u8) -> &Hosted {
        &self.services[usize::from(service)]
    }

    fn send_of(&mut self, tuple: u16, flags: u8) -> Result<Sent> {
        let (src, port) = self.address(tuple);
        self.send(self.service_of(tuple), src, port, flags)
    }

    /// Whether what a server has is promised to stay there.
    fn lives(&self, n: u16) -> bool {
        let [service, n] = n.to_be_bytes();
        self.hosted(service).lives(n, self.now_ms)
    }

    /// Whether every slot of a service is known to be settled.
    fn is_settled(&self, service: u8) -> bool {
        self.present_of(service).is_some_and(|service| service.window == Window::Settled)
    }

    /// Whether a server answers.
    fn is_up(&self, n: u16) -> bool {
        let [service, n] = n.to_be_bytes();
        self.hosted(service).answers(n)
    }

    /// Takes note of a flow to which nothing is promised any more.
    pub(super) fn bury(&mut self, flow: usize) {
        let Flow { tuple, life, born_ms, sent_ms, .. } = self.flows[flow];
        let silence_ms = self.hosted(self.service_of(tuple)).setup.times.window_s * 1000 - MARGIN_MS;
        let over = match life {
            Life::Opening => self.now_ms >= born_ms + GIVES_UP_MS,
            Life::Open(n) => !self.lives(n) || self.now_ms >= sent_ms + silence_ms,
            Life::Over => false,
        };
        if over {
            self.flows[flow].life = Life::Over;
        }
    }

    pub(super) fn bury_all(&mut self) {
        (0..self.flows.len()).for_each(|flow| self.bury(flow));
    }

    pub(super) fn open(&mut self, tuple: u16, answer: Answer) -> Result<()> {
        let last = self.by_tuple.get(&tuple).copied();
        if let Some(last) = last {
            self.bury(last);
            if self.flows[last].life != Life::Over {
                return Ok(());
            }
        }
        let flow = self.flows.len();
        let (born_ms, sent_ms, reused) = (self.now_ms, self.now_ms, last.is_some());
        let promised = (Promise::Nothing, 0);
        self.flows.push(Flow { tuple, reused, answer, life: Life::Opening, born_ms, sent_ms, promised });
        self.by_tuple.insert(tuple, flow);
        if answer.duplicate_ms != 0 {
            self.at(self.now_ms + u64::from(answer.duplicate_ms), Event::Duplicate(flow));
        }
        match self.protocol_of(tuple) {
            Protocol::Tcp => self.syn(flow, 0),
            Protocol::Udp => self.begin(flow),
        }
    }

    /// The first datagram of a flow.
    fn begin(&mut self, flow: usize) -> Result<()> {
        self.is_promised(flow);
        let sent = self.send_of(self.flows[flow].tuple, 0)?;
        let Sent::To(n) = sent else {
            self.flows[flow].life = Life::Over;
            return Ok(());
        };
        self.flows[flow].life = Life::Open(n);
        self.played.flows += 1;
        self.check_new(flow, n)
    }

    /// Whether the next packet of an open flow is promised to reach its rightful server. Packets of connections always are.
    fn is_promised(&mut self, flow: usize) -> bool {
        let service = self.service_of(self.flows[flow].tuple);
        if self.hosted(service).setup.key.protocol == Protocol::Tcp {
            return true;
        }
        let promise = self.hosted(service).promise();
        let (before, sent) = &mut self.flows[flow].promised;
        if *before != promise {
            (*before, *sent) = (promise, 0);
        }
        let promised = *sent >= promise.holds_after();
        *sent = sent.saturating_add(1).min(u8::MAX - 1);
        promised
    }

    /// Asks that the server of a flow of which nothing is recorded may have it.
    fn check_new(&mut self, flow: usize, n: u16) -> Result<()> {
        let Flow { tuple, reused: false, .. } = self.flows[flow] else { return Ok(()) };
        let [service, server] = n.to_be_bytes();
        let may = self.hosted(service).may_take(server, self.now_ms);
        ensure!(may, "a new flow went to server {server} of service {service}, which takes none any more");
        if self.is_settled(service) {
            let (client, _) = self.address(tuple);
            self.services[usize::from(service)].check_source(client, server)?;
        }
        Ok(())
    }

    fn syn(&mut self, flow: usize, attempt: usize) -> Result<()> {
        let Flow { tuple, answer, life: Life::Opening, born_ms, .. } = self.flows[flow] else { return Ok(()) };
        let service = self.service_of(tuple);
        let held = self.held(service);
        let sent = self.send_of(tuple, flag::SYN)?;
        self.check_limit(service, &held, sent)?;
        if let Some(again) = SYNS_MS.get(attempt + 1) {
            self.at(born_ms + again, Event::Syn(flow, attempt + 1));
        }
        self.flows[flow].sent_ms = self.now_ms;
        let delay_ms = answer.delays_ms.get(attempt).copied().unwrap_or(0);
        self.answers(flow, sent, u64::from(delay_ms), attempt == 0)
    }

    /// A server that got a SYN answers after a while.
    fn answers(&mut self, flow: usize, sent: Sent, delay_ms: u64, first: bool) -> Result<()> {
        let Sent::To(n) = sent else {
            ensure!(sent != Sent::Reset, "a SYN was answered by a reset");
            return Ok(());
        };
        if first {
            self.check_new(flow, n)?;
        }
        if delay_ms != 0 && self.is_up(n) {
            self.at(self.now_ms + delay_ms, Event::Answered(flow, n));
        }
        Ok(())
    }

    pub(super) fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Syn(flow, attempt) => self.syn(flow, attempt),
            Event::Duplicate(flow) if self.protocol_of(self.flows[flow].tuple) == Protocol::Udp => self.data(flow, 0),
            Event::Duplicate(flow) => {
                let sent = self.send_of(self.flows[flow].tuple, flag::SYN)?;
                if self.flows[flow].life == Life::Opening { self.answers(flow, sent, 20, false) } else { Ok(()) }
            }
            Event::Answered(flow, n) => {
                if self.flows[flow].life != Life::Opening {
                    return Ok(());
                }
                if !self.lives(n) || !self.is_up(n) {
                    self.flows[flow].life = Life::Over;
                    return Ok(());
                }
                self.flows[flow].life = Life::Open(n);
                self.flows[flow].sent_ms = self.now_ms;
                self.played.flows += 1;
                self.data(flow, flag::ACK)
            }
        }
    }

    /// A packet of an open flow: it reaches the rightful server. Where that is not promised yet, the flow's is the one that it reaches.
    fn data(&mut self, flow: usize, flags: u8) -> Result<()> {
        let Flow { tuple, life: Life::Open(n), born_ms, sent_ms, .. } = self.flows[flow] else { return Ok(()) };
        let promised = self.is_promised(flow);
        let sent = self.send_of(tuple, flags)?;
        if !promised {
            self.flows[flow].sent_ms = self.now_ms;
            match sent {
                Sent::To(n) => self.flows[flow].life = Life::Open(n),
                _ => self.flows[flow].promised = (Promise::Nothing, 0),
            }
            return Ok(());
        }
        let ago_ms = self.now_ms - sent_ms;
        let [service, server] = n.to_be_bytes();
        ensure!(
            sent == Sent::To(n),
            "moved: flow {flow} (tuple {tuple}) of server {server} of service {service}, open for {} ms, silent for {ago_ms} ms: {sent:?} at {} ms",
            self.now_ms - born_ms,
            self.now_ms
        );
        self.flows[flow].sent_ms = self.now_ms;
        self.played.kept += 1;
        Ok(())
    }

    fn open_flows(&mut self) -> Vec<usize> {
        self.bury_all();
        let open = self.flows.iter().enumerate().filter(|(_, flow)| matches!(flow.life, Life::Open(_)));
        open.map(|(at, _)| at).collect()
    }

    pub(super) fn talk(&mut self, pick: u16, count: u8) -> Result<()> {
        let open = self.open_flows();
        let first = if open.is_empty() { 0 } else { usize::from(pick) % open.len() };
        let chosen: Vec<usize> = open.iter().cycle().skip(first).take(open.len().min(count.into())).copied().collect();
        chosen.into_iter().try_for_each(|flow| self.data(flow, flag::ACK))
    }

    /// Every open flow sends.
    pub fn talk_all(&mut self) -> Result<()> {
        self.open_flows().into_iter().try_for_each(|flow| self.data(flow, flag::ACK))
    }

    /// The servers of the open flows, one for each flow.
    pub fn rightful(&mut self) -> Vec<u16> {
        let open = self.open_flows();
        open.into_iter()
            .filter_map(|flow| if let Life::Open(n) = self.flows[flow].life { Some(n) } else { None })
            .collect()
    }

    /// Ends an open flow of a server; says whether there was one.
    pub fn end_one_of(&mut self, server: u16) -> Result<bool> {
        let open = self.open_flows();
        let Some(&flow) = open.iter().find(|flow| self.flows[**flow].life == Life::Open(server)) else {
            return Ok(false);
        };
        self.data(flow, flag::FIN | flag::ACK)?;
        self.flows[flow].life = Life::Over;
        Ok(true)
    }

    pub(super) fn end(&mut self, pick: u16, reset: bool) -> Result<()> {
        let open = self.open_flows();
        let Some(&flow) = open.get(usize::from(pick) % open.len().max(1)) else { return Ok(()) };
        self.data(flow, if reset { flag::RST } else { flag::FIN | flag::ACK })?;
        self.flows[flow].life = Life::Over;
        Ok(())
    }

    pub(super) fn flood(&mut self, seed: u64, flood: Flood, count: u16) -> Result<()> {
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..count {
            let syn = match flood {
                Flood::Syn => true,
                Flood::Ack => false,
                Flood::Mixed => rng.random(),
            };
            let (src, port) = ([203, 0, 113, rng.random()], rng.random());
            let service = rng.random_range(0..self.services.len()) as u8;
            self.send(service, src, port, if syn { flag::SYN } else { flag::ACK })?;
        }
        Ok(())
    }
}
