//! The other half of fencing: a resource that remembers the newest token it saw, and refuses older ones.
//!
//! Without this half a token protects nothing. Invariants: tokens that are accepted never go back; the check and the
//! access are one step. Redis resources get the same as one script.

use std::sync::{Mutex, PoisonError};

/// A token that came after a newer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stale fencing token {token}: {newest} has been here already")]
pub struct StaleFence {
    /// The one that was refused.
    pub token: u64,
    /// The newest that was accepted.
    pub newest: u64,
}

/// Something that only the holder of the newest token may touch.
#[derive(Debug, Default)]
pub struct FencedResource<T> {
    state: Mutex<(u64, T)>,
}

impl<T> FencedResource<T> {
    /// `resource`, which no token has touched.
    pub fn new(resource: T) -> Self {
        Self { state: Mutex::new((0, resource)) }
    }

    /// Runs `access` if `token` is not older than any before. The same holder may come again with its token.
    ///
    /// # Errors
    /// The token is stale; nothing was touched.
    pub fn access<R>(&self, token: u64, access: impl FnOnce(&mut T) -> R) -> Result<R, StaleFence> {
        // The token is stored before the access: a panic inside leaves it as strict as before.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if token < state.0 {
            return Err(StaleFence { token, newest: state.0 });
        }
        state.0 = token;
        Ok(access(&mut state.1))
    }

    /// The newest token that was accepted, 0 before the first.
    pub fn newest(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0
    }
}

/// A script for resources that live in Redis: with KEYS[1] holding the newest token and ARGV[1] being the token, it
/// refuses a stale one with the error `STALE`, else stores it and runs `body` (Lua) in the same atomic step.
pub fn fenced_script(body: &str) -> String {
    format!(
        "local newest = tonumber(redis.call('GET', KEYS[1]) or 0)\n\
         if tonumber(ARGV[1]) < newest then return redis.error_reply('STALE fencing token ' .. ARGV[1] .. ' after ' .. newest) end\n\
         redis.call('SET', KEYS[1], ARGV[1])\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_token_is_refused_and_touches_nothing() {
        let resource = FencedResource::new(Vec::new());
        resource.access(33, |log| log.push("first")).unwrap();
        resource.access(34, |log| log.push("second")).unwrap();
        resource.access(34, |log| log.push("again")).unwrap();
        let refused = resource.access(33, |log| log.push("late")).unwrap_err();
        assert_eq!(refused, StaleFence { token: 33, newest: 34 });
        assert_eq!(resource.access(35, |log| log.len()).unwrap(), 3);
        assert_eq!(resource.newest(), 35);
    }
}
