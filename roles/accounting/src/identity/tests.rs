//! Machines that come, go, come back, and come twice, on a clock of whole seconds.

use proptest::prelude::*;

use super::*;

/// Time enough for a connection to count as silent.
const LATER: u32 = ALIVE_SECONDS + 1;

/// A registry with the times of shares beside it, as the program has them.
#[derive(Default)]
struct Farm {
    identities: Identities,
    last_shares: BTreeMap<DeviceId, u32>,
    now: u32,
    connections: u64,
}

/// A machine with a live connection.
#[derive(Clone, Copy, Debug)]
struct Mining {
    device: DeviceId,
    seat: Seat,
}

impl Farm {
    fn with_rules(rules: Vec<IdentityRule>) -> Self {
        Farm { identities: Identities::new(rules), ..Farm::default() }
    }

    fn join(&mut self, introduction: Introduction<'_>) -> (Mining, Joined) {
        self.connections += 1;
        let seat = Seat { connection: ConnectionId(self.connections), channel: ChannelId(0) };
        let last = |id| self.last_shares.get(&id).copied().unwrap_or(0);
        let joined = self.identities.join(&introduction, seat, self.now, last);
        (Mining { device: joined.device, seat }, joined)
    }

    fn from(&mut self, name: &str, address: &str) -> Mining {
        self.join(introduction(name, address)).0
    }

    /// Time passes, and then each of these submits a good share. Those that were told apart have their own device then.
    fn shares(&mut self, seconds: u32, machines: &mut [Mining]) -> Vec<Parted> {
        self.now += seconds;
        let mut all = Vec::new();
        for mining in machines {
            self.last_shares.insert(mining.device, self.now);
            if !self.identities.is_contested(mining.device) {
                continue;
            }
            let last = |id| self.last_shares.get(&id).copied().unwrap_or(0);
            if let Some(parted) = self.identities.note_share(mining.device, mining.seat, self.now, last) {
                mining.device = parted.joined.device;
                all.push(parted);
            }
        }
        all
    }

    fn leave(&mut self, mining: Mining) -> u32 {
        self.identities.leave(mining.device, mining.seat)
    }

    fn name(&self, mining: Mining) -> &str {
        self.identities.name(mining.device).expect("it is known")
    }

    /// What a store keeps, and what a process that starts with it knows.
    fn restarted(&self) -> Farm {
        let rows: Vec<DeviceRow> = (0..self.identities.len() as u32)
            .map(|id| {
                let entry = self.identities.entry(DeviceId(id), 7);
                DeviceRow {
                    id: entry.id,
                    name: entry.name.into(),
                    worker_name: entry.worker_name.into(),
                    groups: Vec::new(),
                    first_seen_us: 7,
                    last_seen_us: 7,
                    last_share_us: 0,
                    best_difficulty: 0.0,
                    address: entry.address,
                    user_agent: entry.user_agent,
                    device_id: entry.device_id,
                }
            })
            .collect();
        let mut farm = Farm::with_rules(self.identities.rules.clone());
        farm.identities.restore(&rows);
        farm
    }
}

fn introduction<'a>(worker_name: &'a str, address: &str) -> Introduction<'a> {
    Introduction {
        worker_name,
        address: Some(address.parse().expect("an address")),
        device_id: "",
        user_agent: "bmminer/2.0.0",
    }
}

#[test]
fn a_worker_name_is_one_device_whatever_else_changes() {
    let mut farm = Farm::default();
    let first = farm.from("farm.one", "10.0.0.1");
    let other = farm.from("farm.two", "10.0.0.1");
    assert_ne!(first.device, other.device);
    assert_eq!(farm.leave(first), 0);
    let moved = Introduction { user_agent: "cgminer/4.11", ..introduction("farm.one", "10.0.9.9") };
    let (moved, joined) = farm.join(moved);
    assert_eq!((moved.device, joined.connections, joined.report), (first.device, 1, None));
    let entry = farm.identities.entry(moved.device, 5);
    assert_eq!((&*entry.address, &*entry.user_agent, &*entry.worker_name), ("10.0.9.9", "cgminer/4.11", ""));
    assert_eq!(farm.identities.len(), 2);
}

#[test]
fn two_machines_at_two_addresses_are_two_devices_at_once_and_stay_so() {
    let mut farm = Farm::default();
    let one = farm.from("farm.rig7", "10.0.0.1");
    let (two, joined) = farm.join(introduction("farm.rig7", "10.0.0.2"));
    assert_eq!((farm.name(one), farm.name(two)), ("farm.rig7", "farm.rig7~2"));
    let report = joined.report.expect("it is reported");
    assert_eq!((&*report.name, report.is_overfull), ("farm.rig7", false));
    assert_eq!(report.one, (one.device, Some("10.0.0.1".parse().expect("an address"))));
    assert_eq!(report.other, (two.device, Some("10.0.0.2".parse().expect("an address"))));
    assert_eq!(farm.identities.shared_names(), 1);
    assert_eq!(farm.identities.entry(two.device, 0).worker_name, "farm.rig7");

    // Both come back, in the other order, and again after a restart.
    farm.leave(one);
    assert_eq!(farm.identities.shared_names(), 0);
    farm.leave(two);
    for mut farm in [farm.restarted(), farm] {
        assert_eq!(farm.from("farm.rig7", "10.0.0.2").device, two.device);
        assert_eq!(farm.from("farm.rig7", "10.0.0.1").device, one.device);
        assert_eq!(farm.identities.shared_names(), 1);
        assert_eq!(
            farm.from("farm.new", "10.0.0.1").device,
            DeviceId(2),
            "numbers are never given out again"
        );
    }
}

#[test]
fn a_machine_that_comes_back_while_its_old_connection_lingers_is_the_same() {
    let mut farm = Farm::default();
    let mut connections = vec![farm.from("farm.rig7", "10.0.0.1")];
    // The network drops it again and again, and no connection ever ends.
    for round in 0..2 * MAX_SEATS {
        let last = connections.len() - 1;
        assert!(farm.shares(5, &mut connections[last..]).is_empty());
        let (again, joined) = farm.join(introduction("farm.rig7", "10.0.0.1"));
        assert_eq!(joined.connections as usize, round + 2);
        assert_eq!((again.device, joined.report), (connections[0].device, None));
        connections.push(again);
    }
    let last = connections.len() - 1;
    assert!(farm.shares(600, &mut connections[last..]).is_empty(), "the others are silent");
    let left: Vec<u32> = connections.into_iter().map(|connection| farm.leave(connection)).collect();
    assert_eq!((left.len() as u32, left.last()), (left[0] + 1, Some(&0)));
    assert_eq!((farm.identities.len(), farm.identities.shared_names()), (1, 0));
}

#[test]
fn a_machine_that_comes_back_from_another_address_is_the_same_once_it_was_silent() {
    let mut farm = Farm::default();
    let mut old = [farm.from("farm.rig7", "10.0.0.1")];
    farm.shares(100, &mut old);
    farm.now += LATER;
    let (new, joined) = farm.join(introduction("farm.rig7", "10.0.0.9"));
    assert_eq!((new.device, joined.report), (old[0].device, None));
    assert_eq!(farm.identities.entry(new.device, 0).address, "10.0.0.9");
    assert!(farm.shares(LATER, &mut [new]).is_empty());
    farm.leave(old[0]);
    farm.leave(new);
    assert_eq!(farm.identities.entry(new.device, 0).address, "10.0.0.9");
}

#[test]
fn what_was_taken_for_a_return_is_parted_once_both_bring_shares() {
    let mut farm = Farm::default();
    let mut machines = vec![farm.from("farm.rig7", "10.0.0.1")];
    // A slow machine: its silence says nothing.
    farm.shares(10, &mut machines);
    farm.now += LATER;
    machines.push(farm.from("farm.rig7", "10.0.0.2"));
    assert_eq!(machines[0].device, machines[1].device);
    // What the first had on its way says nothing either.
    assert!(farm.shares(OVERLAP_SECONDS - 1, &mut machines).is_empty());
    let parted = farm.shares(1, &mut machines);
    let [Parted { left: 1, joined }] = &parted[..] else { panic!("the newer one leaves: {parted:?}") };
    assert_eq!((farm.name(machines[0]), farm.name(machines[1])), ("farm.rig7", "farm.rig7~2"));
    assert!(joined.report.is_some());
    // The first has its own address back.
    let address = |mining: Mining| farm.identities.entry(mining.device, 0).address;
    assert_eq!([address(machines[0]), address(machines[1])], ["10.0.0.1", "10.0.0.2"]);
    assert!(farm.shares(100, &mut machines).is_empty(), "once");
}

#[test]
fn machines_behind_one_address_are_told_apart_by_their_shares_alone() {
    let mut farm = Farm::default();
    let mut machines: Vec<Mining> = (0..3).map(|_| farm.from("farm.rig7", "203.0.113.5")).collect();
    assert!(machines.iter().all(|mining| mining.device == machines[0].device));
    let mut parted = 0;
    for _ in 0..6 {
        parted += farm.shares(10, &mut machines).len();
    }
    assert_eq!(parted, 2);
    let mut devices: Vec<DeviceId> = machines.iter().map(|mining| mining.device).collect();
    devices.sort_unstable();
    assert_eq!(devices, [DeviceId(0), DeviceId(1), DeviceId(2)]);

    // They all come back: no more devices than machines, and each has one at once.
    for mining in machines {
        farm.leave(mining);
    }
    let back: Vec<Mining> = (0..3).map(|_| farm.from("farm.rig7", "203.0.113.5")).collect();
    let back: Vec<DeviceId> = back.iter().map(|mining| mining.device).collect();
    assert_eq!(back, [DeviceId(0), DeviceId(1), DeviceId(2)]);

    // One is lost without an end while the others mine: the silent one is it.
    let mut others = [Mining { device: back[0], seat: seat(4) }, Mining { device: back[2], seat: seat(6) }];
    farm.shares(LATER, &mut others);
    assert_eq!(farm.from("farm.rig7", "203.0.113.5").device, back[1]);
    assert_eq!(farm.identities.len(), 3);
}

fn seat(connection: u64) -> Seat {
    Seat { connection: ConnectionId(connection), channel: ChannelId(0) }
}

#[test]
fn other_software_at_the_same_address_is_another_machine_while_the_first_is_there() {
    let mut farm = Farm::default();
    let first = farm.from("farm.rig7", "10.0.0.1");
    let upgraded = Introduction { user_agent: "bosminer/24", ..introduction("farm.rig7", "10.0.0.1") };
    let (second, _) = farm.join(upgraded);
    assert_ne!(second.device, first.device);
    farm.leave(first);
    farm.leave(second);
    assert_eq!(farm.join(upgraded).0.device, second.device);
    assert_eq!(farm.from("farm.rig7", "10.0.0.1").device, first.device);
}

#[test]
fn a_device_id_says_more_than_an_address_and_an_empty_one_nothing() {
    let mut farm = Farm::default();
    let with_id = |device_id, address| Introduction { device_id, ..introduction("farm.rig7", address) };
    let (one, _) = farm.join(with_id("aa", "10.0.0.1"));
    farm.now += LATER;
    // Silent, but surely another one.
    let (two, _) = farm.join(with_id("bb", "10.0.0.1"));
    assert_ne!(one.device, two.device);
    farm.leave(one);
    farm.leave(two);
    assert_eq!(farm.join(with_id("bb", "10.0.0.8")).0.device, two.device);
    assert_eq!(farm.join(with_id("aa", "10.0.0.8")).0.device, one.device);
    let (unknown, _) = farm.join(with_id("", "10.0.0.8"));
    assert_ne!(farm.name(unknown), "farm.rig7~3", "it says nothing against either");
}

#[test]
fn a_name_has_no_more_devices_than_machines_that_mined_at_once() {
    let mut farm = Farm::default();
    for day in 0..20 {
        // A home whose address changes every day, with two machines under one name.
        let address = format!("198.51.100.{day}");
        let mut pair = vec![farm.from("home.rig", &address), farm.from("home.rig", &address)];
        for _ in 0..5 {
            farm.shares(15, &mut pair);
        }
        assert_ne!(pair[0].device, pair[1].device);
        for mining in pair {
            farm.leave(mining);
        }
        farm.now += 86_400;
    }
    assert_eq!(farm.identities.len(), 2);
}

#[test]
fn machines_beyond_the_bound_share_the_last_device_which_is_reported() {
    let mut farm = Farm::default();
    let address = |number: usize| format!("10.0.{}.{}", number / 200, number % 200);
    for number in 0..MAX_MACHINES {
        farm.from("farm.all", &address(number));
    }
    assert_eq!(farm.identities.len(), MAX_MACHINES);
    let (last, joined) = farm.join(introduction("farm.all", &address(MAX_MACHINES)));
    assert_eq!(farm.name(last), format!("farm.all~{MAX_MACHINES}"));
    assert!(joined.report.is_some_and(|report| report.is_overfull));
    let (_, again) = farm.join(introduction("farm.all", &address(MAX_MACHINES + 1)));
    assert_eq!((again.report, farm.identities.len()), (None, MAX_MACHINES));
}

#[test]
fn a_shared_name_is_reported_once_an_hour_and_strangers_cannot_flood() {
    let mut farm = Farm::default();
    let mut reports = 0;
    for _ in 0..10 {
        farm.now += REPORT_INTERVAL / 10;
        let one = farm.join(introduction("farm.rig7", "10.0.0.1"));
        let two = farm.join(introduction("farm.rig7", "10.0.0.2"));
        reports += usize::from(one.1.report.is_some()) + usize::from(two.1.report.is_some());
        farm.leave(one.0);
        farm.leave(two.0);
    }
    assert_eq!(reports, 1);
    farm.now += REPORT_INTERVAL;
    let reports = (0..2 * MAX_REPORTS).filter(|number| {
        let name = format!("stranger.{number}");
        farm.from(&name, "10.0.0.1");
        farm.join(introduction(&name, "10.0.0.2")).1.report.is_some()
    });
    assert_eq!(reports.count(), MAX_REPORTS as usize);
    assert_eq!(farm.identities.shared_names(), 2 * MAX_REPORTS as usize);
}

#[test]
fn a_name_with_a_number_is_the_device_that_has_it() {
    let mut farm = Farm::default();
    farm.from("farm.rig7", "10.0.0.1");
    let second = farm.from("farm.rig7", "10.0.0.2");
    farm.leave(second);
    // The operator gives it a name of its own, and its history goes on.
    let (renamed, _) = farm.join(introduction("farm.rig7~2", "10.0.0.2"));
    assert_eq!(renamed.device, second.device);
    assert_eq!(farm.identities.entry(renamed.device, 0).worker_name, "");
    // Beside it a third one under the plain name has another number.
    let third = farm.from("farm.rig7", "10.0.0.3");
    assert_eq!(farm.name(third), "farm.rig7~3");
    let stranger = farm.from("farm.rig7~2", "10.0.0.4");
    assert_eq!(farm.name(stranger), "farm.rig7~4");
}

#[test]
fn names_are_cut_to_what_the_ledger_holds() {
    let mut farm = Farm::default();
    let long = "ü".repeat(200);
    let one = farm.from(&long, "10.0.0.1");
    let two = farm.from(&long, "10.0.0.2");
    assert!(farm.name(one).len() <= MAX_TEXT && farm.name(two).len() <= MAX_TEXT);
    let mut farm = farm.restarted();
    assert_eq!(farm.from(&long, "10.0.0.2").device, two.device);
    assert_eq!(farm.from(&long, "10.0.0.1").device, one.device);
}

fn rule(workers: &str, by: IdentityBy, name: Option<&str>) -> IdentityRule {
    let name = name.map_or(by.usual_name(), |name| name.parse().expect("a template"));
    IdentityRule { workers: workers.to_owned(), by, name, tells_apart: by == IdentityBy::WorkerName }
}

#[test]
fn the_first_rule_whose_evidence_is_there_decides() {
    let mut farm = Farm::with_rules(vec![
        rule("farm.all", IdentityBy::DeviceId, Some("asic-{device_id}")),
        rule("farm.*", IdentityBy::Address, None),
        rule("*.rented", IdentityBy::WorkerName, Some("site1/{worker}")),
    ]);
    let with_id = Introduction { device_id: "77", ..introduction("farm.all", "10.0.0.7") };
    let by_id = farm.join(with_id).0;
    assert_eq!(farm.name(by_id), "asic-77");
    let by_address = farm.from("farm.all", "10.0.0.7");
    assert_eq!(farm.name(by_address), "farm.all@10.0.0.7");
    assert_eq!(farm.from("farm.all", "::ffff:10.0.0.7").device, by_address.device);
    assert_ne!(farm.from("farm.all", "10.0.0.8").device, by_address.device);
    let rented = farm.from("account.rented", "10.0.0.7");
    assert_eq!(farm.name(rented), "site1/account.rented");
    let plain = farm.from("home.rig", "10.0.0.7");
    assert_eq!(farm.name(plain), "home.rig");
    let unknown = farm.join(Introduction { worker_name: "farm.b", ..Introduction::default() }).0;
    assert_eq!(farm.name(unknown), "farm.b");
    // What the rules made stays what it is over a restart.
    let mut farm = farm.restarted();
    assert_eq!(farm.join(with_id).0.device, by_id.device);
    assert_eq!(farm.from("farm.all", "10.0.0.7").device, by_address.device);
}

#[test]
fn a_rule_can_make_one_device_of_all_machines_of_a_name() {
    let rented = IdentityRule { tells_apart: false, ..rule("account.rented", IdentityBy::WorkerName, None) };
    let mut farm = Farm::with_rules(vec![rented]);
    let mut machines: Vec<Mining> =
        (0..20).map(|number| farm.from("account.rented", &format!("10.0.0.{number}"))).collect();
    for _ in 0..10 {
        assert!(farm.shares(10, &mut machines).is_empty());
    }
    assert_eq!((farm.identities.len(), farm.identities.shared_names()), (1, 0));
    let left: Vec<u32> = machines.into_iter().map(|mining| farm.leave(mining)).collect();
    assert_eq!((left[0], left[19]), (19, 0));
}

#[test]
fn templates_are_read_and_written_as_they_are() {
    for text in ["{worker}@{address}", "a{device_id}b}", "{address}"] {
        assert_eq!(text.parse::<NameTemplate>().map(|template| template.to_string()), Ok(text.to_owned()));
    }
    for text in ["", "{}", "{wörker}", "x{", "a\nb", &"x".repeat(MAX_TEMPLATE + 1)] {
        assert!(text.parse::<NameTemplate>().is_err(), "{text}");
    }
    let by_address: NameTemplate = "{address}".parse().expect("a template");
    assert!(by_address.tells(IdentityBy::Address) && !by_address.tells(IdentityBy::WorkerName));
    assert_eq!(IdentityBy::DeviceId.usual_name().to_string(), "{worker}@{device_id}");
}

/// What may happen; numbers choose among what there is.
#[derive(Clone, Debug)]
enum Happening {
    Join { name: u8, address: u8, agent: u8, device_id: u8 },
    Leave(usize),
    Share(usize),
    Wait(u32),
    Restart,
}

fn any_happening() -> impl Strategy<Value = Happening> {
    let join = (0..3_u8, 0..4_u8, 0..3_u8, 0..3_u8);
    prop_oneof![
        4 => join.prop_map(|(name, address, agent, device_id)| {
            Happening::Join { name, address, agent, device_id }
        }),
        3 => any::<usize>().prop_map(Happening::Leave),
        6 => any::<usize>().prop_map(Happening::Share),
        3 => (0..50_u32).prop_map(Happening::Wait),
        1 => Just(Happening::Restart),
    ]
}

/// The live connections by name: how many, and of how many devices.
fn by_name(farm: &Farm, machines: &[Mining]) -> BTreeMap<String, (usize, BTreeSet<DeviceId>)> {
    let mut by_name: BTreeMap<String, (usize, BTreeSet<DeviceId>)> = BTreeMap::new();
    for mining in machines {
        let plain = farm.name(*mining).split('~').next().expect("there is one").to_owned();
        let (count, devices) = by_name.entry(plain).or_default();
        *count += 1;
        devices.insert(mining.device);
    }
    by_name
}

proptest! {
    #[test]
    fn whatever_happens_connections_and_shared_names_are_counted(
        happenings in prop::collection::vec(any_happening(), 0..120)
    ) {
        let (mut farm, mut machines) = (Farm::default(), Vec::<Mining>::new());
        let mut most: BTreeMap<String, usize> = BTreeMap::new();
        for happening in happenings {
            match happening {
                Happening::Join { name, address, agent, device_id } => {
                    let name = ["farm.a", "farm.b", "farm.c"][usize::from(name)];
                    let address = format!("10.0.0.{address}");
                    let user_agent = ["", "one/1", "two/2"][usize::from(agent)];
                    let device_id = ["", "aa", "bb"][usize::from(device_id)];
                    let said = Introduction { user_agent, device_id, ..introduction(name, &address) };
                    let (mining, joined) = farm.join(said);
                    machines.push(mining);
                    let own = machines.iter().filter(|other| other.device == mining.device).count();
                    prop_assert_eq!(joined.connections as usize, own);
                }
                Happening::Leave(which) if !machines.is_empty() => {
                    let gone = machines.remove(which % machines.len());
                    let left = machines.iter().filter(|other| other.device == gone.device).count();
                    prop_assert_eq!(farm.leave(gone) as usize, left);
                }
                Happening::Share(which) if !machines.is_empty() => {
                    let place = which % machines.len();
                    let before = machines[place];
                    for parted in farm.shares(1, &mut machines[place..=place]) {
                        prop_assert_ne!(parted.joined.device, before.device);
                        let left = machines.iter().filter(|other| other.device == before.device).count();
                        prop_assert_eq!(parted.left as usize, left);
                    }
                }
                Happening::Wait(seconds) => farm.now += seconds,
                Happening::Restart => {
                    farm = farm.restarted();
                    machines.clear();
                }
                Happening::Leave(_) | Happening::Share(_) => {}
            }
            let now = by_name(&farm, &machines);
            let shared = now.values().filter(|(_, devices)| devices.len() > 1).count();
            prop_assert_eq!(farm.identities.shared_names(), shared);
            for (name, (count, _)) in now {
                let most = most.entry(name).or_default();
                *most = count.max(*most);
            }
            // No more devices than machines that mined at once under the name.
            prop_assert!(farm.identities.len() <= most.values().sum());
        }
    }
}
