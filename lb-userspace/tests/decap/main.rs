//! `weir decap` in the kernel: the loaded programs against the model in `lb_core`, and real datagrams through real tunnels.
//!
//! Needs root; without it each test says so and passes, except in CI (`CI` is set), where a missing capability fails.

mod agree;
mod frame;
mod session;

/// Whether this process may load programs and make namespaces; prints the reason where not.
fn privileged() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "these tests need root, and CI must run them");
    eprintln!("skipped: loading eBPF programs needs root");
    false
}
