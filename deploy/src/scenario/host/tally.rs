//! What verify loads have come to.

use serde_json::{Value, json};

/// Findings that are told in words.
const TOLD_MAX: usize = 8;

/// What loads have come to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Reads that ended well: each checks a block.
    pub reads: u64,
    /// Writes that did.
    pub writes: u64,
    /// Blocks that hold what no write left there.
    pub wrong: u64,
    /// Blocks where an acknowledged write is not.
    pub lost: u64,
    /// Blocks where an old write came back.
    pub repeated: u64,
    /// Commands that the host took.
    pub submitted: u64,
    /// Ends that it told.
    pub completed: u64,
    /// Ends of commands that had ended, or never begun.
    pub double: u64,
    /// Ends with the path.
    pub path_errors: u64,
    /// Ends with any other error.
    pub errors: u64,
    /// Blocks that were not read in the end.
    pub unread: u64,
    /// Findings in words.
    pub told: Vec<String>,
}

impl Tally {
    /// Tells something in words, while there are few.
    pub fn tell(&mut self, what: String) {
        if self.told.len() < TOLD_MAX {
            self.told.push(what);
        }
    }

    /// Takes in what another came to.
    pub fn add(&mut self, other: Self) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.wrong += other.wrong;
        self.lost += other.lost;
        self.repeated += other.repeated;
        self.submitted += other.submitted;
        self.completed += other.completed;
        self.double += other.double;
        self.path_errors += other.path_errors;
        self.errors += other.errors;
        self.unread += other.unread;
        self.told.extend(other.told);
        self.told.truncate(TOLD_MAX);
    }

    /// For the report: each read checks a block.
    pub fn report(&self) -> Value {
        json!({
            "blocks": self.reads, "mismatches": self.wrong, "lost": self.lost,
            "repeated": self.repeated, "writes": self.writes, "unread": self.unread,
            "submitted": self.submitted, "completed": self.completed, "double": self.double,
            "missing": (self.submitted + self.double).saturating_sub(self.completed),
            "path_errors": self.path_errors, "errors": self.errors, "told": self.told,
        })
    }
}
