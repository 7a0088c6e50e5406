//! The list of nodes: its number and digest, its text form, and the one step at a time by which it changes.
//!
//! Pure. Invariants: two lists of one number and different nodes have different digests; a step adds one node or removes
//! one, never both, because majorities of the lists before and after then share a node.

use std::{collections::BTreeSet, fmt::Write as _};

use sha2::{Digest, Sha256};

use crate::{
    command::{List, ListId},
    error::LockError,
    round::majority,
};

/// Most nodes of a list.
pub const NODES_MAX: usize = 64;

/// One node of a list: its name, by which lists are compared, and where it is. No credentials.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Name; the address unless another was given.
    pub name: String,
    /// `host:port`, or what else the store understands.
    pub address: String,
}

/// A change of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Add this node.
    Add(Member),
    /// Remove the node of this name.
    Remove(String),
}

/// The list `epoch` of `members`.
///
/// # Errors
/// None, too many, or a name or address twice.
pub fn list(epoch: u64, members: &[Member]) -> Result<List, LockError> {
    let wrong = |text: String| Err(LockError::Config(text));
    if members.is_empty() || members.len() > NODES_MAX {
        return wrong(format!("{} lock nodes: between 1 and {NODES_MAX}", members.len()));
    }
    let mut seen = BTreeSet::new();
    for member in members {
        if !is_word(&member.name) || !is_word(&member.address) {
            return wrong(format!("lock node {:?}: a name has no spaces and no '='", member.name));
        }
        let twice = !seen.insert(member.name.to_ascii_lowercase());
        if twice || members.iter().filter(|other| other.address.eq_ignore_ascii_case(&member.address)).count() > 1 {
            return wrong(format!("lock node {} is listed twice", member.name));
        }
    }
    let mut sorted = members.to_vec();
    sorted.sort();
    let mut text = String::new();
    for member in &sorted {
        // Writing to a string cannot fail.
        let _ = write!(text, "{}{}={}", if text.is_empty() { "" } else { " " }, member.name, member.address);
    }
    // Names only: the way to a node may differ between clients.
    let names: Vec<&str> = sorted.iter().map(|member| member.name.as_str()).collect();
    let digest = Sha256::digest(names.join(" ")).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Ok(List { id: ListId { epoch, digest }, members: text })
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.len() <= 255 && !text.contains(|c: char| c == '=' || c.is_whitespace() || c.is_control())
}

/// The members in the text of a list.
pub fn parse(text: &str) -> Option<Vec<Member>> {
    let member = |word: &str| {
        let (name, address) = word.split_once('=')?;
        Some(Member { name: name.to_owned(), address: address.to_owned() })
    };
    text.split(' ').filter(|word| !word.is_empty()).map(member).collect()
}

/// The members after `change`.
///
/// # Errors
/// The node is there already, or is not there.
pub fn changed(members: &[Member], change: &Change) -> Result<Vec<Member>, LockError> {
    match change {
        Change::Add(member) => Ok(members.iter().cloned().chain([member.clone()]).collect()),
        Change::Remove(name) if members.iter().any(|member| member.name == *name) => {
            Ok(members.iter().filter(|member| member.name != *name).cloned().collect())
        }
        Change::Remove(name) => Err(LockError::Config(format!("no lock node is called {name}"))),
    }
}

/// Whether a step is agreed: by a majority of the old and of the new list.
pub fn is_agreed(old: &[Member], new: &[Member], agreed: &BTreeSet<String>) -> bool {
    [old, new].iter().all(|list| {
        let yes = list.iter().filter(|member| agreed.contains(&member.name)).count();
        yes >= majority(list.len())
    })
}

/// The newest list that a majority of its own members reports, out of what nodes reported.
pub fn newest(reported: &[(String, List)]) -> Option<List> {
    let agreed = |list: &List| {
        let members = parse(&list.members).unwrap_or_default();
        let has = |member: &&Member| reported.iter().any(|(name, l)| *name == member.name && l.id == list.id);
        !members.is_empty() && members.iter().filter(has).count() >= majority(members.len())
    };
    let lists = reported.iter().map(|(_, list)| list).filter(|list| agreed(list));
    lists.max_by_key(|list| list.id.epoch).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(names: &[&str]) -> Vec<Member> {
        names.iter().map(|n| Member { name: (*n).into(), address: format!("10.0.0.{n}:6379") }).collect()
    }

    #[test]
    fn a_list_is_what_its_names_are_in_any_order() {
        let list_of = |names: &[&str]| list(1, &members(names)).unwrap();
        assert_eq!(list_of(&["1", "2", "3"]), list_of(&["3", "1", "2"]));
        assert_ne!(list_of(&["1", "2", "3"]).id, list_of(&["1", "2", "4"]).id);
        let back = parse(&list_of(&["1", "2"]).members).unwrap();
        assert_eq!(back, members(&["1", "2"]));
        assert!(parse("nonsense").is_none());
    }

    #[test]
    fn the_same_node_twice_is_refused() {
        for wrong in [members(&["1", "1"]), vec![], vec![Member { name: "a b".into(), address: "x".into() }]] {
            assert!(list(1, &wrong).is_err(), "{wrong:?}");
        }
        let mut same_address = members(&["1", "2"]);
        same_address[1].address = same_address[0].address.clone();
        let LockError::Config(text) = list(1, &same_address).unwrap_err() else { panic!() };
        assert_eq!(text, "lock node 1 is listed twice");
    }

    #[test]
    fn any_two_majorities_around_one_step_share_a_node() {
        // Every pair of majorities of lists that differ by one node, up to eight nodes.
        for nodes in 1u32..8 {
            let majorities = |count: u32| {
                (0u32..1 << count).filter(move |set| set.count_ones() as usize >= majority(count as usize))
            };
            for before in majorities(nodes) {
                assert!(majorities(nodes + 1).all(|after| before & after != 0), "{nodes} {before:b}");
            }
        }
        // A replacement is two steps: {1,2,5} and {3,4,6} are majorities of {1..5} and {1,2,3,4,6}.
        let (before, after) = (0b01_0011_u32, 0b10_1100_u32);
        assert_eq!(before & after, 0);
    }

    #[test]
    fn a_step_needs_both_majorities() {
        let (old, new) = (members(&["1", "2", "3", "4", "5"]), members(&["1", "2", "3", "4", "5", "6"]));
        let set = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<BTreeSet<_>>();
        assert!(!is_agreed(&old, &new, &set(&["1", "2", "3"])));
        assert!(is_agreed(&old, &new, &set(&["1", "2", "3", "6"])));
        assert!(!is_agreed(&old, &new, &set(&["1", "2", "6"])));
    }

    #[test]
    fn only_a_list_that_a_majority_has_is_believed() {
        let (old, new) =
            (list(1, &members(&["1", "2", "3"])).unwrap(), list(2, &members(&["1", "2", "3", "4"])).unwrap());
        let say = |at: &[(&str, &List)]| at.iter().map(|(n, l)| ((*n).to_owned(), (*l).clone())).collect::<Vec<_>>();
        assert_eq!(newest(&say(&[("1", &new), ("2", &old), ("3", &old)])), Some(old.clone()));
        assert_eq!(newest(&say(&[("1", &new), ("2", &new), ("4", &new), ("3", &old)])), Some(new));
        assert_eq!(newest(&[]), None);
        assert_eq!(changed(&members(&["1"]), &Change::Remove("1".into())).unwrap(), []);
    }
}
