//! A node that joins while slots are in their window: who had them before the change is in the store's history.
//!
//! Pure. Owns: what the objects were when the oldest open window of each service began. A new node publishes that first and the
//! present state after it, so that owners and moving slots come out of the same rules as on nodes that lived through the
//! change. Its windows begin anew, as they do for an agent that takes over running maps.
//!
//! What lay between is left out: a later change of a slot in its window changes where new flows go, never its owner.

use std::time::Duration;

use crate::store::{Change, Key, Objects};

/// The objects as they were before each service's changes that are younger than its window. `history`: newest first; `window`: of an
/// object that exists now, `None` if it has none.
///
/// A service that began within its window is left out: nothing was established before it.
pub fn before(
    history: &[Change],
    objects: &Objects,
    window: &dyn Fn(&Key) -> Option<Duration>,
    now_unix_ms: u64,
) -> Objects {
    let mut then = objects.clone();
    for change in history {
        let age = Duration::from_millis(now_unix_ms.saturating_sub(change.at_unix_ms));
        for edit in change.edits.iter().filter(|edit| objects.contains_key(&edit.key)) {
            if window(&edit.key).is_none_or(|window| age > window) {
                continue;
            }
            match &edit.before {
                Some(text) => then.insert(edit.key.clone(), text.clone()),
                None => then.remove(&edit.key),
            };
        }
    }
    then
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Edit, Revision, object::Digest};

    fn key(name: &str) -> Key {
        Key::new(&format!("service/{name}")).unwrap()
    }

    /// Changes as (second, service, before, after), oldest first; gives them newest first with the objects at the end.
    fn history(steps: &[(u64, &str, Option<&str>, Option<&str>)]) -> (Vec<Change>, Objects) {
        let (mut at, mut objects, mut changes) = (Revision::origin(Digest::default()), Objects::new(), Vec::new());
        for (second, name, before, after) in steps {
            let edit = Edit { key: key(name), before: before.map(Into::into), after: after.map(Into::into) };
            let change = Change::new(at, "test", second * 1000, "", vec![edit]);
            change.apply(&mut objects);
            at = change.revision;
            changes.push(change);
        }
        changes.reverse();
        (changes, objects)
    }

    #[test]
    fn each_service_is_as_it_was_before_its_oldest_open_window() {
        let (changes, objects) = history(&[
            (10, "old", None, Some("o1")),
            (20, "web", None, Some("w1")),
            (50, "web", Some("w1"), Some("w2")),
            (95, "web", Some("w2"), Some("w3")),
            (96, "old", Some("o1"), Some("o2")),
            (97, "new", None, Some("n1")),
            (98, "web", Some("w3"), Some("w4")),
            (99, "gone", None, Some("g1")),
            (99, "gone", Some("g1"), None),
        ]);
        let window = |key: &Key| match key.name() {
            "web" => Some(Duration::from_secs(60)),
            "old" => Some(Duration::from_secs(2)),
            _ => Some(Duration::from_secs(10)),
        };
        let then = before(&changes, &objects, &window, 100_000);
        let text = |name: &str| then.get(&key(name)).map(|text| text.to_string());
        assert_eq!(text("web").as_deref(), Some("w1"));
        assert_eq!(text("old").as_deref(), Some("o2"), "its window is over");
        assert_eq!(text("new"), None, "it began in its window");
        assert_eq!(text("gone"), None);
        // Long after, nothing is in a window.
        assert_eq!(before(&changes, &objects, &window, 1_000_000), objects);
        // A kind of object without windows is as it is.
        assert_eq!(before(&changes, &objects, &|_| None, 100_000), objects);
    }
}
