//! Random packets that are likely to mean something to a balancer.
//!
//! Owns: the distribution. Half of what it makes is well-formed traffic for a target, the rest are relatives of it:
//! fragments, ICMP errors about it, echo requests, options and extension headers, padding, wrong lengths, truncations and
//! flipped bits. Refuses to know: what the program does with them.

use rand::{Rng, RngExt, seq::IndexedRandom};

use crate::craft::{self, Ipv4, Ipv6, flag};

/// An address, port and protocol that packets are aimed at.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// IPv4.
    V4([u8; 4], u16, u8),
    /// IPv6.
    V6([u8; 16], u16, u8),
}

/// What a packet is drawn from.
#[derive(Clone, Debug)]
pub struct Population {
    /// VIPs with ports and protocols of services, and some that are no service.
    pub targets: Vec<Target>,
    /// Backends whose replies pass the node: packets come *from* these.
    pub repliers: Vec<Target>,
    /// IPv4 clients.
    pub clients_v4: Vec<[u8; 4]>,
    /// IPv6 clients.
    pub clients_v6: Vec<[u8; 16]>,
    /// MAC address of the node.
    pub mac: [u8; 6],
    /// Largest IP packet in bytes.
    pub ip_max: usize,
}

fn pick<T: Copy>(rng: &mut impl Rng, from: &[T]) -> Option<T> {
    from.choose(rng).copied()
}

/// One frame of at least 14 bytes. The same generator state gives the same frame.
pub fn frame(rng: &mut impl Rng, from: &Population) -> Vec<u8> {
    let mut frame = well_formed(rng, from);
    match rng.random_range(0..20) {
        0 => frame.truncate(rng.random_range(14..=frame.len())),
        1 | 2 => flip(rng, &mut frame, 1),
        3 => flip(rng, &mut frame, 8),
        4 => {
            let padding = rng.random_range(1..40);
            frame.extend((0..padding).map(|_| rng.random::<u8>()));
        }
        5 => frame = [&frame[..12], &[0x81, 0x00, 0x00, 0x2a], &frame[12..]].concat(),
        6 => {
            let ethertype: u16 = *[0x0806, 0x88cc, 0x0800, 0x86dd, 0x88a8].choose(rng).unwrap_or(&0);
            frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        }
        _ => {}
    }
    frame
}

/// Flips up to `most` bits, nearly always within the headers.
fn flip(rng: &mut impl Rng, frame: &mut [u8], most: usize) {
    for _ in 0..rng.random_range(1..=most) {
        let end = frame.len().min(90);
        let at = rng.random_range(12..end);
        frame[at] ^= 1 << rng.random_range(0..8);
    }
}

fn well_formed(rng: &mut impl Rng, from: &Population) -> Vec<u8> {
    let reply = !from.repliers.is_empty() && rng.random_range(0..6) == 0;
    let ends = if reply { &from.repliers } else { &from.targets };
    let (Some(end), Some(client4), Some(client6)) =
        (pick(rng, ends), pick(rng, &from.clients_v4), pick(rng, &from.clients_v6))
    else {
        return vec![0; 14];
    };
    let mac = [2, 0, 0, 0, 0, rng.random()];
    let client_port = rng.random_range(1024..=65535);
    match end {
        Target::V4(addr, port, proto) => {
            let port = if port == 0 { rng.random() } else { port };
            let (src, dst) = if reply { (addr, client4) } else { (client4, addr) };
            let ports = if reply { (port, client_port) } else { (client_port, port) };
            let packet = ipv4(rng, from, Ipv4::new(src, dst, proto), ports);
            [craft::ethernet(from.mac, mac, 0x0800), packet].concat()
        }
        Target::V6(addr, port, proto) => {
            let port = if port == 0 { rng.random() } else { port };
            let (src, dst) = if reply { (addr, client6) } else { (client6, addr) };
            let ports = if reply { (port, client_port) } else { (client_port, port) };
            let packet = ipv6(rng, from, Ipv6::new(src, dst, proto), ports);
            [craft::ethernet(from.mac, mac, 0x86dd), packet].concat()
        }
    }
}

/// Payload length: mostly small, sometimes around the MTU.
fn payload(rng: &mut impl Rng, room: usize) -> Vec<u8> {
    let len = match rng.random_range(0..6) {
        0 => 0,
        1 => rng.random_range(room.saturating_sub(60)..=room),
        _ => rng.random_range(0..=64),
    };
    (0..len).map(|_| rng.random()).collect()
}

fn tcp_flags(rng: &mut impl Rng) -> u8 {
    *[flag::SYN, flag::SYN | flag::ACK, flag::ACK, flag::ACK | flag::FIN, flag::RST].choose(rng).unwrap_or(&0)
}

fn transport(
    rng: &mut impl Rng,
    proto: u8,
    (sport, dport): (u16, u16),
    room: usize,
    zero_checksum: bool,
    pseudo: &dyn Fn(usize) -> Vec<u8>,
) -> Vec<u8> {
    let body = payload(rng, room);
    match proto {
        6 => craft::tcp(sport, dport, tcp_flags(rng), &body, pseudo),
        17 if zero_checksum => craft::udp(sport, dport, &body, None),
        _ => craft::udp(sport, dport, &body, Some(pseudo)),
    }
}

fn ipv4(rng: &mut impl Rng, from: &Population, mut ip: Ipv4, ports: (u16, u16)) -> Vec<u8> {
    ip.tos = *[0, 0, 0x28, 0xb8, 0x01, 0x03].choose(rng).unwrap_or(&0);
    ip.id = rng.random();
    ip.df = rng.random_range(0..4) != 0;
    ip.ttl = rng.random_range(1..=255);
    let room = from.ip_max - 60;
    match rng.random_range(0..16) {
        // Echo request, and now and then another ICMP message that is no error.
        0 => {
            ip.proto = 1;
            let kind = *[8, 8, 8, 0, 13].choose(rng).unwrap_or(&8);
            let body = payload(rng, room);
            ip.emit(&craft::icmp(kind, 0, rng.random(), &body, None))
        }
        // An error about a packet that the other end of this conversation sent.
        1 => {
            let about = Ipv4 { src: ip.dst, dst: ip.src, ..ip.clone() };
            let inner = transport(rng, about.proto, (ports.1, ports.0), 64, false, &|n| about.pseudo(n));
            let mut quoted = about.emit(&inner);
            quoted.truncate(rng.random_range(20..=quoted.len()));
            let (kind, code) = *[(3, 4), (3, 3), (11, 0), (12, 0), (3, 1)].choose(rng).unwrap_or(&(3, 4));
            let router = Ipv4 { proto: 1, src: [198, 51, 100, rng.random()], ..ip };
            router.emit(&craft::icmp(kind, code, [0, 0, 5, 0xdc], &quoted, None))
        }
        2 => {
            ip.options = vec![1; 4 * rng.random_range(1..=10)];
            ip.emit(&transport(rng, ip.proto, ports, room - 40, false, &|n| ip.pseudo(n)))
        }
        // First, later and lonely fragments; few ids, so that they meet.
        3 => {
            ip.df = false;
            ip.id = rng.random_range(0..4);
            let whole = transport(rng, ip.proto, ports, room - 40, false, &|n| ip.pseudo(n));
            if rng.random() {
                ip.mf = true;
                ip.emit(&whole[..whole.len() & !7])
            } else {
                ip.offset = rng.random_range(1..64);
                ip.mf = rng.random();
                ip.emit(&whole[8.min(whole.len())..])
            }
        }
        4 => {
            ip.proto = *[50, 47, 132, 4, 41, 255].choose(rng).unwrap_or(&50);
            ip.emit(&payload(rng, room))
        }
        _ => {
            let zero = rng.random_range(0..8) == 0;
            ip.emit(&transport(rng, ip.proto, ports, room, zero, &|n| ip.pseudo(n)))
        }
    }
}

fn ipv6(rng: &mut impl Rng, from: &Population, mut ip: Ipv6, ports: (u16, u16)) -> Vec<u8> {
    ip.class = *[0, 0, 0x28, 0xb8, 0x01, 0x03].choose(rng).unwrap_or(&0);
    ip.label = rng.random_range(0..=0xf_ffff);
    ip.hops = rng.random_range(1..=255);
    let room = from.ip_max - 120;
    match rng.random_range(0..16) {
        0 => {
            ip.proto = 58;
            let kind = *[128, 128, 128, 129, 135].choose(rng).unwrap_or(&128);
            let body = payload(rng, room);
            ip.emit(&craft::icmp(kind, 0, rng.random(), &body, Some(&|n| ip.pseudo(n))))
        }
        1 => {
            let about = Ipv6 { src: ip.dst, dst: ip.src, ..ip.clone() };
            let inner = transport(rng, about.proto, (ports.1, ports.0), 64, false, &|n| about.pseudo(n));
            let mut quoted = about.emit(&inner);
            quoted.truncate(rng.random_range(40..=quoted.len()));
            let (kind, code) = *[(2, 0), (1, 4), (3, 0), (4, 1)].choose(rng).unwrap_or(&(2, 0));
            let router = Ipv6 { proto: 58, src: [0xfd; 16], ..ip };
            router.emit(&craft::icmp(kind, code, [0, 0, 5, 0xdc], &quoted, Some(&|n| router.pseudo(n))))
        }
        2 => {
            for _ in 0..rng.random_range(1..=8) {
                let number = *[0, 60, 43].choose(rng).unwrap_or(&60);
                ip.extensions.push(Ipv6::options(number, rng.random_range(0..2)));
            }
            ip.emit(&transport(rng, ip.proto, ports, 64, false, &|n| ip.pseudo(n)))
        }
        3 => {
            let whole = transport(rng, ip.proto, ports, room - 40, false, &|n| ip.pseudo(n));
            let id = rng.random_range(0..4);
            if rng.random() {
                ip.extensions.push(Ipv6::fragment(0, rng.random(), id));
                ip.emit(&whole[..whole.len() & !7])
            } else {
                ip.extensions.push(Ipv6::fragment(rng.random_range(1..64), rng.random(), id));
                ip.emit(&whole[8.min(whole.len())..])
            }
        }
        4 => {
            ip.proto = *[50, 51, 59, 132, 4, 41].choose(rng).unwrap_or(&59);
            ip.emit(&payload(rng, room))
        }
        _ => ip.emit(&transport(rng, ip.proto, ports, room, false, &|n| ip.pseudo(n))),
    }
}

#[test]
fn frames_repeat_with_the_seed_and_are_mostly_right() {
    use rand::{SeedableRng, rngs::StdRng};
    let population = Population {
        targets: vec![Target::V4([203, 0, 113, 1], 80, 6), Target::V6([0xfd; 16], 53, 17)],
        repliers: vec![],
        clients_v4: vec![[192, 0, 2, 7]],
        clients_v6: vec![[0x20; 16]],
        mac: [2; 6],
        ip_max: 1500,
    };
    let run = |seed| -> Vec<Vec<u8>> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..2000).map(|_| frame(&mut rng, &population)).collect()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
    let right = run(7).iter().filter(|frame| craft::wrong(frame).is_none()).count();
    assert!((1200..1990).contains(&right), "{right} of 2000 frames are right");
}
