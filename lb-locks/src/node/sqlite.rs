//! An embedded SQL database as a lock node: a unique key instead of SET NX, and a reaper instead of expiry.
//!
//! For the processes of one machine. Time is the boot-time clock together with the id of the boot, so steps of the wall
//! clock cannot touch a lock, and locks of an earlier boot are void: their holders are gone. The file is durable, so
//! there is no quarantine. Invariants: every command is one immediate transaction; what has expired is deleted before
//! anything is looked at, by the command itself for its lock and by the reaper for all.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::{BoxFuture, FenceGap, Node};
use crate::{
    clock::{BootTime, ms},
    command::{Command, Inspection, List, ListId, Mode, Refusal, Reply, Status, Terms, Ticket},
    error::{LockError, NodeError},
    model::{INTENT_MS, QUEUE_MAX},
    value::Value,
};

/// How long a command waits for the transactions of other processes.
const BUSY_TIMEOUT: Duration = Duration::from_millis(50);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS node (one INTEGER PRIMARY KEY CHECK (one = 1), boot TEXT NOT NULL, fence INTEGER NOT NULL,
        max_ttl INTEGER NOT NULL, epoch INTEGER NOT NULL, digest TEXT NOT NULL, members TEXT NOT NULL);
    INSERT OR IGNORE INTO node VALUES (1, '', 0, 0, 0, '', '');
    CREATE TABLE IF NOT EXISTS writer (name TEXT PRIMARY KEY, value TEXT NOT NULL, expires INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS reader (name TEXT, value TEXT, expires INTEGER NOT NULL, PRIMARY KEY (name, value));
    CREATE TABLE IF NOT EXISTS intent (name TEXT PRIMARY KEY, expires INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS waiter (name TEXT, id TEXT, place INTEGER NOT NULL, expires INTEGER NOT NULL,
        PRIMARY KEY (name, id));";
const TABLES: [&str; 4] = ["writer", "reader", "intent", "waiter"];

/// A node in a database file. Clones share the connection.
#[derive(Clone, Debug)]
pub struct SqliteNode {
    name: Arc<str>,
    run_id: Arc<str>,
    connection: Arc<Mutex<Connection>>,
    /// Calls in the order in which they were made: the release of an attempt that was given up must not run before the attempt.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl SqliteNode {
    /// Opens or creates the database at `path`, on a local file system.
    ///
    /// # Errors
    /// It cannot be opened, or is no database.
    pub fn open(path: &Path) -> Result<Self, LockError> {
        let name = path.display().to_string();
        let wrong = |e: &dyn std::fmt::Display| LockError::Config(format!("lock database {name}: {e}"));
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(|e| wrong(&e))?;
        let mut connection = Connection::open(path).map_err(|e| wrong(&e))?;
        let set_up = |connection: &mut Connection| {
            connection.busy_timeout(Duration::from_secs(5))?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            // A token that was handed out must survive a power failure.
            connection.pragma_update(None, "synchronous", "FULL")?;
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(SCHEMA)?;
            let boot = boot.trim();
            if transaction.execute("UPDATE node SET boot = ?1 WHERE boot <> ?1", [boot])? > 0 {
                for table in TABLES {
                    transaction.execute(&format!("DELETE FROM {table}"), [])?;
                }
            }
            transaction.commit()?;
            connection.busy_timeout(BUSY_TIMEOUT)
        };
        set_up(&mut connection).map_err(|e| wrong(&e))?;
        let run_id = format!("{name}@{}", boot.trim()).into();
        Ok(Self { name: name.into(), run_id, connection: Arc::new(Mutex::new(connection)), turn: Arc::default() })
    }

    /// Deletes everything that has expired; returns how many rows. Run it now and then, from anywhere.
    ///
    /// # Errors
    /// The database does not answer.
    pub fn reap(&self) -> Result<usize, NodeError> {
        let now_ms = ms(BootTime::now().0);
        self.transaction(|transaction| {
            let mut gone = 0;
            for table in TABLES {
                gone += transaction.execute(&format!("DELETE FROM {table} WHERE expires < ?1"), [to_sql(now_ms)])?;
            }
            Ok(gone)
        })
    }

    /// Reaps every `every`. Never ends; drop it to stop.
    pub async fn reap_forever(&self, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            let node = self.clone();
            match tokio::task::spawn_blocking(move || node.reap()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!("reaping {}: {error}", self.name),
                Err(error) => tracing::warn!("reaping {}: {error}", self.name),
            }
        }
    }

    fn transaction<T>(&self, run: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T, NodeError> {
        // A transaction that panicked has been rolled back.
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let result = run(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        whole().map_err(|e: rusqlite::Error| match e.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy) => NodeError::Timeout,
            Some(rusqlite::ErrorCode::ReadOnly) => NodeError::ReadOnly("read-only database".into()),
            Some(rusqlite::ErrorCode::DiskFull) => NodeError::OutOfMemory,
            _ => NodeError::Store(e.to_string()),
        })
    }

    /// Carries `command` out at `now_ms` of this boot.
    fn apply(&self, command: &Command, now_ms: u64) -> Result<Reply, NodeError> {
        self.transaction(|transaction| {
            let step = Step { transaction, now_ms };
            match command {
                Command::Acquire { name, value, mode, ttl_ms, fence, ticket, terms } => {
                    if let Some(refusal) = step.vote(name, value, *mode, *ttl_ms, ticket.as_ref(), terms)? {
                        return Ok(Reply::Refused(refusal));
                    }
                    if *fence {
                        transaction.execute("UPDATE node SET fence = fence + 1", [])?;
                    }
                    let fence = if *fence { step.node()?.fence } else { 0 };
                    Ok(Reply::Granted { fence, run_id: self.run_id.to_string() })
                }
                Command::Confirm { name, value, fence } => {
                    if !step.holds(name, value)? {
                        return Ok(Reply::Gone);
                    }
                    transaction.execute("UPDATE node SET fence = max(fence, ?1)", [to_sql(*fence)])?;
                    Ok(Reply::Done)
                }
                Command::Extend { name, value, ttl_ms, terms } => {
                    if let Some(refusal) = step.admit(*ttl_ms, terms)? {
                        return Ok(Reply::Refused(refusal));
                    }
                    step.expire(name)?;
                    let mut changed = 0;
                    for table in ["writer", "reader"] {
                        let sql = format!("UPDATE {table} SET expires = ?3 WHERE name = ?1 AND value = ?2");
                        changed += transaction.execute(&sql, params![name, value.as_str(), to_sql(now_ms + ttl_ms)])?;
                    }
                    Ok(if changed > 0 { Reply::Done } else { Reply::Gone })
                }
                Command::Release { name, value, ticket } => {
                    if let Some(ticket) = ticket {
                        transaction.execute("DELETE FROM waiter WHERE name = ?1 AND id = ?2", params![name, ticket])?;
                    }
                    step.expire(name)?;
                    let mut gone = 0;
                    for table in ["writer", "reader"] {
                        let sql = format!("DELETE FROM {table} WHERE name = ?1 AND value = ?2");
                        gone += transaction.execute(&sql, params![name, value.as_str()])?;
                    }
                    Ok(if gone > 0 { Reply::Done } else { Reply::Gone })
                }
                Command::Status => Ok(Reply::Status(Status { run_id: self.run_id.to_string(), ..step.node()? })),
                Command::Ready { run_id, fence, max_ttl_ms, .. } => {
                    if *run_id != *self.run_id {
                        return Ok(Reply::Refused(Refusal::OtherRun { run_id: self.run_id.to_string() }));
                    }
                    let sql = "UPDATE node SET fence = max(fence, ?1), max_ttl = max(max_ttl, ?2)";
                    transaction.execute(sql, [to_sql(*fence), to_sql(*max_ttl_ms)])?;
                    Ok(Reply::Done)
                }
                // One file is one store: it is never a member of a list.
                Command::SetList { .. } => Ok(Reply::Refused(Refusal::OtherList { list: List::default() })),
                Command::Inspect { name } => step.inspect(name).map(Reply::Inspection),
                Command::Names { limit } => step.names(*limit).map(Reply::Names),
            }
        })
    }
}

/// One command inside its transaction.
struct Step<'a> {
    transaction: &'a Transaction<'a>,
    now_ms: u64,
}

impl Step<'_> {
    fn node(&self) -> rusqlite::Result<Status> {
        self.transaction.query_row("SELECT fence, max_ttl, epoch, digest, members FROM node", [], |row| {
            let id = ListId { epoch: number(row.get(2)?), digest: row.get(3)? };
            Ok(Status {
                ready: true,
                fence: number(row.get(0)?),
                max_ttl_ms: number(row.get(1)?),
                list: List { id, members: row.get(4)? },
                ..Status::default()
            })
        })
    }

    fn admit(&self, ttl_ms: u64, terms: &Terms) -> rusqlite::Result<Option<Refusal>> {
        let node = self.node()?;
        if terms.list.epoch != 0 {
            return Ok(Some(Refusal::OtherList { list: node.list }));
        }
        let max_ttl_ms = if node.max_ttl_ms == 0 { terms.max_ttl_ms } else { node.max_ttl_ms };
        Ok((ttl_ms > max_ttl_ms).then_some(Refusal::TtlTooLong { max_ttl_ms }))
    }

    fn expire(&self, name: &str) -> rusqlite::Result<()> {
        for table in TABLES {
            let sql = format!("DELETE FROM {table} WHERE name = ?1 AND expires < ?2");
            self.transaction.execute(&sql, params![name, to_sql(self.now_ms)])?;
        }
        Ok(())
    }

    fn rest(&self, sql: &str, name: &str) -> rusqlite::Result<Option<u64>> {
        let expires: Option<Option<i64>> = self.transaction.query_row(sql, [name], |row| row.get(0)).optional()?;
        Ok(expires.flatten().map(|expires| number(expires).saturating_sub(self.now_ms)))
    }

    fn vote(
        &self,
        name: &str,
        value: &Value,
        mode: Mode,
        ttl_ms: u64,
        ticket: Option<&Ticket>,
        terms: &Terms,
    ) -> rusqlite::Result<Option<Refusal>> {
        if let Some(refusal) = self.admit(ttl_ms, terms)? {
            return Ok(Some(refusal));
        }
        self.expire(name)?;
        let ahead = self.ahead(name, ticket)?;
        if ahead > 0 {
            return Ok(Some(Refusal::Queued { ahead }));
        }
        let expires = to_sql(self.now_ms + ttl_ms);
        let row = params![name, value.as_str(), expires];
        if mode == Mode::Exclusive {
            if let Some(remaining_ms) = self.rest("SELECT max(expires) FROM reader WHERE name = ?1", name)? {
                let intent = "INSERT OR REPLACE INTO intent VALUES (?1, ?2)";
                self.transaction.execute(intent, params![name, to_sql(self.now_ms + INTENT_MS)])?;
                return Ok(Some(Refusal::Held { remaining_ms }));
            }
            // The unique key decides.
            if self.transaction.execute("INSERT OR IGNORE INTO writer VALUES (?1, ?2, ?3)", row)? == 0 {
                let rest = self.rest("SELECT expires FROM writer WHERE name = ?1", name)?;
                return Ok(Some(Refusal::Held { remaining_ms: rest.unwrap_or(0) }));
            }
            self.transaction.execute("DELETE FROM intent WHERE name = ?1", [name])?;
        } else {
            for sql in ["SELECT expires FROM writer WHERE name = ?1", "SELECT expires FROM intent WHERE name = ?1"] {
                if let Some(remaining_ms) = self.rest(sql, name)? {
                    return Ok(Some(Refusal::Held { remaining_ms }));
                }
            }
            self.transaction.execute("INSERT OR REPLACE INTO reader VALUES (?1, ?2, ?3)", row)?;
        }
        if let Some(ticket) = ticket {
            self.transaction.execute("DELETE FROM waiter WHERE name = ?1 AND id = ?2", params![name, ticket.id])?;
        }
        Ok(None)
    }

    fn ahead(&self, name: &str, ticket: Option<&Ticket>) -> rusqlite::Result<u64> {
        let count = |sql: &str, params: &[&dyn rusqlite::ToSql]| -> rusqlite::Result<u64> {
            self.transaction.query_row(sql, params, |row| row.get(0)).map(number)
        };
        let all = count("SELECT count(*) FROM waiter WHERE name = ?1", &[&name])?;
        let Some(ticket) = ticket else { return Ok(all) };
        let mine = "SELECT count(*) FROM waiter WHERE name = ?1 AND id = ?2";
        if all >= QUEUE_MAX as u64 && count(mine, &[&name, &ticket.id])? == 0 {
            return Ok(all);
        }
        let place = match ticket.order {
            Some(order) => order,
            None => count("SELECT coalesce(max(place), 0) + 1 FROM waiter WHERE name = ?1", &[&name])?,
        };
        let upsert = "INSERT INTO waiter VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET expires = excluded.expires";
        let expires = to_sql(self.now_ms + ticket.patience_ms);
        self.transaction.execute(upsert, params![name, ticket.id, to_sql(place), expires])?;
        let before = "SELECT count(*) FROM waiter AS w, waiter AS me WHERE w.name = ?1 AND me.name = ?1 AND me.id = ?2
            AND (w.place, w.id) < (me.place, me.id)";
        count(before, &[&name, &ticket.id])
    }

    fn holds(&self, name: &str, value: &Value) -> rusqlite::Result<bool> {
        self.expire(name)?;
        let sql = "SELECT 1 FROM writer WHERE name = ?1 AND value = ?2
            UNION SELECT 1 FROM reader WHERE name = ?1 AND value = ?2";
        Ok(self.transaction.query_row(sql, [name, value.as_str()], |_| Ok(())).optional()?.is_some())
    }

    fn inspect(&self, name: &str) -> rusqlite::Result<Inspection> {
        self.expire(name)?;
        let mut found = Inspection::default();
        for (table, mode) in [("writer", Mode::Exclusive), ("reader", Mode::Shared)] {
            let sql = format!("SELECT value, expires FROM {table} WHERE name = ?1 ORDER BY value");
            let mut rows = self.transaction.prepare(&sql)?;
            let rows = rows.query_map([name], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
            for row in rows {
                let (value, expires) = row?;
                found.holders.push((mode, Value::from_stored(value), number(expires).saturating_sub(self.now_ms)));
            }
        }
        let mut rows = self.transaction.prepare("SELECT id FROM waiter WHERE name = ?1 ORDER BY place, id")?;
        found.waiters = rows.query_map([name], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(found)
    }

    fn names(&self, limit: usize) -> rusqlite::Result<Vec<String>> {
        let sql = "SELECT name FROM (SELECT name, expires FROM writer UNION ALL SELECT name, expires FROM reader
            UNION ALL SELECT name, expires FROM waiter) WHERE expires >= ?1 GROUP BY name ORDER BY name LIMIT ?2";
        let mut rows = self.transaction.prepare(sql)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        rows.query_map([to_sql(self.now_ms), limit], |row| row.get(0))?.collect()
    }
}

/// SQLite has signed integers; times and counters stay far below their limit.
fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn number(sql: i64) -> u64 {
    u64::try_from(sql).unwrap_or(0)
}

impl Node for SqliteNode {
    fn name(&self) -> &str {
        &self.name
    }

    fn call(&self, command: Arc<Command>) -> BoxFuture<'static, Result<Reply, NodeError>> {
        let node = self.clone();
        Box::pin(async move {
            let turn = Arc::clone(&node.turn).lock_owned().await;
            let run = move || {
                let _until_done = turn;
                node.apply(&command, ms(BootTime::now().0))
            };
            tokio::task::spawn_blocking(run).await.unwrap_or_else(|e| Err(NodeError::Store(e.to_string())))
        })
    }

    fn fence_support(&self) -> BoxFuture<'static, Result<(), FenceGap>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
