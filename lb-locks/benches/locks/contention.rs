//! Many clients want one lock: how often it changes hands, and how long the unluckiest waits.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use lb_locks::{Lock, Options, Request, torture::server::RedisServer};

use crate::{
    Outcome, client,
    report::{Bound, Report, quantile, text},
};

/// How long the clients fight, per round.
const ROUND: Duration = Duration::from_secs(6);
/// How long a holder keeps the lock.
const HOLD: Duration = Duration::from_millis(2);
/// What a client does between two locks: one that asks again at once gets the lock nearly always, and hands nothing over.
const REST: Duration = Duration::from_millis(5);
/// Lifetime and patience.
const TTL: Duration = Duration::from_secs(10);
const WAIT: Duration = Duration::from_secs(120);

/// What came of one fight.
#[derive(Default)]
struct Fight {
    /// Who held it last.
    last: Option<usize>,
    /// How often it went to another than the one before.
    hand_overs: u64,
    waits: Vec<Duration>,
}

/// Two clients and fifty, in turns, in no order and in first-come order.
pub async fn run(servers: &[RedisServer], rounds: usize, report: &mut Report) -> Outcome<()> {
    for first_come in [false, true] {
        let mode = if first_come { "first-come order" } else { "no order" };
        let (mut few, mut many) = (Vec::new(), Vec::new());
        let mut worst: f64 = 0.0;
        for _ in 0..rounds {
            few.push(fight(servers, 2, first_come).await?);
            many.push(fight(servers, 50, first_come).await?);
        }
        let rate = |fights: &[Fight]| {
            let hand_overs: u64 = fights.iter().map(|fight| fight.hand_overs).sum();
            hand_overs as f64 / (ROUND.as_secs_f64() * fights.len() as f64)
        };
        let (few_rate, many_rate) = (rate(&few), rate(&many));
        for (clients, fights, rate) in [(2, &mut few, few_rate), (50, &mut many, many_rate)] {
            let mut waits: Vec<Duration> =
                fights.iter_mut().flat_map(|fight| std::mem::take(&mut fight.waits)).collect();
            let mean = waits.iter().sum::<Duration>().checked_div(u32::try_from(waits.len())?).unwrap_or_default();
            let longest = quantile(&mut waits, 1.0);
            let ratio = longest.as_secs_f64() / mean.as_secs_f64().max(f64::EPSILON);
            worst = worst.max(ratio);
            report.figure(
                format!("{clients} clients, {mode}"),
                format!("{rate:.0} hand-overs/s, waits: mean {}, longest {} ({ratio:.1} x)", text(mean), text(longest)),
            );
        }
        report.target(
            format!("hand-overs/s of 50 clients in {mode}, times those of 2"),
            many_rate / few_rate,
            Bound::AtLeast(0.5),
            "",
        );
        if first_come {
            report.target("longest wait in first-come order, times the mean", worst, Bound::AtMost(20.0), "");
        }
    }
    Ok(())
}

async fn fight(servers: &[RedisServer], clients: usize, first_come: bool) -> Outcome<Fight> {
    let seen = Arc::new(Mutex::new(Fight::default()));
    let over = Arc::new(AtomicBool::new(false));
    let start = Arc::new(tokio::sync::Barrier::new(clients + 1));
    let mut fighters = Vec::new();
    for number in 0..clients {
        let lock = client(servers, Options::default())?;
        // Connections are made before the fight.
        lock.statuses().await;
        let (seen, over, start) = (Arc::clone(&seen), Arc::clone(&over), Arc::clone(&start));
        fighters.push(tokio::spawn(async move {
            start.wait().await;
            while !over.load(Ordering::Acquire) {
                let request = Request::new("fight", TTL).wait(WAIT);
                let asked = Instant::now();
                let guard = lock.acquire(if first_come { request.first_come() } else { request }).await?;
                {
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    // Who still waited at the end is served after it, and counts: a starved client must not vanish.
                    seen.waits.push(asked.elapsed());
                    if !over.load(Ordering::Acquire) {
                        seen.hand_overs += u64::from(seen.last.is_some_and(|last| last != number));
                        seen.last = Some(number);
                    }
                }
                tokio::time::sleep(HOLD).await;
                guard.release().await;
                tokio::time::sleep(REST).await;
            }
            Ok::<(), lb_locks::LockError>(())
        }));
    }
    start.wait().await;
    tokio::time::sleep(ROUND).await;
    over.store(true, Ordering::Release);
    for fighter in fighters {
        fighter.await??;
    }
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::take(&mut *seen))
}
