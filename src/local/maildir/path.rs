//! Which folder an address's mail goes to.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::domain::envelope::Mailbox;

/// `template` with `{local}`, `{domain}` and `{mailbox}` filled in. Where it
/// has no `{mailbox}` and one is given, that is a Maildir++ subfolder
/// (`.Archive`).
pub(super) fn folder(template: &str, address: &Mailbox, mailbox: Option<&str>) -> PathBuf {
    let mut out = String::with_capacity(template.len() + 64);
    let mut rest = template;
    let mut placed = false;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        rest = if let Some(rest) = from.strip_prefix("{local}") {
            sanitise(&unquoted(address.local()), &mut out);
            rest
        } else if let Some(rest) = from.strip_prefix("{domain}") {
            sanitise(&address.domain().to_lowercase(), &mut out);
            rest
        } else if let Some(rest) = from.strip_prefix("{mailbox}") {
            sanitise(mailbox.unwrap_or_default(), &mut out);
            placed = true;
            rest
        } else {
            out.push('{');
            from.get(1..).unwrap_or_default()
        };
    }
    out.push_str(rest);
    let mut folder = PathBuf::from(out);
    if let Some(mailbox) = mailbox.filter(|_| !placed) {
        let mut name = String::from(".");
        sanitise(mailbox, &mut name);
        folder.push(name);
    }
    folder
}

/// A quoted local part without its quotes.
fn unquoted(local: &str) -> String {
    let Some(inner) = local.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return local.to_owned();
    };
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

/// A value that stays one component of a path and is not hidden: `/`, control
/// characters, `%` and a leading dot are written as `%XX`. Different values
/// stay different.
fn sanitise(value: &str, out: &mut String) {
    for (at, c) in value.chars().enumerate() {
        if c == '/' || c == '%' || c.is_control() || (at == 0 && c == '.') {
            for octet in c.encode_utf8(&mut [0; 4]).bytes() {
                write!(out, "%{octet:02X}").ok();
            }
        } else {
            out.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(template: &str, address: &str, mailbox: Option<&str>) -> String {
        folder(template, &Mailbox::parse(address).unwrap(), mailbox).display().to_string()
    }

    #[test]
    fn placeholders_are_filled_in() {
        let template = "/var/mail/{domain}/{local}/{mailbox}";
        assert_eq!(path(template, "Al@Example.COM", Some("Archive")), "/var/mail/example.com/Al/Archive");
        assert_eq!(path("/m/{local}/Maildir", "al@b", Some("Archive")), "/m/al/Maildir/.Archive");
        assert_eq!(path("/m/{local}/Maildir", "al@b", None), "/m/al/Maildir");
        assert_eq!(path("/m/{locale}{", "al@b", None), "/m/{locale}{");
    }

    #[test]
    fn values_cannot_leave_their_place_in_the_path() {
        assert_eq!(path("/m/{local}", "\"../../etc/x\"@b", None), "/m/%2E.%2F..%2Fetc%2Fx");
        assert_eq!(path("/m/{local}", "\"..\"@b", None), "/m/%2E.");
        assert_eq!(path("/m/{local}", "\".hidden\"@b", None), "/m/%2Ehidden");
        assert_eq!(path("/m/{local}", "\"a\\\"b%2F\"@b", None), "/m/a\"b%252F");
        assert_eq!(path("/m/{local}/{mailbox}", "a@b", Some("..")), "/m/a/%2E.");
        assert_eq!(path("/m/{local}", "a@b", Some("../x")), "/m/a/.%2E.%2Fx");
    }
}
