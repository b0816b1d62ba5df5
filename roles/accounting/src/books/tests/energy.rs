//! Energy against a reference that looks at every second; and examples of it.

use super::*;

/// The part of a minute that one process ran.
pub(super) struct Part {
    pub(super) minute: u64,
    from: u64,
    to: u64,
    /// What each device proved in it.
    mined: BTreeMap<u32, u128>,
}

/// All parts that are over, in order.
pub(super) fn parts(entries: &[Entry]) -> Vec<Part> {
    let (mut parts, mut mined) = (Vec::new(), BTreeMap::new());
    let (mut minute, mut from, mut latest) = (Level::Minute.start(START), START, START);
    for entry in entries {
        let mut time = entry.at_us() / 1_000_000;
        if let Entry::MinuteEnded(start) = entry {
            time = start + 60;
        }
        let kind = if let Entry::Event(event) = entry { Some(event.kind) } else { None };
        let mut end = |minute, from, to| {
            parts.push(Part { minute, from, to, mined: std::mem::take(&mut mined) });
        };
        if kind == Some(EventKind::Started) {
            end(minute, from, latest);
            (minute, from) = (Level::Minute.start(time), time);
        } else if Level::Minute.start(time) > minute {
            end(minute, from, minute + 60);
            minute = Level::Minute.start(time);
            from = minute;
        }
        if kind == Some(EventKind::Ended) {
            end(minute, from, time);
            from = time;
        }
        if let Entry::Share(share @ ShareRecord { device: Some(device), .. }) = entry {
            *mined.entry(device.0).or_default() += share.credited().0;
        }
        latest = latest.max(time);
    }
    parts
}

/// What the best source says of a subject in a second: watts and more in milliwatts.
fn best(entries: &[Entry], subject: Subject, second: u64) -> Option<(u64, PowerSource)> {
    let said = |source: PowerSource| {
        let mut readings = entries.iter().filter_map(|entry| match entry {
            Entry::Power(power) if (power.subject, power.source) == (subject, source) => Some(power),
            _ => None,
        });
        let latest = readings.rfind(|power| power.at_us / 1_000_000 <= second)?;
        let until = latest.at_us / 1_000_000 + u64::from(latest.valid_for_s);
        (second < until).then_some((latest.milliwatts, source))
    };
    PowerSource::ALL.into_iter().find_map(said)
}

/// The energy of a subject in a part. Of a device in the group, only the covered work.
pub(super) fn of(entries: &[Entry], part: &Part, subject: Subject) -> EnergySums {
    let mut sums = EnergySums::default();
    let is_of = |device: u32| match subject {
        Subject::Fleet => true,
        Subject::Group(_) => device % 2 == 1,
        Subject::Device(id) => id.0 == device,
        Subject::Untracked | Subject::Upstream(_) => false,
    };
    let mut covered: BTreeMap<u32, u64> = BTreeMap::new();
    for second in part.from..part.to {
        let group = best(entries, Subject::Group(GroupId(0)), second);
        let mut is_shared = false;
        for device in part.mined.keys().copied().filter(|device| is_of(*device)) {
            let own = best(entries, Subject::Device(DeviceId(device)), second);
            let group =
                group.filter(|(_, source)| device % 2 == 1 && own.is_none_or(|(_, own)| *source < own));
            is_shared |= group.is_some();
            if group.or(own).is_some() {
                *covered.entry(device).or_default() += 1;
            }
            if let (None, Some((milliwatts, source))) = (group, own) {
                sums.millijoules[source as usize] += u128::from(milliwatts);
            }
        }
        if let (true, Some((milliwatts, source))) = (is_shared, group) {
            sums.millijoules[source as usize] += u128::from(milliwatts);
        }
    }
    for (device, seconds) in covered {
        sums.covered_work +=
            Work(part.mined[&device] * u128::from(seconds) / u128::from(part.to - part.from));
    }
    sums
}

fn power(subject: Subject, seconds: u64, watts: u64, source: PowerSource) -> Entry {
    let at_us = (START + seconds) * 1_000_000;
    let milliwatts = watts * 1000;
    Entry::Power(PowerEntry { subject, at_us, valid_for_s: 600, milliwatts, source })
}

/// Three devices mine for two minutes: one has a meter, the others share that of their group; a fourth, of which nobody
/// says anything, counts for no efficiency.
#[test]
fn energy_is_what_was_said_of_those_who_mined_and_nothing_else() {
    let mut books = Books::default();
    let group = books.group("hall").expect("there is room");
    let mut entries: Vec<Entry> = (0..4).map(|id| device(id, &[])).collect();
    for entry in &mut entries[1..3] {
        let Entry::Device(device) = entry else { unreachable!("they are devices") };
        device.groups = vec![group];
    }
    // A minute begins at 80.
    entries.push(power(Subject::Device(DeviceId(0)), 75, 100, PowerSource::Estimate));
    entries.push(power(Subject::Device(DeviceId(0)), 80, 200, PowerSource::Meter));
    entries.push(power(Subject::Device(DeviceId(0)), 70, 900, PowerSource::Meter));
    entries.push(power(Subject::Group(group), 80, 300, PowerSource::Meter));
    // The maker's word counts for less than the meter of the group.
    entries.push(power(Subject::Device(DeviceId(1)), 80, 5000, PowerSource::Nameplate));
    entries.push(power(Subject::Device(DeviceId(99)), 80, 300, PowerSource::Meter));
    let mut world = World { seconds: 100, ..World::default() };
    for minute in 0..2 {
        world.seconds = 100 + 60 * minute;
        for (device, exponent) in [(0, 3), (1, 4), (2, 5), (3, 3)] {
            world.share(Some(device), 0, 9, exponent);
        }
    }
    entries.extend(world.entries);
    entries.iter().for_each(|entry| books.apply(entry));
    books.turn_to((START + 1000) * 1_000_000);
    assert_eq!(books.violation(), None);
    let energy = |subject| books.view(subject, 0).expect("it is known").sums.energy;
    let of_device = |id| energy(Subject::Device(DeviceId(id)));
    // 200 W for two minutes, in millijoules.
    assert_eq!(of_device(0), EnergySums { millijoules: [24_000_000, 0, 0, 0], covered_work: Work(16) });
    // 300 W for two minutes, a third and two thirds.
    assert_eq!((of_device(1).millijoules[0], of_device(2).millijoules[0]), (12_000_000, 24_000_000));
    assert_eq!(energy(Subject::Group(group)).millijoules[0], 36_000_000);
    assert_eq!(of_device(3), EnergySums::default());
    assert_eq!(energy(Subject::Fleet).covered_work, Work(16 + 32 + 64));
    let now = (START + 120) * 1_000_000;
    assert_eq!(books.power(Subject::Device(DeviceId(0)), now), Some((200_000, PowerSource::Meter)));
    assert_eq!(books.power(Subject::Device(DeviceId(0)), now + 600_000_000), None, "its time is over");
    // Nobody mines in the minutes that follow, so nothing is counted, whatever meters say.
    books.turn_to((START + 5000) * 1_000_000);
    assert_eq!(books.view(Subject::Fleet, 0).expect("it is known").sums.energy.joules(), 60_000.0);
}

/// A group's meter is heard for half a minute, in which one of its devices has a better source for a third of the time.
#[test]
fn a_group_is_shared_by_work_and_time() {
    let mut books = Books::default();
    let group = books.group("hall").expect("there is room");
    let mut entries: Vec<Entry> = [1, 3].map(|id| device(id, &[group])).to_vec();
    entries.push(Entry::Power(PowerEntry {
        subject: Subject::Group(group),
        at_us: (START + 80) * 1_000_000,
        valid_for_s: 30,
        milliwatts: 900_000,
        source: PowerSource::Device,
    }));
    let mut world = World { seconds: 85, ..World::default() };
    world.share(Some(1), 0, 9, 4);
    world.share(Some(3), 0, 9, 5);
    entries.extend(world.entries);
    entries.push(power(Subject::Device(DeviceId(3)), 100, 50, PowerSource::Meter));
    entries.iter().for_each(|entry| books.apply(entry));
    books.turn_to((START + 1000) * 1_000_000);
    let of = |id| books.view(Subject::Device(DeviceId(id)), 0).expect("it is known").sums.energy;
    // 27 kJ: 16 hashes for 30 seconds beside 32 for 20.
    let (all, weights) = (27_000_000, [16 * 30, 32 * 20]);
    let first = all * weights[0] / (weights[0] + weights[1]);
    assert_eq!(of(1), EnergySums { millijoules: [0, first, 0, 0], covered_work: Work(8) });
    // And then its own meter, for 40 seconds.
    assert_eq!(of(3), EnergySums { millijoules: [2_000_000, all - first, 0, 0], covered_work: Work(32) });
}

/// A process ends in order in the middle of a minute, the next one is killed in the same minute, and another one follows.
#[test]
fn a_minute_has_the_energy_of_the_time_that_processes_ran() {
    let mut books = Books::default();
    let mut world = World { seconds: 80, ..World::default() };
    world.event(EventKind::Started);
    world.entries.push(device(0, &[]));
    world.entries.push(power(Subject::Device(DeviceId(0)), 80, 100, PowerSource::Meter));
    let steps: [(u64, Option<EventKind>); 6] = [
        (85, None),
        (100, Some(EventKind::Ended)),
        (110, Some(EventKind::Started)),
        (112, None),
        // Killed after that.
        (125, Some(EventKind::Started)),
        (130, None),
    ];
    for (seconds, kind) in steps {
        world.seconds = seconds;
        match kind {
            Some(kind) => world.event(kind),
            None => world.share(Some(0), 0, 9, 4),
        }
    }
    world.entries.iter().for_each(|entry| books.apply(entry));
    books.turn_to((START + 1000) * 1_000_000);
    let energy = books.view(Subject::Fleet, 0).expect("it is known").sums.energy;
    // 80 to 100, 110 to 112, 125 to 140.
    let expected = EnergySums { millijoules: [100_000 * 37, 0, 0, 0], covered_work: Work(16 * 3) };
    assert_eq!(energy, expected);
}

/// A process is killed in the middle of a minute, and the clock is set back before the next one starts.
#[test]
fn no_time_counts_twice_when_the_clock_is_set_back() {
    let mut books = Books::default();
    let mut world = World { seconds: 80, ..World::default() };
    world.event(EventKind::Started);
    world.entries.push(device(0, &[]));
    world.entries.push(power(Subject::Device(DeviceId(0)), 80, 100, PowerSource::Meter));
    for (seconds, kind) in
        [(130, None), (20, Some(EventKind::Started)), (25, None), (30, Some(EventKind::Ended))]
    {
        world.seconds = seconds;
        match kind {
            Some(kind) => world.event(kind),
            None => world.share(Some(0), 0, 9, 4),
        }
    }
    world.seconds = 135;
    world.share(Some(0), 0, 9, 4);
    world.entries.iter().for_each(|entry| books.apply(entry));
    books.turn_to((START + 1000) * 1_000_000);
    let energy = books.view(Subject::Fleet, 0).expect("it is known").sums.energy;
    // 80 to 130, and 130 to 140.
    assert_eq!(energy.millijoules, [100_000 * 60, 0, 0, 0]);
}
