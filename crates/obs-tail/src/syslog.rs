//! Receives syslog: RFC 5424 and RFC 3164, over TCP (either framing, plain or TLS) and UDP.

use crate::config::{Job, Syslog};
use crate::entry::{Entry, visible_or_job};
use crate::files::{Clock, put};
use crate::ship::{Batch, Shipper};
use crate::stage::Pipeline;
use crate::tls::{HANDSHAKE, shake_hands};
use obs_collect::relabel::relabel;
use obs_model::{DAY_NS, LabelsBuilder, TimestampNs};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// Connections at once.
const CONNECTIONS_MAX: usize = 1000;
/// How long received messages wait for others.
const GATHER: Duration = Duration::from_millis(100);

const SEVERITIES: [&str; 8] =
    ["emergency", "alert", "critical", "error", "warning", "notice", "informational", "debug"];
const FACILITIES: [&str; 24] = [
    "kern",
    "user",
    "mail",
    "daemon",
    "auth",
    "syslog",
    "lpr",
    "news",
    "uucp",
    "cron",
    "authpriv",
    "ftp",
    "ntp",
    "security",
    "console",
    "solaris-cron",
    "local0",
    "local1",
    "local2",
    "local3",
    "local4",
    "local5",
    "local6",
    "local7",
];

/// A message, taken apart.
#[derive(Debug, Default, PartialEq)]
struct Message<'a> {
    priority: usize,
    time: Option<TimestampNs>,
    host: &'a str,
    app: &'a str,
    process: &'a str,
    id: &'a str,
    /// (element, parameter, value).
    data: Vec<(&'a str, &'a str, String)>,
    text: &'a str,
}

fn priority(text: &str) -> Option<(usize, &str)> {
    let (number, rest) = text.strip_prefix('<')?.split_once('>')?;
    let n: usize = number.parse().ok().filter(|n| *n < 192)?;
    Some((n, rest))
}

fn word(text: &str) -> (&str, &str) {
    let (w, rest) = text.split_once(' ').unwrap_or((text, ""));
    (if w == "-" { "" } else { w }, rest)
}

fn rfc5424(text: &str) -> Option<Message<'_>> {
    let (priority, rest) = priority(text)?;
    let rest = rest.strip_prefix("1 ")?;
    let (time, rest) = word(rest);
    let (host, rest) = word(rest);
    let (app, rest) = word(rest);
    let (process, rest) = word(rest);
    let (id, mut rest) = word(rest);
    let mut data = Vec::new();
    if let Some(tail) = rest.strip_prefix('-') {
        rest = tail;
    }
    while let Some(tail) = rest.strip_prefix('[') {
        let len = tail.find([' ', ']'])?;
        let (element, mut tail) = tail.split_at(len);
        while let Some(p) = tail.strip_prefix(' ') {
            let (name, v) = p.split_once("=\"")?;
            let mut value = String::new();
            let mut chars = v.char_indices();
            let end = loop {
                match chars.next()? {
                    (i, '"') => break i,
                    (_, '\\') => value.push(chars.next()?.1),
                    (_, c) => value.push(c),
                }
            };
            data.push((element, name, value));
            tail = v.get(end + 1..)?;
        }
        rest = tail.strip_prefix(']')?;
    }
    let text = rest.strip_prefix(' ').unwrap_or(rest);
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let time = TimestampNs::parse_rfc3339(time);
    Some(Message { priority, time, host, app, process, id, data, text })
}

fn rfc3164(text: &str, now: TimestampNs) -> Option<Message<'_>> {
    let (priority, rest) = priority(text)?;
    // `Jan  2 15:04:05 host app[pid]: text`; the year is the one that brings it near to now.
    let stamp = rest.get(..15);
    let year = |at: TimestampNs| at.to_string().get(..4).map(str::to_owned);
    let read = |stamp: &str, year: &str| {
        obs_template::parse_time(&format!("{year} {stamp}"), "2006 Jan _2 15:04:05")
    };
    let time = stamp.and_then(|s| {
        let t = read(s, &year(now)?)?;
        if t.nanos() > now.nanos() + DAY_NS {
            return read(s, &year(now.add_nanos(-366 * DAY_NS))?);
        }
        Some(t)
    });
    let rest = if time.is_some() {
        rest.get(15..).unwrap_or_default().trim_start_matches(' ')
    } else {
        rest
    };
    if time.is_none() {
        return Some(Message { priority, text: rest, ..Message::default() });
    }
    let (host, rest) = word(rest);
    let (tag, text) = rest.split_once(": ").unwrap_or(("", rest));
    let is_tag = !tag.is_empty() && !tag.contains(' ');
    let (tag, text) = if is_tag { (tag, text) } else { ("", rest) };
    let (app, process) = match tag.split_once('[') {
        Some((app, pid)) => (app, pid.trim_end_matches(']')),
        None => (tag, ""),
    };
    Some(Message { priority, time, host, app, process, text, ..Message::default() })
}

/// Takes messages off a stream of bytes: `LENGTH message`, or one a line.
fn next_message(bytes: &[u8], max: usize) -> Result<Option<(usize, usize)>, String> {
    let Some(first) = bytes.first() else { return Ok(None) };
    if first.is_ascii_digit() {
        let digits = bytes.iter().take_while(|b| b.is_ascii_digit()).count();
        if digits > 9 {
            return Err("length is no length".into());
        }
        let Some(after) = bytes.get(digits) else { return Ok(None) };
        if *after != b' ' {
            return Err("length is not followed by a space".into());
        }
        let text = std::str::from_utf8(bytes.get(..digits).unwrap_or_default()).unwrap_or("0");
        let len: usize = text.parse().unwrap_or(0);
        if len > max {
            return Err(format!(
                "message too long to process: {len} bytes, max_message_length is {max}"
            ));
        }
        let end = digits + 1 + len;
        return Ok((bytes.len() >= end).then_some((digits + 1, end)));
    }
    match memchr::memchr2(b'\n', 0, bytes) {
        // The mark itself is taken with the message and trimmed there.
        Some(end) => Ok(Some((0, end + 1))),
        None if bytes.len() > max => {
            Err(format!("message too long to process: max_message_length is {max}"))
        }
        None => Ok(None),
    }
}

/// Listens for one job.
pub(crate) struct Receiver {
    pub(crate) job: Job,
    pub(crate) syslog: Syslog,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) shipper: Shipper,
    pub(crate) clock: Clock,
}

/// Where messages from one sender go through.
struct Session<'a> {
    receiver: &'a Receiver,
    peer: IpAddr,
    pipeline: Pipeline,
    last_ns: i64,
}

impl Session<'_> {
    fn take(&mut self, bytes: &[u8], batch: &mut Batch) {
        let c = &self.receiver.syslog;
        let counts = &self.receiver.shipper.counts;
        let now = (self.receiver.clock)();
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_end_matches(['\n', '\r', '\0']);
        if text.is_empty() {
            return;
        }
        let parsed = match c.syslog_format.as_str() {
            "rfc3164" => rfc3164(text, now),
            _ => rfc5424(text),
        };
        let Some(m) = parsed else {
            counts.malformed.fetch_add(1, Relaxed);
            return;
        };
        counts.lines.fetch_add(1, Relaxed);
        counts.bytes.fetch_add(bytes.len() as u64, Relaxed);
        let mut b = LabelsBuilder::default();
        for (n, v) in &c.labels {
            b.set(n, v);
        }
        let peer = self.peer.to_string();
        let known = |list: &[&'static str], i: usize| list.get(i).copied().unwrap_or_default();
        for (name, value) in [
            ("connection_ip_address", peer.as_str()),
            ("message_severity", known(&SEVERITIES, m.priority % 8)),
            ("message_facility", known(&FACILITIES, m.priority / 8)),
            ("message_hostname", m.host),
            ("message_app_name", m.app),
            ("message_proc_id", m.process),
            ("message_msg_id", m.id),
        ] {
            b.set(&format!("__syslog_{name}"), value);
        }
        if c.label_structured_data {
            for (element, name, value) in &m.data {
                let plain = |s: &str| s.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
                b.set(&format!("__syslog_message_sd_{}_{}", plain(element), plain(name)), value);
            }
        }
        let Some(labels) = relabel(&b.build(), &self.receiver.job.relabel_configs) else { return };
        let labels = visible_or_job(&labels, &self.receiver.job);
        let sent = m.time.filter(|_| c.use_incoming_timestamp);
        // Two messages of one time are still two messages.
        let ns = match sent {
            Some(t) => t.nanos(),
            None => {
                self.last_ns = now.nanos().max(self.last_ns + 1);
                self.last_ns
            }
        };
        let line = if c.use_rfc5424_message { text } else { m.text };
        let mut entry = Entry::new(TimestampNs::from_nanos(ns), line.to_owned(), &labels);
        let level = match m.priority % 8 {
            0..=2 => "critical",
            3 => "error",
            4 => "warn",
            5 | 6 => "info",
            _ => "debug",
        };
        entry.extracted.insert("level".into(), level.into());
        self.pipeline.take(entry, now, &mut |e| put(batch, e));
    }
}

impl Receiver {
    fn session(&self, peer: IpAddr) -> Result<Session<'_>, String> {
        let pipeline = self.shipper.pipeline(&self.job)?;
        Ok(Session { receiver: self, peer, pipeline, last_ns: 0 })
    }

    /// Listens until it is stopped.
    pub(crate) async fn run(self) {
        let name = self.job.job_name.clone();
        let run = Arc::new(self);
        let result = if run.syslog.listen_protocol == "udp" {
            run.udp().await
        } else {
            run.clone().tcp().await
        };
        if let Err(e) = result {
            tracing::error!(job = name, error = e, "syslog is not received");
        }
    }

    async fn tcp(self: Arc<Self>) -> Result<(), String> {
        let listener = TcpListener::bind(&self.syslog.listen_address).await;
        let listener = listener
            .map_err(|e| format!("cannot listen on {}: {e}", self.syslog.listen_address))?;
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let (socket, peer) = tokio::select! {
                () = self.shipper.stop.cancelled() => return Ok(()),
                accepted = listener.accept() => match accepted {
                    Ok(a) => a,
                    Err(_) => continue,
                },
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                tracing::warn!(limit = CONNECTIONS_MAX, "too many syslog connections");
                continue;
            };
            let this = self.clone();
            tokio::spawn(async move {
                if let Err(e) = this.secured(socket, peer).await {
                    tracing::warn!(peer = %peer, error = e, "syslog connection closed");
                }
                drop(place);
            });
        }
    }

    async fn secured(&self, socket: TcpStream, peer: SocketAddr) -> Result<(), String> {
        let Some(tls) = &self.tls else { return self.connection(&mut { socket }, peer).await };
        let mut secure = shake_hands(tls, socket).await?;
        let done = self.connection(&mut secure, peer).await;
        // Says that it is over; a sender that is gone need not hear it.
        let _ = tokio::time::timeout(HANDSHAKE, secure.shutdown()).await;
        done
    }

    async fn connection(
        &self,
        socket: &mut (impl AsyncRead + Unpin),
        peer: SocketAddr,
    ) -> Result<(), String> {
        let mut session = self.session(peer.ip())?;
        let mut bytes: Vec<u8> = Vec::new();
        let mut chunk = vec![0; 64 << 10];
        loop {
            let read = tokio::select! {
                () = self.shipper.stop.cancelled() => return Ok(()),
                read = tokio::time::timeout(self.syslog.idle_timeout.0, socket.read(&mut chunk)) => read,
            };
            let n = match read {
                Err(_) => return Ok(()),
                Ok(n) => n.map_err(|e| e.to_string())?,
            };
            bytes.extend_from_slice(chunk.get(..n).unwrap_or_default());
            if n == 0 && !bytes.is_empty() && !bytes.first().is_some_and(u8::is_ascii_digit) {
                // The last message may lack its mark.
                bytes.push(b'\n');
            }
            let mut batch = Batch::new();
            let mut from = 0;
            let mut fault = None;
            loop {
                let rest = bytes.get(from..).unwrap_or_default();
                match next_message(rest, self.syslog.max_message_length) {
                    Ok(Some((start, end))) => {
                        session.take(rest.get(start..end).unwrap_or_default(), &mut batch);
                        from += end;
                    }
                    Ok(None) => break,
                    Err(e) => {
                        self.shipper.counts.malformed.fetch_add(1, Relaxed);
                        fault = Some(e);
                        break;
                    }
                }
            }
            bytes.drain(..from);
            let now = (self.clock)();
            session.pipeline.flush(now, n == 0 || fault.is_some(), &mut |e| put(&mut batch, e));
            if !self.shipper.ship(batch).await {
                return Ok(());
            }
            self.shipper.pause(session.pipeline.pause(now)).await;
            match fault {
                Some(e) => return Err(e),
                None if n == 0 => return Ok(()),
                None => {}
            }
        }
    }

    async fn udp(&self) -> Result<(), String> {
        let socket = UdpSocket::bind(&self.syslog.listen_address).await;
        let socket =
            socket.map_err(|e| format!("cannot listen on {}: {e}", self.syslog.listen_address))?;
        let mut bytes = vec![0; 64 << 10];
        let mut session = self.session(IpAddr::from([0, 0, 0, 0]))?;
        loop {
            let mut batch = Batch::new();
            let (n, peer) = tokio::select! {
                () = self.shipper.stop.cancelled() => return Ok(()),
                r = socket.recv_from(&mut bytes) => r.map_err(|e| e.to_string())?,
            };
            session.peer = peer.ip();
            session.take(bytes.get(..n).unwrap_or_default(), &mut batch);
            // What came meanwhile goes along.
            let until = tokio::time::Instant::now() + GATHER;
            while let Ok(Ok((n, peer))) =
                tokio::time::timeout_at(until, socket.recv_from(&mut bytes)).await
            {
                session.peer = peer.ip();
                session.take(bytes.get(..n).unwrap_or_default(), &mut batch);
                if batch.values().map(Vec::len).sum::<usize>() >= 1000 {
                    break;
                }
            }
            session.pipeline.flush((self.clock)(), false, &mut |e| put(&mut batch, e));
            if !self.shipper.ship(batch).await {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_taken_apart() {
        let text = r#"<165>1 2023-10-11T22:14:15.003Z host app 99 ID47 [a@1 k="v \"q\"" l="m"][b] the message"#;
        let m = rfc5424(text).unwrap();
        assert_eq!((m.priority % 8, m.priority / 8), (5, 20));
        assert_eq!((m.host, m.app, m.process, m.id), ("host", "app", "99", "ID47"));
        assert_eq!(m.data, [("a@1", "k", "v \"q\"".into()), ("a@1", "l", "m".into())]);
        assert_eq!(m.text, "the message");
        assert_eq!(m.time.unwrap().to_string(), "2023-10-11T22:14:15.003000000Z");
        assert_eq!(rfc5424("<34>1 - - - - - - bare").unwrap().text, "bare");
        for wrong in ["", "x", "<999>1 - - - - - -", "<34>2 - - - - - -", "<34>1 - - - - - [x"] {
            assert_eq!(rfc5424(wrong), None, "{wrong}");
        }
        let now = TimestampNs::parse_rfc3339("2026-01-03T00:00:00Z").unwrap();
        let m = rfc3164("<34>Jan  2 22:14:15 mymachine su[12]: failed", now).unwrap();
        assert_eq!((m.host, m.app, m.process, m.text), ("mymachine", "su", "12", "failed"));
        assert_eq!(m.time.unwrap().to_string(), "2026-01-02T22:14:15.000000000Z");
        // A message of last December that comes in January.
        let m = rfc3164("<34>Dec 31 23:59:59 h text without tag", now).unwrap();
        assert_eq!((m.app, m.text), ("", "text without tag"));
        assert!(m.time.unwrap().to_string().starts_with("2025-12-31"));
        assert_eq!(rfc3164("<34>odd", now).unwrap().text, "odd");
    }

    #[test]
    fn both_framings_are_told_apart() {
        assert_eq!(next_message(b"5 hello6 x", 100), Ok(Some((2, 7))));
        assert_eq!(next_message(b"5 hel", 100), Ok(None));
        assert_eq!(next_message(b"<1>a\n<2>b", 100), Ok(Some((0, 5))));
        assert!(next_message(b"999999 x", 100).is_err());
        assert!(next_message(&[b'<'; 200], 100).is_err());
        assert!(next_message(b"12345678901 ", 100).is_err());
    }
}
