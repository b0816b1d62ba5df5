//! Reading of small text files, with their faults in words that fit behind a key.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use secrecy::{ExposeSecret, SecretString};
use stratum::sv2::AuthoritySecretKey;

/// A configuration file that is longer is something else: the examples with all their comments have a hundredth.
pub(super) const MAX_CONFIG_BYTES: u64 = 1024 * 1024;

/// A key or a password is far shorter.
const MAX_SECRET_BYTES: u64 = 4096;

/// Reads a text file of at most `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String, String> {
    let named = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let mut text = String::new();
    let file = File::open(path).map_err(named)?;
    // A directory or a device can be opened, but is no file that ends.
    if !file.metadata().map_err(named)?.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    let read = file.take(limit + 1).read_to_string(&mut text).map_err(named)?;
    if read as u64 > limit {
        return Err(format!("{} is longer than {limit} bytes", path.display()));
    }
    Ok(text)
}

/// Reads a secret: the file's text without the white space around it, which editors add.
pub(super) fn read_secret(path: &Path) -> Result<SecretString, String> {
    let text = read_text(path, MAX_SECRET_BYTES)?;
    let secret = text.trim();
    if secret.is_empty() {
        return Err(format!("{} is empty", path.display()));
    }
    Ok(SecretString::from(secret))
}

/// Reads a secret key as `checkweigh keygen` writes it.
pub(crate) fn read_key(path: &Path) -> Result<AuthoritySecretKey, String> {
    let text = read_secret(path)?;
    text.expose_secret().parse().map_err(|error| format!("{}: {error}", path.display()))
}

/// True when others than its owner may read the file.
#[cfg(unix)]
pub(crate) fn is_readable_by_others(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}

/// Other systems have no such bits.
#[cfg(not(unix))]
pub(crate) fn is_readable_by_others(_path: &Path) -> bool {
    false
}
