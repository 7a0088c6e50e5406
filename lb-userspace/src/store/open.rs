//! From `[store]` to a store.

use std::sync::Arc;

use super::{Store, StoreError};
use crate::model::StoreConfig;

/// A store as `[store]` says; nothing is connected yet.
///
/// # Errors
/// [`StoreError::Refused`] for a kind that is none of these, or files that cannot be read.
pub fn open(config: &StoreConfig) -> Result<Arc<dyn Store>, StoreError> {
    Err(StoreError::Refused(format!("stores of kind \"{}\" cannot be reached", config.kind())))
}
