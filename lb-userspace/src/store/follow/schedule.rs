//! The reading protocol under random schedules of everything at once.

use proptest::prelude::*;

use super::{tests::World, *};
use crate::store::{
    object::{Key, Objects},
    state::State,
};

/// One step of a random schedule.
#[derive(Clone, Debug)]
enum Step {
    Write(u8, Option<u8>),
    /// The notice at this place arrives, and stays in flight if told so.
    Deliver(usize, bool),
    Lose(usize),
    /// The answer to the question that is out was given at this moment or is given now; then it arrives, or does not.
    Answer,
    Hold,
    Fail,
    Disconnect,
    Missed,
    Tick,
    Keep,
    GoBack,
    Wipe,
    Restore,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..6u8, proptest::option::weighted(0.8, any::<u8>())).prop_map(|(key, after)| Step::Write(key, after)),
        8 => (any::<usize>(), proptest::bool::weighted(0.2)).prop_map(|(at, again)| Step::Deliver(at, again)),
        2 => any::<usize>().prop_map(Step::Lose),
        8 => Just(Step::Answer),
        2 => Just(Step::Hold),
        1 => Just(Step::Fail),
        1 => Just(Step::Disconnect),
        1 => Just(Step::Missed),
        3 => Just(Step::Tick),
        1 => Just(Step::Keep),
        1 => Just(Step::GoBack),
        1 => Just(Step::Wipe),
        1 => Just(Step::Restore),
    ]
}

/// Runs a schedule, then lets everything come to rest.
fn run(steps: Vec<Step>, history_max: usize) {
    let mut world = World::new(history_max);
    let mut flight: Vec<Notice> = Vec::new();
    let mut kept = world.state.clone();
    let mut asked: Option<Ask> = None;
    let mut held: Option<Input> = None;
    let mut subscribed = false;
    for step in steps {
        world.now_ms += 20;
        match step {
            Step::Write(key, after) => {
                let key = format!("service/{key}");
                let exists = world.state.snapshot().is_some_and(|s| s.objects.contains_key(&Key::new(&key).unwrap()));
                if after.is_some() || exists {
                    flight.push(world.write(&key, after.map(|after| after.to_string()).as_deref()));
                }
            }
            Step::Deliver(at, again) if subscribed && !flight.is_empty() => {
                let at = at % flight.len();
                let notice = if again { flight[at].clone() } else { flight.remove(at) };
                world.hear(notice);
            }
            Step::Lose(at) if !flight.is_empty() => drop(flight.remove(at % flight.len())),
            Step::Hold => held = held.or(asked.map(|ask| world.answer(ask))),
            Step::Answer => {
                if let Some(ask) = asked.take() {
                    subscribed |= ask == Ask::Subscribe;
                    let input = held.take().unwrap_or_else(|| world.answer(ask));
                    world.handle(input);
                }
            }
            Step::Fail => match asked.take() {
                Some(Ask::Subscribe) => world.handle(Input::Lost("refused".into())),
                Some(_) => world.handle(Input::Failed("timed out".into())),
                None => {}
            },
            Step::Disconnect if subscribed => {
                (subscribed, asked, held) = (false, None, None);
                flight.clear();
                world.handle(Input::Lost("reset".into()));
            }
            Step::Missed if subscribed => world.hear(Notice::Missed),
            Step::Tick if asked.is_none() => {
                world.now_ms = world.now_ms.max(world.follow.deadline_ms());
                world.handle(Input::Tick);
            }
            Step::Keep => kept = world.state.clone(),
            Step::GoBack => world.state = kept.clone(),
            Step::Wipe => world.state = State::new(history_max),
            Step::Restore => {
                let copy = world.follow.copy().cloned();
                if let (Some(copy), Some(_)) = (copy, world.follow.refused()) {
                    flight.push(world.restore(&copy));
                }
            }
            _ => {}
        }
        if asked.is_none() {
            held = None;
            asked = world.follow.ask(world.now_ms);
        }
    }
    // Whatever is out is answered, and what was lost is put back by hand or found by the timer.
    if let Some(ask) = asked {
        let input = held.unwrap_or_else(|| world.answer(ask));
        world.handle(input);
    }
    for _ in 0..4 {
        world.settle();
        world.tick();
        let copy = world.follow.copy().cloned();
        if let (Some(copy), Some(_)) = (copy, world.follow.refused()) {
            let lost = world
                .state
                .head()
                .is_none_or(|head| head.origin != copy.origin || head.revision.number < copy.revision.number);
            if lost {
                world.restore(&copy);
            } else {
                world.follow.adopt();
            }
        }
    }
    assert!(world.agrees() || world.state.head().is_none(), "{:?}", world.words());
    assert_eq!(world.seen.as_ref(), world.follow.copy());
    let objects = world.seen.map_or(Objects::new(), |seen| seen.objects);
    assert_eq!(objects, world.state.snapshot().map_or(Objects::new(), |snapshot| snapshot.objects));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_schedule_ends_in_agreement(steps in proptest::collection::vec(step(), 1..120), history_max in 1..20usize) {
        run(steps, history_max);
    }
}
