//! What tells this installation from others: a random key in the state folder,
//! by which it knows its own trace headers.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use super::state::{StateDir, sync_folder};

/// The file under the state folder.
const FILE: &str = "trace-key";

/// Reads the key, or makes one where there is none.
///
/// # Errors
/// When it cannot be read or written, or holds something else: a new key in
/// its place would make mail that loops pass once more.
pub fn trace_key(state: &StateDir) -> io::Result<[u8; 16]> {
    let path = state.path().join(FILE);
    let name = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    match fs::read(&path) {
        Ok(octets) => octets.try_into().map_err(|_| {
            name(io::Error::new(
                io::ErrorKind::InvalidData,
                "does not hold 16 octets; remove it for a new key",
            ))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut key = [0; 16];
            File::open("/dev/urandom")?.read_exact(&mut key)?;
            let new = path.with_extension("new");
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)
                .map_err(name)?;
            file.write_all(&key).and_then(|()| file.sync_all()).map_err(name)?;
            fs::rename(&new, &path).and_then(|()| sync_folder(state.path())).map_err(name)?;
            Ok(key)
        }
        Err(error) => Err(name(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_keeps_its_key_and_others_have_others() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (one, other) = (StateDir::open(one.path()).unwrap(), StateDir::open(other.path()).unwrap());
        let key = trace_key(&one).unwrap();
        assert_eq!(trace_key(&one).unwrap(), key);
        assert_ne!(trace_key(&other).unwrap(), key);
        fs::write(one.path().join(FILE), "short").unwrap();
        assert!(trace_key(&one).unwrap_err().to_string().contains("trace-key"));
    }
}
