//! Other processes of this machine: who called us, and all that came from the command we run.
//!
//! Invariants: only descendants of this process are ever signalled; a process that cannot be read is gone.

use std::collections::BTreeSet;

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

/// One line of the process table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    zombie: bool,
}

/// The process that called us, for people: `backup.sh (pid 123)`.
pub fn caller() -> String {
    let pid = nix::unistd::getppid();
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match name.trim() {
        "" => format!("pid {pid}"),
        name => format!("{name} (pid {pid})"),
    }
}

fn table() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    numbers.filter_map(|pid| parse(pid, &std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)).collect()
}

/// `/proc/PID/stat`; the name in it may hold blanks and brackets.
fn parse(pid: i32, stat: &str) -> Option<Process> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X");
    Some(Process { pid, parent: fields.next()?.parse().ok()?, zombie })
}

/// Whether this process is in the foreground of a terminal.
pub fn in_foreground() -> bool {
    std::fs::read_to_string("/proc/self/stat").is_ok_and(|stat| is_in_foreground(&stat))
}

/// The process group against that in the foreground of the terminal (fields 5 and 8 of proc_pid_stat(5)).
fn is_in_foreground(stat: &str) -> bool {
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
    fields.len() > 5 && fields[2] == fields[5]
}

/// All that live below `root`, without it.
fn below(root: i32, table: &[Process]) -> Vec<i32> {
    let mut found = BTreeSet::new();
    let mut open = vec![root];
    while let Some(parent) = open.pop() {
        for process in table.iter().filter(|process| process.parent == parent) {
            if found.insert(process.pid) {
                open.push(process.pid);
            }
        }
    }
    found.into_iter().filter(|pid| table.iter().any(|process| process.pid == *pid && !process.zombie)).collect()
}

fn own() -> i32 {
    nix::unistd::getpid().as_raw()
}

/// Sends `signals` to every living descendant, also to those whose parents are gone (we are their subreaper); how many there
/// are.
pub fn signal_all(signals: &[Signal]) -> usize {
    let all = below(own(), &table());
    for pid in &all {
        for signal in signals {
            // Who ended meanwhile needs no signal, and stays a zombie of ours until it is reaped: its number is not reused.
            let _ = kill(Pid::from_raw(*pid), *signal);
        }
    }
    all.len()
}

/// Reaps orphans that we adopted; `child` is reaped elsewhere.
pub fn reap_orphans(child: Option<u32>) {
    let own = own();
    for orphan in table().into_iter().filter(|process| process.parent == own && process.zombie) {
        if child.map(u32::cast_signed) != Some(orphan.pid) {
            // It is a zombie of ours; if not any more, there is nothing to do.
            let _ = waitpid(Pid::from_raw(orphan.pid), Some(WaitPidFlag::WNOHANG));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found_at_any_depth() {
        let process = |pid, parent, zombie| Process { pid, parent, zombie };
        let table = [
            process(1, 0, false),
            process(10, 1, false),
            process(11, 10, false),
            process(12, 11, false),
            process(13, 10, true),
            process(14, 13, false),
            process(20, 1, false),
        ];
        assert_eq!(below(10, &table), [11, 12, 14]);
        assert_eq!(below(20, &table), [0; 0]);
        // A table that was read while it changed may hold a circle.
        assert_eq!(below(5, &[process(6, 5, false), process(5, 6, false)]), [5, 6]);
    }

    #[test]
    fn a_name_may_hold_anything() {
        let found = parse(7, "7 (a) Z 1 (b)) S 42 7 7 0").unwrap();
        assert_eq!(found, Process { pid: 7, parent: 42, zombie: false });
        assert_eq!(parse(7, "7 (x) Z 1 2").map(|process| process.zombie), Some(true));
        assert_eq!(parse(7, "nonsense"), None);
        assert!(is_in_foreground("7 (a b)) S 1 70 7 34816 70 0"));
        assert!(!is_in_foreground("7 (a) S 1 70 7 34816 71 0") && !is_in_foreground("7 (a) S 1 70 7 0 -1 0"));
        assert!(!is_in_foreground(""));
        assert!(table().iter().any(|process| process.pid == own()));
    }
}
