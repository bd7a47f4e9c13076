//! Which accounts there are, by their folders: for those whom somebody found
//! in a message, and for whom no folder may be made at will.
//!
//! An account is the folder at the part of the path that holds `{local}`, be
//! there a Maildir in it or not. A folder that is not there is "no such
//! account" only where others are: the place of all accounts without any is a
//! file system that is not mounted, and nobody may lose mail by that.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::batch::{Failure, failure};
use super::path::folder;
use crate::domain::code::Code;
use crate::domain::envelope::Mailbox;
use crate::engine::ports::{Refusal, Verdict};

/// What the folders say of a recipient.
#[derive(Debug)]
pub(super) enum Found {
    /// His Maildir, which may have to be made.
    Folder(PathBuf),
    /// He is no account.
    Nobody,
    /// It cannot be told now, and why.
    Unclear(String),
}

impl Found {
    /// What is said to him.
    pub(super) fn verdict(&self) -> Verdict {
        let refusal = |code, text: Bytes| Refusal { code, text, at: "RCPT" };
        match self {
            Self::Folder(_) => Verdict::Accepted,
            Self::Nobody => {
                Verdict::Refused(refusal(550, Bytes::from_static(b"5.1.1 there is no Maildir of that name")))
            }
            Self::Unclear(why) => Verdict::Deferred(refusal(450, format!("4.2.1 {why}").into())),
        }
    }
}

/// Looks for the accounts of `recipients`, those without a folder included
/// where `make` says so. Blocks.
///
/// # Errors
/// Where the place of all accounts is not there, or holds none.
pub(super) fn find(
    template: &str,
    mailbox: Option<&str>,
    recipients: &[Mailbox],
    make: bool,
) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::with_capacity(recipients.len());
    for to in recipients {
        let one = match account(template, mailbox, to) {
            Found::Nobody => {
                has_folders(&place(template, to, "{"))?;
                match has_folders(&place(template, to, "{local}")) {
                    Ok(()) if make => Found::Folder(folder(template, to, mailbox)),
                    Ok(()) => Found::Nobody,
                    Err(Failure::Unavailable { message, .. }) => Found::Unclear(message.to_string()),
                    Err(failure) => return Err(failure),
                }
            }
            other => other,
        };
        found.push(one);
    }
    Ok(found)
}

/// The folder of an address, of the same in lower case, or of these without
/// their detail (`user+detail`).
fn account(template: &str, mailbox: Option<&str>, to: &Mailbox) -> Found {
    let with = |local: &str| Mailbox::parse(&format!("{local}@{}", to.domain())).ok();
    let (local, lower) = (to.local(), to.local().to_lowercase());
    let user = |local: &str| local.split_once('+').and_then(|(user, _)| with(user));
    let candidates = [Some(to.clone()), with(&lower), user(local), user(&lower)];
    for candidate in candidates.iter().flatten() {
        let at = folder(upto(template, "{local}"), candidate, None);
        if at.file_name().is_some_and(|name| name == LOST_AND_FOUND) {
            continue;
        }
        match fs::metadata(&at) {
            Ok(data) if data.is_dir() => return Found::Folder(folder(template, candidate, mailbox)),
            Ok(_) => return Found::Unclear(format!("{} is in the way: no folder", at.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if fs::symlink_metadata(&at).is_ok() {
                    return Found::Unclear(format!("{} is a link that leads nowhere", at.display()));
                }
            }
            // The place of all accounts is looked at next.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
            Err(error) => return Found::Unclear(format!("{}: {error}", at.display())),
        }
    }
    Found::Nobody
}

const LOST_AND_FOUND: &str = "lost+found";

/// `template` to the end of the part that holds `placeholder`, the first;
/// all of it where none does.
fn upto<'t>(template: &'t str, placeholder: &str) -> &'t str {
    let from = template.find(placeholder).unwrap_or(template.len());
    let rest = template.get(from..).unwrap_or_default();
    template.get(..from + rest.find('/').unwrap_or(rest.len())).unwrap_or(template)
}

/// The folder that holds those at `placeholder`.
fn place(template: &str, to: &Mailbox, placeholder: &str) -> PathBuf {
    let at = folder(upto(template, placeholder), to, None);
    at.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

/// Fails where there is no folder in `place`.
fn has_folders(place: &Path) -> Result<(), Failure> {
    let is_account = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        // A link that leads nowhere stands for a folder, too.
        let is_folder = || entry.file_type().is_ok_and(|kind| kind.is_dir() || kind.is_symlink());
        !name.as_encoded_bytes().starts_with(b".") && name != LOST_AND_FOUND && is_folder()
    };
    let missing = |what: &str| {
        let message = format!(
            "{}, where the accounts' folders are, {what}: mount it, or make each account its folder there; the mail waits",
            place.display()
        );
        Failure::Unavailable { code: Code::DestinationUnavailable, message: message.into() }
    };
    match fs::read_dir(place) {
        Ok(entries) => {
            let mut entries = entries.filter_map(Result::ok);
            entries.any(|entry| is_account(&entry)).then_some(()).ok_or_else(|| missing("holds none"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing("is not there")),
        Err(error) => Err(failure("cannot look into", place, &error)),
    }
}
