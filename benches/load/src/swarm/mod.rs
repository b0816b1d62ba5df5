//! A swarm of SV1 miners that hash real shares, in as few threads as they need.
//!
//! It never shares code with the server on the way from a `mining.notify` to a share, but for the hash function.

mod figures;
mod job;
mod miner;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use mio::{Poll, Waker};

pub use figures::{Class, ClassFigures, SwarmCounts, SwarmFigures};
pub use worker::Pace;

use crate::in_flight::InFlight;
use figures::Counts;
use job::JobCache;
use miner::{Desk, Miner};
use worker::{COMMANDS, Command, Worker};

/// How a swarm is made up.
#[derive(Clone, Copy, Debug)]
pub struct SwarmOptions {
    /// Where the server listens.
    pub server: SocketAddr,
    /// Miners of both classes.
    pub miners: usize,
    /// How many of them flood.
    pub flooders: usize,
    /// Threads that they are spread over.
    pub threads: NonZeroUsize,
}

/// A swarm; it ends when dropped.
#[derive(Debug)]
pub struct Swarm {
    threads: Vec<Thread>,
    /// Miners of both classes.
    pub miners: usize,
}

#[derive(Debug)]
struct Thread {
    commands: Sender<Command>,
    waker: Waker,
    counts: Arc<Counts>,
    handle: Option<JoinHandle<()>>,
}

impl Swarm {
    /// Makes the miners. They connect when they are told to.
    pub fn start(options: SwarmOptions, in_flight: &Arc<InFlight>) -> io::Result<Self> {
        let threads = options.threads.get();
        let mut swarm = Swarm { threads: Vec::new(), miners: options.miners };
        for number in 0..threads {
            let miner = |index: usize| {
                let class = if index < options.flooders { Class::Flooder } else { Class::Ordinary };
                Miner::new(class, format!("farm.m{index:06}"))
            };
            let miners = (number..options.miners).step_by(threads).map(miner).collect();
            let poll = Poll::new()?;
            let waker = Waker::new(poll.registry(), COMMANDS)?;
            let (commands, inbox) = mpsc::channel();
            let counts = Arc::<Counts>::default();
            let desk = Desk {
                figures: SwarmFigures::default(),
                counts: Arc::clone(&counts),
                jobs: JobCache::default(),
                watch: None,
                in_flight: Arc::clone(in_flight),
                // A part of the space for each thread, which lasts for 2^32 / threads jobs.
                extranonce2: (u32::MAX / threads as u32).wrapping_mul(number as u32),
            };
            let worker = Worker::new(poll, options.server, inbox, desk, miners);
            let handle = thread::Builder::new().name(format!("swarm-{number}")).spawn(move || {
                if let Err(error) = worker.run() {
                    eprintln!("a thread of the swarm ended: {error}");
                }
            })?;
            swarm.threads.push(Thread { commands, waker, counts, handle: Some(handle) });
        }
        Ok(swarm)
    }

    /// All miners connect as fast as they can.
    pub fn connect(&self) -> io::Result<()> {
        self.order(|| Command::Connect)
    }

    /// From now on the miners of a class submit at this pace.
    pub fn set_pace(&self, class: Class, pace: Pace) -> io::Result<()> {
        self.order(|| Command::Pace(class, pace))
    }

    /// Every miner looks for a block with this previous hash, shown as a line shows it, from before this returns.
    pub fn watch(&self, previous_hash: &str) -> io::Result<()> {
        let (ready, answers) = mpsc::channel();
        self.order(|| Command::Watch { previous_hash: previous_hash.into(), ready: ready.clone() })?;
        drop(ready);
        let count = answers.iter().count();
        if count == self.threads.len() { Ok(()) } else { Err(ended()) }
    }

    /// When each miner had the block that is watched for, in no order. They are measured from `started`.
    pub fn arrivals(&self, started: Instant) -> io::Result<Vec<Instant>> {
        let (reply, answers) = mpsc::channel();
        self.order(|| Command::Arrivals { started, reply: reply.clone() })?;
        drop(reply);
        Ok(answers.iter().flatten().collect())
    }

    /// A measurement begins: what was measured so far does not count.
    pub fn reset(&self) -> io::Result<()> {
        self.order(|| Command::Reset)
    }

    /// What was measured since the last reset.
    pub fn figures(&self) -> io::Result<SwarmFigures> {
        let (reply, answers) = mpsc::channel();
        self.order(|| Command::Figures(reply.clone()))?;
        drop(reply);
        let mut sum = SwarmFigures::default();
        answers.iter().for_each(|figures| sum.add(&figures));
        Ok(sum)
    }

    /// From now on nothing is said of connections that end.
    pub fn hush(&self) -> io::Result<()> {
        self.order(|| Command::Hush)
    }

    /// What is counted all the time.
    pub fn counts(&self) -> SwarmCounts {
        SwarmCounts::sum(self.threads.iter().map(|thread| &*thread.counts))
    }

    fn order(&self, command: impl Fn() -> Command) -> io::Result<()> {
        for thread in &self.threads {
            thread.commands.send(command()).map_err(|_| ended())?;
            thread.waker.wake()?;
        }
        Ok(())
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        // A thread that has ended already does not hear it.
        let _ = self.order(|| Command::End);
        for thread in &mut self.threads {
            if let Some(handle) = thread.handle.take() {
                let _ = handle.join();
            }
        }
    }
}

fn ended() -> io::Error {
    io::Error::other("a thread of the swarm has ended")
}
