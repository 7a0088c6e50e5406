//! A store in Redis: one server, or the master of a Sentinel group.
//!
//! Owns: the layout of keys, and one script for each kind of write. Under the prefix: `meta` (schema, origin, number,
//! digest, sums), `objects` (a hash), `changes` (a stream whose ids are the numbers), `records` (the names in order),
//! `record:KEY` (a hash each, which expires by itself), `version`; channels `changed` and `recorded`.
//!
//! Invariants: a write is one script, so it is made whole or not at all and is published only with its effect; reads of
//! several keys are one transaction; reading and writing have a connection each, so a write that waits for a replica
//! holds nobody up; a connection that broke is not used again, and whoever follows the store is told. Deployments with
//! Sentinel set `min-replicas-to-write 1`; each change of the configuration is confirmed by `WAIT 1`, or reported as not
//! replicated, and so is each record. A store of another schema is neither read nor written, whatever was known of it before.

mod config;
mod link;
mod news;
mod slot;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use redis::{Pipeline, Value};

use super::{
    access::{
        Claim, Commit, Expect, Fence, Head, LIST_MAX, NOTICE_BYTES_MAX, Notice, Put, RECORDS_MAX, Record, Recorded,
        SINCE_BYTES_MAX, SINCE_MAX, Since, Snapshot, Store, StoreError, Subscription, Written,
    },
    object::{
        Change, FormError, HISTORY_BYTES_MAX, Key, OBJECTS_MAX, Objects, Revision, SCHEMA_VERSION, STORE_BYTES_MAX,
    },
    state::commit_check,
};
pub use config::{Address, Login, RedisConfig, Servers, Tls, is_loopback};
use link::{Link, Script, bounded, check_schema, text};
use slot::Slot;

/// Answers with all objects may take so many times longer than small ones.
const WHOLE: u32 = 10;

/// A store in Redis. Connects when it is first asked.
#[derive(Debug)]
pub struct RedisStore {
    config: Arc<RedisConfig>,
    keys: Keys,
    reader: Slot,
    writer: Slot,
}

#[derive(Debug)]
struct Keys {
    meta: String,
    objects: String,
    changes: String,
    index: String,
    record: String,
    version: String,
    changed: String,
    recorded: String,
}

impl Keys {
    fn new(prefix: &str) -> Self {
        let key = |name: &str| format!("{prefix}:{name}");
        Self {
            meta: key("meta"),
            objects: key("objects"),
            changes: key("changes"),
            index: key("records"),
            record: key("record:"),
            version: key("version"),
            changed: key("changed"),
            recorded: key("recorded"),
        }
    }
}

/// How the master is replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replication {
    /// Replicas that are connected.
    pub replicas: u32,
    /// Whether the master takes writes only with a replica (`min-replicas-to-write`).
    pub required: bool,
}

impl Replication {
    /// From what `INFO replication` says, which names the good replicas only where some are required.
    fn parse(info: &str) -> Self {
        let value = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let replicas = value("connected_slaves").and_then(|count| count.trim().parse().ok()).unwrap_or(0);
        Self { replicas, required: value("min_slaves_good_slaves").is_some() }
    }

    /// Asks the master.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it is not reached, [`StoreError::Denied`] if it does not say.
    pub async fn ask(config: &RedisConfig) -> Result<Self, StoreError> {
        let link = Link::open(config, None).await?;
        let mut info = redis::cmd("INFO");
        info.arg("replication");
        let answer = tokio::time::timeout(config.answer_timeout, link.ask::<String>(info)).await;
        answer.unwrap_or_else(|_| Err(StoreError::Unavailable("no answer".into()))).map(|info| Self::parse(&info))
    }
}

impl RedisStore {
    /// A store on a server.
    ///
    /// # Errors
    /// What [`RedisConfig::check`] has against it.
    pub fn new(config: RedisConfig) -> Result<Self, StoreError> {
        config.check()?;
        let keys = Keys::new(&config.prefix);
        Ok(Self { config: Arc::new(config), keys, reader: Slot::default(), writer: Slot::default() })
    }

    /// Reads by `ask`, once more where the connection turns out to be broken.
    async fn read<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        patience: u32,
        ask: impl Fn(Arc<Link>) -> F,
    ) -> Result<T, StoreError> {
        let timeout = self.config.answer_timeout * patience;
        let link = self.reader.link(&self.config).await?;
        match bounded(&link, timeout, ask(Arc::clone(&link))).await {
            Err(StoreError::Unavailable(_)) if link.is_dead() => {
                let link = self.reader.link(&self.config).await?;
                bounded(&link, timeout, ask(Arc::clone(&link))).await
            }
            answer => answer,
        }
    }

    /// Writes by `ask`. What fails once the request may be out is uncertain.
    async fn written<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        timeout: Duration,
        ask: impl Fn(Arc<Link>) -> F,
    ) -> Result<T, StoreError> {
        let link = self.writer.link(&self.config).await?;
        match bounded(&link, timeout, ask(Arc::clone(&link))).await {
            Err(StoreError::Unavailable(why)) => Err(StoreError::Uncertain(why)),
            answer => answer,
        }
    }

    /// Sends a script that writes, and waits for a replica where there should be one; the script's answer, and whether that is safe.
    async fn replicate(&self, link: &Link, cmd: redis::Cmd) -> Result<(Vec<Value>, bool), StoreError> {
        if !matches!(self.config.servers, Servers::Sentinel { .. }) {
            return Ok((link.ask(cmd).await?, true));
        }
        let mut pipe = Pipeline::new();
        pipe.add_command(cmd).cmd("WAIT").arg(1).arg(self.config.replica_timeout.as_millis() as u64);
        let (answer, count): (Vec<Value>, u64) = link.ask_all(pipe).await?;
        Ok((answer, count > 0))
    }

    async fn read_snapshot(&self) -> Result<Option<Snapshot>, StoreError> {
        let (meta, objects): (Vec<Option<String>>, Vec<(String, String)>) = self
            .read(WHOLE, async |link: Arc<Link>| {
                let mut pipe = Pipeline::new();
                pipe.atomic().cmd("HMGET").arg(&self.keys.meta).arg(&META);
                pipe.cmd("HGETALL").arg(&self.keys.objects);
                link.ask_all(pipe).await
            })
            .await?;
        let Some(head) = head(meta)? else { return Ok(None) };
        let objects = objects
            .into_iter()
            .map(|(key, text)| Ok((Key::new(&key)?, text.into())))
            .collect::<Result<Objects, FormError>>()?;
        Ok(Some(Snapshot { origin: head.origin, revision: head.revision, objects }))
    }

    async fn read_since(&self, from: Revision) -> Result<Since, StoreError> {
        let (meta, changes): (Vec<Option<String>>, Vec<String>) = self
            .read(WHOLE, async |link: Arc<Link>| {
                let mut cmd = link.script(Script::Since, &[&self.keys.meta, &self.keys.changes]);
                cmd.arg(from.number.saturating_add(1)).arg(SINCE_MAX).arg(SINCE_BYTES_MAX);
                link.ask(cmd).await
            })
            .await?;
        let changes = changes.iter().map(|text| change(text)).collect::<Result<_, _>>()?;
        Ok(Since { head: head(meta)?, changes })
    }

    async fn write_commit(&self, commit: Commit) -> Result<Written, StoreError> {
        commit_check(&commit)?;
        let Commit { expect, origin, change, reseed, fence } = &commit;
        let revision = change.revision;
        let stored = json(change)?;
        let small = change.bytes() <= NOTICE_BYTES_MAX;
        let notice = json(&Notice::Changed { revision, change: small.then(|| Box::new(change.clone())) })?;
        let timeout = self.config.answer_timeout * WHOLE + self.config.replica_timeout;
        let (answer, replicated) = self
            .written(timeout, async |link: Arc<Link>| {
                // Without a fence the script looks at no record; a key must be named anyhow.
                let record = |fence: &Fence| format!("{}{}", self.keys.record, fence.key);
                let fence_key = fence.as_ref().map_or_else(|| self.keys.meta.clone(), record);
                let keys = [&*self.keys.meta, &*self.keys.objects, &*self.keys.changes, &*fence_key];
                let mut cmd = link.script(Script::Commit, &keys);
                let (number, digest) = match expect {
                    Some(expect) => (expect.number.to_string(), expect.digest.to_string()),
                    None => (String::new(), String::new()),
                };
                cmd.arg(SCHEMA_VERSION).arg(number).arg(digest).arg(origin.to_string()).arg(revision.number);
                cmd.arg(revision.digest.to_string()).arg(&stored).arg(self.config.history_max.max(1));
                cmd.arg(HISTORY_BYTES_MAX).arg(OBJECTS_MAX).arg(STORE_BYTES_MAX).arg(&self.keys.changed).arg(&notice);
                cmd.arg(u8::from(reseed.is_some()));
                claimed(&mut cmd, fence.as_ref().map(|fence| &fence.claim));
                for (key, text) in reseed.iter().flatten() {
                    cmd.arg(key.as_str()).arg("s").arg(&**text);
                }
                for edit in change.edits.iter().filter(|_| reseed.is_none()) {
                    cmd.arg(edit.key.as_str()).arg(if edit.after.is_some() { "s" } else { "d" });
                    cmd.arg(edit.after.as_deref().unwrap_or_default());
                }
                self.replicate(&link, cmd).await
            })
            .await?;
        let mut words = answer.into_iter().filter_map(text);
        match words.next().as_deref() {
            Some("ok") => Ok(Written { revision, replicated }),
            Some("fenced") => Err(StoreError::Fenced),
            Some("conflict") => Err(StoreError::Conflict { have: revision_of(words.next(), words.next())? }),
            Some("schema") => Err(StoreError::Schema { found: words.next().unwrap_or_default() }),
            Some("origin") => Err(StoreError::Refused("the change is for a store of another origin".into())),
            Some("full") => {
                let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(usize::MAX);
                let (objects, bytes) = (number(), number());
                super::object::check_totals(objects, bytes)?;
                Err(StoreError::Full(format!("{objects} objects of {bytes} bytes")))
            }
            _ => Err(StoreError::Broken("a write's answer".into())),
        }
    }

    async fn read_history(&self, limit: usize) -> Result<Vec<Change>, StoreError> {
        // Each entry is an id and its fields.
        type Entries = Vec<(String, Vec<String>)>;
        let (meta, entries): (Vec<Option<String>>, Entries) = self
            .read(WHOLE, async |link: Arc<Link>| {
                let mut pipe = Pipeline::new();
                pipe.atomic().cmd("HMGET").arg(&self.keys.meta).arg(&META);
                pipe.cmd("XREVRANGE").arg(&self.keys.changes).arg("+").arg("-").arg("COUNT").arg(limit.max(1));
                link.ask_all(pipe).await
            })
            .await?;
        head(meta)?;
        let texts = entries.iter().take(limit).filter_map(|(_, fields)| fields.get(1));
        texts.map(|text| change(text)).collect()
    }

    async fn read_record(&self, key: Key) -> Result<Option<Record>, StoreError> {
        let (schema, time, ttl, fields): (Option<String>, Vec<u64>, i64, Vec<Option<String>>) = self
            .read(1, async |link: Arc<Link>| {
                let name = format!("{}{key}", self.keys.record);
                let mut pipe = Pipeline::new();
                pipe.atomic().cmd("HGET").arg(&self.keys.meta).arg("schema");
                pipe.cmd("TIME").cmd("PTTL").arg(&name).cmd("HMGET").arg(&name).arg(&FIELDS);
                link.ask_all(pipe).await
            })
            .await?;
        check_schema(schema)?;
        record(key, now_ms(&time), ttl, fields)
    }

    async fn write_record(&self, put: Put) -> Result<Recorded, StoreError> {
        put.check()?;
        let notice = json(&Notice::Record(put.key.clone()))?;
        let name = |key: &Key| format!("{}{key}", self.keys.record);
        let fence = put.fence.as_ref();
        let timeout = self.config.answer_timeout + self.config.replica_timeout;
        let (answer, replicated) = self
            .written(timeout, async |link: Arc<Link>| {
                let fence_name = name(fence.map_or(&put.key, |fence| &fence.key));
                let keys = [&*name(&put.key), &self.keys.index, &self.keys.version, &fence_name, &self.keys.meta];
                let mut cmd = link.script(Script::Put, &keys);
                cmd.arg(put.key.as_str()).arg(if put.value.is_some() { "s" } else { "d" });
                cmd.arg(put.value.as_deref().unwrap_or_default());
                claimed(&mut cmd, put.claim.as_ref());
                match put.expect {
                    Expect::Any => cmd.arg("any").arg(""),
                    Expect::Absent => cmd.arg("absent").arg(""),
                    Expect::Version(version) => cmd.arg("version").arg(version),
                };
                cmd.arg(put.ttl_ms.map_or(String::new(), |ttl_ms| ttl_ms.to_string()));
                claimed(&mut cmd, fence.map(|fence| &fence.claim));
                cmd.arg(&self.keys.recorded).arg(&notice).arg(RECORDS_MAX).arg(&self.keys.record).arg(SCHEMA_VERSION);
                self.replicate(&link, cmd).await
            })
            .await?;
        let mut words = answer.into_iter().filter_map(text);
        let (word, more) = (words.next(), words.next());
        let number = more.as_ref().and_then(|word| word.parse().ok());
        match (word.as_deref(), number) {
            (Some("ok"), Some(version)) => Ok(Recorded { version, replicated }),
            (Some("schema"), _) => Err(StoreError::Schema { found: more.unwrap_or_default() }),
            (Some("conflict"), have) => Err(StoreError::RecordConflict { have }),
            (Some("fenced"), _) => Err(StoreError::Fenced),
            (Some("full"), _) => Err(StoreError::Full(format!("{RECORDS_MAX} records"))),
            _ => Err(StoreError::Broken("the answer to a record's write".into())),
        }
    }

    async fn list(&self, prefix: String, after: Option<Key>, limit: usize) -> Result<Vec<Record>, StoreError> {
        type Row = (String, i64, Vec<Option<String>>);
        let lowest = match &after {
            Some(key) if key.as_str() >= prefix.as_str() => format!("({key}"),
            _ => format!("[{prefix}"),
        };
        let (schema, time, rows): (Option<String>, Vec<u64>, Vec<Row>) = self
            .read(WHOLE, async |link: Arc<Link>| {
                let mut cmd = link.script(Script::List, &[&self.keys.index, &self.keys.meta]);
                cmd.arg(&lowest).arg(&prefix).arg(limit.min(LIST_MAX)).arg(&self.keys.record);
                link.ask(cmd).await
            })
            .await?;
        check_schema(schema)?;
        let now_ms = now_ms(&time);
        let mut records = Vec::with_capacity(rows.len());
        for (key, ttl, fields) in rows {
            records.extend(record(Key::new(&key)?, now_ms, ttl, fields)?);
        }
        Ok(records)
    }
}

/// Fields of `meta` that [`head`] reads.
const META: [&str; 4] = ["schema", "origin", "number", "digest"];
/// Fields of a record that [`record`] reads.
const FIELDS: [&str; 5] = ["value", "version", "written", "holder", "epoch"];

/// JSON of what is stored or published.
fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| StoreError::Broken(e.to_string()))
}

fn change(text: &str) -> Result<Change, StoreError> {
    serde_json::from_str(text).map_err(|e| StoreError::Broken(format!("a kept change: {e}")))
}

/// Whether there is a claim, its holder and its epoch, as scripts take them.
fn claimed(cmd: &mut redis::Cmd, claim: Option<&Claim>) {
    cmd.arg(u8::from(claim.is_some())).arg(claim.map_or("", |claim| &claim.holder));
    cmd.arg(claim.map_or(0, |claim| claim.epoch));
}

fn head(meta: Vec<Option<String>>) -> Result<Option<Head>, StoreError> {
    let mut fields = meta.into_iter();
    let mut field = || fields.next().flatten();
    check_schema(field())?;
    let origin = field();
    let Some(revision) = revision_of(field(), field())? else { return Ok(None) };
    let origin = origin.and_then(|origin| origin.parse().ok());
    let origin = origin.ok_or_else(|| StoreError::Broken("the store's origin".into()))?;
    Ok(Some(Head { origin, revision }))
}

fn revision_of(number: Option<String>, digest: Option<String>) -> Result<Option<Revision>, StoreError> {
    match (number.filter(|number| !number.is_empty()), digest) {
        (None, _) => Ok(None),
        (Some(number), Some(digest)) => {
            let broken = || StoreError::Broken("the store's revision".into());
            let number = number.parse().map_err(|_| broken())?;
            Ok(Some(Revision { number, digest: digest.parse().map_err(|_| broken())? }))
        }
        _ => Err(StoreError::Broken("the store's revision".into())),
    }
}

/// Milliseconds in the answer to TIME.
fn now_ms(time: &[u64]) -> u64 {
    match time {
        [seconds, micros] => seconds.saturating_mul(1_000).saturating_add(micros / 1_000),
        _ => 0,
    }
}

fn record(key: Key, now_ms: u64, ttl: i64, fields: Vec<Option<String>>) -> Result<Option<Record>, StoreError> {
    let mut fields = fields.into_iter();
    let mut field = || fields.next().flatten();
    let (Some(value), version, written, holder, epoch) = (field(), field(), field(), field(), field()) else {
        return Ok(None);
    };
    let number = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok());
    let broken = || StoreError::Broken(format!("the record {key}"));
    let claim = match holder {
        Some(holder) => Some(Claim { holder, epoch: number(epoch).ok_or_else(broken)? }),
        None => None,
    };
    let age_ms = now_ms.saturating_sub(number(written).ok_or_else(broken)?);
    let version = number(version).ok_or_else(broken)?;
    Ok(Some(Record { key, value: value.into(), claim, version, age_ms, ttl_ms: u64::try_from(ttl).ok() }))
}

impl Store for RedisStore {
    fn describe(&self) -> String {
        match &self.config.servers {
            Servers::Standalone((host, port)) => format!("redis at {host}:{port}"),
            Servers::Sentinel { master, .. } => format!("redis, Sentinel master {master}"),
        }
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Option<Snapshot>, StoreError>> {
        Box::pin(self.read_snapshot())
    }

    fn since(&self, from: Revision) -> BoxFuture<'_, Result<Since, StoreError>> {
        Box::pin(self.read_since(from))
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Written, StoreError>> {
        Box::pin(self.write_commit(commit))
    }

    fn history(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Change>, StoreError>> {
        Box::pin(self.read_history(limit))
    }

    fn record_get(&self, key: Key) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        Box::pin(self.read_record(key))
    }

    fn record_put(&self, put: Put) -> BoxFuture<'_, Result<Recorded, StoreError>> {
        Box::pin(self.write_record(put))
    }

    fn record_list(
        &self,
        prefix: String,
        after: Option<Key>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Record>, StoreError>> {
        Box::pin(self.list(prefix, after, limit))
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, StoreError>> {
        Box::pin(async {
            let channels = [self.keys.changed.clone(), self.keys.recorded.clone()];
            let news = news::News::subscribe(&self.config, &channels).await?;
            Ok(Box::new(news) as Box<dyn Subscription>)
        })
    }
}
