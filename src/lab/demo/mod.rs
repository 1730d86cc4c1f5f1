//! The work of `castra demo`: clients of the key-value service whose every answer is recorded and checked afterwards.

mod model;
mod record;
mod work;
mod worker;

pub use model::StoreModel;
pub use record::{Operations, Phase, PhaseFigures, Phases, Record, Verdict};
pub use work::{DemoError, Job, Progress, close, work};
