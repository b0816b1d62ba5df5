//! The configuration files of the roles: read, checked as a whole, and printed back.
//!
//! A file is walked key by key, and every fault is collected: an operator corrects one list instead of meeting one
//! fault per start. What comes out is a checked type per role ([`ProxyConfig`], [`PoolConfig`]) in which addresses,
//! ranges, URLs and keys are already values; nobody else parses a text of the configuration again.
//!
//! This module never talks to the network, except that [`listen`] binds the listeners, and never prints a secret.

mod api;
mod declaration;
mod declaration_server;
mod file;
mod identity;
mod jd_server;
mod ledger;
pub mod listen;
mod load;
mod parts;
mod pool;
mod problem;
mod proxy;
mod reader;
mod render;
mod template_provider;
mod templates;

pub(crate) use file::{is_readable_by_others, read_key, read_text};

pub use api::{ApiConfig, HttpConfig, Tokens};
pub use declaration::JobDeclarationConfig;
pub use declaration_server::{DeclarationServerConfig, Modes};
pub use jd_server::JdServerConfig;
pub use ledger::LedgerConfig;
pub use listen::Listeners;
pub use load::{Loaded, Role, RoleConfig, guess_role, known_keys, load, load_and_listen, read};
pub use parts::{DownstreamConfig, LogConfig, LogFormat, Sv1Profile, VardiffSettings};
pub use pool::{CoinbaseOutput, NodeAuth, NodeConfig, NodeUrlError, PoolConfig, WrongNetwork, ZmqEndpoint};
pub use problem::{Note, Problem, Problems};
pub use proxy::{ProxyConfig, UpstreamConfig};
pub(crate) use reader::distance;
pub use template_provider::TemplateProviderConfig;
pub use templates::{NO_IPC, SourceConfig, TemplatesConfig};
