//! The kernel's tick, by which the program tells the time: reading it costs a packet nothing.
//!
//! jiffies64 starts 300 s before it wraps 32 bits and then follows CLOCK_MONOTONIC (kernel/time/tick-sched.c,
//! `tick_do_update_jiffies64`), which rests while the machine is suspended, as jiffies do.

use nix::time::{ClockId, clock_getres, clock_gettime};

/// Ticks in a second (`CONFIG_HZ`): the coarse clocks have the tick's resolution.
pub fn hz() -> u32 {
    let tick_ns = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(4_000_000, |tick| tick.tv_nsec());
    ((1_000_000_000 + tick_ns / 2) / tick_ns.max(1)) as u32
}

/// The kernel's jiffies64, exact to a second.
pub fn jiffies() -> u64 {
    let hz = u64::from(hz());
    let initial = u64::from(0u32.wrapping_sub(300 * hz as u32));
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() as u64 * hz + now.tv_nsec() as u64 * hz / 1_000_000_000);
    initial + now
}

/// Seconds of CLOCK_MONOTONIC, by which windows and drains are timed.
pub fn now_s() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| now.tv_sec() as u64)
}
