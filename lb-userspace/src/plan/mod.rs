//! Pure decisions: from a configuration and what was observed to what the maps shall hold.
