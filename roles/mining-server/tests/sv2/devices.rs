//! Models of devices that ignore exactly what the real ones ignore, and still mine.

use std::collections::HashMap;

use mining_server::{Fate, Settings, Verdict, Work};
use stratum::hash::Hash;
use stratum::sv2::Message;
use stratum::sv2::messages::*;
use stratum::{JobId, Now, RequestId, SequenceNumber, Target};

use crate::support::*;

/// Slots in which ESP-Miner 2.15 keeps future jobs, by job id.
const FUTURE_SLOTS: u32 = 8;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Model {
    /// ESP-Miner 2.15 in its extended mode: understands 0x14, 0x1c to 0x1f, 0x20 and 0x21, ignores all else.
    BitaxeExtended,
    /// The same in its standard mode: 0x11 and 0x15 in place of 0x14 and 0x1f.
    BitaxeStandard,
    /// `mining_device` 0.6: exits on everything that it does not understand.
    MiningDevice,
}

/// A job as the device holds it.
#[derive(Clone)]
struct Held {
    id: JobId,
    version: u32,
    min_ntime: Option<u32>,
    root: Root,
}

#[derive(Clone)]
enum Root {
    Fixed(Hash),
    Rolled { prefix: Vec<u8>, suffix: Vec<u8>, path: Vec<Hash> },
}

struct Device {
    model: Model,
    opened: Opened,
    future: HashMap<u32, Held>,
    active: Option<Held>,
    prev_hash: Option<(Hash, u32)>,
    ntime: u32,
    target: Target,
    extranonce: u64,
    sequence: u32,
    acknowledged: u32,
    refused: Vec<String>,
}

impl Device {
    /// Connects as the model does. Each answer must be the very next frame.
    fn connect(model: Model, driver: &mut Driver) -> Self {
        let (vendor, hardware_version) = match model {
            Model::MiningDevice => ("", ""),
            _ => ("bitaxe", "BM1370"),
        };
        let flags = if model == Model::BitaxeExtended { 0 } else { REQUIRES_STANDARD_JOBS };
        let answer = driver.send(SetupConnection {
            vendor: vendor.to_owned(),
            hardware_version: hardware_version.to_owned(),
            ..setup_connection(flags)
        });
        assert_eq!(answer, [SetupConnectionSuccess { used_version: 2, flags: 0 }.into()]);
        let (opened, rest) = match model {
            Model::BitaxeExtended => driver.open_extended(OpenExtendedMiningChannel {
                request_id: RequestId(1),
                user_identity: "bc1qminer.bitaxe".to_owned(),
                nominal_hash_rate: 1e12,
                max_target: Target::MAX,
                min_extranonce_size: 2,
            }),
            Model::BitaxeStandard | Model::MiningDevice => driver.open_standard(OpenStandardMiningChannel {
                request_id: RequestId(10),
                user_identity: "bc1qminer.standard".to_owned(),
                nominal_hash_rate: if model == Model::MiningDevice { 1e5 } else { 1e12 },
                max_target: Target::MAX,
            }),
        };
        let mut device = Device {
            model,
            target: opened.target,
            opened,
            future: HashMap::new(),
            active: None,
            prev_hash: None,
            ntime: 0,
            extranonce: 0,
            sequence: 0,
            acknowledged: 0,
            refused: Vec::new(),
        };
        device.hear(rest);
        device
    }

    fn hear(&mut self, messages: Vec<Message>) {
        for message in messages {
            match message {
                Message::NewMiningJob(job) if self.model != Model::BitaxeExtended => self.take(Held {
                    id: job.job_id,
                    version: job.version,
                    min_ntime: job.min_ntime,
                    root: Root::Fixed(job.merkle_root),
                }),
                Message::NewExtendedMiningJob(job) if self.model == Model::BitaxeExtended => {
                    assert!(job.merkle_path.len() <= 20);
                    self.take(Held {
                        id: job.job_id,
                        version: job.version,
                        min_ntime: job.min_ntime,
                        root: Root::Rolled {
                            prefix: job.coinbase_tx_prefix,
                            suffix: job.coinbase_tx_suffix,
                            path: job.merkle_path,
                        },
                    });
                }
                Message::SetNewPrevHash(tip) => {
                    let held = self.future.remove(&(tip.job_id.0 % FUTURE_SLOTS)).expect("a future job");
                    assert_eq!(held.id, tip.job_id, "slots collide");
                    self.future.clear();
                    self.active = Some(held);
                    self.prev_hash = Some((tip.prev_hash, tip.nbits));
                    self.ntime = tip.min_ntime;
                }
                Message::SetTarget(target) => self.target = target.maximum_target,
                Message::SubmitSharesSuccess(success) => {
                    self.acknowledged += success.new_submits_accepted_count;
                    assert_eq!(success.last_sequence_number.0 + 1, self.sequence);
                }
                Message::SubmitSharesError(error) => self.refused.push(error.error_code),
                other if self.model == Model::MiningDevice => panic!("mining_device exits on {other:?}"),
                _ => (),
            }
        }
    }

    /// A job with a time is mined at once and alone; one without waits for its prev hash.
    fn take(&mut self, job: Held) {
        match job.min_ntime {
            None => {
                self.future.insert(job.id.0 % FUTURE_SLOTS, job);
            }
            Some(ntime) => {
                assert!(self.prev_hash.is_some(), "mining_device exits on a job that builds on nothing");
                self.ntime = ntime;
                self.active = Some(job);
            }
        }
    }

    /// Mines one share on what the device believes to be its job.
    fn mine(&mut self, driver: &mut Driver) {
        let job = self.active.clone().expect("a job");
        let (prev_hash, nbits) = self.prev_hash.expect("a tip");
        self.extranonce += 1;
        let rolled = rolled(self.extranonce, self.opened.size);
        let root = match &job.root {
            Root::Fixed(root) => *root,
            Root::Rolled { prefix, suffix, path } => {
                folded(&[&prefix[..], &self.opened.prefix, &rolled, suffix].concat(), path)
            }
        };
        // Standard jobs have nothing to roll but the header: the version differs from share to share.
        let version = match job.root {
            Root::Fixed(_) if self.model == Model::BitaxeStandard => {
                job.version | (self.extranonce as u32) << 13 & 0x1fff_e000
            }
            _ => job.version,
        };
        let start = if self.model == Model::MiningDevice { self.sequence << 20 } else { 0 };
        let nonce = (start..)
            .find(|nonce| {
                self.target.is_met_by(&header_hash(version, &prev_hash, &root, self.ntime, nbits, *nonce))
            })
            .expect("test targets are easy");
        let (channel_id, sequence_number) = (self.opened.channel, SequenceNumber(self.sequence));
        let (job_id, ntime) = (job.id, self.ntime);
        self.sequence += 1;
        let answer = match job.root {
            Root::Fixed(_) => driver.send(SubmitSharesStandard {
                channel_id,
                sequence_number,
                job_id,
                nonce,
                ntime,
                version,
            }),
            Root::Rolled { .. } => driver.send(SubmitSharesExtended {
                channel_id,
                sequence_number,
                job_id,
                nonce,
                ntime,
                version,
                extranonce: rolled,
                user_identity: None,
            }),
        };
        self.hear(answer);
    }
}

/// Mines some shares, each of which must be accepted and hash at the upstream as it did on the device.
fn mine_some(device: &mut Device, driver: &mut Driver, work: &Work, epoch_is_live: bool) {
    for _ in 0..3 {
        device.mine(driver);
        let told = driver.wait(seconds(2));
        device.hear(told);
    }
    let shares = driver.shares();
    assert_eq!(verdicts(&shares), [Verdict::Accepted; 3], "{:?} {:?}", device.model, device.refused);
    assert_eq!(device.acknowledged, device.sequence);
    for share in shares {
        if !epoch_is_live {
            assert!(share.forward.is_none());
            assert!(matches!(share.record.fate, Fate::Dropped(_)));
            continue;
        }
        let record = &share.record;
        let forward = share.forward.expect("every share of this test meets the upstream's target");
        let job = &work.active().job;
        assert_eq!((record.job, forward.epoch), (Some(job.number), work.epoch));
        let coinbase = [&job.coinbase_prefix[..], &record.rollable, &job.coinbase_suffix].concat();
        let root = folded(&coinbase, &job.merkle_path);
        let hash = header_hash(
            record.version,
            &job.tip.previous_hash,
            &root,
            record.ntime,
            job.tip.nbits,
            record.nonce,
        );
        assert_eq!(forward.hash, hash);
        assert_eq!(record.rollable.len(), job.rollable_size);
    }
}

fn next(
    device: &mut Device,
    driver: &mut Driver,
    make: impl FnOnce(Now) -> std::sync::Arc<Work>,
) -> std::sync::Arc<Work> {
    let told = driver.wait(seconds(20));
    device.hear(told);
    let work = make(driver.now);
    let told = driver.work(&work);
    device.hear(told);
    work
}

#[test]
fn devices_mine_through_everything_that_an_upstream_does() {
    for model in [Model::BitaxeExtended, Model::BitaxeStandard, Model::MiningDevice] {
        // Without vardiff every share is worth forwarding, so that each is compared with the upstream's view.
        let mut driver = Driver::new(Settings { vardiff_enabled: false, share_batch_size: 10, ..settings() });
        let mut source = Source::new();
        source.upstream_target = difficulty(-22);
        let work = source.job(driver.now);
        driver.work(&work);
        let mut device = Device::connect(model, &mut driver);
        mine_some(&mut device, &mut driver, &work, true);
        for _ in 0..20 {
            let work = next(&mut device, &mut driver, |now| source.job(now));
            mine_some(&mut device, &mut driver, &work, true);
        }
        let work = next(&mut device, &mut driver, |now| source.block(now));
        mine_some(&mut device, &mut driver, &work, true);
        // The upstream changes its prefix on the same channel, with a job on the same tip.
        source.prefix = b"changed prefix".to_vec();
        let work = next(&mut device, &mut driver, |now| source.job(now));
        mine_some(&mut device, &mut driver, &work, true);
        // It goes away; the device mines on.
        let work = next(&mut device, &mut driver, |_| source.set_live(false));
        mine_some(&mut device, &mut driver, &work, false);
        // It comes back with another prefix and more room, and then another target.
        source.set_live(true);
        let work = next(&mut device, &mut driver, |now| source.redialled(b"elsewhere", 16, now));
        mine_some(&mut device, &mut driver, &work, true);
        source.upstream_target = difficulty(-24);
        let work = next(&mut device, &mut driver, |now| source.job(now));
        mine_some(&mut device, &mut driver, &work, true);
        assert_eq!(device.refused, [""; 0]);
        assert!(driver.closed.is_none());
        driver.close();
        assert!(driver.registry.held.is_empty());
    }
}

#[test]
fn a_bitaxes_constant_hash_rate_is_a_good_start() {
    // 1e12 hashes a second and eight shares a minute: 2^10.77 of difficulty 1.
    let mut driver = Driver::new(settings());
    let mut source = Source::new();
    source.upstream_target = difficulty(20);
    driver.work(&source.job(driver.now));
    let device = Device::connect(Model::BitaxeExtended, &mut driver);
    assert_eq!(device.target, difficulty(10));
    assert_eq!(driver.connection.vendor(), "bitaxe");
}

#[test]
fn a_device_that_comes_while_the_upstream_is_away_hears_nothing_before_its_answer() {
    let mut driver = Driver::set_up(settings(), REQUIRES_STANDARD_JOBS);
    let mut source = Source::new();
    assert_eq!(driver.send(standard(1)), []);
    assert_eq!(driver.wait(seconds(10)), []);
    let messages = driver.work(&source.job(driver.now));
    assert!(matches!(messages[0], Message::OpenStandardMiningChannelSuccess(_)));
    assert!(matches!(messages[1], Message::NewMiningJob(NewMiningJob { min_ntime: None, .. })));
    assert!(matches!(messages[2], Message::SetNewPrevHash(_)));
    assert_eq!(messages.len(), 3);
}
