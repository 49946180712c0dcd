//! `moorline perf`: reads and writes a target, measures, and reports under stated conditions.

pub mod child;
pub mod command;
pub mod compare;
pub mod demo;
pub mod engine;
pub mod exchange;
pub mod floor;
pub mod load;
pub mod measure;
pub mod plain;
pub mod progress;
pub mod report;
pub mod rigged;
pub mod series;
pub mod table;
pub mod workload;

pub use command::run;
