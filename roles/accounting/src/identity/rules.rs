//! What the configuration says of identity: for which worker names something else than the name decides.
//!
//! A rule makes a name out of what is known of a machine, and the name is the device. Nothing here looks at a device.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use super::Introduction;
use crate::entry::MAX_TEXT;
use crate::pattern::matches;

/// The longest template, in bytes.
pub const MAX_TEMPLATE: usize = 128;

/// What a rule goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityBy {
    /// The worker name.
    WorkerName,
    /// The address that a machine comes from.
    Address,
    /// What an SV2 machine sends as `device_id`. A machine that sends none is none of this rule's.
    DeviceId,
}

impl IdentityBy {
    /// All of them.
    pub const ALL: [IdentityBy; 3] = [IdentityBy::WorkerName, IdentityBy::Address, IdentityBy::DeviceId];

    /// The name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            IdentityBy::WorkerName => "worker_name",
            IdentityBy::Address => "address",
            IdentityBy::DeviceId => "device_id",
        }
    }

    /// The place for it in a template.
    pub fn place(self) -> &'static str {
        let named = Part::NAMED.into_iter().find(|(_, part)| *part == self.part());
        named.expect("each has one").0
    }

    /// How devices are called where a rule does not say it.
    pub fn usual_name(self) -> NameTemplate {
        let own = self.part();
        let after = (own != Part::Worker).then(|| [Part::Text("@".to_owned()), own]);
        NameTemplate(std::iter::once(Part::Worker).chain(after.into_iter().flatten()).collect())
    }

    fn part(self) -> Part {
        match self {
            IdentityBy::WorkerName => Part::Worker,
            IdentityBy::Address => Part::Address,
            IdentityBy::DeviceId => Part::DeviceId,
        }
    }
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityRule {
    /// The pattern of the worker names that it is for.
    pub workers: String,
    /// What it goes by.
    pub by: IdentityBy,
    /// How devices are called. Machines that get one name by it are one device.
    pub name: NameTemplate,
    /// Whether machines that mine under one name at the same time are told apart.
    pub tells_apart: bool,
}

/// A name with places for what is known of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameTemplate(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Worker,
    Address,
    DeviceId,
}

impl Part {
    const NAMED: [(&str, Part); 3] =
        [("{worker}", Part::Worker), ("{address}", Part::Address), ("{device_id}", Part::DeviceId)];
}

impl NameTemplate {
    /// Whether it has a place for what a rule goes by: without, all its machines would be one.
    pub fn tells(&self, by: IdentityBy) -> bool {
        self.0.contains(&by.part())
    }

    fn render(&self, introduction: &Introduction<'_>) -> String {
        let mut name = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => name.push_str(text),
                Part::Worker => name.push_str(introduction.worker_name),
                Part::Address => {
                    name.push_str(&introduction.address.map(|at| at.to_string()).unwrap_or_default());
                }
                Part::DeviceId => name.push_str(introduction.device_id),
            }
        }
        name.truncate(name.floor_char_boundary(MAX_TEXT));
        name
    }
}

impl FromStr for NameTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.len() {
            0 => return Err("is empty".to_owned()),
            length if length > MAX_TEMPLATE => {
                return Err(format!("has {length} bytes; at most {MAX_TEMPLATE} are possible"));
            }
            _ if text.chars().any(char::is_control) => return Err("has a control character".to_owned()),
            _ => {}
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (plain, from_brace) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
            if !plain.is_empty() {
                parts.push(Part::Text(plain.to_owned()));
            }
            rest = from_brace;
            if rest.is_empty() {
                break;
            }
            let known = Part::NAMED.into_iter().find(|(name, _)| rest.starts_with(name));
            let Some((name, part)) = known else {
                return Err("has a { that begins none of {worker}, {address} and {device_id}".to_owned());
            };
            parts.push(part);
            rest = &rest[name.len()..];
        }
        Ok(NameTemplate(parts))
    }
}

impl fmt::Display for NameTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(text),
            named => {
                let name = Part::NAMED.iter().find(|(_, part)| part == named);
                f.write_str(name.expect("all but texts are among them").0)
            }
        })
    }
}

/// The name by which a machine is known, and whether it is told apart from others of that name.
pub(super) fn name_of<'a>(rules: &[IdentityRule], introduction: &Introduction<'a>) -> (Cow<'a, str>, bool) {
    let worker_name = introduction.worker_name;
    let is_known = |by| match by {
        IdentityBy::WorkerName => true,
        IdentityBy::Address => introduction.address.is_some(),
        IdentityBy::DeviceId => !introduction.device_id.is_empty(),
    };
    let rule = rules.iter().find(|rule| is_known(rule.by) && matches(&rule.workers, worker_name));
    match rule {
        None => (Cow::Borrowed(worker_name), true),
        Some(rule) => (Cow::Owned(rule.name.render(introduction)), rule.tells_apart),
    }
}
