//! Collects what others expose: reads prometheus.yml, discovers targets, relabels and scrapes.
//!
//! [`config`] is the file, [`relabel`] its rules, [`discovery`] finds targets, [`target`] makes a
//! target of what was found, [`scrape`] reads one target in a loop, [`manager`] keeps loops and
//! discovery in step with the configuration. What was read goes to a [`Sink`].

pub mod alertmanagers;
pub mod config;
pub mod discovery;
pub mod http;
pub mod manager;
pub mod otlp;
pub mod relabel;
pub mod remote;
pub mod scrape;
pub mod target;

use obs_model::{Exemplar, Labels, MetricMetadata, Sample};
use std::future::Future;
use std::pin::Pin;

/// What a scrape brought.
#[derive(Debug, Default)]
pub struct Batch {
    pub points: Vec<(Labels, Sample)>,
    pub metadata: Vec<MetricMetadata>,
    pub exemplars: Vec<(Labels, Exemplar)>,
}

pub type SinkFuture<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// Takes what was collected.
pub trait Sink: Send + Sync {
    /// Returns why a series may not be stored at all, such as too many labels.
    ///
    /// # Errors
    /// With the limit that it is over.
    fn admit(&self, labels: &Labels) -> Result<(), String>;

    /// Stores a batch. Samples that are refused one by one are told in the log; the others are
    /// stored.
    fn write(&self, batch: Batch) -> SinkFuture<'_>;
}
