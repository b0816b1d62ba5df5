//! `[[ledger.identity]]`: which device a machine is, where the worker name does not say it.

use accounting::identity::{IdentityBy, IdentityRule, NameTemplate};
use accounting::pattern::MAX_PATTERN;

use super::ledger::{MAX_RULES, bounded};
use super::reader::{Findings, Section};
use super::render::Page;

/// The rules in their order.
pub(super) fn read(ledger: &mut Section<'_>, findings: &mut Findings<'_>) -> Vec<IdentityRule> {
    let mut rules = Vec::new();
    let place = ledger.place_of(findings, "identity");
    for mut section in ledger.sections(findings, "identity") {
        rules.extend(read_rule(&mut section, findings));
        section.finish(findings);
    }
    if rules.len() > MAX_RULES {
        findings.problem(place, format!("has {} entries; at most {MAX_RULES} are possible", rules.len()));
    }
    rules
}

fn read_rule(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<IdentityRule> {
    if section.is_present() {
        section.require(findings, "workers");
        section.require(findings, "by");
    }
    let workers = section.parsed(findings, "workers", |text| bounded(text, MAX_PATTERN));
    let by = section.parsed(findings, "by", |text| {
        let known = IdentityBy::ALL.into_iter().find(|by| by.name() == text);
        known.ok_or_else(|| format!("{text:?} is none of \"worker_name\", \"address\" and \"device_id\""))
    });
    let name = section.parsed(findings, "name", str::parse::<NameTemplate>);
    let tells_apart = section.boolean(findings, "tell_apart");
    let (workers, by) = (workers?, by?);
    let name = name.unwrap_or_else(|| by.usual_name());
    if !name.tells(by) {
        let place = section.place_of(findings, "name");
        let (part, what) = (by.place(), by.name());
        findings.problem(place, format!("has no {part}, so that the rule's {what} would say nothing"));
    }
    if by != IdentityBy::WorkerName && tells_apart.is_some() {
        let place = section.place_of(findings, "tell_apart");
        findings.problem(place, "is for rules by \"worker_name\": others tell apart by what they go by");
    }
    let tells_apart = by == IdentityBy::WorkerName && tells_apart.unwrap_or(true);
    Some(IdentityRule { workers, by, name, tells_apart })
}

pub(super) fn render(rules: &[IdentityRule], page: &mut Page) {
    for rule in rules {
        page.section("[[ledger.identity]]");
        page.key("workers", rule.workers.clone());
        page.key("by", rule.by.name().to_owned());
        page.key("name", rule.name.to_string());
        if rule.by == IdentityBy::WorkerName {
            page.key("tell_apart", rule.tells_apart);
        }
    }
}
