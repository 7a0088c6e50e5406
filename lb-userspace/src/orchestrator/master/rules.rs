//! What rules make of their metrics: more, fewer, others; and nodes that are dead for good.

use std::{collections::BTreeSet, sync::Arc};

use super::{Answer, Look, Master, Values, replace_key, scaling_key};
use crate::orchestrator::{
    intent::Phase,
    record::Record,
    replace,
    scale::{Inputs, Subject, Verdict},
};

impl Master {
    /// Removes created nodes that are dead for good; they count for nothing any more, but still cost.
    pub(super) fn sweep(&mut self, look: &mut Look<'_>) {
        let view = look.view;
        let Some(rule) = self.policy.scaling.iter().find(|rule| rule.subject == Subject::Nodes) else { return };
        let rule = scaling_key(rule);
        if self.policy.dry_run {
            return;
        }
        let nodes = || view.intents.values().map(|at| &at.value).filter(|one| one.subject == Subject::Nodes);
        let created = nodes().filter(|one| one.phase == Phase::Done).filter_map(|one| one.creates.as_ref());
        let gone: BTreeSet<&String> = nodes().filter_map(|one| one.removes.as_ref()).collect();
        let busy: BTreeSet<&String> =
            nodes().filter(|one| one.phase != Phase::Done).filter_map(|one| one.creates.as_ref()).collect();
        let dead: BTreeSet<String> = created
            .chain(view.nodes.keys().filter(|name| self.is_created(name)))
            .filter(|name| !gone.contains(name) && !busy.contains(name))
            .filter(|name| look.watch.is_dead(name, self.policy.dead_after))
            .cloned()
            .collect();
        for name in dead {
            let intent = self.intent(look, &rule, Subject::Nodes, None, Some(name.clone()), Phase::Remove);
            let values = Values::default().with("node", &name).with("dead_after_s", self.policy.dead_after.as_secs());
            let outcome = format!("{name} is dead for good: remove it");
            self.decide_that(look, &rule, outcome, values, vec![intent.id.clone()]);
            self.put(look, Record::Intent(intent));
        }
    }

    pub(super) fn scale(&mut self, look: &mut Look<'_>) {
        let policy = Arc::clone(&self.policy);
        for rule in &policy.scaling {
            let key = scaling_key(rule);
            let Some(Answer::Value(value)) = self.answers.remove(&key) else { continue };
            let (current, pending, leaving) = self.census(look, &rule.subject);
            let inputs = Inputs { current, pending, leaving, value };
            let evaluation = rule.evaluate(self.memories.entry(key.clone()).or_default(), inputs, look.now);
            let verdict = match &evaluation.verdict {
                // What has to be removed must not already be on its way, by whatever rule.
                Verdict::Down(_) if self.is_busy(look.view, &rule.subject) => continue,
                verdict => verdict.clone(),
            };
            let words = verdict.to_string();
            // In a dry run nothing follows from a verdict, and the next look comes to the same one.
            let is_lasting = policy.dry_run || matches!(verdict, Verdict::Hold(_));
            if is_lasting && !self.is_news(&key, &words) {
                continue;
            }
            self.told.insert(key.clone(), words.clone());
            let intents = match (&verdict, policy.dry_run) {
                (Verdict::Hold(_), _) | (_, true) => Vec::new(),
                (Verdict::Up(by), _) => (0..*by)
                    .map(|_| self.intent(look, &key, rule.subject.clone(), Some(()), None, Phase::Create))
                    .collect(),
                (Verdict::Down(_), _) => {
                    let Some(victim) = self.victim(look, &rule.subject) else { continue };
                    vec![self.intent(look, &key, rule.subject.clone(), None, Some(victim), Phase::Drain)]
                }
            };
            let outcome = if policy.dry_run { format!("dry run: {words}") } else { words };
            let ids = intents.iter().map(|intent| intent.id.clone()).collect();
            self.decide_that(look, &key, outcome, Values::of(rule, &evaluation), ids);
            intents.into_iter().for_each(|intent| self.put(look, Record::Intent(intent)));
        }
    }

    pub(super) fn replace(&mut self, look: &mut Look<'_>) {
        let policy = Arc::clone(&self.policy);
        for rule in &policy.replace {
            let key = replace_key(rule);
            let named = match self.answers.remove(&key) {
                Some(Answer::Instances(Ok(named))) => named,
                // Nothing said is nothing known: the time neither grows nor is forgotten.
                Some(Answer::Instances(Err(why))) => {
                    let words = format!("hold: metric missing, {why}");
                    if self.is_news(&key, &words) {
                        self.decide_that(look, &key, words, Values::default(), Vec::new());
                    }
                    continue;
                }
                _ => continue,
            };
            let before = look.view.suspects.get(&rule.name).map(|at| at.value.clone()).unwrap_or_default();
            let after = replace::update(&before, &named, rule.every, look.unix);
            if after != before {
                self.put(look, Record::Suspects(rule.name.clone(), after.clone()));
            }
            let Some((instance, held)) = replace::ripest(&after, rule.after) else {
                self.told.remove(&key);
                continue;
            };
            let Some(old) = self.named(look, &rule.subject, instance) else {
                let words = format!("{instance} is no part of {}", rule.subject);
                if self.is_news(&key, &words) {
                    self.decide_that(look, &key, words, Values::default(), Vec::new());
                }
                continue;
            };
            let values = Values::default()
                .with("instance", instance)
                .with("held_s", held.as_secs())
                .with("for_s", rule.after.as_secs())
                .with("named", named.len());
            if self.is_busy(look.view, &rule.subject) {
                if self.is_news(&key, "busy") {
                    let words = format!("{old} is to be replaced, after what is being done is done");
                    self.decide_that(look, &key, words, values, Vec::new());
                }
                continue;
            }
            let words = format!("replace {old}");
            if policy.dry_run {
                if self.is_news(&key, &words) {
                    self.decide_that(look, &key, format!("dry run: {words}"), values, Vec::new());
                }
                continue;
            }
            let intent = self.intent(look, &key, rule.subject.clone(), Some(()), Some(old), Phase::Create);
            self.told.insert(key.clone(), words.clone());
            self.decide_that(look, &key, words, values, vec![intent.id.clone()]);
            self.put(look, Record::Intent(intent));
        }
    }
}
