//! Earlier states of a store, computed from its newest one and the changes that led there.
//!
//! Pure. Invariant: what is answered chains from the newest state back to the revision asked for; where the kept changes do not
//! reach, there is an error and no guess.

use super::{
    access::Snapshot,
    object::{Change, Objects, Revision, RevisionName},
};

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PastError {
    /// No kept revision is called so.
    #[error("there is no revision {name}; the store stands at {head}{}", .oldest.map_or(String::new(), |oldest| format!(" and its history reaches back to {oldest}")))]
    Unknown {
        /// As it was named.
        name: RevisionName,
        /// Where the store stands.
        head: Revision,
        /// The oldest revision that is known.
        oldest: Option<Revision>,
    },
    /// The store changed between two questions, or its history was lost.
    #[error("the changes that the store keeps do not lead to {head}, where it stands: ask again")]
    Torn {
        /// Where the store stands.
        head: Revision,
    },
}

/// The change that led to a revision, among `history`, newest first.
///
/// # Errors
/// [`PastError::Unknown`].
pub fn change<'h>(history: &'h [Change], head: Revision, name: &RevisionName) -> Result<&'h Change, PastError> {
    let oldest = history.last().map(|change| change.revision);
    let found = history.iter().find(|change| name.names(&change.revision));
    found.ok_or_else(|| PastError::Unknown { name: name.clone(), head, oldest })
}

/// The objects as they were at a revision. `history`: the changes that led to `newest`, newest first.
///
/// # Errors
/// [`PastError`].
pub fn objects_at(
    newest: &Snapshot,
    history: &[Change],
    name: &RevisionName,
) -> Result<(Revision, Objects), PastError> {
    let head = newest.revision;
    let (mut at, mut objects) = (head, newest.objects.clone());
    // What was written since the snapshot was taken is not part of it.
    for change in history.iter().skip_while(|change| change.revision.number > head.number) {
        if name.names(&at) {
            break;
        }
        if change.revision != at {
            return Err(PastError::Torn { head });
        }
        // A change without edits put a lost store back: what was before it is not in it.
        if change.edits.is_empty() {
            break;
        }
        change.revert(&mut objects);
        at = change.previous;
    }
    if name.names(&at) {
        Ok((at, objects))
    } else {
        Err(PastError::Unknown { name: name.clone(), head, oldest: Some(at) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        Key,
        object::{Digest, Edit},
    };

    /// Five changes of one object and the states after each, oldest first.
    fn past() -> (Snapshot, Vec<Change>, Vec<Objects>) {
        let key = Key::new("service/web").unwrap();
        let origin = Digest::new([7; 32]);
        let (mut revision, mut objects) = (Revision::origin(origin), Objects::new());
        let (mut changes, mut states) = (Vec::new(), vec![objects.clone()]);
        for n in 1..=5 {
            let after = (n != 3).then(|| n.to_string().into());
            let edit = Edit { key: key.clone(), before: objects.get(&key).cloned(), after };
            let change = Change::new(revision, "op", n, "", vec![edit]);
            change.apply(&mut objects);
            revision = change.revision;
            changes.insert(0, change);
            states.push(objects.clone());
        }
        (Snapshot { origin, revision, objects }, changes, states)
    }

    fn name(text: &str) -> RevisionName {
        text.parse().unwrap()
    }

    #[test]
    fn every_kept_state_comes_back() {
        let (newest, history, states) = past();
        for (n, state) in states.iter().enumerate() {
            let (revision, objects) = objects_at(&newest, &history, &name(&n.to_string())).unwrap();
            assert_eq!((revision.number, &objects), (n as u64, state));
        }
        let third = history[2].revision;
        assert_eq!(change(&history, newest.revision, &name(&third.to_string())).unwrap().revision, third);
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        let (newest, history, _) = past();
        let unknown =
            |history: &[Change], text: &str| objects_at(&newest, history, &name(text)).unwrap_err().to_string();
        assert!(unknown(&history, "6").starts_with("there is no revision 6; the store stands at 5-"));
        assert!(unknown(&history, "4-00000000").contains("history reaches back to 0-"), "{}", unknown(&history, "4-0"));
        assert!(unknown(&history[..2], "2").contains("history reaches back to 3-"));
        assert!(unknown(&history[1..], "2").contains("ask again"), "a change is missing");
        let mut torn = history.clone();
        torn.remove(1);
        assert!(unknown(&torn, "2").contains("ask again"));
        // Somebody wrote after the snapshot was taken.
        let older = Snapshot { revision: history[1].revision, ..newest.clone() };
        let expect = objects_at(&newest, &history, &name("4")).unwrap().1;
        let older = Snapshot { objects: expect, ..older };
        assert_eq!(
            objects_at(&older, &history, &name("2")).unwrap(),
            objects_at(&newest, &history, &name("2")).unwrap()
        );
        // Behind a restored store there is nothing.
        let restored = Change::new(newest.revision, "op", 9, "restored", Vec::new());
        let after = Snapshot { revision: restored.revision, ..newest.clone() };
        let history = [vec![restored], history].concat();
        assert!(objects_at(&after, &history, &name("6")).is_ok() && objects_at(&after, &history, &name("5")).is_err());
    }
}
