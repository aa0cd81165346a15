//! What is told of a group, and how templates see it.

use crate::alert::{Alert, fingerprint};
use obs_model::{Labels, TimestampNs};
use obs_template::{Object, Time, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a receiver is told.
#[derive(Debug, Clone)]
pub struct Notification {
    pub receiver: String,
    pub group_key: String,
    pub group_labels: Labels,
    /// In the order in which they are shown.
    pub alerts: Vec<Arc<Alert>>,
    pub external_url: String,
    pub now: TimestampNs,
    /// The same for a notification that is sent again because nobody knows whether it arrived.
    pub idempotency_key: String,
    /// What the receiver had us remember of its last notification of the group.
    pub memory: BTreeMap<String, String>,
}

impl Notification {
    pub fn is_firing(&self) -> bool {
        self.alerts.iter().any(|a| !a.is_resolved(self.now))
    }

    /// `firing` or `resolved`.
    pub fn status(&self) -> &'static str {
        if self.is_firing() { "firing" } else { "resolved" }
    }

    /// Returns the labels that all alerts share.
    pub fn common_labels(&self) -> BTreeMap<String, String> {
        common(self.alerts.iter().map(|a| a.labels.iter().map(owned).collect()))
    }

    pub fn common_annotations(&self) -> BTreeMap<String, String> {
        common(self.alerts.iter().map(|a| a.annotations.clone()))
    }

    /// Returns the value that templates begin with.
    pub(crate) fn value(&self) -> Value {
        let (mut firing, mut resolved, mut all) = (Vec::new(), Vec::new(), Vec::new());
        for a in &self.alerts {
            let v = alert_value(a, self.now);
            if a.is_resolved(self.now) { &mut resolved } else { &mut firing }.push(v.clone());
            all.push(v);
        }
        let alerts = Alerts { all: all.into(), firing: firing.into(), resolved: resolved.into() };
        Value::map([
            ("Receiver", self.receiver.as_str().into()),
            ("Status", self.status().into()),
            ("Alerts", Value::Object(Arc::new(alerts))),
            ("GroupLabels", pairs(self.group_labels.iter().map(owned).collect())),
            ("CommonLabels", pairs(self.common_labels())),
            ("CommonAnnotations", pairs(self.common_annotations())),
            ("ExternalURL", self.external_url.as_str().into()),
        ])
    }
}

fn owned((n, v): (&str, &str)) -> (String, String) {
    (n.to_owned(), v.to_owned())
}

fn common(mut sets: impl Iterator<Item = BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let mut out = sets.next().unwrap_or_default();
    for s in sets {
        out.retain(|n, v| s.get(n) == Some(v));
    }
    out
}

fn alert_value(a: &Alert, now: TimestampNs) -> Value {
    let is_resolved = a.is_resolved(now);
    let ends = if is_resolved { Time(a.ends_at).into() } else { Value::Object(Arc::new(NoTime)) };
    Value::map([
        ("Status", if is_resolved { "resolved" } else { "firing" }.into()),
        ("Labels", pairs(a.labels.iter().map(owned).collect())),
        ("Annotations", pairs(a.annotations.clone())),
        ("StartsAt", Time(a.starts_at).into()),
        ("EndsAt", ends),
        ("GeneratorURL", a.generator_url.as_str().into()),
        ("Fingerprint", format!("{:016x}", fingerprint(&a.labels)).into()),
    ])
}

/// Go's zero time: the end of an alert that has none.
#[derive(Debug)]
struct NoTime;

impl Object for NoTime {
    fn field(&self, name: &str) -> Option<Value> {
        Some(match name {
            "IsZero" => true.into(),
            "Unix" => Value::Int(-62_135_596_800),
            "String" => self.plain(),
            _ => return None,
        })
    }

    fn call(&self, name: &str, _args: &[Value]) -> Option<Result<Value, String>> {
        match name {
            "Format" => Some(Ok("0001-01-01 00:00:00".into())),
            "UTC" | "Local" => Some(Ok(Value::Object(Arc::new(Self)))),
            _ => None,
        }
    }

    fn plain(&self) -> Value {
        "0001-01-01 00:00:00 +0000 UTC".into()
    }
}

#[derive(Debug)]
struct Alerts {
    all: Value,
    firing: Value,
    resolved: Value,
}

impl Object for Alerts {
    fn field(&self, name: &str) -> Option<Value> {
        match name {
            "Firing" => Some(self.firing.clone()),
            "Resolved" => Some(self.resolved.clone()),
            _ => None,
        }
    }

    fn plain(&self) -> Value {
        self.all.clone()
    }
}

/// Builds what templates call KV: a map of texts with methods.
pub(crate) fn pairs(map: BTreeMap<String, String>) -> Value {
    Value::Object(Arc::new(Pairs(map)))
}

#[derive(Debug)]
struct Pairs(BTreeMap<String, String>);

impl Pairs {
    /// `alertname` first, then by name.
    fn sorted(&self) -> Vec<(&String, &String)> {
        let mut out: Vec<_> = self.0.iter().collect();
        out.sort_by_key(|(n, _)| n.as_str() != "alertname");
        out
    }
}

fn texts<'a>(list: impl Iterator<Item = &'a String>) -> Value {
    list.map(|s| Value::from(s.as_str())).collect::<Vec<_>>().into()
}

impl Object for Pairs {
    fn field(&self, name: &str) -> Option<Value> {
        Some(match name {
            "SortedPairs" => Value::Object(Arc::new(Sorted(
                self.sorted().into_iter().map(|(n, v)| (n.clone(), v.clone())).collect(),
            ))),
            "Names" => texts(self.sorted().into_iter().map(|p| p.0)),
            "Values" => texts(self.sorted().into_iter().map(|p| p.1)),
            "String" => {
                Sorted(self.sorted().into_iter().map(|(n, v)| (n.clone(), v.clone())).collect())
                    .text()
                    .into()
            }
            // The label of that name; empty without one.
            _ => self.0.get(name).map(String::as_str).unwrap_or_default().into(),
        })
    }

    fn call(&self, name: &str, args: &[Value]) -> Option<Result<Value, String>> {
        if name != "Remove" {
            return None;
        }
        let Some(Value::List(names)) = args.first() else {
            return Some(Err("wrong type for value; expected []string".into()));
        };
        let gone = |n: &String| names.iter().any(|g| g.as_str() == Some(n));
        Some(Ok(pairs(
            self.0.iter().filter(|(n, _)| !gone(n)).map(|(n, v)| (n.clone(), v.clone())).collect(),
        )))
    }

    fn plain(&self) -> Value {
        Value::texts(self.0.clone())
    }
}

#[derive(Debug)]
struct Sorted(Vec<(String, String)>);

impl Sorted {
    fn text(&self) -> String {
        let one = |(n, v): &(String, String)| format!("{n}={v}");
        self.0.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

impl Object for Sorted {
    fn field(&self, name: &str) -> Option<Value> {
        Some(match name {
            "Names" => texts(self.0.iter().map(|p| &p.0)),
            "Values" => texts(self.0.iter().map(|p| &p.1)),
            "String" => self.text().into(),
            _ => return None,
        })
    }

    fn plain(&self) -> Value {
        let one = |(n, v): &(String, String)| {
            Value::map([("Name", n.as_str().into()), ("Value", v.as_str().into())])
        };
        self.0.iter().map(one).collect::<Vec<_>>().into()
    }
}
