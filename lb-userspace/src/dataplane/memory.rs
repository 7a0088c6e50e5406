//! Array maps as memory: reads and single-word stores without a system call.
//!
//! Owns: the mapping and the order of stores. Refuses to know: what the words mean. Invariant: every access is an aligned
//! 64-bit atomic, because the program reads the same memory at the same time.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use bytemuck::Pod;
use memmap2::{MmapOptions, MmapRaw};

/// The values of an `BPF_F_MMAPABLE` array map, `T` a multiple of 8 bytes as the kernel lays them out.
pub struct Mapped<T> {
    map: MmapRaw,
    entries: u32,
    writable: bool,
    values: PhantomData<T>,
}

impl<T: Pod> Mapped<T> {
    /// 64-bit words of a value.
    pub const WORDS: usize = size_of::<T>() / 8;

    /// Maps `entries` values for reading and writing. Fails as mmap(2) does, for one when the map is smaller.
    pub fn writable(fd: BorrowedFd<'_>, entries: u32) -> io::Result<Self> {
        Self::map(fd, entries, true)
    }

    /// Maps `entries` values for reading; storing to them panics.
    pub fn read_only(fd: BorrowedFd<'_>, entries: u32) -> io::Result<Self> {
        Self::map(fd, entries, false)
    }

    fn map(fd: BorrowedFd<'_>, entries: u32, writable: bool) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8) && size_of::<T>() > 0) };
        let mut options = MmapOptions::new();
        options.len(entries as usize * size_of::<T>());
        let fd = fd.as_raw_fd();
        let map = if writable { options.map_raw(fd)? } else { options.map_raw_read_only(fd)? };
        Ok(Self { map, entries, writable, values: PhantomData })
    }

    /// Values that are mapped.
    pub fn len(&self) -> u32 {
        self.entries
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    fn word(&self, index: u32, word: usize) -> Option<&AtomicU64> {
        if index >= self.entries || word >= Self::WORDS {
            return None;
        }
        let at = index as usize * size_of::<T>() + word * 8;
        // SAFETY: `at + 8` lies within the mapping by the check above; the mapping starts on a page and `at` is a multiple
        // of 8, so the word is aligned; it lives as long as `self`; all accesses here are atomic.
        Some(unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(at).cast()) })
    }

    /// One word of a value; `None` outside the map.
    pub fn load_word(&self, index: u32, word: usize) -> Option<u64> {
        Some(self.word(index, word)?.load(Ordering::Acquire))
    }

    /// Stores one word of a value after everything stored before it. False outside the map.
    ///
    /// # Panics
    /// If the map was opened for reading only, which is a mistake of the caller.
    pub fn store_word(&self, index: u32, word: usize, value: u64) -> bool {
        assert!(self.writable, "store to a map that was opened for reading");
        self.word(index, word).map(|word| word.store(value, Ordering::Release)).is_some()
    }

    /// A copy of a value, word by word; a value that changes meanwhile may be mixed.
    pub fn get(&self, index: u32) -> Option<T> {
        let mut value = T::zeroed();
        for (at, bytes) in bytemuck::bytes_of_mut(&mut value).chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&self.load_word(index, at)?.to_ne_bytes());
        }
        Some(value)
    }

    /// Writes a whole value, for entries that nothing names. False outside the map.
    ///
    /// # Panics
    /// As [`Self::store_word`].
    pub fn put(&self, index: u32, value: &T) -> bool {
        bytemuck::bytes_of(value).chunks_exact(8).enumerate().all(|(at, bytes)| {
            let word = bytes.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
            self.store_word(index, at, u64::from_le(word))
        })
    }
}
