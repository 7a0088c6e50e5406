//! The fleet's parts against the real programs of others: Prometheus and its rules.

mod prometheus;
