//! Why the controller ends.

/// What the controller cannot go on from. Everything else it tries again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The task that stands for election ended.
    #[error("nobody stands for election any more")]
    Election,
    /// The watches ended.
    #[error("the watches ended")]
    Watches,
    /// Two workers could be at one mailbox.
    #[error("the timing is not safe")]
    Timing(#[from] crate::domain::shards::timing::TimingError),
}

impl Error {
    /// Whether a restarted process may fare better.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Timing(_))
    }

    /// A word of a closed list, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Election => "election",
            Self::Watches => "watches",
            Self::Timing(_) => "timing",
        }
    }
}
