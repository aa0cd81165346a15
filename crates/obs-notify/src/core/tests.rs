//! The state machine on a virtual clock: scripts of what receivers hear, and a property over random
//! crashes and outages.

use super::*;
use crate::NewAlert;
use crate::silence::SilenceMatcher;
use obs_model::Shared;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

mod pair;

const SECOND: i64 = 1_000_000_000;

fn at(s: i64) -> TimestampNs {
    TimestampNs::from_nanos(s * SECOND)
}

fn config(yaml: &str) -> Arc<Config> {
    Arc::new(Config::read(yaml, Path::new(".")).unwrap())
}

/// A machine with the store that outlives it, and what its receiver heard.
struct World {
    core: Core,
    config: Arc<Config>,
    stored: HashMap<(String, String), Vec<u8>>,
    now: i64,
    heard: Vec<String>,
    up: bool,
    /// What other instances are to hear.
    said: Vec<Shared>,
}

impl World {
    fn new(yaml: &str) -> Self {
        let config = config(yaml);
        let core = Core::restore(config.clone(), "http://x", Restored::default(), at(0));
        Self {
            core,
            config,
            stored: HashMap::new(),
            now: 0,
            heard: Vec::new(),
            up: true,
            said: Vec::new(),
        }
    }

    fn keep(&mut self, changes: Vec<Change>) {
        for c in changes {
            self.said.extend(c.to_shared());
            if !c.is_kept {
                continue;
            }
            let c = c.state;
            match c.value {
                Some(v) => self.stored.insert((c.space, c.key), v),
                None => self.stored.remove(&(c.space, c.key)),
            };
        }
    }

    fn send(&mut self, labels: &[(&str, &str)], starts: i64, ends: i64) {
        let new = NewAlert {
            labels: Labels::from_pairs(labels.iter().copied()),
            annotations: BTreeMap::new(),
            starts_at: Some(at(starts)),
            ends_at: Some(at(ends)),
            generator_url: String::new(),
        };
        let alert = new.admit(at(self.now), 300 * SECOND).unwrap();
        let (changes, _, _) = self.core.put(vec![alert], at(self.now));
        self.keep(changes);
    }

    fn fire(&mut self, labels: &[(&str, &str)]) {
        self.send(labels, self.now, self.now + 100_000);
    }

    fn end(&mut self, labels: &[(&str, &str)]) {
        self.send(labels, self.now - 1, self.now);
    }

    /// What a job tells, for reading: receiver, status and the alerts.
    fn text(&self, j: &Job) -> String {
        let n = &j.notification;
        let one = |a: &Arc<Alert>| {
            let mark = if a.is_resolved(n.now) { "-" } else { "+" };
            format!("{mark}{}{}", a.name(), a.labels.get("i"))
        };
        let alerts: Vec<String> = n.alerts.iter().map(one).collect();
        format!("{} {}", j.integration.split('/').next().unwrap_or_default(), alerts.join(" "))
    }

    /// Lets time pass second by second; deliveries end at once.
    fn run(&mut self, until: i64) {
        while self.now < until {
            self.now += 1;
            self.tick(true);
        }
    }

    fn tick(&mut self, record: bool) {
        let tick = self.core.tick(at(self.now));
        self.keep(tick.changes);
        for j in tick.jobs {
            if self.up {
                let text = format!("{}: {}", self.now, self.text(&j));
                self.heard.push(text);
            }
            if record {
                let ended =
                    if self.up { Ended::Delivered(BTreeMap::new()) } else { Ended::Unreached };
                let changes = self.core.finish(&j, ended, at(self.now));
                self.keep(changes);
            }
        }
    }

    /// Ends the process and starts another from what was kept.
    fn crash(&mut self) {
        let mut restored = Restored::default();
        for ((space, key), v) in &self.stored {
            match space.as_str() {
                "alerts" => restored.alerts.push(serde_json::from_slice(v).unwrap()),
                "silences" => restored.silences.push(serde_json::from_slice(v).unwrap()),
                "notifications" => {
                    restored.log.insert(key.clone(), serde_json::from_slice(v).unwrap());
                }
                "notifications owed" => {
                    restored.owed.insert(key.clone(), serde_json::from_slice(v).unwrap());
                }
                _ => {
                    let id = u64::from_str_radix(key, 16).unwrap();
                    restored.acknowledged.insert(id, serde_json::from_slice(v).unwrap());
                }
            }
        }
        let shares = self.core.shares();
        self.core = Core::restore(self.config.clone(), "http://x", restored, at(self.now));
        if shares {
            self.core.share();
            self.said = self.core.everything();
        }
    }

    fn heard(&mut self) -> Vec<String> {
        std::mem::take(&mut self.heard)
    }
}

const ONE: &str = "
route: {receiver: r, group_by: [alertname], group_wait: 10s, group_interval: 60s, repeat_interval: 1h}
receivers: [{name: r, webhook_configs: [{url: 'http://h/'}]}]
";

const A1: &[(&str, &str)] = &[("alertname", "a"), ("i", "1")];
const A2: &[(&str, &str)] = &[("alertname", "a"), ("i", "2")];

#[test]
fn groups_wait_gather_repeat_and_end() {
    let mut w = World::new(ONE);
    w.fire(A1);
    w.run(5);
    w.fire(A2);
    w.run(30);
    // Both within the wait: one message.
    assert_eq!(w.heard(), ["10: r +a1 +a2"]);
    w.end(A1);
    w.run(100);
    assert_eq!(w.heard(), ["70: r -a1 +a2"]);
    w.run(7000);
    // When more than an hour has passed, at the next look.
    assert_eq!(w.heard(), ["3730: r +a2"]);
    w.end(A2);
    w.run(20_000);
    assert_eq!(w.heard(), ["7030: r -a2"]);
    assert!(w.core.groups.is_empty() && w.core.alerts.is_empty());
    assert!(w.stored.keys().all(|k| k.0 != "alerts"));
}

#[test]
fn what_came_and_went_within_the_wait_is_not_told() {
    let mut w = World::new(ONE);
    w.fire(A1);
    w.run(3);
    w.end(A1);
    w.run(500);
    assert_eq!(w.heard(), [""; 0]);
    assert!(w.core.alerts.is_empty());
}

#[test]
fn an_alert_that_fired_long_ago_does_not_wait() {
    let mut w = World::new(ONE);
    w.run(100);
    w.send(A1, 50, 1000);
    w.run(102);
    assert_eq!(w.heard(), ["101: r +a1"]);
}

#[test]
fn what_could_not_be_kept_is_kept_when_it_comes_again() {
    let mut w = World::new(ONE);
    let alert = |w: &World| {
        let labels = Labels::from_pairs(A1.iter().copied());
        let new = NewAlert {
            labels,
            annotations: BTreeMap::new(),
            starts_at: Some(at(0)),
            ends_at: Some(at(900)),
            generator_url: String::new(),
        };
        vec![new.admit(at(w.now), 300 * SECOND).unwrap()]
    };
    let (changes, changed, _) = w.core.put(alert(&w), at(0));
    assert_eq!((changes.len(), changed.len()), (1, 1));
    // Known: nothing to keep.
    assert_eq!(w.core.put(alert(&w), at(0)).0, []);
    w.core.not_kept(changed);
    assert_eq!(w.core.put(alert(&w), at(0)).0.len(), 1);
    assert_eq!(w.core.put(alert(&w), at(0)).0, []);
}

#[test]
fn a_silence_that_could_not_be_kept_is_taken_back() {
    let mut w = World::new(ONE);
    let m = |value: &str| SilenceMatcher {
        name: "i".into(),
        value: value.into(),
        is_regex: false,
        is_equal: true,
    };
    let wish = |id: &str, value: &str| SilenceWish {
        id: id.into(),
        matchers: vec![m(value)],
        starts_at: at(0),
        ends_at: at(100),
        created_by: "me".into(),
        comment: String::new(),
    };
    let labels = Labels::from_pairs(A1.iter().copied());
    let (id, _) = w.core.set_silence(wish("", "1"), at(0)).unwrap();
    let before = w.core.silence(&id).cloned();
    let (new, _) = w.core.set_silence(wish(&id, "2"), at(1)).unwrap();
    assert_ne!(id, new);
    w.core.take_back(&new, before);
    assert!(w.core.silence(&new).is_none());
    assert_eq!(w.core.status(&labels, &[0], at(2)).silenced_by, [id]);
}

#[test]
fn an_alert_that_nobody_says_any_more_ends() {
    let mut w = World::new(ONE);
    w.send(A1, 0, 240);
    w.run(1000);
    assert_eq!(w.heard(), ["10: r +a1", "250: r -a1"]);
}

#[test]
fn crashes_neither_repeat_nor_forget() {
    let mut w = World::new(ONE);
    w.fire(A1);
    w.run(20);
    w.crash();
    w.run(65);
    w.fire(A2);
    w.crash();
    w.run(200);
    // The interval goes on from the last message.
    assert_eq!(w.heard(), ["10: r +a1", "70: r +a1 +a2"]);
    // The repeat does not come early, nor late.
    w.run(2000);
    w.crash();
    w.run(4000);
    assert_eq!(w.heard(), ["3681: r +a1 +a2"]);
    w.end(A1);
    w.crash();
    w.end(A2);
    w.run(5000);
    assert_eq!(w.heard().len(), 1);
    // Delivered, and killed before that was noted: told once more, under the same key.
    w.fire(A1);
    w.run(5009);
    w.now += 1;
    let first = w.core.tick(at(w.now)).jobs.remove(0).notification.idempotency_key;
    w.crash();
    w.now += 11;
    assert_eq!(w.core.tick(at(w.now)).jobs.remove(0).notification.idempotency_key, first);
}

#[test]
fn what_was_not_delivered_is_owed_even_when_it_has_ended() {
    let mut w = World::new(ONE);
    w.up = false;
    w.fire(A1);
    w.run(100);
    w.end(A1);
    w.run(200);
    w.crash();
    // A day and more.
    w.run(90_000);
    w.up = true;
    w.run(90_100);
    let heard = w.heard();
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert!(heard[0].ends_with("r +a1") && heard[1].ends_with("r -a1"), "{heard:?}");
    w.run(92_000);
    assert_eq!(w.heard(), [""; 0]);
    assert!(w.stored.keys().all(|k| k.0 == "notifications"), "{:?}", w.stored.keys());
}

#[test]
fn inhibited_silenced_and_muted_alerts_are_not_told() {
    let yaml = "
route:
  receiver: r
  group_by: [alertname, i]
  group_wait: 1s
  group_interval: 10s
  repeat_interval: 1h
  routes:
  - {receiver: r, matchers: [night=yes], mute_time_intervals: [night]}
  - {receiver: r, matchers: [day=yes], active_time_intervals: [day]}
receivers: [{name: r, webhook_configs: [{url: 'http://h/'}]}]
inhibit_rules: [{source_matchers: [alertname=down], target_matchers: ['alertname=~.+'], equal: [i]}]
time_intervals:
- {name: night, time_intervals: [{times: [{start_time: '00:00', end_time: '01:00'}]}]}
- {name: day, time_intervals: [{times: [{start_time: '02:00', end_time: '24:00'}]}]}
";
    let mut w = World::new(yaml);
    w.fire(&[("alertname", "down"), ("i", "1")]);
    w.fire(&[("alertname", "x"), ("i", "1")]);
    w.fire(&[("alertname", "x"), ("i", "2")]);
    // Matches both sides: inhibited neither by itself nor by the other.
    w.fire(&[("alertname", "down"), ("i", "2")]);
    w.run(5);
    let mut heard = w.heard();
    heard.sort();
    assert_eq!(heard, ["1: r +down1", "1: r +down2"]);
    w.end(&[("alertname", "down"), ("i", "1")]);
    w.run(30);
    let mut heard = w.heard();
    heard.sort();
    assert_eq!(heard, ["11: r +x1", "11: r -down1"].map(str::to_owned).to_vec(), "{heard:?}");
    // By a silence that is made, kept over a crash, and ended.
    let m = SilenceMatcher {
        name: "alertname".into(),
        value: "y".into(),
        is_regex: false,
        is_equal: true,
    };
    let wish = SilenceWish {
        id: String::new(),
        matchers: vec![m],
        starts_at: at(30),
        ends_at: at(10_000),
        created_by: "me".into(),
        comment: String::new(),
    };
    let (id, changes) = w.core.set_silence(wish, at(30)).unwrap();
    w.keep(changes);
    w.fire(&[("alertname", "y"), ("i", "9")]);
    w.crash();
    w.run(100);
    assert_eq!(w.heard(), [""; 0]);
    let changes = w.core.expire_silence(&id, at(100)).unwrap();
    w.keep(changes);
    w.run(120);
    assert_eq!(w.heard().len(), 1);
    // By the time of day: muted at night, active by day.
    w.fire(&[("alertname", "n"), ("night", "yes")]);
    w.fire(&[("alertname", "d"), ("day", "yes")]);
    w.run(3500);
    assert!(w.heard().iter().all(|h| !h.contains("+n") && !h.contains("+d")));
    w.run(3700);
    let heard = w.heard();
    assert!(
        heard.iter().any(|h| h.contains("r +n")) && !heard.iter().any(|h| h.contains("+d ")),
        "{heard:?}"
    );
    w.run(7300);
    assert!(w.heard().iter().any(|h| h.ends_with("r +d")));
}

#[test]
fn another_configuration_tells_new_receivers_and_repeats_nothing() {
    let mut w = World::new(ONE);
    w.fire(A1);
    w.run(20);
    w.config =
        config(&ONE.replace("[{name: r,", "[{name: r, slack_configs: [{api_url: 'http://s/'}],"));
    w.core.reconfigure(w.config.clone(), at(w.now));
    w.run(200);
    let heard = w.heard();
    assert_eq!(heard.len(), 2, "{heard:?}");
}

const ROUTES: &str = "
route:
  receiver: d
  routes:
  - {receiver: p, matchers: ['severity=critical'], continue: true}
  - {receiver: s, matchers: ['severity=~critical|warning']}
  - {receiver: w, matchers: ['severity=warning', 'team=db']}
  - {receiver: e, matchers: ['team=db'], routes: [{receiver: n, matchers: ['severity=info']}]}
receivers: [{name: d}, {name: p}, {name: s}, {name: w}, {name: e}, {name: n}, {name: u}]
";

#[test]
fn routes_are_found_explained_and_checked() {
    let c = config(ROUTES);
    let to = |pairs: &[(&str, &str)]| -> Vec<String> {
        let labels = Labels::from_pairs(pairs.iter().copied());
        let found = c.routes.find(&labels);
        let explained: Vec<usize> =
            c.routes.explain(&labels).into_iter().filter(|s| s.receives).map(|s| s.route).collect();
        assert_eq!(found, explained);
        found.iter().map(|r| c.routes.get(*r).unwrap().receiver.clone()).collect()
    };
    assert_eq!(to(&[("severity", "critical")]), ["p", "s"]);
    assert_eq!(to(&[("severity", "warning"), ("team", "db")]), ["s"]);
    assert_eq!(to(&[("severity", "info"), ("team", "db")]), ["n"]);
    assert_eq!(to(&[("severity", "none"), ("team", "db")]), ["e"]);
    assert_eq!(to(&[("x", "y")]), ["d"]);
    let names: Vec<String> = c.receivers.iter().map(|r| r.name.clone()).collect();
    let rules =
        [Labels::from_pairs([("alertname", "Disk"), ("severity", "critical"), ("team", "db")])];
    let found: Vec<String> =
        c.routes.lint(&names, &rules).iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 4, "{found:#?}");
    assert!(
        found[0].starts_with("unreachable route: ") && found[0].contains("to \"w\""),
        "{found:#?}"
    );
    assert!(found[1].contains("\"u\""), "{found:#?}");
    assert!(
        found.iter().any(|f| f.contains("no rule reaches it") && f.contains("\"n\"")),
        "{found:#?}"
    );
}

/// What a receiver believes to fire: the last thing that it heard of each alert.
fn believed(heard: &[String]) -> BTreeSet<String> {
    let mut known: BTreeMap<String, bool> = BTreeMap::new();
    for word in heard.iter().flat_map(|h| h.split(' ').skip(2)) {
        let (mark, name) = word.split_at(1);
        known.insert(name.to_owned(), mark == "+");
    }
    known.into_iter().filter(|k| k.1).map(|k| k.0).collect()
}

/// How often a firing group was told of twice in a row within less than a repeat interval.
fn repeats(heard: &[String]) -> usize {
    let mut last: HashMap<&str, (i64, &str)> = HashMap::new();
    let mut twice = 0;
    for h in heard {
        let (time, said) = h.split_once(": ").unwrap();
        let time: i64 = time.parse().unwrap();
        let group = if said.contains('a') { "a" } else { "b" };
        if let Some((before, same)) = last.insert(group, (time, said)) {
            twice += usize::from(same == said && time - before < 3600 && said.contains('+'));
        }
    }
    twice
}

#[derive(Debug, Clone)]
enum Event {
    Fire(u8),
    End(u8),
    Wait(i64),
    Down,
    Up,
    Crash,
    /// Delivered, and killed before that was noted.
    CrashAfterDelivery,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0_u8..6).prop_map(Event::Fire),
        3 => (0_u8..6).prop_map(Event::End),
        4 => (1_i64..200).prop_map(Event::Wait),
        1 => Just(Event::Down),
        1 => Just(Event::Up),
        1 => Just(Event::Crash),
        1 => Just(Event::CrashAfterDelivery),
    ]
}

proptest! {
    /// However alerts come and go, receivers fail and processes die: in the end a receiver knows
    /// what is true, and it hears a state twice only after a death between delivery and note.
    #[test]
    fn receivers_end_up_knowing_what_is_true(events in proptest::collection::vec(event(), 1..60)) {
        let mut w = World::new(ONE);
        let mut truth: BTreeSet<u8> = BTreeSet::new();
        let mut deaths = 0;
        let names = ["a", "b"];
        for e in events {
            match e {
                Event::Fire(i) if truth.insert(i) => {
                    w.fire(&[("alertname", names[usize::from(i % 2)]), ("i", &i.to_string())]);
                }
                Event::End(i) if truth.remove(&i) => {
                    w.end(&[("alertname", names[usize::from(i % 2)]), ("i", &i.to_string())]);
                }
                Event::Fire(_) | Event::End(_) => {}
                Event::Wait(s) => w.run(w.now + s),
                Event::Down => w.up = false,
                Event::Up => w.up = true,
                Event::Crash => w.crash(),
                Event::CrashAfterDelivery => {
                    w.now += 1;
                    w.tick(false);
                    deaths += 1;
                    w.crash();
                }
            }
        }
        w.up = true;
        w.run(w.now + 200);
        let believed = believed(&w.heard);
        let real: BTreeSet<String> =
            truth.iter().map(|i| format!("{}{i}", names[usize::from(i % 2)])).collect();
        prop_assert_eq!(believed, real, "heard {:#?}", w.heard);
        let twice = repeats(&w.heard);
        prop_assert!(twice <= 2 * deaths, "{} repeats, {} deaths: {:#?}", twice, deaths, w.heard);
    }
}
