//! The mode that XDP really runs in, read back, and whether the configuration allows it.
//!
//! Owns: the judgement. Refuses to know: how a program is attached. Pure but for the reading.
//!
//! Asking for native mode is not proof of it: some drivers take the program and run it in generic mode without a word,
//! and a link that is taken over keeps the mode that an earlier configuration allowed.

use crate::{
    api::XdpModeInForce,
    dataplane::load::{Attached, How},
    model::XdpMode,
    net::{self, Interface, interface::Links},
};

/// Why the agent does not go on with an interface.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ModeError {
    /// The driver accepted native mode and runs another.
    #[error(
        "{interface}: the driver was asked for native XDP and runs the program in generic mode, which is slow; it was \
         detached again. Allow it with `xdp_mode = \"generic\"` in [node], or use a card whose driver has native XDP"
    )]
    FellBack {
        /// The interface.
        interface: String,
    },
    /// A program that was taken over runs in a mode that was allowed once and is not any more.
    #[error(
        "{interface}: the program that runs there was attached in generic mode, which `xdp_mode = \"native\"` in [node] \
         forbids; forwarding goes on untouched. Allow generic again, or start anew: weir agent --unload (stops \
         forwarding), then start the agent"
    )]
    HeldGeneric {
        /// The interface.
        interface: String,
    },
}

/// Mode of the program `program_id` on an interface as it was seen.
pub fn in_force(interface: Option<&Interface>, program_id: u32) -> XdpModeInForce {
    match interface.and_then(|i| i.xdp.mode_of(program_id)) {
        Some("native") => XdpModeInForce::Native,
        Some("generic") => XdpModeInForce::Generic,
        Some("offload") => XdpModeInForce::Offload,
        _ => XdpModeInForce::Detached,
    }
}

/// Whether `found` on `interface` is acceptable where the configuration says `allowed` and loading did `how`. A program
/// that is not to be seen is no reason to refuse: status and metrics show it.
///
/// # Errors
/// [`ModeError`].
pub fn judge(interface: &str, allowed: XdpMode, how: How, found: XdpModeInForce) -> Result<(), ModeError> {
    let interface = || interface.to_owned();
    match (allowed, found, how) {
        (XdpMode::Generic, ..)
        | (XdpMode::Native, XdpModeInForce::Native | XdpModeInForce::Offload | XdpModeInForce::Detached, _) => Ok(()),
        (XdpMode::Native, XdpModeInForce::Generic, How::Native | How::Generic) => {
            Err(ModeError::FellBack { interface: interface() })
        }
        (XdpMode::Native, XdpModeInForce::Generic, How::Kept | How::Upgraded) => {
            Err(ModeError::HeldGeneric { interface: interface() })
        }
    }
}

/// Reads back in which mode each interface runs its program, in the order of `attached`.
///
/// # Errors
/// Netlink does not answer.
pub async fn read(attached: &[Attached]) -> Result<Vec<XdpModeInForce>, net::Error> {
    let seen = Links::open()?.all().await?;
    let mode = |a: &Attached| in_force(seen.iter().find(|i| i.ifindex == a.ifindex), a.program_id);
    Ok(attached.iter().map(mode).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::interface::Attached as Programs;

    #[test]
    fn generic_mode_is_taken_only_where_it_is_allowed() {
        use XdpModeInForce::{Detached, Generic, Native, Offload};
        let fell_back = || Err(ModeError::FellBack { interface: "eth0".into() });
        let held = || Err(ModeError::HeldGeneric { interface: "eth0".into() });
        let all = [How::Native, How::Generic, How::Kept, How::Upgraded];
        for how in all {
            for found in [Native, Generic, Offload, Detached] {
                assert_eq!(judge("eth0", XdpMode::Generic, how, found), Ok(()), "generic allows {how:?} {found:?}");
                if found != Generic {
                    assert_eq!(judge("eth0", XdpMode::Native, how, found), Ok(()), "native, {how:?} {found:?}");
                }
            }
        }
        let expected = [fell_back(), fell_back(), held(), held()];
        assert_eq!(all.map(|how| judge("eth0", XdpMode::Native, how, Generic)), expected);
        for refused in expected {
            let text = refused.map_err(|e| e.to_string()).expect_err("refused");
            assert!(text.contains("eth0") && text.contains("[node]"), "{text}");
        }
    }

    #[test]
    fn the_mode_is_that_of_our_program() {
        let with = |xdp| Interface { xdp, ..Interface::default() };
        let both = with(Programs { native: Some(3), generic: Some(4), offload: None });
        assert_eq!(in_force(Some(&both), 3), XdpModeInForce::Native);
        assert_eq!(in_force(Some(&both), 4), XdpModeInForce::Generic);
        assert_eq!(in_force(Some(&both), 5), XdpModeInForce::Detached, "another program is not ours");
        assert_eq!(
            in_force(Some(&with(Programs { offload: Some(6), ..Programs::default() })), 6),
            XdpModeInForce::Offload
        );
        assert_eq!(in_force(None, 3), XdpModeInForce::Detached);
    }
}
