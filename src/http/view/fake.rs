//! A view with figures that a test chooses, and a memory of what it was told.

use std::sync::{Arc, Mutex};

use accounting::{
    AckSums, AnswerSums, DeviceMark, EnergySums, Level, PowerSource, RejectReason, ShareSums, Sums,
};
use stratum::{DeviceId, Work};

use super::{
    Answer, AtStart, Block, Device, Event, Fleet, Group, Job, Known, Ledger, Names, Overview, Period, Point,
    PowerOf, PowerReading, Protocol, Rate, Rates, Span, Subject, Unanswered, Upstream, View,
};

/// When the fake's figures were taken: 2026-11-25T12:00:00Z.
pub(crate) const NOW_US: u64 = 1_795_608_000_000_000;

/// A view over a fleet that does not change by itself.
pub(crate) struct FakeView {
    pub(crate) fleet: Mutex<Arc<Fleet>>,
    pub(crate) readings: Mutex<Vec<PowerReading>>,
}

impl FakeView {
    pub(crate) fn new(fleet: Fleet) -> Self {
        FakeView { fleet: Mutex::new(Arc::new(fleet)), readings: Mutex::default() }
    }

    pub(crate) fn now(&self) -> Arc<Fleet> {
        Arc::clone(&self.fleet.lock().expect("nobody panicked"))
    }

    fn knows(&self, subject: &Subject) -> Result<(), Unanswered> {
        let fleet = self.now();
        let (known, kind) = match subject {
            Subject::Fleet => (true, "fleet"),
            Subject::Device(name) => (fleet.devices.iter().any(|device| *device.name == **name), "device"),
            Subject::Group(name) => {
                (fleet.overview.groups.iter().any(|group| *group.name == **name), "group")
            }
            Subject::Upstream(name) => {
                (fleet.overview.upstreams.iter().any(|up| *up.name == **name), "upstream")
            }
        };
        known.then_some(()).ok_or(Unanswered::Unknown(kind))
    }
}

/// Sums that hold: ten submitted for each of `size`, one of them stale, and energy for what was accepted.
pub(crate) fn sums(size: u64) -> Sums {
    let work = u128::from(size) << 70;
    let mut shares = ShareSums {
        submitted: 10 * size,
        accepted: 9 * size,
        forwarded: 9 * size,
        submitted_work: Work(10 * work),
        credited: Work(9 * work),
        upstream_work: Work(9 * work),
        forwarded_work: Work(9 * work),
        ..ShareSums::default()
    };
    shares.rejected[RejectReason::Stale as usize] = size;
    shares.rejected_work[RejectReason::Stale as usize] = Work(work);
    let answers = AnswerSums {
        forwarded: 9 * size,
        forwarded_work: Work(9 * work),
        acknowledged: 8 * size,
        acknowledged_work: Work(8 * work),
        refused: size,
        refused_work: Work(work),
        ..AnswerSums::default()
    };
    let energy =
        EnergySums { millijoules: [3_600_000 * u128::from(size), 0, 0, 0], covered_work: Work(9 * work) };
    Sums { shares, answers, energy, squared_work: 9.0 * (work as f64) * (work as f64) }
}

fn acks() -> AckSums {
    let mut acks = AckSums::default();
    acks.add(80_000);
    acks.add(120_000);
    acks
}

fn rates(size: u64) -> Rates {
    let rate = Rate { hash_rate_hs: 1e14 * size as f64, window_seconds: 60.0, uncertainty: 0.3 };
    Rates {
        accepted: [Some(rate), Some(rate), None, None],
        submitted: [Some(rate), None, None, None],
        reported_hs: None,
    }
}

/// A fleet of so many devices, of which every second is in a group and every third speaks SV2.
pub(crate) fn fleet(count: usize) -> Fleet {
    let devices = (0..count).map(|number| Device {
        id: DeviceId(number as u32),
        name: format!("farm.rig{number}").into(),
        worker_name: if number == 1 { "farm.all".into() } else { format!("farm.rig{number}").into() },
        connections: (number as u32 + 1) % 3,
        groups: if number % 2 == 0 { vec!["hall a/1".into()] } else { Vec::new() },
        address: (number % 2 == 0).then(|| "10.0.0.7:40000".into()),
        user_agent: (number % 2 == 0).then(|| "cgminer/4.12".into()),
        device_id: (number % 3 == 0).then(|| format!("serial-{number}").into()),
        protocol: Some(if number % 3 == 0 { Protocol::Sv2 } else { Protocol::Sv1 }),
        first_seen_us: NOW_US - 3_600_000_000,
        last_seen_us: NOW_US - 1_000_000,
        last_share_us: (number % 2 == 0).then_some(NOW_US - 2_000_000),
        best_difficulty: (number % 2 == 0).then_some(1e9 + number as f64),
        latest_work: (number % 2 == 0).then_some(Work(1 << 40)),
        sums: if number % 2 == 0 { sums(number as u64) } else { Sums::default() },
        power_w: (number % 2 == 0).then_some((3250.0, PowerSource::Meter)),
        rates: if number % 2 == 0 { rates(number as u64) } else { Rates::default() },
    });
    let devices: Vec<Device> = devices.collect();
    let mut all = Sums::default();
    devices.iter().for_each(|device| all.add(&device.sums));
    let mut overview = Overview {
        taken_us: NOW_US,
        since_us: NOW_US - 86_400_000_000,
        started_us: NOW_US - 3_600_000_000,
        energy: all.energy.clone(),
        power_w: Some(6500.0),
        rates: rates(count as u64),
        devices: count,
        groups: vec![Group {
            name: "hall a/1".into(),
            devices: count.div_ceil(2),
            sums: all.clone(),
            rates: rates(1),
        }],
        upstreams: vec![Upstream {
            name: "pool.example:34254".into(),
            account: Some("account.farm".into()),
            is_live: true,
            standing: "serving",
            sums: Sums { energy: EnergySums::default(), ..all.clone() },
            rates: rates(count as u64),
            refused_by_code: [("stale-share".to_owned(), all.answers.refused)].into(),
            sats_per_hash: Some(0.5e-12),
            acks: acks(),
        }],
        switches: vec![("connection_lost", 2), ("fail_back", 1)],
        declarations: Some(Default::default()),
        sats_per_terahash: Some(0.5),
        ..Overview::default()
    };
    overview.totals.shares = all.shares.clone();
    overview.totals.answers = all.answers.clone();
    overview.totals.refused_by_code.insert("stale-share".to_owned(), all.answers.refused);
    Fleet { overview, devices, has_answers_by_device: true }
}

impl View for FakeView {
    fn overview(&self) -> Answer<'_, Arc<Overview>> {
        Box::pin(async { Ok(Arc::new(self.now().overview.clone())) })
    }

    fn fleet(&self) -> Answer<'_, Arc<Fleet>> {
        Box::pin(async { Ok(self.now()) })
    }

    fn names(&self) -> Answer<'_, Arc<Names>> {
        let devices = self.now().devices.iter().map(|device| (device.id, Arc::clone(&device.name))).collect();
        Box::pin(async { Ok(Arc::new(Names::new(devices))) })
    }

    fn some(&self, devices: Vec<DeviceId>) -> Answer<'_, Fleet> {
        let mut fleet = Fleet::clone(&self.now());
        let all = std::mem::take(&mut fleet.devices);
        let of = |id: DeviceId| all.iter().find(|device| device.id == id).cloned();
        fleet.devices = devices.into_iter().filter_map(of).collect();
        Box::pin(async { Ok(fleet) })
    }

    fn marks(&self) -> Answer<'_, Arc<Vec<(DeviceId, DeviceMark)>>> {
        let mark = |device: &Device| DeviceMark(device.sums.shares.submitted as u32, device.last_seen_us);
        let marks = self.now().devices.iter().map(|device| (device.id, mark(device))).collect();
        Box::pin(async { Ok(Arc::new(marks)) })
    }

    fn period(&self, span: Span) -> Answer<'_, Period> {
        Box::pin(async move { Ok(Period { span, devices: vec![(DeviceId(0), sums(7))] }) })
    }

    fn points(&self, subject: Subject, level: Level, span: Span) -> Answer<'_, Vec<Point>> {
        Box::pin(async move {
            self.knows(&subject)?;
            let start = level.start(span.from_us / 1_000_000);
            Ok(vec![
                Point { start, sums: sums(1) },
                Point { start: start + level.seconds(), sums: Sums::default() },
            ])
        })
    }

    fn jobs(&self) -> Answer<'_, Vec<Job>> {
        let job = Job {
            upstream: "pool.example:34254".into(),
            number: Some(12),
            received_us: Some(NOW_US),
            previous_hash: Some("00".repeat(32)),
            height: Some(925_000),
            version: Some(0x2000_0000),
            nbits: Some(0x1702_1234),
            version_rolling: Some(true),
            upstream_target: Some(stratum::Target::of_work(Work(1 << 42))),
            rollable_size: Some(16),
            ..Job::default()
        };
        Box::pin(async { Ok(vec![job]) })
    }

    fn sums(&self, subject: Subject, span: Span) -> Answer<'_, (Span, Sums)> {
        Box::pin(async move {
            self.knows(&subject)?;
            Ok((span, sums(7)))
        })
    }

    fn blocks(&self, _: usize, _: Option<u64>) -> Answer<'_, Known<Block>> {
        let block = Block {
            number: 1,
            found_us: NOW_US,
            device: Some("farm.rig0".into()),
            upstream: None,
            hash: None,
            height: Some(925_000),
            difficulty: Some(2e14),
            value_sats: Some(312_500_000),
        };
        Box::pin(async { Ok(Known { items: vec![block], is_complete: true }) })
    }

    fn events(&self, _: usize, _: Option<u64>) -> Answer<'_, Known<Event>> {
        let text = "two machines use the name farm.rig0".to_owned();
        let event =
            Event { number: 1, at_us: NOW_US, kind: "shared_name", subject: Some("farm.rig0".into()), text };
        Box::pin(async { Ok(Known { items: vec![event], is_complete: true }) })
    }

    fn at_start(&self) -> Arc<AtStart> {
        Arc::default()
    }

    fn ledger(&self) -> Answer<'_, Ledger> {
        let ledger =
            Ledger { is_kept: true, since_us: Some(NOW_US), head_batch: Some(7), ..Ledger::default() };
        Box::pin(async { Ok(ledger) })
    }

    fn set_power(&self, readings: Vec<PowerReading>) -> Answer<'_, ()> {
        Box::pin(async move {
            for reading in &readings {
                match &reading.of {
                    PowerOf::Device(name) => self.knows(&Subject::Device(name.clone()))?,
                    PowerOf::Group(name) => self.knows(&Subject::Group(name.clone()))?,
                }
            }
            self.readings.lock().expect("nobody panicked").extend(readings);
            Ok(())
        })
    }
}
