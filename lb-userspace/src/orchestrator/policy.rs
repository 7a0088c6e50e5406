//! From the configuration to what the orchestrator is told to do, and to who carries out its rules.

use std::collections::BTreeMap;

use super::{
    execute::Executor,
    intent::Patience,
    master::{Policy, ZonePolicy},
    replace,
    scale::{self, Subject},
};
use crate::{
    dns::{publish::ZoneSpec, zone::SoaObject},
    model::orchestrator::{OrchestratorConfig, RuleExecutor, RuleTarget, ZoneConfig},
};

fn subject(of: &RuleTarget) -> Subject {
    match of {
        RuleTarget::Nodes => Subject::Nodes,
        RuleTarget::Service(name) => Subject::Backends(name.clone()),
    }
}

fn zone(config: &ZoneConfig) -> ZonePolicy {
    // The first name server stands for the primary; `weir dns` is a hidden one.
    let primary = config.ns.first().cloned().unwrap_or_default();
    let spec = ZoneSpec {
        origin: config.origin.clone(),
        ttl_s: config.ttl_s,
        soa: SoaObject::new(primary, config.contact.clone()),
        ns: config.ns.clone(),
        fixed: config.fixed.clone(),
    };
    ZonePolicy { spec, names: config.names.clone() }
}

/// The policy of `config`.
pub fn policy(config: &OrchestratorConfig, dry_run: bool) -> Policy {
    let scaling = config.scaling.iter().map(|rule| scale::Rule {
        name: rule.name.clone(),
        subject: subject(&rule.of),
        expr: rule.expr.clone(),
        target: rule.target,
        tolerance: rule.tolerance,
        min: rule.min,
        max: rule.max,
        down_window: rule.down_window,
        settle: rule.settle,
        every: rule.every,
    });
    let replace = config.replace.iter().map(|rule| replace::Rule {
        name: rule.name.clone(),
        subject: subject(&rule.of),
        expr: rule.expr.clone(),
        label: rule.label.clone(),
        after: rule.after,
        every: rule.every,
    });
    Policy {
        zone: config.zone.as_ref().map(zone),
        vantage_points: config.vantage_points,
        scaling: scaling.collect(),
        replace: replace.collect(),
        patience: Patience { ready: config.ready_timeout, drain: config.drain_timeout, ..Patience::default() },
        prefix: config.prefix.clone(),
        dead_after: config.dead_after,
        dry_run,
    }
}

/// The executors of `config`, by the names of rules that orders carry.
pub fn executors(config: &OrchestratorConfig) -> BTreeMap<String, Executor> {
    let executor = |one: &RuleExecutor| match one.clone() {
        RuleExecutor::Exec { program, arguments, timeout } => Executor::Exec { program, arguments, timeout },
        RuleExecutor::Webhook { url, timeout } => Executor::Webhook { url, timeout },
    };
    let scaling = config.scaling.iter().map(|rule| (format!("scaling/{}", rule.name), rule.executor.as_ref()));
    let replace = config.replace.iter().map(|rule| (format!("replace/{}", rule.name), rule.executor.as_ref()));
    scaling.chain(replace).filter_map(|(name, one)| Some((name, executor(one?)))).collect()
}
