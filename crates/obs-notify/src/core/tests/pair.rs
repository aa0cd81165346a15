//! Two instances that share a store, on a virtual clock: properties over random deaths, outages and
//! senders.

use super::*;

/// A model of the store that two instances share.
#[derive(Default)]
struct Meeting {
    values: BTreeMap<(String, String), (i64, Shared)>,
    number: i64,
    /// Who holds a claim: a process.
    claims: HashMap<String, usize>,
    /// Until when the dead are taken for alive.
    dead: HashMap<usize, i64>,
}

impl Meeting {
    fn is_held(&self, key: &str, process: usize) -> bool {
        self.claims.get(key).is_some_and(|h| *h != process)
    }

    /// Ends the claims of the dead and returns what they were.
    fn abandoned(&mut self, now: i64) -> Vec<String> {
        let dead = |h: &usize| self.dead.get(h).is_some_and(|until| now >= *until);
        let keys: Vec<String> =
            self.claims.iter().filter(|(_, h)| dead(h)).map(|(k, _)| k.clone()).collect();
        self.claims.retain(|_, h| !dead(h));
        keys
    }

    fn later(&self, j: &Job) -> Option<Shared> {
        let key = ("notifications".to_owned(), j.log_key().to_owned());
        self.values.get(&key).map(|v| &v.1).filter(|s| s.stamp > j.known()).cloned()
    }
}

/// One of two instances.
struct Instance {
    world: World,
    process: usize,
    position: i64,
    lives: bool,
    reaches: bool,
}

impl Instance {
    fn say(&mut self, m: &mut Meeting) {
        for s in std::mem::take(&mut self.world.said) {
            let key = (s.space.clone(), s.key.clone());
            if m.values.get(&key).is_none_or(|v| v.1.stamp < s.stamp) {
                m.number += 1;
                m.values.insert(key, (m.number, s));
            }
        }
    }

    fn exchange(&mut self, m: &mut Meeting, now: i64) {
        self.say(m);
        let mut news: Vec<&(i64, Shared)> =
            m.values.values().filter(|v| v.0 > self.position).collect();
        news.sort_by_key(|v| v.0);
        let values: Vec<Shared> = news.into_iter().map(|v| v.1.clone()).collect();
        self.position = m.number;
        let mut changes = self.world.core.merge(&values, at(now));
        let abandoned = m.abandoned(now);
        changes.extend(abandoned.iter().map(|key| self.world.core.adopt(key, at(now))));
        self.world.keep(changes);
    }

    /// Does as the driver does with a delivery; with `dies` it is killed before that is noted.
    fn deliver(&mut self, j: &Job, m: &mut Meeting, now: i64, dies: bool) {
        let w = &mut self.world;
        if self.reaches {
            if m.is_held(j.log_key(), self.process) {
                let changes = w.core.finish(j, Ended::Elsewhere(at(now + 5)), at(now));
                w.keep(changes);
                return;
            }
            if let Some(later) = m.later(j) {
                let mut changes = w.core.merge(&[later], at(now));
                changes.extend(w.core.finish(j, Ended::Elsewhere(at(now)), at(now)));
                w.keep(changes);
                return;
            }
            m.claims.insert(j.log_key().to_owned(), self.process);
        }
        if w.up {
            let text = format!("{now}: {}", w.text(j));
            w.heard.push(text);
        }
        if dies {
            return;
        }
        let ended = if w.up { Ended::Delivered(BTreeMap::new()) } else { Ended::Unreached };
        let changes = w.core.finish(j, ended, at(now));
        w.keep(changes);
        if self.reaches {
            self.say(m);
            m.claims.remove(j.log_key());
        }
    }
}

struct Pair {
    instances: [Instance; 2],
    meeting: Meeting,
    processes: usize,
    now: i64,
    /// Alerts with their start, and their end if they have ended.
    alerts: BTreeMap<u8, (i64, Option<i64>)>,
    /// Whether alerts are sent to every instance, or to one that lives.
    is_wide: bool,
}

impl Pair {
    fn new(is_wide: bool) -> Self {
        let one = |process| {
            let mut world = World::new(ONE);
            world.core.share();
            Instance { world, process, position: 0, lives: true, reaches: true }
        };
        Self {
            instances: [one(0), one(1)],
            meeting: Meeting::default(),
            processes: 2,
            now: 0,
            alerts: BTreeMap::new(),
            is_wide,
        }
    }

    /// Tells instances of an alert as it is.
    fn send(&mut self, i: u8) {
        let Some((starts, ends)) = self.alerts.get(&i).copied() else { return };
        let name = if i.is_multiple_of(2) { "a" } else { "b" };
        let number = i.to_string();
        let labels = [("alertname", name), ("i", number.as_str())];
        let ends = ends.unwrap_or(self.now + 240);
        for n in if i.is_multiple_of(3) { [0, 1] } else { [1, 0] } {
            let instance = &mut self.instances[n];
            if instance.lives {
                instance.world.now = self.now;
                instance.world.send(&labels, starts, ends);
                if !self.is_wide {
                    return;
                }
            }
        }
    }

    fn run(&mut self, seconds: i64) {
        for _ in 0..seconds {
            self.now += 1;
            // A Prometheus says every minute what fires, and for a while what has ended.
            if self.now % 60 == 0 {
                let now = self.now;
                let sent: Vec<u8> = self
                    .alerts
                    .iter()
                    .filter(|(_, a)| a.1.is_none_or(|end| now - end < 900))
                    .map(|x| *x.0)
                    .collect();
                sent.into_iter().for_each(|i| self.send(i));
            }
            for n in 0..2 {
                self.step(n, false);
            }
        }
    }

    /// A second of one instance.
    fn step(&mut self, n: usize, dies: bool) {
        let (now, instance, m) = (self.now, &mut self.instances[n], &mut self.meeting);
        if !instance.lives {
            return;
        }
        instance.world.now = now;
        if instance.reaches {
            instance.exchange(m, now);
        } else {
            instance.world.core.wait_for_peers(at(now));
            // When it is back it says everything and hears everything.
            instance.position = 0;
            instance.world.said = instance.world.core.everything();
        }
        let tick = instance.world.core.tick(at(now));
        instance.world.keep(tick.changes);
        for j in tick.jobs {
            instance.deliver(&j, m, now, dies);
        }
    }

    fn kill(&mut self, n: usize) {
        let instance = &mut self.instances[n];
        instance.lives = false;
        instance.world.said.clear();
        self.meeting.dead.insert(instance.process, self.now + 15);
    }

    fn start(&mut self, n: usize) {
        let instance = &mut self.instances[n];
        if !instance.lives {
            (instance.process, instance.lives, instance.position) = (self.processes, true, 0);
            self.processes += 1;
            instance.world.now = self.now;
            instance.world.crash();
        }
    }

    fn heard(&self) -> Vec<String> {
        let time = |h: &String| h.split(':').next().and_then(|t| t.parse::<i64>().ok());
        let mut all: Vec<String> =
            self.instances.iter().flat_map(|i| i.world.heard.clone()).collect();
        all.sort_by_key(time);
        all
    }
}

#[derive(Debug, Clone)]
enum Happening {
    Fire(u8),
    End(u8),
    Wait(i64),
    /// The receiver is out of reach, or within it.
    Receiver(bool),
    /// The shared store is, for one of the two.
    Store(usize, bool),
    Kill(usize),
    KillAfterDelivery(usize),
    Start(usize),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (0_u8..6).prop_map(Happening::Fire),
        4 => (0_u8..6).prop_map(Happening::End),
        6 => (1_i64..200).prop_map(Happening::Wait),
        1 => any::<bool>().prop_map(Happening::Receiver),
        1 => (0_usize..2, any::<bool>()).prop_map(|(n, up)| Happening::Store(n, up)),
        1 => (0_usize..2).prop_map(Happening::Kill),
        1 => (0_usize..2).prop_map(Happening::KillAfterDelivery),
        2 => (0_usize..2).prop_map(Happening::Start),
    ]
}

/// What came of it.
struct Outcome {
    /// What receivers heard.
    heard: Vec<String>,
    /// What fires in the end.
    real: BTreeSet<String>,
    /// How often something happened that may make receivers hear a state twice.
    excuses: usize,
}

fn play(is_wide: bool, store_fails: bool, all: &[Happening]) -> Outcome {
    let mut p = Pair::new(is_wide);
    let mut excuses = 0;
    for h in all {
        // One of them lives: that is what two are for.
        let may_die = p.instances.iter().all(|i| i.lives);
        match *h {
            Happening::Fire(i) if p.alerts.get(&i).is_none_or(|a| a.1.is_some()) => {
                p.now += 1;
                p.alerts.insert(i, (p.now, None));
                p.send(i);
            }
            Happening::End(i) => {
                if let Some(a) = p.alerts.get_mut(&i).filter(|a| a.1.is_none()) {
                    p.now += 1;
                    a.1 = Some(p.now);
                    p.send(i);
                }
            }
            Happening::Wait(s) => p.run(s),
            Happening::Receiver(up) => p.instances.iter_mut().for_each(|i| i.world.up = up),
            Happening::Store(n, reaches) if store_fails => p.instances[n].reaches = reaches,
            Happening::Kill(n) if may_die => p.kill(n),
            Happening::KillAfterDelivery(n) if may_die => {
                p.now += 1;
                p.step(n, true);
                p.kill(n);
                excuses += 1;
            }
            Happening::Start(n) => p.start(n),
            Happening::Fire(_)
            | Happening::Store(..)
            | Happening::Kill(_)
            | Happening::KillAfterDelivery(_) => {}
        }
    }
    for i in &mut p.instances {
        (i.world.up, i.reaches) = (true, true);
    }
    if store_fails {
        // What one told while it was cut off, and did not live to say, is on its disk.
        (0..2).for_each(|n| p.start(n));
    }
    p.run(400);
    let firing = p.alerts.iter().filter(|a| a.1.1.is_none());
    let name = |i: &u8| format!("{}{i}", if i.is_multiple_of(2) { "a" } else { "b" });
    Outcome { heard: p.heard(), real: firing.map(|(i, _)| name(i)).collect(), excuses }
}

proptest! {
    /// Two instances tell a receiver each state once, whichever of them hears of it and however
    /// they die, except what one of them told and did not live to note.
    #[test]
    fn two_instances_tell_everything_once(
        is_wide in any::<bool>(),
        all in proptest::collection::vec(happening(), 1..50),
    ) {
        let o = play(is_wide, false, &all);
        prop_assert_eq!(believed(&o.heard), o.real, "heard {:#?}", o.heard);
        let twice = repeats(&o.heard);
        prop_assert!(twice <= 2 * o.excuses, "{twice} repeats: {:#?}", o.heard);
    }

    /// While the store between them is out of reach, they tell things twice rather than not.
    #[test]
    fn instances_without_their_store_tell_everything(
        all in proptest::collection::vec(happening(), 1..50),
    ) {
        let o = play(true, true, &all);
        prop_assert_eq!(believed(&o.heard), o.real, "heard {:#?}", o.heard);
    }
}

/// One was cut off and told of an alert that the other, dead meanwhile, never heard of; that other told
/// later, and last.
#[test]
fn what_one_told_while_cut_off_is_not_forgotten_over_what_another_told_later() {
    use Happening::{End, Fire, KillAfterDelivery, Start, Store, Wait};
    let all = [
        Fire(4),
        Wait(80),
        KillAfterDelivery(0),
        Wait(136),
        Store(1, false),
        Wait(191),
        Fire(0),
        Wait(81),
        Start(0),
        End(4),
        KillAfterDelivery(0),
        End(0),
        Wait(13),
    ];
    let o = play(true, true, &all);
    assert_eq!(believed(&o.heard), o.real, "heard {:#?}", o.heard);
}

/// One told late of two alerts as they were while nobody could be reached: one fired, one had ended. Of
/// that one the other heard anew while the first was dead.
#[test]
fn what_a_late_message_says_has_ended_is_told_when_it_fires_anew() {
    use Happening::{End, Fire, Kill, Receiver, Store, Wait};
    let all = [
        Receiver(false),
        Fire(4),
        Store(0, false),
        End(4),
        Fire(0),
        Wait(8),
        End(0),
        Kill(0),
        Fire(0),
        Fire(4),
    ];
    let o = play(true, true, &all);
    assert_eq!(believed(&o.heard), o.real, "heard {:#?}", o.heard);
}
