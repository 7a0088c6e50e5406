//! The fleet: DNS servers as processes of their own, with the real servers that people run beside them; orchestrators on
//! a real Redis, and their questions and rules with the real Prometheus.

mod dns;
mod orchestrator;
mod prometheus;
