//! What Trefoil's daemons tell Prometheus.
//!
//! | module | what |
//! |---|---|
//! | [`histogram`] | how long things take: an array of counts, for hot paths |
//! | [`text`] | the text format |
//! | [`exporter`] | `GET /metrics`, bounded in every direction |
//! | [`listen`] | where that listens: the configuration key `metrics_listen` |
//! | [`process`] | what the kernel says of the process |
//!
//! There is no registry and no metric that exists twice. A daemon has plain counters, where they are counted;
//! at a scrape its thread copies them into a snapshot, which takes microseconds, and another thread makes text
//! of it. So no I/O of a client ever meets a lock, an allocation or the look-up of a label because of metrics.
//!
//! What this crate may not do: know what is measured. The daemons' own `metrics` modules name the families.

pub mod exporter;
pub mod histogram;
pub mod listen;
pub mod process;
pub mod text;

pub use exporter::serve;
pub use histogram::Histogram;
pub use listen::{Listen, NotLoopback};
pub use text::{Family, Kind, Text};
