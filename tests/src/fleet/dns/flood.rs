//! Floods and nonsense: the answers of others must go on.

use std::{
    io::{Read as _, Write as _},
    net::{TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use rand::RngExt as _;

use super::{
    process::{eventually, local},
    scene::{Scene, short, zone},
};

/// A question for the A records of a random name under the zone.
fn random_question(rng: &mut impl rand::Rng) -> Vec<u8> {
    let mut query = vec![rng.random(), rng.random(), 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 12];
    query.extend((0..12).map(|_| rng.random_range(b'a'..=b'z')));
    query.extend(b"\x02lb\x07example\0\0\x01\0\x01");
    query
}

/// Asks for `www.lb.example` once, over UDP without dig's help; whether an answer with an address came.
fn asks(port: u16) -> bool {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(local(port)).expect("connected");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x02lb\x07example\0\0\x01\0\x01";
    socket.send(query).expect("sent");
    let mut answer = [0; 512];
    socket.recv(&mut answer).is_ok_and(|length| length > 40 && answer[7] == 1)
}

/// Sends `count` questions for random names, `pause` after every ten; how many were sent and how many answered.
fn flood(port: u16, count: u64, pause: Duration) -> thread::JoinHandle<(u64, u64)> {
    thread::spawn(move || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_nonblocking(true).expect("set");
        let mut rng = rand::rng();
        let (mut sent, mut answered) = (0, 0);
        for n in 0..count {
            sent += u64::from(socket.send_to(&random_question(&mut rng), local(port)).is_ok());
            while socket.recv(&mut [0; 512]).is_ok() {
                answered += 1;
            }
            if n % 10 == 9 && !pause.is_zero() {
                thread::sleep(pause);
            }
        }
        (sent, answered)
    })
}

#[test]
fn a_flood_of_random_names_does_not_take_the_answers_of_others() {
    let scene = Scene::start(Some(&zone(7, &[("www", &["192.0.2.1"])])), "[limits]\nresponses_per_s = 100\n");
    // Many times what the limit lets through, and all from one network, as the good questions are.
    let floods: Vec<_> = (0..2).map(|_| flood(scene.port, 10_000, Duration::from_millis(2))).collect();
    let (mut asked, mut good) = (0, 0);
    while floods.iter().any(|thread| !thread.is_finished()) || asked < 50 {
        asked += 1;
        // A datagram may be lost where the kernel's queue is full, which clients make good by asking again.
        good += u32::from(asks(scene.port) || asks(scene.port) || asks(scene.port));
        thread::sleep(Duration::from_millis(20));
    }
    let (sent, answered) = floods
        .into_iter()
        .map(|thread| thread.join().expect("it ends"))
        .fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    let held = scene.metric("weir_dns_dropped_total{reason=\"limit\"}");
    eprintln!("flood: {sent} sent, {answered} answered, {held} held back; {good} of {asked} good questions answered");
    assert!(sent > 15_000, "{sent} queries are no flood");
    assert_eq!(good, asked, "good questions answered, beside {sent} of the flood");
    assert!(held > 1_000.0 && answered < sent, "{held} held back, {answered} of {sent} answered");
    // As fast as two threads can: whatever was lost, the server answers when it is over.
    let floods: Vec<_> = (0..2).map(|_| flood(scene.port, 50_000, Duration::ZERO)).collect();
    for thread in floods {
        thread.join().expect("it ends");
    }
    eventually("it answers after the flood", || asks(scene.port).then_some(()));
}

#[test]
fn silent_connections_do_not_keep_others_out() {
    let limits = "[limits]\ntcp_connections_max = 16\ntcp_idle_timeout = \"2s\"\n";
    let scene = Scene::start(Some(&zone(7, &[("www", &["192.0.2.1"])])), limits);
    // One address gets a quarter of the connections; the rest is closed at once.
    let mut held: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(scene.address()).expect("the kernel accepts")).collect();
    eventually("connections are refused", || {
        (scene.metric("weir_dns_dropped_total{reason=\"connections\"}") >= 36.0).then_some(())
    });
    assert!(scene.metric("weir_dns_tcp_connections") <= 4.0);
    assert_eq!(short(scene.port, &["-b", "127.0.0.3", "+tcp", "www.lb.example"]), ["192.0.2.1"]);
    // Silence ends, also in the middle of a query.
    held[0].write_all(&[0]).expect("written");
    for stream in &mut held {
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
        assert!(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)), "closed");
    }
    eventually("all are gone", || (scene.metric("weir_dns_tcp_connections") == 0.0).then_some(()));
    assert_eq!(short(scene.port, &["+tcp", "www.lb.example"]), ["192.0.2.1"]);
}

#[test]
fn nonsense_is_survived() {
    let scene = Scene::start(Some(&zone(7, &[("www", &["192.0.2.1"])])), "[limits]\nresponses_per_s = 0\n");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(scene.address()).expect("connected");
    let mut rng = rand::rng();
    for round in 0..3_000usize {
        let bytes: Vec<u8> = match round % 3 {
            0 => (0..rng.random_range(0..600)).map(|_| rng.random()).collect(),
            1 => {
                let mut query = random_question(&mut rng);
                let at = rng.random_range(0..query.len());
                query[at] = rng.random();
                query
            }
            _ => random_question(&mut rng)[..rng.random_range(0..40)].to_vec(),
        };
        // The kernel may be out of buffers for a moment.
        let _ = socket.send(&bytes);
        if round % 100 == 0 {
            let mut stream = TcpStream::connect(scene.address()).expect("connected");
            let _ = stream.write_all(&bytes);
        }
    }
    assert_eq!(short(scene.port, &["www.lb.example"]), ["192.0.2.1"]);
    // Two questions in one message and a response are what dig cannot send. From a socket of its own: answers to the nonsense, which
    // nobody read, may have filled the first one's buffer, and the next answer would be lost there.
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(scene.address()).expect("connected");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    let mut response = random_question(&mut rng);
    response[..3].copy_from_slice(&[0xaa, 1, 0x81]);
    socket.send(&response).expect("sent");
    let mut two = random_question(&mut rng);
    two[..2].copy_from_slice(&[0xaa, 2]);
    two[5] = 2;
    two.extend(b"\x02lb\x07example\0\0\x01\0\x01");
    socket.send(&two).expect("sent");
    let mut answer = [0; 600];
    let length = socket.recv(&mut answer).expect("an answer");
    assert_eq!(answer[..2], [0xaa, 2], "a response is never answered");
    assert_eq!((answer[3] & 15, length), (1, 12), "FORMERR, and nothing of the questions");
}
