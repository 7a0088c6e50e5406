//! What a lab consists of, on disk, so that any later run can take it down.
//!
//! Invariants: a namespace or a folder of pins is in the file before it exists; a process as soon as its pid is known.
//! Several processes may write to one lab's record at once: each change is made to what the file says at that moment, under a
//! lock.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::process::Process;

const FILE: &str = "lab.json";
const LOCK: &str = "lab.lock";

/// The contents of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Contents {
    namespaces: Vec<String>,
    processes: Vec<Process>,
    pin_dirs: Vec<PathBuf>,
}

/// The record of one lab.
#[derive(Debug)]
pub struct Record {
    folder: PathBuf,
    contents: Contents,
}

impl Record {
    /// An empty record in a new folder.
    pub fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let record = Self { folder: folder.to_owned(), contents: Contents::default() };
        record.save()?;
        Ok(record)
    }

    /// The record in a folder; `None` if there is no lab.
    pub fn open(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let contents = serde_json::from_str(&text).with_context(|| {
            format!(
                "{} cannot be read; remove the namespaces by hand (`ip netns delete NAME`), then this file",
                path.display()
            )
        })?;
        Ok(Some(Self { folder: folder.to_owned(), contents }))
    }

    /// A reader never sees half a file.
    fn save(&self) -> Result<()> {
        let path = self.folder.join(FILE);
        let new = self.folder.join("lab.json.new");
        let text = serde_json::to_string_pretty(&self.contents)?;
        fs::write(&new, text).with_context(|| new.display().to_string())?;
        fs::rename(&new, &path).with_context(|| path.display().to_string())
    }

    /// Changes what the file says now.
    fn change(&mut self, change: impl FnOnce(&mut Contents)) -> Result<()> {
        let _turn = lock(&self.folder.join(LOCK))?;
        self.refresh()?;
        change(&mut self.contents);
        self.save()
    }

    /// Takes over what other processes noted; a record that was removed stays as it was known last.
    fn refresh(&mut self) -> Result<()> {
        if let Some(now) = Self::open(&self.folder)? {
            self.contents = now.contents;
        }
        Ok(())
    }

    /// Where the lab's files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names of its namespaces.
    pub fn namespaces(&self) -> &[String] {
        &self.contents.namespaces
    }

    /// Processes it started; some may have ended.
    pub fn processes(&self) -> &[Process] {
        &self.contents.processes
    }

    /// Folders of BPF pins that go with it.
    pub fn pin_dirs(&self) -> &[PathBuf] {
        &self.contents.pin_dirs
    }

    /// Notes a namespace that is about to be made.
    pub fn add_namespace(&mut self, name: &str) -> Result<()> {
        self.change(|contents| contents.namespaces.push(name.to_owned()))
    }

    /// Notes a process.
    pub fn add_process(&mut self, process: &Process) -> Result<()> {
        self.change(|contents| {
            contents.processes.retain(Process::is_running);
            contents.processes.push(process.clone());
        })
    }

    /// Notes a folder of pins that is about to be made.
    pub fn add_pin_dir(&mut self, path: &Path) -> Result<()> {
        self.change(|contents| {
            if !contents.pin_dirs.iter().any(|known| known == path) {
                contents.pin_dirs.push(path.to_owned());
            }
        })
    }

    /// Removes the folder and everything in it.
    pub fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.folder).with_context(|| self.folder.display().to_string())
    }
}

/// Waits until no other process holds the lock at `path`; it is held until the value is dropped.
pub fn lock(path: &Path) -> Result<Flock<fs::File>> {
    let file = fs::File::options().create(true).append(true).open(path);
    let file = file.with_context(|| path.display().to_string())?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| anyhow!("locking {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read_again_and_goes_with_the_lab() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("lab");
        assert!(Record::open(&folder).unwrap().is_none());
        let mut record = Record::create(&folder).unwrap();
        record.add_namespace("x-client").unwrap();
        record.add_pin_dir(Path::new("/sys/fs/bpf/x")).unwrap();
        record.add_pin_dir(Path::new("/sys/fs/bpf/x")).unwrap();
        let again = Record::open(&folder).unwrap().unwrap();
        assert_eq!(again.contents, record.contents);
        assert_eq!(again.pin_dirs().len(), 1);
        again.remove().unwrap();
        assert!(Record::open(&folder).unwrap().is_none());
    }

    #[test]
    fn what_two_processes_note_is_all_there() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("lab");
        let mut first = Record::create(&folder).unwrap();
        let mut second = Record::open(&folder).unwrap().unwrap();
        first.add_namespace("a").unwrap();
        second.add_namespace("b").unwrap();
        first.add_pin_dir(Path::new("/sys/fs/bpf/x")).unwrap();
        assert_eq!(first.namespaces(), ["a", "b"]);
        second.refresh().unwrap();
        assert_eq!(second.contents, first.contents);
        second.remove().unwrap();
        first.refresh().unwrap();
        assert_eq!(first.namespaces(), ["a", "b"], "what was, for looking what is left of it");
    }

    #[test]
    fn a_file_that_is_no_record_is_an_error_and_not_no_lab() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(Record::open(folder.path()).unwrap_err().to_string().contains("by hand"));
    }
}
