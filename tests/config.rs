//! Configurations as operators meet them: the example files, and all mistakes at once.

#[path = "support/readme.rs"]
mod readme;

use std::fs;
use std::path::{Path, PathBuf};

use checkweigh::config::{
    CoinbaseOutput, JdServerConfig, NodeAuth, PoolConfig, ProxyConfig, Role, RoleConfig, SourceConfig,
    TemplateProviderConfig, TemplatesConfig, guess_role, known_keys, load, load_and_listen, read,
};

use job_declarator::server::Mode;

/// The public key of the secret key below: the pair of the reference implementation's example configurations.
const PUBLIC_KEY: &str = "9auqWEzQDVyd2oe1JVGFLMLHZtCo2FFqZwtKA5gd9xbuEu7PH72";
const SECRET_KEY: &str = "mkDLTBBRxdBv998612qipDYoTK3YUrqLe8uWw7gu3iXbSrn2n";
const PASSWORD: &str = "correct-horse-battery";
const READ_TOKEN: &str = "a-token-that-may-read";
const ADMIN_TOKEN: &str = "a-token-that-may-write";
/// The address of BIP 173's first example.
const ADDRESS: &str = "BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4";

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
    fs::read_to_string(path).expect("the example is there")
}

/// A folder with the files that a configuration may name.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in [
        ("authority.key", SECRET_KEY),
        ("ledger.key", SECRET_KEY),
        ("node-password", PASSWORD),
        ("api-read.token", READ_TOKEN),
        ("api-admin.token", ADMIN_TOKEN),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, format!("{text}\n")).expect("a file");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("own file");
        }
    }
    folder
}

/// What is wrong with a text, without the file's name.
fn problems<C: RoleConfig + std::fmt::Debug>(text: &str, path: &Path) -> Vec<String> {
    let problems = read::<C>(text, path).expect_err("something is wrong");
    problems.list.iter().map(ToString::to_string).collect()
}

fn pool_example() -> String {
    example("pool.toml")
        .replace("# coinbase_address = \"bc1q...\"", &format!("coinbase_address = \"{ADDRESS}\""))
}

/// What is shown is run by `farm_and_pool`, too; here its keys and values are looked at, each by its role.
#[test]
fn everything_that_the_readme_shows_is_a_whole_configuration() {
    let shown = readme::all_shown();
    assert!(shown.len() >= 2, "the README shows a pool and a farm");
    for readme::Shown { file, text } in shown {
        let folder = folder();
        let path = folder.path().join(&file);
        let text = text.replace("bc1q...", ADDRESS).replace("POOL_KEY", PUBLIC_KEY);
        fs::write(&path, &text).expect("own folder");
        let role = guess_role(&path).unwrap_or_else(|problems| panic!("{file}: {problems}"));
        assert_eq!(format!("{role}.toml"), file);
        let notes = match role {
            Role::MiningProxy => load::<ProxyConfig>(&path).map(|loaded| loaded.notes),
            Role::Pool => load::<PoolConfig>(&path).map(|loaded| loaded.notes),
            Role::TemplateProvider => load::<TemplateProviderConfig>(&path).map(|loaded| loaded.notes),
            Role::JdServer => load::<JdServerConfig>(&path).map(|loaded| loaded.notes),
        };
        let notes = notes.unwrap_or_else(|problems| panic!("{file} of the README: {problems}"));
        assert!(notes.is_empty(), "{file} of the README: {notes:?}");
    }
}

#[test]
fn the_example_of_the_proxy_loads() {
    let loaded = read::<ProxyConfig>(&example("mining-proxy.toml"), Path::new("p.toml")).expect("an example");
    assert!(loaded.notes.is_empty(), "{:?}", loaded.notes);
    let config = loaded.config;
    assert_eq!(config.downstream.sv1_listen, Some("0.0.0.0:3333".parse().expect("an address")));
    assert_eq!((config.downstream.sv2_listen, config.downstream.max_connections), (None, 10_000));
    assert!(config.aggregate && config.vardiff.enabled && !config.downstream.proxy_protocol);
    assert_eq!((config.vardiff.config.minimum_exponent, config.vardiff.config.initial_exponent), (0, 10));
    assert_eq!(config.vardiff.config.shares_per_minute, 8.0);
    assert_eq!(config.upstreams.len(), 1);
    assert_eq!(
        (config.upstreams[0].url.host.as_str(), config.upstreams[0].url.port),
        ("pool.example", 34254)
    );
    assert_eq!(config.metrics_listen, Some("127.0.0.1:9840".parse().expect("an address")));
    let ledger = config.ledger.expect("accounts are kept");
    assert_eq!((ledger.path.as_path(), ledger.commit_interval.as_millis()), (Path::new("ledger"), 100));
    assert_eq!((ledger.retention.records_days, ledger.retention.records_bytes), (35, 100 << 30));
}

#[test]
fn the_example_of_the_pool_lacks_only_who_is_paid() {
    let found = problems::<PoolConfig>(&example("pool.toml"), Path::new("pool.toml"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("pool: needs coinbase_address or coinbase_script"), "{found:?}");
    let loaded =
        read::<PoolConfig>(&pool_example(), Path::new("/etc/checkweigh/pool.toml")).expect("filled in");
    assert!(loaded.notes.is_empty(), "{:?}", loaded.notes);
    let config = loaded.config;
    assert!(
        matches!(config.node.auth, NodeAuth::Cookie(file) if file == Path::new("/var/lib/bitcoind/.cookie"))
    );
    let script =
        config.coinbase_output.script(bitcoin::Network::Bitcoin).expect("an address of the main chain");
    assert_eq!(script.to_hex_string(), "0014751e76e8199196d454941c45d1b3a323f1433bd6");
    assert!(config.coinbase_output.script(bitcoin::Network::Regtest).is_err());
    assert_eq!((config.coinbase_tag.as_str(), config.share_batch_size), ("/checkweigh/", 10));
    assert_eq!(config.blocks_dir, Path::new("/etc/checkweigh/blocks"));
}

/// The example with job declaration as its comments show it.
fn declaring_example() -> String {
    let text = example("mining-proxy.toml");
    let uncommented = [
        "job_declaration_url",
        "[job_declaration]",
        "mode",
        "coinbase_tag",
        "pool_templates",
        "[job_declaration.node]",
        "cookie_file",
        "network",
        "[job_declaration.templates]",
        "poll_seconds",
    ];
    let lines = text.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest)
            if uncommented.iter().any(|start| {
                rest.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with(" = "))
            }) =>
        {
            rest.to_owned()
        }
        _ => line.replace("# solo_address = \"bc1q...\"", &format!("solo_address = \"{ADDRESS}\"")),
    });
    lines.collect::<Vec<String>>().join("\n")
}

#[test]
fn the_example_of_job_declaration_loads() {
    let loaded = read::<ProxyConfig>(&declaring_example(), Path::new("p.toml")).expect("an example");
    let config = loaded.config;
    let url = config.upstreams[0].job_declaration_url.as_ref().expect("it was uncommented");
    assert_eq!((url.host.as_str(), url.port, url.authority.is_some()), ("pool.example", 34264, true));
    let declaration = config.job_declaration.as_ref().expect("it was uncommented");
    assert_eq!((declaration.mode, declaration.pool_templates), (Mode::FullTemplate, true));
    assert_eq!(declaration.coinbase_tag, "/checkweigh/");
    assert_eq!(declaration.node.network, Some(bitcoin::Network::Bitcoin));
    assert_eq!(declaration.templates, TemplatesConfig::default());
    let solo = declaration.solo.as_ref().expect("an address");
    let script = solo.script(bitcoin::Network::Bitcoin).expect("an address of the main chain");
    assert_eq!(script.to_hex_string(), "0014751e76e8199196d454941c45d1b3a323f1433bd6");
    let effective = config.effective();
    let again = read::<ProxyConfig>(&effective, Path::new("p.toml")).expect("what is printed can be read");
    assert!(effective.contains("[job_declaration.templates]"), "{effective}");
    assert_eq!(again.config.effective(), effective);
}

#[test]
fn failover_is_as_patient_as_it_is_told() {
    let text = example("mining-proxy.toml").replace("# hold_down_s = 30", "hold_down_s = 700");
    let config = read::<ProxyConfig>(&text, Path::new("p.toml")).expect("an example").config;
    let seconds = [config.patience.hold_down, config.patience.longest_hold_down, config.patience.steady];
    assert_eq!(
        seconds.map(|time| time.as_secs()),
        [700, 700, 30],
        "the longest is no shorter than the first"
    );
    let text = text.replace("# longest_hold_down_s = 600", "longest_hold_down_s = 699");
    let problems =
        problems::<ProxyConfig>(&text.replace("# steady_s = 30", "steady_s = 0"), Path::new("p.toml"));
    assert!(
        problems.iter().any(|it| it.contains("longest_hold_down_s: is below hold_down_s")),
        "{problems:?}"
    );
    assert!(
        problems.iter().any(|it| it.contains("failover.steady_s: 0 is not from 1 to 3600")),
        "{problems:?}"
    );
}

#[test]
fn job_declaration_needs_one_channel_and_its_own_section() {
    let without = example("mining-proxy.toml").replace("# job_declaration_url", "job_declaration_url");
    let problems = problems::<ProxyConfig>(&without, Path::new("p.toml"));
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].ends_with("job_declaration: is missing: an upstream has a job_declaration_url"));
    let apart = declaring_example().replace("# aggregate = true", "aggregate = false");
    let problems = self::problems::<ProxyConfig>(&apart, Path::new("p.toml"));
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("channels.aggregate: must be true where jobs are declared"), "{problems:?}");
}

#[test]
fn the_examples_have_every_key_and_no_other() {
    has_every_key::<ProxyConfig>("mining-proxy.toml");
    has_every_key::<PoolConfig>("pool.toml");
    has_every_key::<TemplateProviderConfig>("template-provider.toml");
    has_every_key::<JdServerConfig>("jd-server.toml");
}

fn has_every_key<C: RoleConfig>(name: &str) {
    let mut section = String::new();
    let mut keys = Vec::new();
    for line in example(name).lines() {
        if let Some(header) = header_of(line) {
            section = header.trim_matches(['[', ']']).to_owned();
        } else if let Some(key) = key_of(line) {
            keys.push(format!("{section}.{key}"));
        }
    }
    let mut known = known_keys::<C>();
    keys.sort();
    known.sort();
    assert_eq!(keys, known, "the keys of {name} on the left, those that the program knows on the right");
}

/// The header of the table that a line starts, or would start if it were not commented out.
fn header_of(line: &str) -> Option<&str> {
    let header = line.trim_start_matches("# ");
    (header.starts_with('[') && header.ends_with(']')).then_some(header)
}

/// The key that a line sets, or would set if it were not commented out.
fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.trim_start_matches("# ").split_once(" = ")?;
    key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_').then_some(key)
}

/// What the examples show in comments has the right form, too.
#[test]
fn every_commented_key_can_be_uncommented() {
    let folder = folder();
    let lone = [
        "is missing",
        "cannot stand beside",
        "not a Bitcoin address",
        "is not hexadecimal",
        "needs cookie_file",
        "needs downstream.authority_secret_key_file",
    ];
    let check = |text: &str, found: &dyn Fn(&str, &Path) -> Vec<String>| {
        let path = folder.path().join("x.toml");
        for (number, line) in text.lines().enumerate().filter(|(_, line)| line.starts_with("# ")) {
            if key_of(line).is_none() {
                continue;
            }
            let mut lines: Vec<&str> = text.lines().collect();
            lines[number] = &line[2..];
            // With its table, where that is a comment too.
            let above = lines[..number].iter().rposition(|line| header_of(line).is_some());
            let above = above.expect("every key is in a table");
            lines[above] = header_of(lines[above]).expect("it was found");
            for problem in found(&lines.join("\n"), &path) {
                assert!(lone.iter().any(|lone| problem.contains(lone)), "{line}: {problem}");
            }
        }
    };
    check(&example("mining-proxy.toml"), &|text, path| match read::<ProxyConfig>(text, path) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.list.iter().map(ToString::to_string).collect(),
    });
    let provider = example("template-provider.toml");
    check(&provider, &|text, path| match read::<TemplateProviderConfig>(text, path) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.list.iter().map(ToString::to_string).collect(),
    });
    check(&example("jd-server.toml"), &|text, path| match read::<JdServerConfig>(text, path) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.list.iter().map(ToString::to_string).collect(),
    });
    check(&pool_example(), &|text, path| match read::<PoolConfig>(text, path) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.list.iter().map(ToString::to_string).collect(),
    });
}

/// The pool's example with job declaration, and whether it has an authority key.
fn declaring_pool(modes: &str, has_key: bool) -> String {
    let key = if has_key { "authority_secret_key_file = \"authority.key\"\n" } else { "" };
    let text = pool_example().replace("[downstream]\n", &format!("[downstream]\n{key}"));
    format!("{text}\n[job_declaration]\nlisten = \"127.0.0.1:0\"\n{modes}\n")
}

#[test]
fn a_server_of_its_own_has_its_file_and_the_pool_its_socket() {
    let folder = folder();
    let path = folder.path().join("jd-server.toml");
    fs::write(&path, example("jd-server.toml")).expect("own folder");
    assert_eq!(guess_role(&path).expect("its section says it"), Role::JdServer);
    let loaded = load::<JdServerConfig>(&path).expect("an example");
    assert!(loaded.notes.is_empty(), "{:?}", loaded.notes);
    assert_eq!(loaded.config.control_socket, folder.path().join("pool.sock"));
    let effective = loaded.config.effective();
    let again = read::<JdServerConfig>(&effective, &path).expect("what was printed loads").config;
    assert_eq!((again.effective(), again.modes.requires_transactions()), (effective, false));
    let socket =
        declaring_pool("", true).replace("listen = \"127.0.0.1:0\"\n\n", "control_socket = \"a.sock\"\n");
    let pool = read::<PoolConfig>(&socket, &path).expect("complete").config;
    let declaration = pool.job_declaration.as_ref().expect("it is there");
    assert_eq!(
        (declaration.listen, &declaration.control_socket),
        (None, &Some(folder.path().join("a.sock")))
    );
    let again = read::<PoolConfig>(&pool.effective(), &path).expect("what was printed loads").config;
    assert_eq!(again.job_declaration, pool.job_declaration);
    let both = declaring_pool("control_socket = \"a.sock\"", true);
    let neither = declaring_pool("", true).replace("listen = \"127.0.0.1:0\"\n\n", "");
    for (text, what) in [
        (both, "job_declaration.control_socket: cannot stand beside listen"),
        (neither, "job_declaration.listen: is missing; or control_socket"),
    ] {
        let found = problems::<PoolConfig>(&text, &path);
        assert!(found.len() == 1 && found[0].contains(what), "{found:?}");
    }
}

#[test]
fn a_pool_takes_declared_jobs_where_its_file_says() {
    let folder = folder();
    let path = folder.path().join("pool.toml");
    let both = read::<PoolConfig>(&declaring_pool("", true), &path).expect("complete").config;
    let declared = both.job_declaration.as_ref().expect("it is there");
    assert!(!declared.requires_transactions());
    assert_eq!(declared.max_connections, 64);
    let many = declaring_pool("max_connections = 1000", true);
    let many = read::<PoolConfig>(&many, &path).expect("complete").config;
    assert_eq!(many.job_declaration.expect("it is there").max_connections, 1000);
    let again = read::<PoolConfig>(&both.effective(), &path).expect("what was printed loads").config;
    assert_eq!(again.job_declaration, both.job_declaration);
    let one = declaring_pool("modes = [\"full-template\"]", true);
    let one = read::<PoolConfig>(&one, &path).expect("complete").config;
    assert!(one.job_declaration.expect("it is there").requires_transactions());
    for (modes, has_key, what) in [
        ("", false, "job_declaration.listen: needs downstream.authority_secret_key_file"),
        ("max_connections = 4097", true, "job_declaration.max_connections"),
        ("modes = [\"solo\"]", true, "job_declaration.modes: \"solo\" is neither"),
        ("modes = [\"coinbase-only\"]", true, "job_declaration.modes: must contain \"full-template\""),
    ] {
        let found = problems::<PoolConfig>(&declaring_pool(modes, has_key), &path);
        assert!(found.len() == 1 && found[0].contains(what), "{found:?}");
    }
}

#[test]
fn templates_come_from_where_the_file_says() {
    let folder = folder();
    let path = folder.path().join("template-provider.toml");
    let text = example("template-provider.toml");
    fs::write(&path, &text).expect("a file");
    assert_eq!(guess_role(&path).expect("a role"), Role::TemplateProvider);
    let config = read::<TemplateProviderConfig>(&text, &path).expect("an example").config;
    assert_eq!((config.templates.source.clone(), config.max_connections), (SourceConfig::Rpc, 32));
    let again = read::<TemplateProviderConfig>(&config.effective(), &path).expect("it loads again").config;
    assert_eq!((again.templates, again.listen), (config.templates, config.listen));

    let head =
        "[template_provider]\nlisten = \"127.0.0.1:8442\"\nauthority_secret_key_file = \"authority.key\"\n";
    let url = format!("stratum2+tcp://tp.example:8442/{PUBLIC_KEY}");
    let elsewhere = format!("{head}[templates]\nsource = \"sv2\"\nsv2_url = \"{url}\"\n");
    let config = read::<TemplateProviderConfig>(&elsewhere, &path).expect("needs no node").config;
    assert!(matches!(&config.templates.source, SourceConfig::Sv2 { url } if url.host == "tp.example"));
    assert!(config.node.is_none());
    for (text, problem) in [
        ("source = \"sv2\"", "templates.sv2_url: is missing: source = \"sv2\" needs it"),
        ("source = \"zmq\"", "is neither \"rpc\" nor \"sv2\" nor \"ipc\""),
        ("source = \"rpc\"", "node: needs cookie_file"),
        ("poll_seconds = 0", "templates.poll_seconds: 0 is not from 1 to 600"),
    ] {
        let found = problems::<TemplateProviderConfig>(&format!("{head}[templates]\n{text}\n"), &path);
        assert!(found.iter().any(|found| found.contains(problem)), "{text}: {found:?}");
    }
    let zmq = |address: &str| {
        let node = format!("[node]\ncookie_file = \"c\"\nzmq_hashblock = \"{address}\"\n");
        read::<TemplateProviderConfig>(&format!("{head}{node}"), &path)
    };
    let node = zmq("tcp://[::1]:28332").expect("an address").config.node.expect("a node");
    assert_eq!(node.zmq_hashblock.expect("an address").to_string(), "tcp://[::1]:28332");
    for wrong in ["ipc:///run/x", "tcp://host", "tcp://:1", "tcp://host:0", "tcp://a/b:1"] {
        assert!(zmq(wrong).is_err(), "{wrong}");
    }
}

/// The template provider's file with these keys in `[templates]`, and no node.
fn provider_with(templates: &str) -> String {
    format!(
        "[template_provider]\nlisten = \"127.0.0.1:8442\"\nauthority_secret_key_file = \"authority.key\"\n\
         [templates]\n{templates}\n"
    )
}

#[test]
#[cfg(feature = "ipc")]
fn templates_come_over_ipc_from_a_socket() {
    let folder = folder();
    let path = folder.path().join("template-provider.toml");
    let text = provider_with("source = \"ipc\"\nipc_socket = \"regtest/node.sock\"");
    let config = read::<TemplateProviderConfig>(&text, &path).expect("needs no node").config;
    let socket = folder.path().join("regtest/node.sock");
    assert_eq!(config.templates.source, SourceConfig::Ipc { socket });
    assert!(config.node.is_none());
    let again = read::<TemplateProviderConfig>(&config.effective(), &path).expect("it loads again").config;
    assert_eq!(again.templates, config.templates);
    let long = format!("source = \"ipc\"\nipc_socket = \"/{}\"", "s".repeat(107));
    for (text, problem) in [
        ("source = \"ipc\"", "templates.ipc_socket: is missing: source = \"ipc\" needs it"),
        (long.as_str(), "templates.ipc_socket: has 108 bytes with its folder; the system takes 107 at most"),
    ] {
        let found = problems::<TemplateProviderConfig>(&provider_with(text), &path);
        assert!(found.iter().any(|found| found.contains(problem)), "{text}: {found:?}");
    }
}

#[test]
#[cfg(not(feature = "ipc"))]
fn a_program_without_ipc_says_how_to_build_one_with_it() {
    let folder = folder();
    let path = folder.path().join("template-provider.toml");
    let text = provider_with("source = \"ipc\"\nipc_socket = \"node.sock\"");
    let found = problems::<TemplateProviderConfig>(&text, &path);
    let problem = "templates.source: \"ipc\" needs a program that was built with \
                   `cargo build --release --features ipc`";
    assert!(found.len() == 1 && found[0].contains(problem), "{found:?}");
}

#[test]
fn all_mistakes_are_named_at_once_with_key_and_line() {
    let text = "\
[downstream]
sv1_lisen = \"0.0.0.0:3333\"
sv2_listen = \"everywhere\"
max_connections = 0
proxy_protocol = \"yes\"

[[upstream]]
url = \"stratum+tcp://pool.example:3333\"
user_identity = \"\"
[[upstream]]
url = \"stratum2+tcp://pool.example:3333/abc\"

[vardiff]
shares_per_minute = 1e9
minimum_difficulty = 64
initial_difficulty = 1

[ledger]
commit_interval_ms = 251
keep_recrods_days = 3
[metrics]
[colour]
red = 1
";
    let found = problems::<ProxyConfig>(text, Path::new("p.toml"));
    let expected = [
        "line 1: downstream.authority_secret_key_file: is missing: sv2_listen needs it",
        "line 2: downstream.sv1_lisen: unknown key; did you mean `sv1_listen`?",
        "line 3: downstream.sv2_listen: \"everywhere\" is not an address and port",
        "line 4: downstream.max_connections: 0 is not from 1 to 1000000",
        "line 5: downstream.proxy_protocol: must be true or false, not of the type string",
        "line 8: upstream[0].url: an SV2 address starts with stratum2+tcp://",
        "line 9: upstream[0].user_identity: is empty",
        "line 10: upstream[1].user_identity: is missing",
        "line 11: upstream[1].url: the authority key of an SV2 address",
        "line 14: vardiff.shares_per_minute: 1000000000 is not from 0.1 to 600",
        "line 16: vardiff.initial_difficulty: is below minimum_difficulty",
        "line 18: ledger.path: is missing",
        "line 19: ledger.commit_interval_ms: 251 is not from 10 to 250",
        "line 20: ledger.keep_recrods_days: unknown key; did you mean `keep_records_days`?",
        "line 21: metrics.listen: is missing",
        "line 22: colour: unknown key; known here: downstream, upstream, job_declaration, failover, channels, vardiff, ledger, metrics, api, log",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found} is not {expected}...");
    }
}

#[test]
fn an_empty_file_says_what_is_needed() {
    assert_eq!(
        problems::<ProxyConfig>("", Path::new("p.toml")),
        ["downstream: needs sv1_listen, sv2_listen or both", "upstream: at least one [[upstream]] is needed"]
    );
    assert_eq!(
        problems::<PoolConfig>("", Path::new("p.toml")),
        [
            "downstream: needs sv1_listen, sv2_listen or both",
            "node: needs cookie_file, or user and password_file",
            "pool: needs coinbase_address or coinbase_script: who is paid for blocks",
        ]
    );
}

#[test]
fn what_is_not_toml_is_shown_with_its_lines() {
    let found = problems::<ProxyConfig>("[downstream]\nsv1_listen =\nsv2_listen = 'x\n", Path::new("p.toml"));
    assert!(found.iter().any(|problem| problem.starts_with("line 3: ")), "{found:?}");
    assert!(found.iter().any(|problem| problem.starts_with("line 2: ")), "{found:?}");
    let found = problems::<ProxyConfig>("[log]\nfilter = \"info\"\nfilter = \"warn\"\n", Path::new("p.toml"));
    assert!(found[0].contains("duplicate key"), "{found:?}");
}

#[test]
fn the_ways_to_pay_and_to_log_in_exclude_each_other() {
    let folder = folder();
    let path = folder.path().join("pool.toml");
    let text = pool_example()
        .replace("# user = ", "user = ")
        .replace("# coinbase_script = \"0014...\"", "coinbase_script = \"00\"")
        .replace("rpc_url = \"http://", "rpc_url = \"http://me:hunter2@");
    let found = problems::<PoolConfig>(&text, &path);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].contains("node.rpc_url: must not contain a user or password"), "{found:?}");
    assert!(found[1].contains("node.user: cannot stand beside cookie_file"), "{found:?}");
    assert!(found[2].contains("pool.coinbase_script: cannot stand beside coinbase_address"), "{found:?}");
    assert!(!found.iter().any(|problem| problem.contains("hunter2")), "{found:?}");

    let text = pool_example().replace("# network = \"main\"", "network = \"regtest\"");
    let found = problems::<PoolConfig>(&text, &path);
    assert!(found[0].contains("pool.coinbase_address") && found[0].contains("regtest"), "{found:?}");
}

/// A pool that uses every secret.
fn secretive_pool(folder: &Path) -> (String, PathBuf) {
    let text = pool_example()
        .replace("# sv2_listen", "sv2_listen")
        .replace("# authority_secret_key_file", "authority_secret_key_file")
        .replace("cookie_file = ", "# ")
        .replace("# user = ", "user = ")
        .replace("# password_file = ", "password_file = ")
        .replace("# [api]", "[api]")
        .replace("# listen = \"127.0.0.1:9851\"", "listen = \"0.0.0.0:9851\"")
        .replace("# read_token_file", "read_token_file")
        .replace("# admin_token_file", "admin_token_file")
        .replace("# format = ", "format = ");
    (text, folder.join("pool.toml"))
}

#[test]
fn secrets_are_never_shown() {
    let folder = folder();
    let (text, path) = secretive_pool(folder.path());
    let loaded = read::<PoolConfig>(&text, &path).expect("complete");
    assert!(loaded.notes.is_empty(), "{:?}", loaded.notes);
    for shown in [format!("{loaded:?}"), loaded.config.effective()] {
        assert!(!shown.contains(PASSWORD), "{shown}");
        assert!(!shown.contains(SECRET_KEY), "{shown}");
        assert!(!shown.contains(READ_TOKEN) && !shown.contains(ADMIN_TOKEN), "{shown}");
    }
    let effective = loaded.config.effective();
    assert!(effective.contains("# password: <hidden>"), "{effective}");
    assert!(effective.contains("# authority secret key: <hidden>"), "{effective}");
    assert!(effective.contains(PUBLIC_KEY), "{effective}");
}

#[test]
fn the_effective_configuration_loads_to_itself() {
    let folder = folder();
    let (text, path) = secretive_pool(folder.path());
    let effective = read::<PoolConfig>(&text, &path).expect("complete").config.effective();
    let again = read::<PoolConfig>(&effective, Path::new("elsewhere.toml")).expect("what was printed loads");
    assert_eq!(again.config.effective(), effective);
    assert!(matches!(again.config.coinbase_output, CoinbaseOutput::Address(_)));

    let text = example("mining-proxy.toml")
        .replace("# minimum_difficulty = 1.0", "minimum_difficulty = 0.001")
        .replace("# filter = ", "filter = ");
    let loaded = read::<ProxyConfig>(&text, Path::new("p.toml")).expect("complete");
    assert_eq!(loaded.notes.len(), 1);
    assert!(
        loaded.notes[0].to_string().contains("0.001 is rounded down to 0.0009765625"),
        "{}",
        loaded.notes[0]
    );
    let effective = loaded.config.effective();
    let again = read::<ProxyConfig>(&effective, Path::new("p.toml")).expect("what was printed loads");
    assert!(again.notes.is_empty());
    assert_eq!(again.config.effective(), effective);
}

#[test]
fn an_api_that_others_can_reach_needs_a_token() {
    let folder = folder();
    let text = |listen: &str, more: &str| {
        format!(
            "[downstream]\nsv1_listen = \"0.0.0.0:3333\"\n[[upstream]]\nurl = \"stratum2+tcp://pool.example:1\"\n\
             user_identity = \"a\"\n[api]\nlisten = \"{listen}\"\n{more}\n"
        )
    };
    let path = folder.path().join("p.toml");
    for loopback in ["127.0.0.1:9850", "[::1]:9850"] {
        let loaded = read::<ProxyConfig>(&text(loopback, ""), &path).expect("nobody else can reach it");
        assert_eq!(loaded.config.http.api.expect("it is there").requests_per_minute, 600);
    }
    for open in ["0.0.0.0:9850", "[::]:9850", "192.0.2.1:9850"] {
        let found = problems::<ProxyConfig>(&text(open, ""), &path);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("line 7: api.listen: ") && found[0].contains("read_token_file"),
            "{found:?}"
        );
        let key = "read_token_file = \"api-read.token\"";
        read::<ProxyConfig>(&text(open, key), &path).expect("it has a token");
    }
    fs::write(folder.path().join("api-read.token"), "secret").expect("a file");
    let more = "read_token_file = \"api-read.token\"\ncors_origins = [\"*\"]\nrequests_per_minute = 0";
    let found = problems::<ProxyConfig>(&text("0.0.0.0:1", more), &path);
    let expected =
        ["line 8: api.read_token_file", "line 9: api.cors_origins: \"*\" is not", "line 10: api.requests"];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected) && !found.contains("secret"), "{found}");
    }
}

#[cfg(unix)]
#[test]
fn a_secret_that_others_can_read_is_noted() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let key = folder.path().join("authority.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("own file");
    let (text, path) = secretive_pool(folder.path());
    let loaded = read::<PoolConfig>(&text, &path).expect("complete");
    assert_eq!(loaded.notes.len(), 1);
    assert!(loaded.notes[0].to_string().contains("chmod 600"), "{}", loaded.notes[0]);
}

#[test]
fn secret_files_that_hold_no_secret_are_named() {
    let folder = folder();
    fs::write(folder.path().join("authority.key"), PUBLIC_KEY).expect("a file");
    fs::remove_file(folder.path().join("node-password")).expect("a file");
    let (text, path) = secretive_pool(folder.path());
    let found = problems::<PoolConfig>(&text, &path);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].contains("downstream.authority_secret_key_file") && found[0].contains("authority.key"),
        "{found:?}"
    );
    assert!(found[1].contains("node.password_file: cannot read"), "{found:?}");
}

#[test]
fn a_signing_key_that_is_none_is_named() {
    let folder = folder();
    let text = pool_example().replace("# signing_key_file", "signing_key_file");
    let path = folder.path().join("pool.toml");
    read::<PoolConfig>(&text, &path).expect("it is a key");
    fs::write(folder.path().join("ledger.key"), PUBLIC_KEY).expect("a file");
    let found = problems::<PoolConfig>(&text, &path);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("ledger.signing_key_file") && found[0].contains("ledger.key"), "{found:?}");
}

#[test]
fn listeners_that_fail_are_listed_with_all_other_mistakes() {
    let folder = folder();
    let path = folder.path().join("p.toml");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let text = example("mining-proxy.toml")
        .replace("0.0.0.0:3333", &taken.local_addr().expect("bound").to_string())
        .replace("127.0.0.1:9840", "192.0.2.1:9840")
        .replace("# shares_per_minute = 8.0", "shares_per_minute = \"many\"");
    fs::write(&path, text).expect("a file");
    let problems = load_and_listen::<ProxyConfig>(&path).expect_err("three mistakes");
    let keys: Vec<&str> = problems.list.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["downstream.sv1_listen", "vardiff.shares_per_minute", "metrics.listen"]);
    assert!(
        problems.to_string().contains("downstream.sv1_listen: cannot listen on 127.0.0.1:"),
        "{problems}"
    );
}

#[test]
fn listeners_are_bound_and_two_on_one_address_are_a_mistake() {
    let folder = folder();
    let path = folder.path().join("p.toml");
    let text = example("mining-proxy.toml")
        .replace("0.0.0.0:3333", "127.0.0.1:0")
        .replace("127.0.0.1:9840", "127.0.0.1:0");
    fs::write(&path, &text).expect("a file");
    let (_, listeners) = load_and_listen::<ProxyConfig>(&path).expect("free ports");
    assert!(listeners.sv1.is_some() && listeners.metrics.is_some() && listeners.sv2.is_none());

    fs::write(&path, text.replace("127.0.0.1:0", "127.0.0.1:3333")).expect("a file");
    let problems = load::<ProxyConfig>(&path).expect_err("one address twice");
    assert!(
        problems
            .to_string()
            .contains("metrics.listen: 127.0.0.1:3333 is the address of downstream.sv1_listen")
    );
}

#[test]
fn files_that_are_none_are_named() {
    let folder = folder();
    let problems = load::<ProxyConfig>(&folder.path().join("absent.toml")).expect_err("no file");
    assert!(problems.to_string().contains("cannot read"), "{problems}");
    let problems = load::<ProxyConfig>(folder.path()).expect_err("a folder");
    assert!(problems.to_string().contains("is not a file"), "{problems}");
}

const RENTAL: &str = "
[[downstream.sv1_profile]]
listen = \"127.0.0.1:0\"
minimum_difficulty = 524288
[[downstream.sv1_profile]]
listen = \"127.0.0.1:0\"
minimum_difficulty = 0.25
initial_difficulty = 3
";

/// The example of the proxy with what `RENTAL` says, and with ports that are free.
fn with_profiles(profiles: &str) -> String {
    example("mining-proxy.toml")
        .replace("0.0.0.0:3333", "127.0.0.1:0")
        .replace("127.0.0.1:9840", "127.0.0.1:0")
        .replace("# max_connections = 10000\n", profiles)
}

#[test]
fn profiles_have_listeners_and_difficulties_of_their_own() {
    let folder = folder();
    let path = folder.path().join("p.toml");
    fs::write(&path, with_profiles(RENTAL)).expect("a file");
    let (loaded, listeners) = load_and_listen::<ProxyConfig>(&path).expect("free ports");
    let profiles = &loaded.config.downstream.sv1_profiles;
    let exponents: Vec<_> =
        profiles.iter().map(|profile| (profile.minimum_exponent, profile.initial_exponent)).collect();
    assert_eq!(exponents, [(19, 19), (-2, 1)]);
    assert_eq!(listeners.sv1_profiles.len(), 2);
    assert_eq!(loaded.notes.len(), 1, "{:?}", loaded.notes);
    assert!(
        loaded.notes[0].to_string().contains("sv1_profile[1].initial_difficulty: 3 is rounded down to 2")
    );

    let effective = loaded.config.effective();
    assert!(effective.contains("[[downstream.sv1_profile]]\nlisten = \"127.0.0.1:0\"\n"), "{effective}");
    assert!(
        effective.contains("minimum_difficulty = 524288.0\ninitial_difficulty = 524288.0\n"),
        "{effective}"
    );
    let again = read::<ProxyConfig>(&effective, &path).expect("what was printed loads");
    assert_eq!(again.config.downstream.sv1_profiles, *profiles);
    assert_eq!(again.config.effective(), effective);
}

#[test]
fn mistakes_in_profiles_are_named_with_their_place() {
    let text = "\
[downstream]
sv1_listen = \"127.0.0.1:3333\"
[[downstream.sv1_profile]]
listen = \"127.0.0.1:3333\"
minimum_difficulty = 500000
[[downstream.sv1_profile]]
minimum_dificulty = 524288
[[downstream.sv1_profile]]
listen = \"3335\"
minimum_difficulty = 1024
initial_difficulty = 512
[[downstream.sv1_profile]]
listen = \"127.0.0.1:3336\"
minimum_difficulty = 0
[[upstream]]
url = \"stratum2+tcp://pool.example:3333\"
user_identity = \"account\"
";
    let found = problems::<ProxyConfig>(text, Path::new("p.toml"));
    let expected = [
        "line 4: downstream.sv1_profile[0].listen: 127.0.0.1:3333 is the address of downstream.sv1_listen already",
        "line 5: downstream.sv1_profile[0].minimum_difficulty: 500000 is not a power of two; 262144 and 524288 are",
        "line 6: downstream.sv1_profile[1].listen: is missing",
        "line 6: downstream.sv1_profile[1].minimum_difficulty: is missing",
        "line 7: downstream.sv1_profile[1].minimum_dificulty: unknown key; did you mean `minimum_difficulty`?",
        "line 9: downstream.sv1_profile[2].listen: \"3335\" is not an address and port",
        "line 11: downstream.sv1_profile[2].initial_difficulty: is below minimum_difficulty",
        "line 14: downstream.sv1_profile[3].minimum_difficulty: 0 is not from 2^-32 to 2^223",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found} is not {expected}...");
    }
    let many = RENTAL.repeat(9);
    let found = problems::<ProxyConfig>(&with_profiles(&many), Path::new("p.toml"));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0].ends_with("downstream.sv1_profile: has 18 entries; at most 16 are possible"),
        "{found:?}"
    );
}

#[test]
fn a_profile_that_cannot_listen_is_named() {
    let folder = folder();
    let path = folder.path().join("p.toml");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().map(|address| (taken, address.to_string())).expect("bound");
    let (first, second) = RENTAL.split_at(RENTAL.rfind("[[").expect("two tables"));
    let text = with_profiles(&format!("{first}{}", second.replace("127.0.0.1:0", &taken.1)));
    fs::write(&path, text).expect("a file");
    let problems = load_and_listen::<ProxyConfig>(&path).expect_err("one port is taken");
    let keys: Vec<&str> = problems.list.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["downstream.sv1_profile[1].listen"]);
}

#[test]
fn groups_and_nameplates_are_read_and_printed() {
    let folder = folder();
    let path = folder.path().join("p.toml");
    let rules = "[[ledger.group]]\nname = \"hall\"\ndevices = \"farm.a-*\"\n\
                 [[ledger.nameplate]]\ndevices = \"*\"\npower_w = 3500.5\n";
    let text = example("mining-proxy.toml").replace("[metrics]\n", &format!("{rules}[metrics]\n"));
    let config = read::<ProxyConfig>(&text, &path).expect("it is right").config;
    let read_rules = config.rules.clone();
    assert_eq!(read_rules.groups, [("hall".to_owned(), "farm.a-*".to_owned())]);
    assert_eq!(read_rules.nameplates, [("*".to_owned(), 3_500_500)]);
    let again = read::<ProxyConfig>(&config.effective(), &path).expect("what was printed loads");
    assert_eq!(again.config.rules, read_rules);
    let wrong = text.replace("3500.5", "-1.0").replace("devices = \"farm.a-*\"\n", "");
    let problems = read::<ProxyConfig>(&wrong, &path).expect_err("two mistakes").to_string();
    assert!(problems.contains("ledger.group[0].devices: is missing"), "{problems}");
    assert!(problems.contains("ledger.nameplate[0].power_w: is not from 0.001"), "{problems}");
}

#[test]
fn rules_of_identity_are_read_and_printed() {
    let folder = folder();
    let path = folder.path().join("p.toml");
    let rules = "[[ledger.identity]]\nworkers = \"farm.all\"\nby = \"address\"\n\
                 [[ledger.identity]]\nworkers = \"*\"\nby = \"device_id\"\nname = \"asic-{device_id}\"\n\
                 [[ledger.identity]]\nworkers = \"*.rented\"\nby = \"worker_name\"\ntell_apart = false\n";
    let text = example("mining-proxy.toml").replace("[metrics]\n", &format!("{rules}[metrics]\n"));
    let config = read::<ProxyConfig>(&text, &path).expect("it is right").config;
    let read_rules = config.rules.identities.clone();
    let names: Vec<String> = read_rules.iter().map(|rule| rule.name.to_string()).collect();
    assert_eq!(names, ["{worker}@{address}", "asic-{device_id}", "{worker}"]);
    assert!(read_rules.iter().all(|rule| !rule.tells_apart));
    let again = read::<ProxyConfig>(&config.effective(), &path).expect("what was printed loads");
    assert_eq!(again.config.rules.identities, read_rules);
    let wrong = text
        .replace("by = \"address\"\n", "by = \"mac\"\n")
        .replace("asic-{device_id}", "{rack}")
        .replace("tell_apart = false", "tell_apart = 1")
        .replace("workers = \"*\"\n", "");
    let found = problems::<ProxyConfig>(&wrong, &path).join("\n");
    for problem in [
        "ledger.identity[0].by: \"mac\" is none of",
        "ledger.identity[1].workers: is missing",
        "ledger.identity[1].name: has a { that begins none of",
        "ledger.identity[2].tell_apart: must be true or false",
    ] {
        assert!(found.contains(problem), "{problem}: {found}");
    }
    let senseless = text
        .replace("by = \"address\"\n", "by = \"address\"\ntell_apart = true\n")
        .replace("asic-{device_id}", "{worker}");
    let found = problems::<ProxyConfig>(&senseless, &path).join("\n");
    assert!(found.contains("ledger.identity[0].tell_apart: is for rules by"), "{found}");
    assert!(found.contains("ledger.identity[1].name: has no {device_id}"), "{found}");
}

/// Who keeps the accounts in memory has groups and nameplates as well; whatever is about a disk needs a folder.
#[test]
fn groups_and_nameplates_need_no_folder() {
    let folder = folder();
    let path = folder.path().join("p.toml");
    let text = example("mining-proxy.toml").replace("path = \"ledger\"\n", "");
    let nothing = read::<ProxyConfig>(&text, &path).expect_err("it is empty").to_string();
    assert!(nothing.contains("ledger.path: is missing"), "{nothing}");
    let rules = "[[ledger.nameplate]]\ndevices = \"*\"\npower_w = 3500.0\n";
    let with_rules = text.replace("[metrics]\n", &format!("{rules}[metrics]\n"));
    let config = read::<ProxyConfig>(&with_rules, &path).expect("it is right").config;
    assert_eq!((config.ledger.is_none(), config.rules.nameplates.len()), (true, 1));
    let again = read::<ProxyConfig>(&config.effective(), &path).expect("what was printed loads").config;
    assert_eq!((again.ledger.is_none(), again.rules), (true, config.rules));
    let days = with_rules.replace("[ledger]\n", "[ledger]\nkeep_records_days = 3\n");
    let problems = read::<ProxyConfig>(&days, &path).expect_err("there is no folder").to_string();
    assert!(problems.contains("ledger.path: is missing"), "{problems}");
}
