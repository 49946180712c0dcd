//! `moorline perf`: reads and writes a target, measures, and reports under stated conditions.

pub mod measure;
pub mod report;
pub mod workload;
