//! What a lab consists of, on disk, so that any later run can take it down.
//!
//! Invariant: a namespace or a folder of pins is in the file before it exists; a process as soon as its pid is known.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::process::Process;

const FILE: &str = "lab.json";

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
        self.contents.namespaces.push(name.to_owned());
        self.save()
    }

    /// Notes a process.
    pub fn add_process(&mut self, process: &Process) -> Result<()> {
        self.contents.processes.retain(Process::is_running);
        self.contents.processes.push(process.clone());
        self.save()
    }

    /// Notes a folder of pins that is about to be made.
    pub fn add_pin_dir(&mut self, path: &Path) -> Result<()> {
        if !self.contents.pin_dirs.iter().any(|known| known == path) {
            self.contents.pin_dirs.push(path.to_owned());
        }
        self.save()
    }

    /// Removes the folder and everything in it.
    pub fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.folder).with_context(|| self.folder.display().to_string())
    }
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
    fn a_file_that_is_no_record_is_an_error_and_not_no_lab() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(Record::open(folder.path()).unwrap_err().to_string().contains("by hand"));
    }
}
