//! What a service says of its own state.

/// Whether a service's state fits together, by the service's own check of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inspection {
    /// What there is, by name.
    pub counts: Vec<(&'static str, u64)>,
    /// One sentence for each thing that is wrong.
    pub faults: Vec<String>,
}
