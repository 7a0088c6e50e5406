//! Giving up what the agent no longer needs once program and sockets are in place.
//!
//! Kept: `CAP_NET_ADMIN` (link updates, addresses, neighbour probes) and `CAP_BPF` (map access by id). Everything else leaves
//! the effective, permitted, inheritable, ambient and bounding sets, and `no_new_privs` closes the way back.
//!
//! Invariant: called while the process has one thread, because capabilities belong to threads and new threads inherit.

use std::collections::HashSet;

use caps::{CapSet, Capability};

/// What stays.
pub const KEPT: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_BPF];

/// Why privileges could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// A set could not be read or written.
    #[error("cannot give up capabilities ({set}): {cause}")]
    Capabilities {
        /// Name of the set.
        set: &'static str,
        /// What the system said.
        cause: String,
    },
    /// `no_new_privs` was refused.
    #[error("cannot set no_new_privs: {0}")]
    NoNewPrivileges(nix::errno::Errno),
}

/// The part of `held` that is among `keep`.
fn kept(held: &HashSet<Capability>, keep: &[Capability]) -> HashSet<Capability> {
    held.iter().copied().filter(|c| keep.contains(c)).collect()
}

/// Drops every capability but those of `keep` (the agent's are [`KEPT`]) and sets `no_new_privs`. Returns how many capabilities were given up.
///
/// # Errors
/// [`PrivilegeError`]; some sets may be reduced already.
pub fn give_up(keep: &[Capability]) -> Result<usize, PrivilegeError> {
    let failed = |set| move |e: caps::errors::CapsError| PrivilegeError::Capabilities { set, cause: e.to_string() };
    let permitted = caps::read(None, CapSet::Permitted).map_err(failed("permitted"))?;
    // The bounding set first: shrinking it needs CAP_SETPCAP, which the other sets then lose. Without it the set
    // cannot matter either, as `no_new_privs` forbids to gain from it.
    if permitted.contains(&Capability::CAP_SETPCAP) {
        caps::raise(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(failed("effective"))?;
        for capability in caps::read(None, CapSet::Bounding).map_err(failed("bounding"))? {
            if !keep.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability).map_err(failed("bounding"))?;
            }
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(failed("ambient"))?;
    let keep = kept(&permitted, keep);
    // Effective must stay within permitted, so it shrinks first.
    caps::set(None, CapSet::Effective, &keep).map_err(failed("effective"))?;
    caps::set(None, CapSet::Permitted, &keep).map_err(failed("permitted"))?;
    caps::clear(None, CapSet::Inheritable).map_err(failed("inheritable"))?;
    nix::sys::prctl::set_no_new_privs().map_err(PrivilegeError::NoNewPrivileges)?;
    Ok(permitted.len() - keep.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_only_what_was_held_and_is_needed() {
        let held = HashSet::from([Capability::CAP_NET_ADMIN, Capability::CAP_SYS_ADMIN]);
        assert_eq!(kept(&held, &KEPT), HashSet::from([Capability::CAP_NET_ADMIN]));
        assert!(kept(&HashSet::new(), &KEPT).is_empty());
    }

    #[test]
    fn nothing_else_is_left_in_any_set() {
        // On a thread of its own: capabilities belong to threads, the other tests keep theirs.
        std::thread::spawn(|| {
            let could = caps::has_cap(None, CapSet::Permitted, Capability::CAP_SETPCAP).unwrap();
            give_up(&KEPT).unwrap();
            let kept = HashSet::from(KEPT);
            for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
                assert!(caps::read(None, set).unwrap().is_subset(&kept), "{set:?}");
            }
            assert!(!could || caps::read(None, CapSet::Bounding).unwrap().is_subset(&kept));
            assert!(nix::sys::prctl::get_no_new_privs().unwrap());
        })
        .join()
        .unwrap();
    }
}
