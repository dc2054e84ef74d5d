//! Maintenance, the half that decides: how safe objects are, what is to be moved where, how fast, and who does it. Pure: time,
//! fill levels and what was read from the NSM are arguments. The half that waits is `alba::agent`.

pub mod lease;
pub mod pace;
pub mod rebalance;
pub mod safety;
pub mod settings;
pub mod work;

pub use safety::{Bucket, Report, Standing, World};
pub use settings::Settings;
pub use work::{Counts, Item, ItemKey, JobId, State, Task};
