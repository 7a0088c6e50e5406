//! What taking a lock and giving it back costs, over healthy nodes and with one of them stopped.

use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use lb_locks::{Lock, Options, Redlock, Request, torture::server::RedisServer};

use crate::{
    Outcome, client,
    report::{Bound, Report, quantile, text},
};

/// Between two samples: what the last one left to do in the background must not slow the next.
const REST: Duration = Duration::from_micros(1_500);

/// A SET and a DEL at one server against a lock over all, in turns.
pub async fn healthy(servers: &[RedisServer], samples: usize, report: &mut Report) -> Outcome<()> {
    let lock = client(servers, Options::default())?;
    let mut bare = redis::Client::open(servers[0].url())?.get_multiplexed_async_connection().await?;
    let mut all = Vec::new();
    for server in servers {
        all.push(redis::Client::open(server.url())?.get_multiplexed_async_connection().await?);
    }
    let (mut bares, mut floor, mut plain, mut fenced) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for sample in 0..samples + samples / 10 {
        tokio::time::sleep(REST).await;
        let started = Instant::now();
        let mut set = redis::cmd("SET");
        set.arg("bare").arg("0123456789012345678901234567890123456789").arg("NX").arg("PX").arg(10_000);
        set.query_async::<()>(&mut bare).await?;
        redis::cmd("DEL").arg("bare").query_async::<()>(&mut bare).await?;
        let bare = started.elapsed();
        tokio::time::sleep(REST).await;
        let least = bare_majority(&all).await?;
        tokio::time::sleep(REST).await;
        let one = cycle(&lock, Request::new("bench", Duration::from_secs(10))).await?;
        tokio::time::sleep(REST).await;
        let other = cycle(&lock, Request::new("bench", Duration::from_secs(10)).fenced()).await?;
        // The first ones open connections and load scripts.
        if sample >= samples / 10 {
            bares.push(bare);
            floor.push(least);
            plain.push(one);
            fenced.push(other);
        }
    }
    let floor_ratio = median_ratio(&floor, &bares);
    let (plain_ratio, fenced_ratio) = (median_ratio(&plain, &bares), median_ratio(&fenced, &bares));
    let bare = quantile(&mut bares, 0.5);
    report
        .figure("SET and DEL at one node", format!("median {}, p99 {}", text(bare), text(quantile(&mut bares, 0.99))));
    report.figure(
        format!("SET and DEL at a majority of {} nodes, bare", servers.len()),
        format!(
            "median {}, p99 {}, {floor_ratio:.2} times those at one",
            text(quantile(&mut floor, 0.5)),
            text(quantile(&mut floor, 0.99))
        ),
    );
    for (what, samples, ratio, limit) in
        [("without a fence", &mut plain, plain_ratio, 2.0), ("with a fence", &mut fenced, fenced_ratio, 3.0)]
    {
        let median = quantile(samples, 0.5);
        let p99 = quantile(samples, 0.99);
        report.figure(
            format!("acquire and release over {} nodes, {what}", servers.len()),
            format!("median {}, p99 {}", text(median), text(p99)),
        );
        report.target(
            format!("acquire and release {what}, times a SET and a DEL beside it, median"),
            ratio,
            Bound::AtMost(limit),
            "",
        );
    }
    Ok(())
}

/// The median of each sample over the one that was taken beside it: a slow minute of the machine is slow for both.
fn median_ratio(samples: &[Duration], beside: &[Duration]) -> f64 {
    let ratio = |(sample, beside): (&Duration, &Duration)| sample.as_secs_f64() / beside.as_secs_f64();
    let mut ratios: Vec<f64> = samples.iter().zip(beside).map(ratio).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or(f64::INFINITY)
}

/// What no lock over as many nodes can be quicker than: the bare commands to all of them, and a majority of answers.
async fn bare_majority(connections: &[redis::aio::MultiplexedConnection]) -> Outcome<Duration> {
    let mut set = redis::cmd("SET");
    set.arg("floor").arg("0123456789012345678901234567890123456789").arg("NX").arg("PX").arg(10_000);
    let mut del = redis::cmd("DEL");
    del.arg("floor");
    let started = Instant::now();
    let mut late = Vec::new();
    for cmd in [set, del] {
        let mut answers: FuturesUnordered<_> = connections
            .iter()
            .map(|connection| {
                let (mut connection, cmd) = (connection.clone(), cmd.clone());
                async move { cmd.query_async::<()>(&mut connection).await }.boxed()
            })
            .collect();
        for _ in 0..connections.len() / 2 + 1 {
            answers.next().await.ok_or("no answer")??;
        }
        late.push(answers);
    }
    let took = started.elapsed();
    for mut answers in late {
        while let Some(answer) = answers.next().await {
            answer?;
        }
    }
    Ok(took)
}

async fn cycle(lock: &Redlock, request: Request) -> Outcome<Duration> {
    let started = Instant::now();
    let guard = lock.acquire(request).await?;
    let released = guard.release().await;
    let took = started.elapsed();
    if !released.confirmed {
        return Err(format!("not given back: {}", released.report).into());
    }
    Ok(took)
}

/// One of the servers keeps its sockets and says nothing. Half of the clients are new and have yet to connect.
pub async fn one_stopped(servers: &[RedisServer], samples: usize, report: &mut Report) -> Outcome<()> {
    let node_timeout = Options::default().node_timeout;
    let ttl = Duration::from_millis(400);
    let known = client(servers, Options::default())?;
    known.acquire(Request::new("stopped", ttl).fenced()).await?.release().await;
    let mut times = Vec::new();
    let mut left_min = ttl;
    for sample in 0..samples {
        let stopped = &servers[sample % servers.len()];
        stopped.pause();
        let request = Request::new("stopped", ttl);
        let request = if sample % 4 < 2 { request } else { request.fenced() };
        let new = client(servers, Options::default())?;
        let lock = if sample % 2 == 0 { &known } else { &new };
        let started = Instant::now();
        let taken = lock.acquire(request).await;
        times.push(started.elapsed());
        let taken = match taken {
            Ok(guard) => {
                left_min = left_min.min(guard.remaining());
                guard.release().await;
                Ok(())
            }
            Err(error) => Err(error),
        };
        stopped.resume();
        taken.map_err(|error| format!("a lock of {} could not be taken: {error}", text(ttl)))?;
        // The one that was stopped catches up with what it was told.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let p99 = quantile(&mut times, 0.99);
    report.figure(
        format!("acquire for {} with one of {} nodes stopped", text(ttl), servers.len()),
        format!(
            "median {}, p99 {}, of the lifetime left at least {}",
            text(quantile(&mut times, 0.5)),
            text(p99),
            text(left_min)
        ),
    );
    report.target(
        "acquire with one node stopped, in node time-outs, 99th percentile",
        p99.as_secs_f64() / node_timeout.as_secs_f64(),
        Bound::AtMost(2.0),
        "",
    );
    report.target(
        format!("locks of {} with one node stopped: least rest of a lifetime", text(ttl)),
        left_min.as_secs_f64() * 1e3,
        Bound::AtLeast(1.0),
        " ms",
    );
    Ok(())
}
