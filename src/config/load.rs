//! From a file to a checked configuration, or to the list of all its faults.

use std::fmt;
use std::path::Path;

use toml::de::DeTable;

use super::file;
use super::listen::{Listeners, bind_listeners};
use super::problem::{Note, Problem, Problems};
use super::reader::{Findings, Section};

/// The roles that have a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Miners in, upstream pools out.
    MiningProxy,
    /// Miners in, a Bitcoin Core node out.
    Pool,
    /// A source of templates in, template clients out.
    TemplateProvider,
    /// A job declaration server beside a pool.
    JdServer,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::MiningProxy => "mining-proxy",
            Role::Pool => "pool",
            Role::TemplateProvider => "template-provider",
            Role::JdServer => "jd-server",
        })
    }
}

/// The checked configuration of one role.
pub trait RoleConfig: Sized {
    /// Whose configuration it is.
    const ROLE: Role;

    /// Reads what the document says. Faults go to `findings`; `None` only when there is at least one.
    fn read(document: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<Self>;

    /// The effective configuration as a TOML document: defaults filled in, secrets shown as `<hidden>` in comments.
    /// It loads again to the same configuration.
    fn effective(&self) -> String;
}

/// A configuration and what is to be said about it.
#[derive(Debug)]
pub struct Loaded<C> {
    /// The configuration.
    pub config: C,
    /// Things that were understood, but perhaps not as they were meant: shown as warnings.
    pub notes: Vec<Note>,
}

/// Loads a file without binding its listeners.
pub fn load<C: RoleConfig>(path: &Path) -> Result<Loaded<C>, Problems> {
    let text = read_file(path)?;
    read(&text, path)
}

/// Loads a file and binds its listeners: all of them are tried even when something else is wrong, so that every
/// fault is known at once. Nothing listens when it fails.
pub fn load_and_listen<C: RoleConfig>(path: &Path) -> Result<(Loaded<C>, Listeners), Problems> {
    let text = read_file(path)?;
    let folder = folder_of(path);
    let mut findings = Findings::new(&text, folder);
    let config = read_document::<C>(&text, &mut findings);
    let listeners =
        bind_listeners(&findings.listen).map_err(|problems| findings.problems.extend(problems)).ok();
    match (config, listeners) {
        (Some(config), Some(listeners)) => Ok((Loaded { config, notes: findings.notes }, listeners)),
        _ => Err(Problems::sorted(path.to_owned(), findings.problems)),
    }
}

/// Reads the text of the file at `path`, whose folder relative paths start from.
pub fn read<C: RoleConfig>(text: &str, path: &Path) -> Result<Loaded<C>, Problems> {
    let mut findings = Findings::new(text, folder_of(path));
    match read_document::<C>(text, &mut findings) {
        Some(config) => Ok(Loaded { config, notes: findings.notes }),
        None => Err(Problems::sorted(path.to_owned(), findings.problems)),
    }
}

/// Every dotted key that the role knows; those of lists without their place (`upstream.url`).
pub fn known_keys<C: RoleConfig>() -> Vec<String> {
    let mut findings = Findings::new("", Path::new(""));
    let _ = read_document::<C>("", &mut findings);
    findings.known
}

/// The role that a file is for, by the sections that only one role has.
pub fn guess_role(path: &Path) -> Result<Role, Problems> {
    let text = read_file(path)?;
    let (document, _) = DeTable::parse_recoverable(&text);
    let has = |name: &str| document.get_ref().keys().any(|key| key.get_ref() == name);
    if has("template_provider") {
        return Ok(Role::TemplateProvider);
    }
    if has("jd_server") {
        return Ok(Role::JdServer);
    }
    match (has("upstream") || has("channels"), has("node") || has("pool")) {
        (true, false) => Ok(Role::MiningProxy),
        (false, true) => Ok(Role::Pool),
        _ => {
            let what = "cannot tell its role: [[upstream]] belongs to a mining-proxy, [node] and [pool] to a pool; \
                        say --role";
            Err(Problems::of_file(path.to_owned(), what.to_owned()))
        }
    }
}

fn read_file(path: &Path) -> Result<String, Problems> {
    file::read_text(path, file::MAX_CONFIG_BYTES).map_err(|what| Problems::of_file(path.to_owned(), what))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// The configuration, unless there is a problem. A text that is not TOML is not read any further: what follows
/// from a guess at its meaning would only hide the mistake.
fn read_document<C: RoleConfig>(text: &str, findings: &mut Findings<'_>) -> Option<C> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        for error in errors {
            let line = error.span().map(|span| findings.line_of(span.start));
            findings.problems.push(Problem {
                key: String::new(),
                line,
                what: error.message().replace('\n', "; "),
            });
        }
        return None;
    }
    let mut document = Section::document(table.get_ref());
    let config = C::read(&mut document, findings);
    document.finish(findings);
    config.filter(|_| findings.problems.is_empty())
}
