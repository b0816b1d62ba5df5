//! Leaves in the order of their keys, however many: those that memory has no room for wait in a file.
//!
//! Runs of leaves are sorted in memory and written one after the other; then all runs are read at once. The file is beside
//! the statement, has 76 bytes for each share, and is removed at the end.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use accounting::merkle::{Key, Node, Works};
use stratum::Work;

/// Leaves of one run: some hundred megabytes of memory.
const RUN: usize = 1 << 20;

/// Runs at most, each of which has a buffer while they are read at once: a thousand million shares.
const MAX_RUNS: usize = 1024;

/// Leaves that a buffer holds.
const BUFFER: usize = 1024;

/// Bytes of a leaf in the file.
const ROW: usize = 12 + 32 + 16 + 16;

/// Leaves of a statement at most.
pub(super) const MAX_LEAVES: u64 = (RUN * MAX_RUNS) as u64;

/// See the module's documentation.
pub(super) struct Order {
    run_size: usize,
    leaves: Vec<Node>,
    /// Where the file goes if there is one.
    path: PathBuf,
    file: Option<File>,
    /// How many leaves each run in the file has.
    runs: Vec<usize>,
}

impl Order {
    /// Nothing yet. The file will be at `path`, where nothing may be.
    pub(super) fn new(path: PathBuf) -> Self {
        Order::of_runs(path, RUN)
    }

    fn of_runs(path: PathBuf, run_size: usize) -> Self {
        Order { run_size, leaves: Vec::new(), path, file: None, runs: Vec::new() }
    }

    /// Adds a leaf. False when there are too many.
    pub(super) fn push(&mut self, leaf: Node) -> io::Result<bool> {
        if self.leaves.len() == self.run_size {
            if self.runs.len() == MAX_RUNS {
                return Ok(false);
            }
            self.write_run()?;
        }
        self.leaves.push(leaf);
        Ok(true)
    }

    /// Shows all leaves in order. Can be called again.
    pub(super) fn each<E: From<io::Error>>(
        &mut self,
        mut visit: impl FnMut(Node) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.runs.is_empty() {
            self.leaves.sort_unstable_by_key(order);
            return self.leaves.iter().copied().try_for_each(visit);
        }
        if !self.leaves.is_empty() {
            self.write_run()?;
        }
        let file = self.file.as_mut().expect("runs are in a file");
        let mut start = 0;
        let mut cursors: Vec<Cursor> = Vec::with_capacity(self.runs.len());
        for leaves in &self.runs {
            cursors.push(Cursor { next: start, left: *leaves, buffer: VecDeque::new() });
            start += (leaves * ROW) as u64;
        }
        let mut heads = BinaryHeap::with_capacity(cursors.len());
        for (place, cursor) in cursors.iter_mut().enumerate() {
            heads.extend(cursor.head(file)?.map(|leaf| Reverse((order(&leaf), place))));
        }
        while let Some(Reverse((_, place))) = heads.pop() {
            let leaf = cursors[place].buffer.pop_front().expect("its head was seen");
            visit(leaf)?;
            heads.extend(cursors[place].head(file)?.map(|leaf| Reverse((order(&leaf), place))));
        }
        Ok(())
    }

    fn write_run(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = File::options().read(true).write(true).create_new(true).open(&self.path)?;
                self.file.insert(file)
            }
        };
        self.leaves.sort_unstable_by_key(order);
        file.seek(SeekFrom::End(0))?;
        let mut output = BufWriter::new(file);
        for leaf in &self.leaves {
            output.write_all(&row(leaf))?;
        }
        output.flush()?;
        self.runs.push(self.leaves.len());
        self.leaves.clear();
        Ok(())
    }
}

impl Drop for Order {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Nobody needs it, and nobody can be told.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Where one run is read.
struct Cursor {
    next: u64,
    left: usize,
    buffer: VecDeque<Node>,
}

impl Cursor {
    /// The next leaf, which stays in the buffer.
    fn head(&mut self, file: &mut File) -> io::Result<Option<Node>> {
        if self.buffer.is_empty() && self.left > 0 {
            let count = self.left.min(BUFFER);
            let mut bytes = vec![0; count * ROW];
            file.seek(SeekFrom::Start(self.next))?;
            file.read_exact(&mut bytes)?;
            self.buffer.extend(bytes.as_chunks::<ROW>().0.iter().map(leaf_of));
            self.next += bytes.len() as u64;
            self.left -= count;
        }
        Ok(self.buffer.front().copied())
    }
}

/// Leaves with one key are in the order of their hashes, so that a statement that is made again has the same root.
fn order(leaf: &Node) -> (Key, [u8; 32]) {
    (leaf.first, leaf.hash)
}

fn row(leaf: &Node) -> [u8; ROW] {
    let mut row = [0; ROW];
    row[..12].copy_from_slice(&leaf.first.0);
    row[12..44].copy_from_slice(&leaf.hash);
    row[44..60].copy_from_slice(&leaf.works.credited.0.to_le_bytes());
    row[60..].copy_from_slice(&leaf.works.upstream.0.to_le_bytes());
    row
}

fn leaf_of(row: &[u8; ROW]) -> Node {
    let (key, rest) = row.split_first_chunk().expect("a row is longer");
    let (hash, rest) = rest.split_first_chunk().expect("a row is longer");
    let (credited, upstream) = rest.split_first_chunk().expect("a row is longer");
    let upstream = upstream.try_into().expect("the rest of a row");
    let works = Works {
        credited: Work(u128::from_le_bytes(*credited)),
        upstream: Work(u128::from_le_bytes(upstream)),
    };
    Node { hash: *hash, works, first: Key(*key), last: Key(*key) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(number: u32) -> Node {
        let mut key = [0; 12];
        // Shuffled, and each key twice.
        key[..4].copy_from_slice(&(number / 2).wrapping_mul(2_654_435_761).to_be_bytes());
        let works = Works { credited: Work(number.into()), upstream: Work(7) };
        Node::leaf(&number.to_le_bytes(), works, Key(key))
    }

    fn ordered(order: &mut Order) -> Vec<Node> {
        let mut leaves = Vec::new();
        order
            .each(|leaf| {
                leaves.push(leaf);
                Ok::<(), io::Error>(())
            })
            .expect("the folder can be written to");
        leaves
    }

    #[test]
    fn any_number_of_leaves_comes_in_order_and_leaves_no_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("leaves");
        for (count, run_size) in [(0, 10), (7, 10), (10, 10), (11, 10), (5000, 1100), (5000, 64)] {
            let mut all: Vec<Node> = (0..count).map(leaf).collect();
            let mut order_of = Order::of_runs(path.clone(), run_size);
            for leaf in &all {
                assert!(order_of.push(*leaf).expect("the folder can be written to"));
            }
            all.sort_unstable_by_key(order);
            assert_eq!(ordered(&mut order_of), all, "{count} leaves in runs of {run_size}");
            assert_eq!(ordered(&mut order_of), all, "again");
            assert_eq!(path.exists(), count as usize > run_size);
            drop(order_of);
            assert!(!path.exists());
        }
    }

    #[test]
    fn too_many_leaves_are_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut order = Order::of_runs(folder.path().join("leaves"), 1);
        let taken = (0..).map(leaf).take_while(|leaf| order.push(*leaf).expect("it can be written")).count();
        assert_eq!(taken, MAX_RUNS + 1);
    }
}
