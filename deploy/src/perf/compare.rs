//! Comparisons: interleaved rounds, medians, ratios. A figure of one run says little on a machine
//! that others use too; a ratio of medians of interleaved runs says something.

use super::floor::Floor;
use super::report::{Ratio, Run, median, spread};

/// What one run, or one floor, came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Median latency, µs.
    pub p50: f64,
    /// 99 % latency, µs.
    pub p99: f64,
    /// Rate per second.
    pub iops: f64,
}

impl From<&Run> for Sample {
    fn from(run: &Run) -> Self {
        Self { p50: run.lat_us.p50, p99: run.lat_us.p99, iops: run.iops }
    }
}

impl From<&Floor> for Sample {
    fn from(floor: &Floor) -> Self {
        Self { p50: floor.p50_us, p99: floor.p99_us, iops: floor.rate }
    }
}

impl Sample {
    /// Each figure's median.
    pub fn median(samples: &[Self]) -> Self {
        let of = |field: fn(&Self) -> f64| median(samples.iter().map(field));
        Self { p50: of(|s| s.p50), p99: of(|s| s.p99), iops: of(|s| s.iops) }
    }
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// fio's name of the workload.
    pub rw: &'static str,
    /// Bytes per I/O.
    pub bs: u32,
    /// I/Os under way per qpair.
    pub iodepth: u16,
    /// The interface's MTU.
    pub mtu: usize,
}

/// `a` divided by `b`, which were taken by turns.
pub fn ratio(subject: Subject, of: &'static str, a: &[Sample], b: &[Sample]) -> Ratio {
    let (ma, mb) = (Sample::median(a), Sample::median(b));
    let by_round: Vec<f64> = a.iter().zip(b).map(|(a, b)| a.iops / b.iops).collect();
    Ratio {
        rw: subject.rw,
        bs: subject.bs,
        iodepth: subject.iodepth,
        mtu: subject.mtu,
        of,
        p50: ma.p50 / mb.p50,
        p99: ma.p99 / mb.p99,
        iops: ma.iops / mb.iops,
        rounds: by_round.len(),
        spread: spread(&by_round),
        floor_p50_us: None,
        floor_iops: None,
        plain_socket_p50_us: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_medians_and_its_spread_of_rounds() {
        let subject = Subject { rw: "randread", bs: 4096, iodepth: 1, mtu: 1500 };
        let sample = |p50: f64, iops: f64| Sample { p50, p99: 2.0 * p50, iops };
        let a = [sample(10.0, 100.0), sample(8.0, 120.0), sample(90.0, 10.0)];
        let b = [sample(20.0, 50.0), sample(20.0, 60.0), sample(20.0, 50.0)];
        let ratio = ratio(subject, "xdp/kernel", &a, &b);
        assert_eq!((ratio.p50, ratio.p99, ratio.iops), (0.5, 0.5, 2.0));
        assert_eq!((ratio.rounds, ratio.spread), (3, (2.0 - 0.2) / 2.0));
    }
}
