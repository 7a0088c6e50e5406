//! Every turn that one acquisition can take.

use super::*;

fn at(ms: u64) -> BootTime {
    BootTime(Duration::from_millis(1_000 + ms))
}

fn acquisition(nodes: usize, fencing: Fencing) -> Acquisition {
    Acquisition::new(Plan {
        name: "a".into(),
        nodes: (1..=nodes).map(|n| format!("n{n}")).collect(),
        quorum: majority(nodes),
        ttl: Duration::from_millis(1_000),
        fencing,
        started: at(0),
    })
}

fn granted(node: usize, fence: u64) -> Result<Reply, NodeError> {
    Ok(Reply::Granted { fence, run_id: format!("run{node}") })
}

fn held() -> Result<Reply, NodeError> {
    Ok(Reply::Refused(Refusal::Held { remaining_ms: 70 }))
}

#[test]
fn the_majority_wins_early_and_validity_counts_from_before_the_first_send() {
    let mut acquisition = acquisition(5, Fencing::None);
    assert_eq!(acquisition.on_vote(4, granted(4, 0), at(1)), Step::Wait);
    assert_eq!(acquisition.on_vote(0, granted(0, 0), at(2)), Step::Wait);
    // 1,000 ms less 1 % and 2 ms.
    assert_eq!(acquisition.on_vote(2, granted(2, 0), at(9)), Step::Won { valid_until: at(988), fence: None });
    assert_eq!(acquisition.on_vote(1, granted(1, 0), at(10)), Step::Wait, "a verdict is given once");
}

#[test]
fn one_vote_twice_is_one_vote() {
    let mut acquisition = acquisition(3, Fencing::None);
    assert_eq!(acquisition.on_vote(0, granted(0, 0), at(1)), Step::Wait);
    assert_eq!(acquisition.on_vote(0, granted(0, 0), at(1)), Step::Wait);
    assert_eq!(acquisition.on_vote(9, granted(9, 0), at(1)), Step::Wait);
}

#[test]
fn four_nodes_need_three() {
    let mut acquisition = acquisition(4, Fencing::None);
    assert_eq!(acquisition.on_vote(0, granted(0, 0), at(1)), Step::Wait);
    assert_eq!(acquisition.on_vote(1, granted(1, 0), at(1)), Step::Wait);
    assert!(matches!(acquisition.on_vote(2, granted(2, 0), at(1)), Step::Won { .. }));
}

#[test]
fn an_impossible_majority_fails_early() {
    let mut acquisition = acquisition(5, Fencing::None);
    assert_eq!(acquisition.on_vote(0, granted(0, 0), at(1)), Step::Wait);
    assert_eq!(acquisition.on_vote(1, held(), at(1)), Step::Wait);
    assert_eq!(acquisition.on_vote(2, held(), at(1)), Step::Wait);
    let Step::Failed(LockError::Contended { report, .. }) = acquisition.on_vote(3, held(), at(1)) else { panic!() };
    assert_eq!(report.0[4].1, NodeOutcome::Pending);
    // The refusing nodes hold nothing of ours; the silent one may.
    assert_eq!(acquisition.may_hold().collect::<Vec<_>>(), [0, 4]);
    assert_eq!(acquisition.held_for(), Some(Duration::from_millis(70)));
}

#[test]
fn nodes_that_cannot_vote_are_no_quorum_and_not_contention() {
    let mut acquisition = acquisition(3, Fencing::None);
    assert_eq!(acquisition.on_vote(0, Err(NodeError::Loading), at(1)), Step::Wait);
    assert_eq!(acquisition.on_vote(1, granted(1, 0), at(1)), Step::Wait);
    let Step::Failed(LockError::NoQuorum { report, .. }) = acquisition.on_timeout(at(50)) else { panic!() };
    assert_eq!(
        report.to_string(),
        "n1: still loading its data (LOADING); n2: yes; n3: no answer within the node time-out"
    );
    assert_eq!(acquisition.may_hold().collect::<Vec<_>>(), [0, 1, 2], "also where it timed out");
}

#[test]
fn a_majority_that_comes_too_late_is_no_lock() {
    let mut acquisition = acquisition(1, Fencing::None);
    assert!(matches!(
        acquisition.on_vote(0, granted(0, 0), at(988)),
        Step::Failed(LockError::Expired { elapsed_ms: 988, ttl_ms: 1000, .. })
    ));
}

#[test]
fn one_server_under_two_names_is_refused() {
    let mut acquisition = acquisition(3, Fencing::None);
    assert_eq!(acquisition.on_vote(0, granted(7, 0), at(1)), Step::Wait);
    let Step::Failed(LockError::Config(text)) = acquisition.on_vote(2, granted(7, 0), at(1)) else { panic!() };
    assert_eq!(text, "lock nodes n1 and n3 are one server: list it once");
}

#[test]
fn a_token_is_handed_out_only_after_a_majority_stored_it() {
    let mut acquisition = acquisition(5, Fencing::TwoRounds);
    acquisition.on_vote(0, granted(0, 3), at(1));
    acquisition.on_vote(1, granted(1, 9), at(1));
    let step = acquisition.on_vote(2, granted(2, 4), at(1));
    // The node that counted it has it.
    assert_eq!(step, Step::Confirm { fence: 9, nodes: vec![0, 2] });
    assert_eq!(acquisition.on_confirmed(1, Ok(Reply::Gone), at(2)), Step::Wait, "it was not asked");
    assert_eq!(acquisition.on_confirmed(0, Ok(Reply::Gone), at(2)), Step::Wait, "others may still vote");
    assert_eq!(acquisition.on_vote(3, granted(3, 8), at(3)), Step::Confirm { fence: 9, nodes: vec![3] });
    assert_eq!(acquisition.on_confirmed(2, Err(NodeError::Timeout), at(4)), Step::Wait);
    assert_eq!(acquisition.on_confirmed(3, Ok(Reply::Done), at(4)), Step::Wait);
    // The token stays the chosen one, whatever a late vote counted; that node needs no telling.
    let won = Step::Won { valid_until: at(988), fence: Some(9) };
    assert_eq!(acquisition.on_vote(4, granted(4, 20), at(5)), won);
}

#[test]
fn a_token_that_a_majority_has_counted_is_stored() {
    let of = |counters: [u64; 3]| {
        let mut acquisition = acquisition(3, Fencing::TwoRounds);
        assert_eq!(acquisition.on_vote(0, granted(0, counters[0]), at(1)), Step::Wait);
        acquisition.on_vote(1, granted(1, counters[1]), at(2))
    };
    assert_eq!(of([7, 7, 0]), Step::Won { valid_until: at(988), fence: Some(7) });
    assert_eq!(of([7, 8, 0]), Step::Confirm { fence: 8, nodes: vec![0] });
    assert_eq!(of([8, 7, 0]), Step::Confirm { fence: 8, nodes: vec![1] });
    let mut late = acquisition(3, Fencing::TwoRounds);
    late.on_vote(0, granted(0, 7), at(1));
    assert!(matches!(late.on_vote(1, granted(1, 7), at(988)), Step::Failed(LockError::Expired { .. })));
}

#[test]
fn a_second_round_without_majority_fails() {
    let mut acquisition = acquisition(3, Fencing::TwoRounds);
    acquisition.on_vote(0, granted(0, 1), at(1));
    acquisition.on_vote(1, granted(1, 2), at(1));
    assert_eq!(acquisition.on_vote(2, Err(NodeError::Timeout), at(2)), Step::Wait);
    let Step::Failed(error) = acquisition.on_confirmed(0, Ok(Reply::Gone), at(3)) else { panic!() };
    assert!(matches!(error, LockError::NoQuorum { .. }));
}

#[test]
fn a_lifetime_that_nodes_refuse_is_the_callers_mistake() {
    let mut acquisition = acquisition(1, Fencing::None);
    let refusal = Refusal::TtlTooLong { max_ttl_ms: 500 };
    let step = acquisition.on_vote(0, Ok(Reply::Refused(refusal)), at(1));
    assert!(matches!(step, Step::Failed(LockError::Config(text)) if text.contains("allow 500 ms")));
}

#[test]
fn a_round_is_won_or_lost_as_soon_as_it_is_certain() {
    let mut tally = Tally::new(3);
    assert_eq!(tally.on_answer(0, Ok(Reply::Done)), None);
    assert_eq!(tally.on_answer(0, Ok(Reply::Done)), None);
    assert_eq!(tally.on_answer(1, Ok(Reply::Done)), Some(true));
    let mut tally = Tally::new(3);
    assert_eq!(tally.on_answer(0, Ok(Reply::Gone)), None);
    assert_eq!(tally.on_answer(2, Err(NodeError::Timeout)), Some(false));
    assert!(!tally.is_complete() && !tally.on_timeout() && tally.is_complete());
}

#[test]
fn a_release_is_won_when_another_could_have_the_lock() {
    // Three of five were asked for it: one that is free again makes a majority with the two that never held it.
    let mut tally = Tally::release(5, &[0, 1, 2]);
    assert_eq!(tally.on_answer(0, Ok(Reply::Gone)), None, "what had expired is not given back");
    assert_eq!(tally.on_answer(1, Err(NodeError::Timeout)), None);
    assert_eq!(tally.on_answer(2, Ok(Reply::Done)), Some(true));
    let mut tally = Tally::release(5, &[0, 1, 2]);
    for (node, verdict) in [(0, None), (1, None), (2, Some(false))] {
        assert_eq!(tally.on_answer(node, Ok(Reply::Gone)), verdict, "{node}");
    }
    // All were asked: a majority has to give it back.
    let mut tally = Tally::release(5, &[0, 1, 2, 3, 4]);
    for (node, verdict) in [(0, None), (1, None), (2, Some(true))] {
        assert_eq!(tally.on_answer(node, Ok(Reply::Done)), verdict, "{node}");
    }
    assert_eq!(Tally::release(1, &[0]).on_answer(0, Ok(Reply::Done)), Some(true));
}
