//! Two texts compared by line, in the unified form of diff(1).
//!
//! Pure. A longest common subsequence of what lies between common beginning and end; where that would cost too much, the
//! old lines are shown as gone and the new ones as come, which is true as well.

use std::fmt::Write as _;

/// Lines of context.
const CONTEXT: usize = 3;
/// Cells of the table of the longest common subsequence, at most (2 bytes each).
const CELLS_MAX: usize = 8 << 20;

/// The difference; empty if there is none.
pub fn unified(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let mut out = String::new();
    let edits = edits(&old, &new);
    let mut at = 0;
    while let Some(first) = edits.iter().skip(at).position(|e| !matches!(e, Edit::Keep(..))).map(|n| at + n) {
        let start = first.saturating_sub(CONTEXT).max(at);
        // A hunk goes on as long as changes lie within two contexts of each other.
        let mut end = first;
        let mut kept = 0;
        for (i, edit) in edits.iter().enumerate().skip(first) {
            kept = if matches!(edit, Edit::Keep(..)) { kept + 1 } else { 0 };
            if kept > 2 * CONTEXT {
                break;
            }
            if kept <= CONTEXT {
                end = i + 1;
            }
        }
        let hunk = edits.get(start..end).unwrap_or_default();
        write_hunk(&mut out, hunk, &old, &new);
        at = end;
    }
    out
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edit {
    /// Index in both.
    Keep(usize, usize),
    /// Index in the old one, and where the new one is by then.
    Remove(usize, usize),
    /// Where the old one is by then, and index in the new one.
    Add(usize, usize),
}

fn write_hunk(out: &mut String, hunk: &[Edit], old: &[&str], new: &[&str]) {
    let (from, to) = match hunk.first() {
        Some(Edit::Keep(o, n) | Edit::Remove(o, n) | Edit::Add(o, n)) => (*o, *n),
        None => return,
    };
    let removed = hunk.iter().filter(|e| !matches!(e, Edit::Add(..))).count();
    let added = hunk.iter().filter(|e| !matches!(e, Edit::Remove(..))).count();
    // Writing to a string cannot fail. An empty side is counted from the line before it.
    let line = |at: usize, count: usize| at + usize::from(count > 0);
    let _ = writeln!(out, "@@ -{},{removed} +{},{added} @@", line(from, removed), line(to, added));
    for edit in hunk {
        let (sign, text) = match edit {
            Edit::Keep(o, _) => (' ', old.get(*o)),
            Edit::Remove(o, _) => ('-', old.get(*o)),
            Edit::Add(_, n) => ('+', new.get(*n)),
        };
        let _ = writeln!(out, "{sign}{}", text.copied().unwrap_or_default());
    }
}

fn edits(old: &[&str], new: &[&str]) -> Vec<Edit> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let rest = old.len().min(new.len()) - head;
    let tail = old.iter().rev().zip(new.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    let (o_end, n_end) = (old.len() - tail, new.len() - tail);
    let mut edits: Vec<Edit> = (0..head).map(|i| Edit::Keep(i, i)).collect();
    middle(old.get(head..o_end).unwrap_or_default(), new.get(head..n_end).unwrap_or_default(), head, &mut edits);
    edits.extend((0..tail).map(|i| Edit::Keep(o_end + i, n_end + i)));
    edits
}

fn middle(old: &[&str], new: &[&str], base: usize, edits: &mut Vec<Edit>) {
    let width = new.len() + 1;
    let cells = (old.len() + 1).saturating_mul(width);
    if cells > CELLS_MAX || old.len() > usize::from(u16::MAX) || new.len() > usize::from(u16::MAX) {
        edits.extend((0..old.len()).map(|o| Edit::Remove(base + o, base)));
        edits.extend((0..new.len()).map(|n| Edit::Add(base + old.len(), base + n)));
        return;
    }
    // common[o][n]: length of the longest common subsequence of old[o..] and new[n..].
    let mut common = vec![0u16; cells];
    let get = |common: &[u16], o: usize, n: usize| common.get(o * width + n).copied().unwrap_or(0);
    for (o, a) in old.iter().enumerate().rev() {
        for (n, b) in new.iter().enumerate().rev() {
            let best = if a == b {
                get(&common, o + 1, n + 1).saturating_add(1)
            } else {
                get(&common, o + 1, n).max(get(&common, o, n + 1))
            };
            if let Some(cell) = common.get_mut(o * width + n) {
                *cell = best;
            }
        }
    }
    let (mut o, mut n) = (0, 0);
    while o < old.len() || n < new.len() {
        if o < old.len() && n < new.len() && old.get(o) == new.get(n) {
            edits.push(Edit::Keep(base + o, base + n));
            (o, n) = (o + 1, n + 1);
        } else if o < old.len() && (n == new.len() || get(&common, o + 1, n) >= get(&common, o, n + 1)) {
            edits.push(Edit::Remove(base + o, base + n));
            o += 1;
        } else {
            edits.push(Edit::Add(base + o, base + n));
            n += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hunks() {
        assert_eq!(unified("a\nb\n", "a\nb\n"), "");
        assert_eq!(unified("a\n", "a\nb\n"), "@@ -1,1 +1,2 @@\n a\n+b\n");
        assert_eq!(unified("", "x\n"), "@@ -0,0 +1,1 @@\n+x\n");
        let old: Vec<String> = (1..=20).map(|n| n.to_string()).collect();
        let mut new = old.clone();
        new[1] = "two".into();
        new.remove(17);
        let diff = unified(&old.join("\n"), &new.join("\n"));
        let expected = "@@ -1,5 +1,5 @@\n 1\n-2\n+two\n 3\n 4\n 5\n@@ -15,6 +15,5 @@\n 15\n 16\n 17\n-18\n 19\n 20\n";
        assert_eq!(diff, expected);
    }

    proptest! {
        /// The edits lead from the old text to the new one.
        #[test]
        fn edits_are_a_way(old in proptest::collection::vec("[abc]", 0..30), new in proptest::collection::vec("[abc]", 0..30)) {
            let o: Vec<&str> = old.iter().map(String::as_str).collect();
            let n: Vec<&str> = new.iter().map(String::as_str).collect();
            let edits = edits(&o, &n);
            let kept_old: Vec<&str> = edits.iter().filter_map(|e| match e {
                Edit::Keep(i, _) | Edit::Remove(i, _) => Some(o[*i]),
                Edit::Add(..) => None,
            }).collect();
            let kept_new: Vec<&str> = edits.iter().filter_map(|e| match e {
                Edit::Keep(_, i) | Edit::Add(_, i) => Some(n[*i]),
                Edit::Remove(..) => None,
            }).collect();
            prop_assert_eq!(kept_old, o);
            prop_assert_eq!(kept_new, n);
        }
    }
}
