//! OTLP's metrics and scraped samples as records.

use crate::context::{Context, Field, Of, scope_field, signed};
use obs_model::{
    AttributeValue, Attributes, Labels, LabelsBuilder, METRIC_NAME, Resource, Sample, SampleValue,
    Scope,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{Metric, NumberDataPoint};
use std::sync::Arc;

/// A metric in its scope and resource.
#[derive(Debug)]
pub(crate) struct OfMetric<'a> {
    pub(crate) resource: &'a mut Arc<Resource>,
    pub(crate) scope: &'a mut Arc<Scope>,
    pub(crate) metric: &'a mut Metric,
}

/// What a metric's data says of it.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    kind: i64,
    temporality: Option<i32>,
    monotonic: Option<bool>,
}

impl Shape {
    pub(crate) fn of(m: &Metric) -> Self {
        let (temporality, monotonic) = match &m.data {
            Some(Data::Sum(x)) => (Some(x.aggregation_temporality), Some(x.is_monotonic)),
            Some(Data::Histogram(x)) => (Some(x.aggregation_temporality), None),
            Some(Data::ExponentialHistogram(x)) => (Some(x.aggregation_temporality), None),
            _ => (None, None),
        };
        Self { kind: type_of(m.data.as_ref()), temporality, monotonic }
    }
}

const fn type_of(data: Option<&Data>) -> i64 {
    match data {
        None => 0,
        Some(Data::Gauge(_)) => 1,
        Some(Data::Sum(_)) => 2,
        Some(Data::Histogram(_)) => 3,
        Some(Data::ExponentialHistogram(_)) => 4,
        Some(Data::Summary(_)) => 5,
    }
}

fn metric_field(m: &Metric, shape: &Shape, field: Field) -> AttributeValue {
    let or_empty = |v: Option<AttributeValue>| v.unwrap_or(AttributeValue::Empty);
    match field {
        Field::Name => m.name.as_str().into(),
        Field::Description => m.description.as_str().into(),
        Field::Unit => m.unit.as_str().into(),
        Field::Type => shape.kind.into(),
        Field::Temporality => or_empty(shape.temporality.map(|t| i64::from(t).into())),
        Field::Monotonic => or_empty(shape.monotonic.map(Into::into)),
        _ => AttributeValue::Empty,
    }
}

fn set_metric_field(m: &mut Metric, field: Field, v: AttributeValue) -> bool {
    match (field, v, &mut m.data) {
        (Field::Name, AttributeValue::String(s), _) => m.name = s,
        (Field::Description, AttributeValue::String(s), _) => m.description = s,
        (Field::Unit, AttributeValue::String(s), _) => m.unit = s,
        (Field::Monotonic, AttributeValue::Bool(b), Some(Data::Sum(x))) => x.is_monotonic = b,
        _ => return false,
    }
    true
}

fn shared<'a>(of: Of, resource: &'a Resource, scope: &'a Scope) -> Option<&'a Attributes> {
    match of {
        Of::Resource => Some(&resource.attributes),
        Of::Scope => Some(&scope.attributes),
        _ => None,
    }
}

fn shared_mut<'a>(
    of: Of,
    resource: &'a mut Arc<Resource>,
    scope: &'a mut Arc<Scope>,
) -> Option<&'a mut Attributes> {
    match of {
        Of::Resource => Some(&mut Arc::make_mut(resource).attributes),
        Of::Scope => Some(&mut Arc::make_mut(scope).attributes),
        _ => None,
    }
}

impl Context for OfMetric<'_> {
    fn attributes(&self, of: Of) -> Option<&Attributes> {
        shared(of, self.resource, self.scope)
    }

    fn attributes_mut(&mut self, of: Of) -> Option<&mut Attributes> {
        shared_mut(of, self.resource, self.scope)
    }

    fn field(&self, of: Of, field: Field) -> AttributeValue {
        if of == Of::Scope {
            return scope_field(self.scope, field);
        }
        metric_field(self.metric, &Shape::of(self.metric), field)
    }

    fn set_field(&mut self, of: Of, field: Field, v: AttributeValue) -> bool {
        of == Of::Metric && set_metric_field(self.metric, field, v)
    }
}

/// What all kinds of points have.
pub(crate) trait Point {
    fn attributes(&mut self) -> &mut Vec<KeyValue>;
    fn field(&self, field: Field) -> AttributeValue;
    fn set(&mut self, field: Field, v: AttributeValue) -> bool;
}

impl Point for NumberDataPoint {
    fn attributes(&mut self) -> &mut Vec<KeyValue> {
        &mut self.attributes
    }

    fn field(&self, field: Field) -> AttributeValue {
        match (field, self.value) {
            (Field::Double, Some(Value::AsDouble(d))) => d.into(),
            (Field::Double, Some(Value::AsInt(_))) => 0.0.into(),
            (Field::Int, Some(Value::AsInt(i))) => i.into(),
            (Field::Int, Some(Value::AsDouble(_))) => 0.into(),
            (Field::Time, _) => signed(self.time_unix_nano),
            (Field::Start, _) => signed(self.start_time_unix_nano),
            _ => AttributeValue::Empty,
        }
    }

    fn set(&mut self, field: Field, v: AttributeValue) -> bool {
        match (field, v) {
            (Field::Double, AttributeValue::Double(d)) => self.value = Some(Value::AsDouble(d)),
            (Field::Int, AttributeValue::Int(i)) => self.value = Some(Value::AsInt(i)),
            (Field::Time, AttributeValue::Int(i)) => self.time_unix_nano = i.max(0).cast_unsigned(),
            _ => return false,
        }
        true
    }
}

/// Points that have a count and a sum.
macro_rules! summed {
    ($($t:ident: $sum:expr),*) => {$(
        impl Point for opentelemetry_proto::tonic::metrics::v1::$t {
            fn attributes(&mut self) -> &mut Vec<KeyValue> {
                &mut self.attributes
            }

            fn field(&self, field: Field) -> AttributeValue {
                match field {
                    Field::Count => signed(self.count),
                    Field::Sum => $sum(self.sum),
                    Field::Time => signed(self.time_unix_nano),
                    Field::Start => signed(self.start_time_unix_nano),
                    _ => AttributeValue::Empty,
                }
            }

            fn set(&mut self, field: Field, v: AttributeValue) -> bool {
                match (field, v) {
                    (Field::Time, AttributeValue::Int(i)) => {
                        self.time_unix_nano = i.max(0).cast_unsigned();
                        true
                    }
                    _ => false,
                }
            }
        }
    )*};
}

fn present(v: Option<f64>) -> AttributeValue {
    v.map_or(AttributeValue::Empty, Into::into)
}

summed!(
    HistogramDataPoint: present,
    ExponentialHistogramDataPoint: present,
    SummaryDataPoint: AttributeValue::from
);

/// A point in its metric. The points are out of the metric meanwhile.
pub(crate) struct OfPoint<'a> {
    pub(crate) resource: &'a mut Arc<Resource>,
    pub(crate) scope: &'a mut Arc<Scope>,
    pub(crate) metric: &'a mut Metric,
    pub(crate) shape: Shape,
    pub(crate) attributes: Attributes,
    pub(crate) point: &'a mut dyn Point,
}

impl Context for OfPoint<'_> {
    fn attributes(&self, of: Of) -> Option<&Attributes> {
        if of == Of::Point {
            return Some(&self.attributes);
        }
        shared(of, self.resource, self.scope)
    }

    fn attributes_mut(&mut self, of: Of) -> Option<&mut Attributes> {
        if of == Of::Point {
            return Some(&mut self.attributes);
        }
        shared_mut(of, self.resource, self.scope)
    }

    fn field(&self, of: Of, field: Field) -> AttributeValue {
        match of {
            Of::Scope => scope_field(self.scope, field),
            Of::Point => self.point.field(field),
            _ => metric_field(self.metric, &self.shape, field),
        }
    }

    fn set_field(&mut self, of: Of, field: Field, v: AttributeValue) -> bool {
        match of {
            Of::Point => self.point.set(field, v),
            Of::Metric => set_metric_field(self.metric, field, v),
            _ => false,
        }
    }
}

/// Shows every point of a metric; those that `f` returns false of are removed.
pub(crate) fn retain_points(data: &mut Data, f: &mut dyn FnMut(&mut dyn Point) -> bool) {
    match data {
        Data::Gauge(x) => x.data_points.retain_mut(|p| f(p)),
        Data::Sum(x) => x.data_points.retain_mut(|p| f(p)),
        Data::Histogram(x) => x.data_points.retain_mut(|p| f(p)),
        Data::ExponentialHistogram(x) => x.data_points.retain_mut(|p| f(p)),
        Data::Summary(x) => x.data_points.retain_mut(|p| f(p)),
    }
}

pub(crate) fn point_count(data: &Data) -> usize {
    match data {
        Data::Gauge(x) => x.data_points.len(),
        Data::Sum(x) => x.data_points.len(),
        Data::Histogram(x) => x.data_points.len(),
        Data::ExponentialHistogram(x) => x.data_points.len(),
        Data::Summary(x) => x.data_points.len(),
    }
}

/// A scraped sample: its labels are the point's attributes, `job` and `instance` the resource's.
#[derive(Debug)]
pub(crate) struct OfSample {
    resource: Resource,
    name: String,
    labels: Attributes,
    value: Option<f64>,
    is_changed: bool,
}

impl OfSample {
    pub(crate) fn new(labels: &Labels, sample: &Sample) -> Self {
        let resource: [(&str, &str); 2] =
            [("job", "service.name"), ("instance", "service.instance.id")];
        let attributes = resource.iter().map(|(l, a)| (*a, labels.get(l))).collect::<Attributes>();
        Self {
            resource: Resource { attributes },
            name: labels.get(METRIC_NAME).to_owned(),
            labels: labels.iter().filter(|(n, _)| *n != METRIC_NAME).collect(),
            value: if let SampleValue::Float(v) = &sample.value { Some(*v) } else { None },
            is_changed: false,
        }
    }

    /// Returns the labels as they are now, if anything changed.
    pub(crate) fn labels(&self) -> Option<Labels> {
        self.is_changed.then(|| {
            let mut b = LabelsBuilder::default();
            for (k, v) in self.labels.iter() {
                b.set(&obs_codec::otlp::label_name(k), &v.to_string());
            }
            b.set(METRIC_NAME, &self.name);
            b.build()
        })
    }
}

impl Context for OfSample {
    fn attributes(&self, of: Of) -> Option<&Attributes> {
        match of {
            Of::Resource => Some(&self.resource.attributes),
            Of::Point => Some(&self.labels),
            _ => None,
        }
    }

    fn attributes_mut(&mut self, of: Of) -> Option<&mut Attributes> {
        match of {
            Of::Resource => Some(&mut self.resource.attributes),
            Of::Point => {
                self.is_changed = true;
                Some(&mut self.labels)
            }
            _ => None,
        }
    }

    fn field(&self, of: Of, field: Field) -> AttributeValue {
        match (of, field) {
            (Of::Metric, Field::Name) => self.name.as_str().into(),
            (Of::Point, Field::Double) => present(self.value),
            _ => AttributeValue::Empty,
        }
    }

    fn set_field(&mut self, of: Of, field: Field, v: AttributeValue) -> bool {
        match (of, field, v) {
            (Of::Metric, Field::Name, AttributeValue::String(s)) => {
                self.name = s;
                self.is_changed = true;
                true
            }
            _ => false,
        }
    }
}
