//! What goes wrong.

use lb_userspace::orchestrator::scale::Missing;
use rand::RngExt;

use super::{
    run::{Event, Run},
    world::{FAULTS_END_US, PROCESSES},
};

impl Run {
    pub(super) fn fault(&mut self) {
        if self.now_us > FAULTS_END_US || self.faults_left == 0 {
            self.store.catch_up();
            return;
        }
        self.faults_left -= 1;
        let next = self.random.random_range(500_000..35_000_000);
        self.at(next, Event::Fault);
        let at = self.random.random_range(0..PROCESSES);
        let length = self.random.random_range(1_000_000..40_000_000);
        let until_us = self.now_us + length;
        let kind = self.random.random_range(0..15);
        self.trace(|_| Some(format!("fault {kind} at o{at} for {} ms", length / 1000)));
        match kind {
            0 | 1 => {
                self.orchestrators[at].process = None;
                self.orchestrators[at].share.clear();
                self.at(length, Event::Restart(at));
            }
            2 | 3 => self.orchestrators[at].paused_until_us = until_us,
            4 => self.orchestrators[at].cut_until_us = until_us,
            5 => self.orchestrators[at].mute_until_us = until_us,
            6 => {
                // The master, whoever it is, is paused.
                let now_us = self.now_us;
                for one in &mut self.orchestrators {
                    let now = one.clock(now_us);
                    if one.process.as_ref().is_some_and(|process| process.may_act(now).is_some()) {
                        one.paused_until_us = until_us;
                    }
                }
            }
            7 => {
                let now = self.orchestrators[at].clock(self.now_us);
                if let Some(process) = &mut self.orchestrators[at].process {
                    process.step_down(now);
                }
            }
            8 => self.store_down_until_us = self.now_us + length / 2,
            9 => {
                (self.loss, self.loss_until_us) = (self.random.random_range(0.05..0.5), until_us);
            }
            10 => self.store.lag(),
            11 => {
                // Sometimes there is no replica at all, and everything is gone.
                if self.random.random_bool(0.15) {
                    self.store.wipe();
                    // A store without history counts epochs from the beginning; holder and epoch together stay unique.
                    self.epochs.clear();
                } else {
                    self.store.fail_over();
                }
                self.store_down_until_us = self.now_us + length / 10;
            }
            12 => {
                let longer = self.random.random_range(1..=4);
                self.silent_until_us = self.now_us + length * longer;
                let kinds = [Missing::Empty, Missing::Many(2), Missing::NotANumber, Missing::NoAnswer("down".into())];
                self.silence = kinds[self.random.random_range(0..kinds.len())].clone();
            }
            13 if self.world.load_changes => self.load = self.random.random_range(5.0..55.0),
            14 if self.world.nodes_die => {
                let alive: Vec<String> = self
                    .machines
                    .iter()
                    .filter(|(_, one)| one.up_since_us.is_some())
                    .map(|(name, _)| name.clone())
                    .collect();
                if let Some(name) = alive.get(self.random.random_range(0..alive.len().max(1))) {
                    let now_us = self.now_us;
                    if let Some(machine) = self.machines.get_mut(name) {
                        machine.up_since_us = None;
                        machine.died_us = now_us;
                    }
                    if self.random.random_bool(0.5) {
                        self.at(length, Event::Boot(name.clone()));
                    }
                }
            }
            _ => self.store.revision += 1,
        }
        if self.random.random_bool(0.5) {
            self.store.catch_up();
        }
        self.disturbed_us = self.now_us;
        self.at(length, Event::Healed);
    }
}
