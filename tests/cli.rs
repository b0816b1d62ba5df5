//! The command line as a person or a script meets it: the real binary.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use stratum::sv2::{AuthorityPublicKey, AuthoritySecretKey};

fn checkweigh(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_checkweigh"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .env_remove("CHECKWEIGH_BITCOIN_RPC")
        .output()
        .expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

#[test]
fn every_command_explains_itself() {
    for command in [
        vec![],
        vec!["demo"],
        vec!["mining-proxy"],
        vec!["pool"],
        vec!["check"],
        vec!["keygen"],
        vec!["ledger"],
        vec!["ledger", "statement"],
        vec!["ledger", "check-statement"],
    ] {
        let mut arguments = command.clone();
        arguments.push("--help");
        let output = checkweigh(&arguments);
        assert!(output.status.success(), "{command:?}: {}", stderr(&output));
        let help = stdout(&output);
        assert!(help.contains("Example"), "{command:?} shows no example:\n{help}");
        assert!(help.contains("--log-format"), "{command:?} lacks the global options:\n{help}");
    }
    let version = checkweigh(&["--version"]);
    assert_eq!(stdout(&version), format!("checkweigh {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_arguments_are_told_from_wrong_configurations() {
    assert_eq!(checkweigh(&["demo", "--miners", "0"]).status.code(), Some(2));
    assert_eq!(checkweigh(&["pool"]).status.code(), Some(2));
    let output = checkweigh(&["mining-proxy", "--config", "/nonexistent/p.toml"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("/nonexistent/p.toml"), "{}", stderr(&output));
    let output = checkweigh(&["demo", "--log", "checkweigh=loud"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("loud"), "{}", stderr(&output));
}

#[test]
fn check_prints_the_effective_configuration_and_guesses_the_role() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/mining-proxy.toml");
    let example = example.to_str().expect("a plain path");
    let output = checkweigh(&["check", "--config", example]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("initial_difficulty = 1024.0"), "{}", stdout(&output));
    assert!(
        stderr(&output).contains("the configuration of this mining-proxy is right"),
        "{}",
        stderr(&output)
    );

    let output = checkweigh(&["check", "--config", example, "--role", "pool"]);
    assert_eq!(output.status.code(), Some(64));
    let problems = stderr(&output);
    for key in ["upstream: unknown key", "channels: unknown key", "node: needs", "pool: needs"] {
        assert!(problems.contains(key), "{key} is not in:\n{problems}");
    }
}

#[test]
fn a_configuration_of_no_role_needs_to_be_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.toml");
    fs::write(&path, "[log]\n").expect("a file");
    let output = checkweigh(&["check", "--config", path.to_str().expect("a plain path")]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("--role"), "{}", stderr(&output));
}

#[test]
fn a_key_pair_is_made_and_loads() {
    let output = checkweigh(&["keygen"]);
    let text = stdout(&output);
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).expect("a line").to_owned();
    let public: AuthorityPublicKey = line("public key: ").parse().expect("a public key");
    let secret: AuthoritySecretKey = line("secret key: ").parse().expect("a secret key");
    assert_eq!(secret.public(), public);

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("authority.key");
    let name = path.to_str().expect("a plain path");
    let output = checkweigh(&["keygen", "--out", name]);
    assert!(output.status.success(), "{}", stderr(&output));
    let secret: AuthoritySecretKey =
        fs::read_to_string(&path).expect("written").trim().parse().expect("a key");
    assert_eq!(stdout(&output).trim(), secret.public().to_string());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&path).expect("written").permissions().mode() & 0o777, 0o600);
    }

    let again = checkweigh(&["keygen", "--out", name]);
    assert_eq!(again.status.code(), Some(1), "a key is never overwritten");
    assert!(stderr(&again).contains(name), "{}", stderr(&again));

    let config = folder.path().join("p.toml");
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/mining-proxy.toml"));
    let text = text.expect("the example").replace("# sv2_listen", "sv2_listen");
    fs::write(&config, text.replace("# authority_secret", "authority_secret")).expect("a file");
    let output = checkweigh(&["check", "--config", config.to_str().expect("a plain path")]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains(&secret.public().to_string()), "{}", stdout(&output));
    assert!(!stdout(&output).contains(&secret.secret_text()), "{}", stdout(&output));
}
