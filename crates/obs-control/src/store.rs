//! The tables and what is asked of them.

use crate::settings::PostgresSettings;
use obs_model::{Claim, News, ShareError, ShareFuture, ShareState, Shared, TimestampNs};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

/// The version of the tables.
const VERSION: i32 = 1;

/// Number of the advisory lock under which tables are made and values are numbered: only so are
/// numbers seen in the order in which they were given.
const LOCK: i64 = 0x6f62_7365_7276_6501;

const TABLES: &str = "
CREATE TABLE observatory_control (version int NOT NULL);
CREATE SEQUENCE observatory_shared_number;
CREATE TABLE observatory_shared (
    id bytea PRIMARY KEY,
    space text NOT NULL,
    key bytea NOT NULL,
    stamp bigint NOT NULL,
    until bigint NOT NULL,
    author text NOT NULL,
    value bytea,
    number bigint NOT NULL
);
CREATE INDEX observatory_shared_by_number ON observatory_shared (number);
CREATE TABLE observatory_claims (
    id bytea PRIMARY KEY,
    key bytea NOT NULL,
    holder text NOT NULL,
    since timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE observatory_instances (
    id text PRIMARY KEY,
    name text NOT NULL,
    seen timestamptz NOT NULL
);
INSERT INTO observatory_control VALUES (1);
";

const SAY: &str = "
INSERT INTO observatory_shared (id, space, key, stamp, until, author, value, number)
SELECT id, space, key, stamp, until, $1, value, nextval('observatory_shared_number')
FROM unnest($2::bytea[], $3::text[], $4::bytea[], $5::bigint[], $6::bigint[], $7::bytea[])
    AS said (id, space, key, stamp, until, value)
ON CONFLICT (id) DO UPDATE SET
    stamp = excluded.stamp, until = excluded.until, author = excluded.author,
    value = excluded.value, number = excluded.number
WHERE excluded.stamp > observatory_shared.stamp";

const RELEASE: &str = "DELETE FROM observatory_claims WHERE holder = $1 AND id = ANY($2)";

const CLAIM: &str = "
INSERT INTO observatory_claims (id, key, holder) VALUES ($1, $2, $3)
ON CONFLICT (id) DO UPDATE SET since = now()
WHERE observatory_claims.holder = excluded.holder";

/// A holder that has not been heard of for this long holds nothing. Only who has been in touch with
/// the store for as long says so: after an outage of the store nobody has been heard of.
const ABANDONED_AFTER: Duration = Duration::from_secs(15);
const ABANDONED: &str = "
DELETE FROM observatory_claims WHERE holder NOT IN (
    SELECT id FROM observatory_instances WHERE seen > now() - interval '15 seconds')
RETURNING key";

const LATER: &str = "
SELECT space, key, stamp, until, value, number FROM observatory_shared
WHERE id = $1 AND stamp > $2 AND value IS NOT NULL";

const NEWS: &str = "
SELECT space, key, stamp, until, value, number FROM observatory_shared
WHERE number > $1 AND author <> $2 ORDER BY number LIMIT 500";
const NEWS_MAX: usize = 500;

const ALIVE: &str = "
INSERT INTO observatory_instances (id, name, seen) VALUES ($1, $2, now())
ON CONFLICT (id) DO UPDATE SET seen = now()";

const MEMBERS: &str = "
SELECT name FROM observatory_instances WHERE seen > now() - interval '15 seconds' ORDER BY name, id";

const FORGET: &str = "
WITH gone AS (DELETE FROM observatory_instances WHERE seen < now() - interval '1 hour')
DELETE FROM observatory_shared WHERE until < extract(epoch FROM now()) * 1000000000";

/// How often an instance says that it lives, and how often old rows are forgotten.
const ALIVE_EVERY: Duration = Duration::from_secs(3);
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// Names a value whatever its key's length.
fn id(space: &str, key: &str) -> Vec<u8> {
    let text = [space.as_bytes(), b"\0", key.as_bytes()].concat();
    ring::digest::digest(&ring::digest::SHA256, &text).as_ref().to_vec()
}

/// What is done from time to time.
#[derive(Debug, Default)]
struct Rhythm {
    /// Since when every exchange with the store has gone well.
    steady: Option<Instant>,
    alive: Option<Instant>,
    forgot: Option<Instant>,
    members: Vec<String>,
}

fn is_due(last: Option<Instant>, every: Duration) -> bool {
    last.is_none_or(|t| t.elapsed() >= every)
}

/// State shared over a PostgreSQL server (13 or later). Connects when it is first asked, and again
/// when a connection breaks.
pub struct Postgres {
    settings: PostgresSettings,
    name: String,
    /// Names this process in claims.
    id: String,
    /// One connection says and listens, in order; the other claims, many things at once.
    saying: tokio::sync::Mutex<Option<Client>>,
    claiming: tokio::sync::Mutex<Option<Arc<Client>>>,
    rhythm: std::sync::Mutex<Rhythm>,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres")
            .field("settings", &self.settings)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Tells an error with its cause, which is what says something.
fn failed(e: &tokio_postgres::Error) -> ShareError {
    use std::error::Error as _;
    ShareError(e.source().map_or_else(|| e.to_string(), |s| format!("{e}: {s}")))
}

fn value(r: &Row) -> Result<(Shared, i64), ShareError> {
    let of = |r: &Row| -> Result<(Shared, i64), tokio_postgres::Error> {
        let shared = Shared {
            space: r.try_get(0)?,
            key: String::from_utf8_lossy(r.try_get(1)?).into_owned(),
            stamp: TimestampNs::from_nanos(r.try_get(2)?),
            until: TimestampNs::from_nanos(r.try_get(3)?),
            value: r.try_get(4)?,
        };
        Ok((shared, r.try_get(5)?))
    };
    of(r).map_err(|e| failed(&e))
}

impl Postgres {
    /// Names a server; nothing is asked of it yet.
    pub fn new(settings: PostgresSettings, name: String) -> Self {
        Self {
            settings,
            name,
            id: uuid::Uuid::new_v4().simple().to_string(),
            saying: tokio::sync::Mutex::default(),
            claiming: tokio::sync::Mutex::default(),
            rhythm: std::sync::Mutex::default(),
        }
    }

    async fn connect(&self) -> Result<Client, ShareError> {
        let tls = MakeRustlsConnect::new(self.settings.tls.clone());
        let (client, connection) =
            self.settings.config.connect(tls).await.map_err(|e| failed(&e))?;
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(error = %failed(&e), "a connection to the shared store ended");
            }
        });
        Ok(client)
    }

    /// Connects and makes the tables unless they are there.
    async fn open(&self) -> Result<Client, ShareError> {
        let mut client = self.connect().await?;
        let made = async {
            let t = client.transaction().await?;
            t.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
            let there =
                t.query_one("SELECT to_regclass('observatory_control') IS NOT NULL", &[]).await?;
            if !there.try_get::<_, bool>(0)? {
                t.batch_execute(TABLES).await?;
            }
            let row = t.query_one("SELECT max(version) FROM observatory_control", &[]).await?;
            t.commit().await?;
            row.try_get::<_, Option<i32>>(0)
        };
        match made.await.map_err(|e| failed(&e))? {
            Some(VERSION) => Ok(client),
            v => Err(ShareError(format!(
                "its tables have version {}, this program knows {VERSION}",
                v.unwrap_or_default()
            ))),
        }
    }

    async fn say(&self, values: Vec<Shared>, released: Vec<String>) -> Result<(), ShareError> {
        let mut guard = self.saying.lock().await;
        let mut client = self.living(guard.take()).await?;
        // One statement may not touch a row twice.
        let mut latest: BTreeMap<Vec<u8>, Shared> = BTreeMap::new();
        for s in values {
            let id = id(&s.space, &s.key);
            if latest.get(&id).is_none_or(|l| l.stamp <= s.stamp) {
                latest.insert(id, s);
            }
        }
        let ids: Vec<&[u8]> = latest.keys().map(Vec::as_slice).collect();
        let spaces: Vec<&str> = latest.values().map(|s| s.space.as_str()).collect();
        let keys: Vec<&[u8]> = latest.values().map(|s| s.key.as_bytes()).collect();
        let stamps: Vec<i64> = latest.values().map(|s| s.stamp.nanos()).collect();
        let untils: Vec<i64> = latest.values().map(|s| s.until.nanos()).collect();
        let contents: Vec<Option<&[u8]>> = latest.values().map(|s| s.value.as_deref()).collect();
        let done = async {
            let t = client.transaction().await?;
            if !latest.is_empty() {
                t.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
                t.execute(SAY, &[&self.id, &ids, &spaces, &keys, &stamps, &untils, &contents])
                    .await?;
            }
            if !released.is_empty() {
                let released: Vec<Vec<u8>> = released.iter().map(|key| id(CLAIMS, key)).collect();
                t.execute(RELEASE, &[&self.id, &released]).await?;
            }
            t.commit().await
        };
        done.await.map_err(|e| failed(&e))?;
        *guard = Some(client);
        Ok(())
    }

    /// Returns the connection if it lives, otherwise a new one.
    async fn living(&self, client: Option<Client>) -> Result<Client, ShareError> {
        match client {
            Some(c) if !c.is_closed() => Ok(c),
            _ => self.open().await,
        }
    }

    async fn hear(&self, position: i64) -> Result<News, ShareError> {
        let mut guard = self.saying.lock().await;
        let heard = async {
            let client = self.living(guard.take()).await?;
            let news = self.exchange(&client, position).await?;
            *guard = Some(client);
            Ok(news)
        };
        let heard = heard.await;
        if heard.is_err() {
            self.rhythm().steady = None;
        }
        heard
    }

    fn rhythm(&self) -> std::sync::MutexGuard<'_, Rhythm> {
        self.rhythm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn exchange(&self, client: &Client, position: i64) -> Result<News, ShareError> {
        let rows = client.query(NEWS, &[&position, &self.id]).await.map_err(|e| failed(&e))?;
        let mut news = News { position, has_more: rows.len() >= NEWS_MAX, ..News::default() };
        for r in &rows {
            let (shared, number) = value(r)?;
            news.position = number;
            news.values.push(shared);
        }
        // Abandoned claims are told of once: nothing that may fail comes after they are deleted.
        let abandoned = self.keep_house(client).await.map_err(|e| failed(&e))?;
        news.abandoned =
            abandoned.iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect();
        news.members.clone_from(&self.rhythm().members);
        Ok(news)
    }

    /// Does what is due from time to time. Returns the keys of claims found abandoned.
    async fn keep_house(&self, client: &Client) -> Result<Vec<Vec<u8>>, tokio_postgres::Error> {
        let (says_alive, forgets) = {
            let r = self.rhythm();
            (is_due(r.alive, ALIVE_EVERY), is_due(r.forgot, FORGET_EVERY))
        };
        if forgets {
            client.execute(FORGET, &[]).await?;
            self.rhythm().forgot = Some(Instant::now());
        }
        if !says_alive {
            return Ok(Vec::new());
        }
        client.execute(ALIVE, &[&self.id, &self.name]).await?;
        let members = client.query(MEMBERS, &[]).await?;
        let names: Result<Vec<String>, _> = members.iter().map(|r| r.try_get(0)).collect();
        let is_steady = {
            let mut r = self.rhythm();
            (r.alive, r.members) = (Some(Instant::now()), names?);
            r.steady.get_or_insert_with(Instant::now).elapsed() >= ABANDONED_AFTER
        };
        if !is_steady {
            return Ok(Vec::new());
        }
        client.query(ABANDONED, &[]).await?.iter().map(|r| r.try_get(0)).collect()
    }

    async fn claimer(&self) -> Result<Arc<Client>, ShareError> {
        let mut guard = self.claiming.lock().await;
        if let Some(c) = guard.as_ref().filter(|c| !c.is_closed()) {
            return Ok(c.clone());
        }
        let client = Arc::new(self.open().await?);
        // A claim is worth what its holder's life is.
        client.execute(ALIVE, &[&self.id, &self.name]).await.map_err(|e| failed(&e))?;
        *guard = Some(client.clone());
        Ok(client)
    }

    async fn try_claim(
        &self,
        space: &str,
        key: &str,
        known: TimestampNs,
    ) -> Result<Claim, ShareError> {
        let client = self.claimer().await?;
        let done = async {
            let claim = id(CLAIMS, key);
            if client.execute(CLAIM, &[&claim, &key.as_bytes(), &self.id]).await? == 0 {
                return Ok((false, None));
            }
            // Read after the claim: who held it before said what it did before it let go.
            let later = client.query_opt(LATER, &[&id(space, key), &known.nanos()]).await?;
            if later.is_some() {
                client.execute(RELEASE, &[&self.id, &vec![claim]]).await?;
            }
            Ok((true, later))
        };
        Ok(match done.await.map_err(|e: tokio_postgres::Error| failed(&e))? {
            (false, _) => Claim::Theirs,
            (true, None) => Claim::Ours,
            (true, Some(row)) => Claim::Done(value(&row)?.0),
        })
    }

    async fn go(&self) -> Result<(), ShareError> {
        let mut guard = self.saying.lock().await;
        let mut client = self.living(guard.take()).await?;
        let gone = async {
            let t = client.transaction().await?;
            t.execute("DELETE FROM observatory_claims WHERE holder = $1", &[&self.id]).await?;
            t.execute("DELETE FROM observatory_instances WHERE id = $1", &[&self.id]).await?;
            t.commit().await
        };
        gone.await.map_err(|e| failed(&e))
    }
}

/// What claims are named by.
const CLAIMS: &str = "claims";

impl ShareState for Postgres {
    fn name(&self) -> &str {
        &self.name
    }

    fn share(&self, values: Vec<Shared>, released: Vec<String>) -> ShareFuture<'_, ()> {
        Box::pin(self.say(values, released))
    }

    fn news(&self, position: i64) -> ShareFuture<'_, News> {
        Box::pin(self.hear(position))
    }

    fn claim<'a>(
        &'a self,
        space: &'a str,
        key: &'a str,
        known: TimestampNs,
    ) -> ShareFuture<'a, Claim> {
        Box::pin(self.try_claim(space, key, known))
    }

    fn leave(&self) -> ShareFuture<'_, ()> {
        Box::pin(self.go())
    }
}
