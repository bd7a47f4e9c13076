//! Refresh tokens that providers have given, in files of the state folder:
//! `tokens/HASH`, mode 0600. Each is replaced as a whole, under a lock that
//! other processes on the same folder (`rpop check --connect`) respect.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

use super::state::{advice, create_folder, sync_folder};
use crate::engine::ports::{KeptToken, Pending, TokenId, TokenStore, TokenStoreError};
use crate::oauth::answer::{MOST_REFRESH, is_refresh_token};

/// The folder in a state folder.
const FOLDER: &str = "tokens";
/// Octets of a file: escaped text doubles, and there is a little around it.
const MOST_OCTETS: u64 = 2 * MOST_REFRESH as u64 + 8192;

/// Keeps refresh tokens in files.
#[derive(Clone, Debug)]
pub struct FileTokens {
    folder: Arc<Path>,
}

/// A file, for people to recognise.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    account: String,
    token_url: String,
    refresh_token: String,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.refresh_token.zeroize();
    }
}

impl FileTokens {
    /// Under this state folder, which need not be there yet.
    pub fn new(state: &Path) -> Self {
        Self { folder: state.join(FOLDER).into() }
    }

    fn path(&self, id: &TokenId) -> PathBuf {
        self.folder.join(id.hex())
    }

    fn read(&self, id: &TokenId) -> Result<Option<KeptToken>, TokenStoreError> {
        let path = self.path(id);
        let mut text = Zeroizing::new(Vec::new());
        match File::open(&path).and_then(|file| file.take(MOST_OCTETS + 1).read_to_end(&mut text)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unavailable(&path, &error)),
        }
        let kept: Option<Kept> = serde_json::from_slice(&text).ok();
        let token = kept.map(|mut kept| Zeroizing::new(std::mem::take(&mut kept.refresh_token)));
        match token.filter(|token| is_refresh_token(token)) {
            Some(token) => Ok(Some(KeptToken { token, version: version(&text) })),
            None => Err(TokenStoreError::Damaged(format!(
                "{} holds no refresh token that can be read: put it back from a backup, or sign in again (rpop oauth \
                 login)",
                path.display()
            ))),
        }
    }

    fn write(&self, id: &TokenId, token: &str, before: Option<&str>) -> Result<(), TokenStoreError> {
        let folder = &*self.folder;
        create_folder(folder).map_err(|error| unavailable(folder, &error))?;
        let lock = folder.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .and_then(|file| file.lock().map(|()| file))
            .map_err(|error| unavailable(&lock, &error))?;
        let now = self.read(id)?;
        if now.as_ref().map(|kept| &*kept.version) != before {
            let path = self.path(id);
            return Err(TokenStoreError::Conflict(format!("{}: another process wrote it", path.display())));
        }
        let kept = Kept {
            account: id.account.to_string(),
            token_url: id.token_url.to_string(),
            refresh_token: token.to_owned(),
        };
        let text = serde_json::to_vec_pretty(&kept).map(Zeroizing::new);
        let path = self.path(id);
        let new = path.with_extension("new");
        let written = text.map_err(io::Error::from).and_then(|text| {
            // One that an interrupted write has left may have another mode.
            fs::remove_file(&new).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            sync_folder(folder)
        });
        drop(lock);
        written.map_err(|error| unavailable(&path, &error))
    }
}

fn version(text: &[u8]) -> String {
    STANDARD.encode(Sha256::digest(text))
}

fn unavailable(path: &Path, error: &io::Error) -> TokenStoreError {
    TokenStoreError::Unavailable(format!("{}: {}", path.display(), advice(error)))
}

/// Files are read and written off the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TokenStoreError> + Send + 'static,
) -> Result<T, TokenStoreError> {
    let defect =
        |_| Err(TokenStoreError::Unavailable("a defect of RPOP ended the reading of a token".to_owned()));
    tokio::task::spawn_blocking(work).await.unwrap_or_else(defect)
}

impl TokenStore for FileTokens {
    fn load<'a>(&'a self, id: &'a TokenId) -> Pending<'a, Result<Option<KeptToken>, TokenStoreError>> {
        let (store, id) = (self.clone(), id.clone());
        Box::pin(blocking(move || store.read(&id)))
    }

    fn save<'a>(
        &'a self,
        id: &'a TokenId,
        token: &'a str,
        before: Option<&'a str>,
    ) -> Pending<'a, Result<(), TokenStoreError>> {
        let (store, id) = (self.clone(), id.clone());
        let (token, before) = (Zeroizing::new(token.to_owned()), before.map(str::to_owned));
        Box::pin(blocking(move || store.write(&id, &token, before.as_deref())))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    fn id(number: u8) -> TokenId {
        TokenId {
            digest: [number; 20],
            account: "alice".into(),
            token_url: "https://login.example/token".into(),
        }
    }

    #[tokio::test]
    async fn tokens_outlive_the_process_and_are_private() {
        let state = tempfile::tempdir().unwrap();
        let store = FileTokens::new(&state.path().join("deep"));
        assert!(store.load(&id(1)).await.unwrap().is_none());
        store.save(&id(1), "r \"1\"", None).await.unwrap();
        let kept = FileTokens::new(&state.path().join("deep")).load(&id(1)).await.unwrap().unwrap();
        assert_eq!(&**kept.token, "r \"1\"");
        store.save(&id(1), "r2", Some(&kept.version)).await.unwrap();
        assert_eq!(&**store.load(&id(1)).await.unwrap().unwrap().token, "r2");
        assert!(store.load(&id(2)).await.unwrap().is_none());
        let folder = state.path().join("deep/tokens");
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        for entry in fs::read_dir(&folder).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "the token and the lock");
        assert!(!format!("{kept:?}").contains("r \"1\""));
    }

    #[tokio::test]
    async fn who_did_not_see_the_newest_does_not_overwrite_it() {
        let state = tempfile::tempdir().unwrap();
        let store = FileTokens::new(state.path());
        store.save(&id(1), "r1", None).await.unwrap();
        let seen = store.load(&id(1)).await.unwrap().unwrap();
        store.save(&id(1), "r2", Some(&seen.version)).await.unwrap();
        for before in [None, Some(&*seen.version)] {
            let error = store.save(&id(1), "r3", before).await.unwrap_err();
            assert!(matches!(error, TokenStoreError::Conflict(_)), "{error}");
        }
        assert_eq!(&**store.load(&id(1)).await.unwrap().unwrap().token, "r2");
    }

    #[tokio::test]
    async fn what_cannot_be_read_or_written_is_never_no_token() {
        let state = tempfile::tempdir().unwrap();
        let store = FileTokens::new(state.path());
        store.save(&id(1), "r1", None).await.unwrap();
        let path = store.path(&id(1));
        for garbage in ["", "{}", "r1", "{\"refreshToken\":7}", "{\"refreshToken\":\"secret\\n\""] {
            fs::write(&path, garbage).unwrap();
            let error = store.load(&id(1)).await.unwrap_err();
            assert!(matches!(error, TokenStoreError::Damaged(_)), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
            assert!(store.save(&id(1), "r2", None).await.is_err());
        }
        fs::write(&path, vec![b' '; 1 << 20]).unwrap();
        assert!(matches!(store.load(&id(1)).await, Err(TokenStoreError::Damaged(_))));
        let blocked = tempfile::tempdir().unwrap();
        fs::write(blocked.path().join("tokens"), "").unwrap();
        fs::set_permissions(blocked.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let error = FileTokens::new(blocked.path()).save(&id(1), "r", None).await.unwrap_err();
        assert!(error.to_string().contains("move it away"), "{error}");
    }
}
