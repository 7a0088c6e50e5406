//! The fleet: DNS servers as processes of their own, with the real servers that people run beside them; the orchestrator's
//! questions and rules with the real Prometheus.

mod dns;
mod prometheus;
