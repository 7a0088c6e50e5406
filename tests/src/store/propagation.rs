//! How fast a change arrives, against a bare message through the same server, and how fast everything is read.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use lb_userspace::store::{
    feed::Feed,
    follow::{Event, Times},
};

use super::rig::{config, redis, run, set, store, write};

/// The median and the 99th percentile.
fn figures(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

#[test]
fn a_change_arrives_as_fast_as_a_message() {
    run(async {
        let server = redis();
        let store = store(config(server.address(), "weir"));
        write(&store, &[set("service/a", "0")]).await.unwrap();
        let mut feed = Feed::new(Arc::clone(&store), None, Times::default(), 1);
        while feed.next().await != Event::Up {}
        let client = redis::Client::open(server.url()).unwrap();
        let mut bare = client.get_async_pubsub().await.unwrap();
        bare.subscribe("bare").await.unwrap();
        let mut messages = bare.into_on_message();
        let mut publisher = client.get_multiplexed_async_connection().await.unwrap();
        let (mut changes, mut bares) = (Vec::new(), Vec::new());
        for at in 0..300 {
            let started = Instant::now();
            let mut publish = redis::cmd("PUBLISH");
            publish.arg("bare").arg("x");
            let published = publish.query_async::<i64>(&mut publisher);
            let (published, message) = tokio::join!(published, messages.next());
            assert!(published.is_ok() && message.is_some());
            bares.push(started.elapsed());
            let arrived = async {
                assert!(matches!(feed.next().await, Event::Delta(_)));
                Instant::now()
            };
            let (edits, written) = ([set("service/a", &format!("{}", at + 1))], async |edits| {
                write(&store, edits).await.unwrap();
                Instant::now()
            });
            let (acknowledged, arrived) = tokio::join!(written(&edits), arrived);
            // A message may overtake the acknowledgement.
            changes.push(arrived.saturating_duration_since(acknowledged));
        }
        let (bare, change) = (figures(bares), figures(changes));
        eprintln!("bare message: median {:?}, p99 {:?}", bare.0, bare.1);
        eprintln!("acknowledged change to follower: median {:?}, p99 {:?}", change.0, change.1);
        assert!(change.0 <= bare.0 + Duration::from_millis(5), "{change:?} against {bare:?}");
        assert!(change.1 <= bare.1 + Duration::from_millis(50), "{change:?} against {bare:?}");
    });
}

#[test]
fn a_thousand_services_of_a_hundred_backends_are_read_in_well_under_two_seconds() {
    run(async {
        let server = redis();
        let store = store(config(server.address(), "weir"));
        let service = |at: usize| {
            let head = format!("[[service]]\nname = \"s{at}\"\nvip = \"192.0.2.1\"\nport = {}\n", at + 1);
            let backend = |b: usize| {
                format!(
                    "\n[[service.backends]]\naddress = \"10.{}.{}.{b}\"\nport = 80\nweight = 1\n",
                    at / 256,
                    at % 256
                )
            };
            head + &(1..=100).map(backend).collect::<String>()
        };
        let edits: Vec<_> = (0..1_000).map(|at| set(&format!("service/s{at}"), &service(at))).collect();
        write(&store, &edits).await.unwrap();
        let mut best = Duration::MAX;
        for seed in 0..3 {
            let started = Instant::now();
            let mut feed = Feed::new(super::rig::store(config(server.address(), "weir")), None, Times::default(), seed);
            let Event::Snapshot { snapshot, .. } = feed.next().await else { panic!("no snapshot") };
            best = best.min(started.elapsed());
            assert_eq!(snapshot.objects.len(), 1_000);
        }
        eprintln!("1,000 services of 100 backends: {best:?}");
        assert!(best < Duration::from_secs(2), "{best:?}");
    });
}
