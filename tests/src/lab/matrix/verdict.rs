//! What may be lost and how long things may take, held against what was seen.
//!
//! Pure: facts in, a row of the table out. The bounds are promises, so none of them knows about slow machines.

use std::{
    collections::BTreeSet,
    fmt,
    net::IpAddr,
    time::{Duration, Instant},
};

use xtask::lab::fleet::{client::Connection, executor::Entry};

use super::{
    fault::{Fault, Part, Way},
    watch::Said,
};

/// Lease of the master.
const LEASE: Duration = Duration::from_secs(10);
/// A new master within two leases.
pub const NEW_MASTER_MAX: Duration = Duration::from_secs(2 * 10);
/// A node that is gone leaves DNS within.
const DNS_MAX: Duration = Duration::from_secs(5);
/// A dead backend gets its last new connection within: fall x interval + time-out + 1 s.
const DEATH_MAX: Duration = Duration::from_millis(3 * 1000 + 500 + 1000);
/// The store is read again after its primary was lost.
const FAIL_OVER_MAX: Duration = Duration::from_secs(20);
/// What lies between a client's look at the clock and its question, and between an answer and its being noted.
const SLACK: Duration = Duration::from_millis(500);

/// What was seen of one scenario.
pub struct Facts {
    /// What happened.
    pub faults: Vec<Fault>,
    /// When.
    pub begun: Instant,
    /// Address of the node that is hit, if one is.
    pub vip: IpAddr,
    /// Name of the backend that is hit, if one is.
    pub victim: String,
    /// Whether the load rose.
    pub high: bool,
    /// Parts that come back by themselves, and when they were.
    pub recovered: Vec<(Part, Option<Duration>)>,
    /// Connections that ended since.
    pub connections: Vec<Connection>,
    /// What DNS servers said since.
    pub said: Vec<Said>,
    /// Orders that the executor was given.
    pub orders: Vec<Entry>,
    /// Those that it carried out.
    pub journal: Vec<Entry>,
    /// How many of them before anything was mended.
    pub while_hit: usize,
}

/// One row of the table.
pub struct Row {
    /// The faults.
    pub what: String,
    /// What the load asked for.
    load: &'static str,
    connections: usize,
    lost: usize,
    times: Vec<String>,
    done: String,
    /// Promises that were broken.
    pub broken: Vec<String>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = if self.times.is_empty() { "-".to_owned() } else { self.times.join(", ") };
        let Self { what, load, connections, lost, done, broken, .. } = self;
        write!(f, "| {what} | {load} | {connections} | {lost} | {times} | {done} |")?;
        broken.iter().try_for_each(|broken| write!(f, " BROKEN: {broken}"))
    }
}

/// The table in Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut out =
        "| fault | load | connections | lost | recovered after | orders carried out |\n|---|---|---|---|---|---|\n"
            .to_owned();
    rows.iter().for_each(|row| out += &format!("{row}\n"));
    out
}

/// Holds the facts against the promises.
pub fn judge(facts: &Facts) -> Row {
    let (mut broken, mut times) = (Vec::new(), Vec::new());
    recovery(facts, &mut times, &mut broken);
    let lost = losses(facts, &mut times, &mut broken);
    for said in facts.said.iter().filter(|said| said.addresses.as_ref().is_some_and(Vec::is_empty)) {
        broken.push(format!("d{} gave an empty answer", said.server));
    }
    if let Some(refused) = facts.said.iter().find_map(|said| said.refused.as_ref()) {
        broken.push(format!("a DNS server denied the name: {refused}"));
    }
    decisions(facts, &mut broken);
    let done: Vec<_> = facts.journal.iter().map(|entry| format!("{} {}", entry.action, entry.name)).collect();
    Row {
        what: facts.faults.iter().map(ToString::to_string).collect::<Vec<_>>().join(" + "),
        load: if facts.high { "rises" } else { "falls" },
        connections: facts.connections.len(),
        lost,
        times,
        done: done.join(", "),
        broken,
    }
}

impl Facts {
    fn hit(&self, part: Part) -> bool {
        self.faults.iter().any(|fault| fault.part == part)
    }

    /// How much longer what a master has to do takes.
    fn without_master(&self) -> Duration {
        match (self.hit(Part::Master), self.hit(Part::Redis)) {
            (true, true) => NEW_MASTER_MAX + FAIL_OVER_MAX,
            (true, false) => NEW_MASTER_MAX,
            (false, true) => FAIL_OVER_MAX,
            (false, false) => Duration::ZERO,
        }
    }
}

fn recovery(facts: &Facts, times: &mut Vec<String>, broken: &mut Vec<String>) {
    let fail_over = if facts.hit(Part::Redis) { FAIL_OVER_MAX } else { Duration::ZERO };
    for (part, after) in &facts.recovered {
        let (what, most) = match part {
            Part::Agent => ("out of DNS", DNS_MAX + facts.without_master()),
            Part::Master => ("new master", NEW_MASTER_MAX + fail_over),
            Part::Worker => ("checks handed over", LEASE + facts.without_master()),
            _ => ("store read again", FAIL_OVER_MAX),
        };
        match after {
            Some(after) => {
                times.push(format!("{what} {:.1} s", after.as_secs_f32()));
                if *after > most + SLACK {
                    broken.push(format!("{what} after {after:?}, {most:?} are promised"));
                }
            }
            None => broken.push(format!("{what}: not while the fault lasted")),
        }
    }
}

/// How many were lost; each of them through what was hit.
fn losses(facts: &Facts, times: &mut Vec<String>, broken: &mut Vec<String>) -> usize {
    let cut = facts.faults.contains(&Fault { part: Part::Agent, way: Way::Cut });
    let gone = facts.recovered.iter().find_map(|(part, after)| after.filter(|_| *part == Part::Agent));
    let unchecked = facts.hit(Part::Master) || facts.hit(Part::Worker) || facts.hit(Part::Redis);
    let death = DEATH_MAX + if unchecked { 2 * LEASE } else { Duration::ZERO };
    let (mut lost, mut latest) = (0, None);
    for one in facts.connections.iter().filter(|one| one.lost.is_some()) {
        lost += 1;
        let after = one.began.saturating_duration_since(facts.begun);
        let known = gone.is_some_and(|gone| after > gone + SLACK);
        if cut && one.to == Some(facts.vip) && !known {
            continue;
        }
        // One that nobody answered may have met any backend.
        let victim = one.backend.as_ref().is_none_or(|backend| *backend == facts.victim);
        if facts.hit(Part::Backend) && victim && one.to.is_some() {
            latest = latest.max(Some(after));
            continue;
        }
        broken.push(format!("lost, {:.1} s after the fault: {one:?}", after.as_secs_f32()));
    }
    if let Some(latest) = latest {
        times.push(format!("last to the dead backend {:.1} s", latest.as_secs_f32()));
        if latest > death {
            broken.push(format!("new connections met the dead backend for {latest:?}, {death:?} are promised"));
        }
    }
    lost
}

fn decisions(facts: &Facts, broken: &mut Vec<String>) {
    let done = |action: &str, of: &[Entry]| of.iter().filter(|entry| entry.action == action).count();
    let (ups, downs) = (done("create", &facts.journal), done("remove", &facts.journal));
    let (up, down) = if facts.high { (1, 0) } else { (0, 1) };
    // A node that is out is made up for; one that comes back is one too many.
    let spare = usize::from(facts.hit(Part::Agent));
    let hung = usize::from(facts.hit(Part::Backend));
    let most = spare + hung;
    if ups < up || downs < down || ups > up + most || downs > down + most {
        broken.push(format!("{ups} created and {downs} removed, where {up} and {down} are asked for"));
    }
    let ids: BTreeSet<_> = facts.journal.iter().map(|entry| (&entry.intent, &entry.action)).collect();
    if ids.len() != facts.journal.len() {
        broken.push(format!("carried out twice: {:?}", facts.journal));
    }
    let epochs: Vec<u64> = facts.orders.iter().filter_map(|order| order.epoch.parse().ok()).collect();
    if epochs.windows(2).any(|pair| pair[0] > pair[1]) {
        broken.push(format!("an order of a master after those of its successor: {:?}", facts.orders));
    }
    let blind = facts.journal.get(..facts.while_hit).unwrap_or_default();
    if facts.hit(Part::Prometheus) && done("remove", blind) > 0 {
        broken.push("a node was removed while no metric said that it may be".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(faults: &str) -> Facts {
        let text = r#"{"intent": "1-a-1", "action": "create", "subject": "nodes", "name": "x", "epoch": "1"}"#;
        let entry: Entry = serde_json::from_str(text).unwrap();
        Facts {
            faults: super::super::fault::named(faults).unwrap().remove(0),
            begun: Instant::now(),
            vip: [10, 78, 0, 130].into(),
            victim: "b3".into(),
            high: true,
            recovered: Vec::new(),
            connections: Vec::new(),
            said: Vec::new(),
            orders: vec![entry.clone()],
            journal: vec![entry],
            while_hit: 0,
        }
    }

    fn connection(begun: Instant, after_ms: u64, to: u8, backend: Option<&str>) -> Connection {
        let began = begun + Duration::from_millis(after_ms);
        let (to, backend) = (Some([10, 78, 0, to].into()), backend.map(str::to_owned));
        Connection { began, ended: began, to, backend, lost: Some("gone".into()) }
    }

    #[test]
    fn what_may_be_lost_is_told_from_what_may_not() {
        for (faults, after_ms, to, backend, good) in [
            ("kill dns", 100, 129, Some("b1"), false),
            ("kill agent", 100, 130, Some("b1"), false),
            ("cut agent", 100, 130, Some("b1"), true),
            ("cut agent", 100, 129, Some("b1"), false),
            ("cut agent", 4_000, 130, None, false),
            ("kill backend", 100, 129, Some("b3"), true),
            ("kill backend", 4_000, 129, None, true),
            ("kill backend", 5_000, 129, None, false),
            ("kill backend+kill master", 5_000, 129, None, true),
            ("kill backend", 100, 129, Some("b1"), false),
        ] {
            let mut facts = facts(faults);
            if facts.hit(Part::Agent) {
                facts.recovered.push((Part::Agent, Some(Duration::from_secs(2))));
            }
            facts.connections.push(connection(facts.begun, after_ms, to, backend));
            let row = judge(&facts);
            assert_eq!(row.broken.is_empty(), good, "{faults} {after_ms} {to} {backend:?}: {row}");
        }
    }

    #[test]
    fn each_promise_can_be_broken() {
        type Spoil = fn(&mut Facts);
        let spoil: [(&str, Spoil); 9] = [
            ("out of DNS", |facts| facts.recovered.push((Part::Agent, Some(Duration::from_secs(6))))),
            ("new master", |facts| facts.recovered.push((Part::Master, Some(Duration::from_secs(21))))),
            ("not while", |facts| facts.recovered.push((Part::Redis, None))),
            ("empty answer", |facts| {
                let said = Said { at: facts.begun, server: 1, addresses: Some(Vec::new()), refused: None };
                facts.said.push(said);
            }),
            ("denied", |facts| {
                let refused = Some("d1 answers NXDOMAIN".into());
                facts.said.push(Said { at: facts.begun, server: 1, addresses: None, refused });
            }),
            ("carried out twice", |facts| facts.journal.push(facts.journal[0].clone())),
            ("2 created", |facts| {
                let other = Entry { intent: "1-a-2".into(), ..facts.journal[0].clone() };
                facts.journal.push(other);
            }),
            ("successor", |facts| {
                facts.orders.insert(0, Entry { epoch: "2".into(), ..facts.orders[0].clone() });
            }),
            ("no metric", |facts| {
                (facts.high, facts.while_hit) = (false, 1);
                facts.journal[0].action = "remove".into();
            }),
        ];
        for (what, spoil) in spoil {
            let mut facts = facts("kill prometheus");
            assert!(judge(&facts).broken.is_empty());
            spoil(&mut facts);
            let row = judge(&facts);
            assert!(row.broken.iter().any(|broken| broken.contains(what)), "{what}: {row}");
        }
    }
}
