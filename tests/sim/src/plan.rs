//! What a seed draws before its run begins: how many nodes, with which sizes and timeouts, and
//! which faults befall them at all (swarm: each run has a few kinds, at rates of its own).

use std::time::Duration;

use moorline_nvme::host::{CtrlConfig, Quiesce, Reconnect, Requeue};
use moorline_nvme::target::{Fault, Hold, TargetConfig};
use moorline_stack::pipe::PipeOptions;
use moorline_stack::rng::Rng;

use crate::disk::DiskOptions;

pub(crate) const US: Duration = Duration::from_micros(1);
pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const S: Duration = Duration::from_secs(1);

/// What befalls a node now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Nothing reaches a target, nor comes from it, for a while.
    Dark,
    /// All connections of a target are reset by it.
    Reset,
    /// A target gets no turn for a while.
    FreezeTarget,
    /// A host gets no turn for a while.
    FreezeHost,
    /// A disk ends nothing for a while.
    DiskStuck,
    /// The caller resets a controller.
    ResetController,
    /// One of the target's own faults, for a while.
    Wrong,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Dark,
        Self::Reset,
        Self::FreezeTarget,
        Self::FreezeHost,
        Self::DiskStuck,
        Self::ResetController,
        Self::Wrong,
    ];

    /// As reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dark => "dark",
            Self::Reset => "reset",
            Self::FreezeTarget => "freeze_target",
            Self::FreezeHost => "freeze_host",
            Self::DiskStuck => "disk_stuck",
            Self::ResetController => "reset_controller",
            Self::Wrong => "wrong",
        }
    }
}

/// A run, before it begins.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Blocks of a disk; few, so that they are written often.
    pub blocks: u64,
    /// Blocks of an I/O, at most.
    pub io_blocks: u64,
    /// From one round of submissions to the next, at most.
    pub pace: Duration,
    /// Submissions of a round, at most.
    pub round: u64,
    /// Share of reads.
    pub reads: f64,
    /// A node's turn takes this.
    pub turn: Duration,
    /// How long faults come.
    pub safety: Duration,
    /// What faults there are.
    pub kinds: Vec<Kind>,
    /// From one to the next, at most.
    pub fault_pause: Duration,
    /// How long each lasts, at most.
    pub fault_time: Duration,
    /// The network of the `bytes` level.
    pub pipe: PipeOptions,
    /// Every disk.
    pub disk: DiskOptions,
    /// Every target.
    pub target: TargetConfig,
    /// Every controller, but for its address.
    pub ctrl: CtrlConfig,
}

/// One of these.
fn one<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.below(of.len() as u64) as usize]
}

impl Plan {
    /// What `rng` draws.
    pub fn draw(rng: &mut Rng) -> Self {
        let mut kinds: Vec<_> = Kind::ALL.into_iter().filter(|_| rng.chance(0.35)).collect();
        if rng.chance(0.1) {
            kinds.clear();
        }
        Self {
            blocks: one(rng, &[64, 128, 512]),
            io_blocks: one(rng, &[1, 8, 40]),
            pace: one(rng, &[200 * US, MS, 5 * MS, 50 * MS]),
            round: one(rng, &[1, 4, 32]),
            reads: one(rng, &[0.1, 0.5, 0.5, 0.8]),
            turn: one(rng, &[US, 5 * US, 50 * US]),
            safety: one(rng, &[2 * S, 10 * S, 30 * S]),
            kinds,
            fault_pause: one(rng, &[200 * MS, S, 5 * S]),
            fault_time: one(rng, &[20 * MS, 500 * MS, 3 * S, 10 * S]),
            pipe: draw_pipe(rng),
            disk: draw_disk(rng),
            target: draw_target(rng),
            ctrl: draw_ctrl(rng),
        }
    }

    /// Whether nothing at all goes wrong in this run.
    pub fn is_calm(&self) -> bool {
        let is_slow = self.disk.slow > 0.0 && self.disk.slow_by >= S; // I/O may time out
        self.kinds.is_empty() && self.pipe.reset == 0.0 && self.disk.errors == 0.0 && !is_slow
    }
}

fn draw_pipe(rng: &mut Rng) -> PipeOptions {
    PipeOptions {
        delay: one(rng, &[5 * US, 50 * US, 500 * US]),
        cut_max: one(rng, &[0, 0, 7, 400, 5000]),
        stall: one(rng, &[0.0, 0.0, 0.001, 0.01]),
        stall_by: one(rng, &[MS, 50 * MS]),
        reset: one(rng, &[0.0, 0.0, 0.0, 1e-5, 1e-4]),
        window_max: one(rng, &[usize::MAX, usize::MAX, 20_000, 3000]),
        ..PipeOptions::default()
    }
}

fn draw_disk(rng: &mut Rng) -> DiskOptions {
    DiskOptions {
        latency: one(rng, &[Duration::ZERO, 50 * US, 2 * MS]),
        depth: one(rng, &[1, 8, 256, 256]),
        slow: one(rng, &[0.0, 0.0, 0.001, 0.05]),
        slow_by: one(rng, &[20 * MS, S, 4 * S]),
        errors: one(rng, &[0.0, 0.0, 0.0, 0.001, 0.05]),
        volatile: rng.chance(0.5),
    }
}

fn draw_target(rng: &mut Rng) -> TargetConfig {
    TargetConfig {
        in_capsule_bytes: one(rng, &[0, 512, 4096, 8192]),
        h2c_data_bytes_max: one(rng, &[4096, 8192, 128 << 10]),
        mdts: one(rng, &[1, 2, 8]),
        mqes: one(rng, &[31, 127]),
        tbkas: rng.chance(0.3),
        controllers_max: 64,
        conns_max: 256,
        in_capsule_buffers: one(rng, &[1, 2, 64]),
        small_buffers: one(rng, &[1, 2, 64]),
        medium_buffers: one(rng, &[1, 2, 16]),
        large_buffers: one(rng, &[1, 2, 4]),
        ..TargetConfig::default()
    }
}

fn draw_ctrl(rng: &mut Rng) -> CtrlConfig {
    let mut ctrl = CtrlConfig::new(([0, 0, 0, 0], 0).into(), "");
    ctrl.io_queues = one(rng, &[1, 1, 2, 4]);
    ctrl.queue_size = one(rng, &[2, 4, 32, 128]);
    ctrl.kato = one(rng, &[500 * MS, S, 2 * S]);
    ctrl.hdgst = rng.chance(0.4);
    ctrl.ddgst = rng.chance(0.4);
    ctrl.hpda = one(rng, &[0, 0, 7]);
    ctrl.sq_flow_control = rng.chance(0.5);
    ctrl.timeouts.io = one(rng, &[2 * S, 5 * S, 30 * S]);
    let delay_max = one(rng, &[100 * MS, 500 * MS, 2 * S]);
    ctrl.reconnect = Some(Reconnect { delay_max, ..Reconnect::default() });
    let fast_io_fail = one(rng, &[15 * S, 25 * S]);
    let requeue = Requeue { fast_io_fail, quiesce: Quiesce::Auto };
    ctrl.requeue = rng.chance(0.7).then_some(requeue);
    if rng.chance(0.2) {
        ctrl.standby = 1;
    }
    ctrl
}

/// One of the target's own faults, and the share of what it meets.
pub fn draw_wrong(rng: &mut Rng) -> (Fault, f64) {
    let late = Fault::Late(rng.duration(3 * S));
    let fault = one(
        rng,
        &[
            Fault::PortClosed,
            Fault::WithholdWindow,
            Fault::Hold(Hold::IcReq),
            Fault::Hold(Hold::Connect),
            Fault::Hold(Hold::Property),
            Fault::Hold(Hold::KeepAlive),
            Fault::Hold(Hold::Io),
            Fault::Hold(Hold::Completions),
            late,
            Fault::CloseMidPdu,
            Fault::FlipDigest,
            Fault::WrongDatao,
            Fault::TermReq(3),
            Fault::Busy,
        ],
    );
    (fault, one(rng, &[0.001, 0.02, 0.3, 1.0]))
}
