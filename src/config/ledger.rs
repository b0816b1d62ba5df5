//! `[ledger]`: where the accounts are kept, and for how long.

use std::path::PathBuf;
use std::time::Duration;

use accounting::pattern::MAX_PATTERN;

use super::reader::{Findings, Section};
use super::render::Page;
use super::{file, identity};
use crate::ledger::Retention;
use crate::sink::DeviceRules;

/// Short enough that a power failure costs next to nothing, long enough that a commit has many records.
const DEFAULT_COMMIT_INTERVAL_MS: u32 = 100;

/// Below, the disk would do little but commits. Above, more would be at risk than is promised.
const COMMIT_INTERVALS_MS: std::ops::RangeInclusive<u32> = 10..=250;

/// Long enough to look into a month's statement.
const DEFAULT_RECORDS_DAYS: u32 = 35;

/// What any server has room for. A farm of 1,000 devices fills it in years, one of 20,000 at 5,000 shares a second in
/// two days.
const DEFAULT_RECORDS_GIB: u32 = 100;

/// Two weeks of minutes, for the question what happened the other day: half a gigabyte for 1,000 devices.
const DEFAULT_MINUTES_DAYS: u32 = 14;

/// A quarter of a year.
const DEFAULT_TEN_MINUTES_DAYS: u32 = 100;

/// Three years: every question about a year, and about the year before.
const DEFAULT_HOURS_DAYS: u32 = 1100;

/// A century: for ever, in a number that no calculation overflows with.
const MOST_DAYS: u32 = 36_500;

/// A petabyte.
const MOST_GIB: u32 = 1024 * 1024;

/// Keys that mean nothing without a folder.
const OF_THE_DISK: [&str; 8] = [
    "path",
    "commit_interval_ms",
    "keep_records_days",
    "max_records_gib",
    "keep_minutes_days",
    "keep_ten_minutes_days",
    "keep_hours_days",
    "signing_key_file",
];

/// `[ledger]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerConfig {
    /// The folder.
    pub path: PathBuf,
    /// The longest time between a verdict and its commit, but for the time of the commit itself.
    pub commit_interval: Duration,
    /// What is kept for how long.
    pub retention: Retention,
    /// The file with the key that statements are signed with.
    pub signing_key_file: Option<PathBuf>,
}

impl LedgerConfig {
    /// A ledger in a folder, with everything else as it is when nothing else is said.
    pub fn in_folder(path: PathBuf) -> Self {
        LedgerConfig {
            path,
            commit_interval: Duration::from_millis(DEFAULT_COMMIT_INTERVAL_MS.into()),
            retention: Retention {
                records_days: DEFAULT_RECORDS_DAYS,
                records_bytes: u64::from(DEFAULT_RECORDS_GIB) << 30,
                minutes_days: DEFAULT_MINUTES_DAYS,
                ten_minutes_days: DEFAULT_TEN_MINUTES_DAYS,
                hours_days: DEFAULT_HOURS_DAYS,
            },
            signing_key_file: None,
        }
    }

    /// `None` without the section, or with nothing but what is said of devices in it: accounts are then kept in memory only.
    /// What is said of devices holds for both.
    pub(super) fn read(
        document: &mut Section<'_>,
        findings: &mut Findings<'_>,
    ) -> (Option<Self>, DeviceRules) {
        let mut section = document.section(findings, "ledger");
        let has_rules = ["group", "nameplate", "identity"].iter().any(|key| section.has(key));
        if !has_rules || OF_THE_DISK.iter().any(|key| section.has(key)) {
            section.require(findings, "path");
        }
        let path = read_folder(&mut section, findings);
        let interval = section.integer(findings, "commit_interval_ms", COMMIT_INTERVALS_MS);
        let days = 1..=MOST_DAYS;
        let records_days = section.integer(findings, "keep_records_days", days.clone());
        let gib = section.integer(findings, "max_records_gib", 1..=MOST_GIB).unwrap_or(DEFAULT_RECORDS_GIB);
        let minutes_days = section.integer(findings, "keep_minutes_days", days.clone());
        let ten_minutes_days = section.integer(findings, "keep_ten_minutes_days", days.clone());
        let hours_days = section.integer(findings, "keep_hours_days", days);
        let signing_key_file = read_key_file(&mut section, findings);
        let rules = DeviceRules {
            groups: read_groups(&mut section, findings),
            nameplates: read_nameplates(&mut section, findings),
            identities: identity::read(&mut section, findings),
        };
        section.finish(findings);
        let ledger = path.map(|path| LedgerConfig {
            path,
            commit_interval: Duration::from_millis(interval.unwrap_or(DEFAULT_COMMIT_INTERVAL_MS).into()),
            retention: Retention {
                records_days: records_days.unwrap_or(DEFAULT_RECORDS_DAYS),
                records_bytes: u64::from(gib) << 30,
                minutes_days: minutes_days.unwrap_or(DEFAULT_MINUTES_DAYS),
                ten_minutes_days: ten_minutes_days.unwrap_or(DEFAULT_TEN_MINUTES_DAYS),
                hours_days: hours_days.unwrap_or(DEFAULT_HOURS_DAYS),
            },
            signing_key_file,
        });
        (ledger, rules)
    }

    pub(super) fn render(&self, page: &mut Page) {
        let Retention { records_days, records_bytes, minutes_days, ten_minutes_days, hours_days } =
            self.retention;
        page.section("[ledger]");
        page.key("path", self.path.display().to_string());
        page.key("commit_interval_ms", self.commit_interval.as_millis() as i64);
        page.key("keep_records_days", i64::from(records_days));
        page.key("max_records_gib", (records_bytes >> 30) as i64);
        page.key("keep_minutes_days", i64::from(minutes_days));
        page.key("keep_ten_minutes_days", i64::from(ten_minutes_days));
        page.key("keep_hours_days", i64::from(hours_days));
        page.optional(
            "signing_key_file",
            self.signing_key_file.as_ref().map(|file| file.display().to_string()),
        );
    }
}

/// What is said of devices, with or without a ledger on a disk.
pub(super) fn render_rules(rules: &DeviceRules, page: &mut Page) {
    identity::render(&rules.identities, page);
    for (name, pattern) in &rules.groups {
        page.section("[[ledger.group]]");
        page.key("name", name.clone());
        page.key("devices", pattern.clone());
    }
    for (pattern, milliwatts) in &rules.nameplates {
        page.section("[[ledger.nameplate]]");
        page.key("devices", pattern.clone());
        page.key("power_w", *milliwatts as f64 / 1e3);
    }
}

/// Groups, nameplates, and rules of identity, at most: what anybody would write down.
pub(super) const MAX_RULES: usize = 256;

/// The longest name of a group, in bytes.
const MAX_NAME: usize = 64;

/// Less than any device takes, and more than any container of them, in watts.
const LEAST_POWER_W: f64 = 0.001;
const MOST_POWER_W: f64 = 100_000_000.0;

fn read_groups(ledger: &mut Section<'_>, findings: &mut Findings<'_>) -> Vec<(String, String)> {
    let mut groups = Vec::new();
    let place = ledger.place_of(findings, "group");
    for mut section in ledger.sections(findings, "group") {
        if section.is_present() {
            section.require(findings, "name");
            section.require(findings, "devices");
        }
        let name = section.parsed(findings, "name", |text| bounded(text, MAX_NAME));
        let pattern = section.parsed(findings, "devices", |text| bounded(text, MAX_PATTERN));
        section.finish(findings);
        groups.extend(name.zip(pattern));
    }
    if groups.len() > MAX_RULES {
        findings.problem(place, format!("has {} entries; at most {MAX_RULES} are possible", groups.len()));
    }
    groups
}

fn read_nameplates(ledger: &mut Section<'_>, findings: &mut Findings<'_>) -> Vec<(String, u64)> {
    let mut nameplates = Vec::new();
    let place = ledger.place_of(findings, "nameplate");
    for mut section in ledger.sections(findings, "nameplate") {
        if section.is_present() {
            section.require(findings, "devices");
            section.require(findings, "power_w");
        }
        let pattern = section.parsed(findings, "devices", |text| bounded(text, MAX_PATTERN));
        let place = section.place_of(findings, "power_w");
        let power_w = section.number(findings, "power_w");
        if power_w.is_some_and(|watts| !(LEAST_POWER_W..=MOST_POWER_W).contains(&watts)) {
            findings.problem(place, format!("is not from {LEAST_POWER_W} to {MOST_POWER_W} watts"));
        }
        section.finish(findings);
        nameplates.extend(pattern.zip(power_w.map(|watts| (watts * 1e3).round() as u64)));
    }
    if nameplates.len() > MAX_RULES {
        findings
            .problem(place, format!("has {} entries; at most {MAX_RULES} are possible", nameplates.len()));
    }
    nameplates
}

pub(super) fn bounded(text: &str, most: usize) -> Result<String, String> {
    match text.len() {
        0 => Err("is empty".to_owned()),
        length if length > most => Err(format!("has {length} bytes; at most {most} are possible")),
        _ => Ok(text.to_owned()),
    }
}

fn read_folder(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<PathBuf> {
    let text = section.string(findings, "path")?;
    let path = findings.path(text);
    let what = if text.is_empty() {
        "is empty: a folder of its own is needed".to_owned()
    } else if path.exists() && !path.is_dir() {
        format!("{} is not a folder", path.display())
    } else {
        return Some(path);
    };
    findings.problem(section.place_of(findings, "path"), what);
    None
}

/// The key is read again by whoever signs: `checkweigh ledger statement --key`.
fn read_key_file(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<PathBuf> {
    let text = section.string(findings, "signing_key_file")?;
    let path = findings.path(text);
    let place = section.place_of(findings, "signing_key_file");
    match file::read_key(&path) {
        Ok(_) if file::is_readable_by_others(&path) => {
            findings.note(place, format!("{} can be read by others; chmod 600 it", path.display()));
        }
        Ok(_) => {}
        Err(what) => {
            findings.problem(place, what);
            return None;
        }
    }
    Some(path)
}
