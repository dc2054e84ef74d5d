//! Bugs planted in the world, each as if the backend had it. The driver must notice every one of them.

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Canary {
    /// Manifests come before their fragments: an OSD says a fragment is durable a while before it is.
    ManifestFirst,
    /// What OSDs answer is believed.
    UncheckedFragment,
    /// The collector does without the guard on epochs.
    NoEpochGuard,
    /// A fragment's file goes before the manifest that no longer names it is there.
    DroppedFirst,
    /// A put does not look whether its name is free.
    UnguardedPut,
    /// A commit whose answer is lost is made by half.
    HalfCommit,
    /// What an object lacks is not made anew.
    Unrepaired,
    /// Files that no manifest names stay.
    Uncollected,
    /// Work that is done is not taken off the list.
    UnendingWork,
}
