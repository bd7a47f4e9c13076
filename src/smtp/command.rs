//! Commands. Addresses come as [`Mailbox`]es and so cannot break a line; all
//! other text is encoded here (xtext, RFC 3461, section 4).

use bytes::{BufMut, BytesMut};

use crate::domain::envelope::{Mailbox, Notify};

/// Parameters of MAIL FROM; what the server does not announce must be left
/// out by the caller.
#[derive(Clone, Copy, Debug, Default)]
pub struct MailParameters<'a> {
    /// `SIZE=` (RFC 1870), octets.
    pub size: Option<u64>,
    /// `BODY=8BITMIME` (RFC 6152).
    pub eight_bit: bool,
    /// `SMTPUTF8` (RFC 6531).
    pub utf8: bool,
    /// `RET=` (RFC 3461, section 4.3).
    pub ret: Option<Ret>,
    /// `ENVID=` (RFC 3461, section 4.4), not yet encoded; at most 100
    /// characters are said.
    pub envid: Option<&'a str>,
}

/// How much of a message a failure notification returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ret {
    /// The header.
    Headers,
    /// All of it.
    Full,
}

/// `MAIL FROM:<…>`; `None` is the null sender.
pub fn mail(out: &mut BytesMut, sender: Option<&Mailbox>, parameters: MailParameters<'_>) {
    out.put_slice(b"MAIL FROM:<");
    out.put_slice(sender.map_or("", Mailbox::as_str).as_bytes());
    out.put_slice(b">");
    if let Some(size) = parameters.size {
        out.put_slice(b" SIZE=");
        decimal(out, size);
    }
    if parameters.eight_bit {
        out.put_slice(b" BODY=8BITMIME");
    }
    if parameters.utf8 {
        out.put_slice(b" SMTPUTF8");
    }
    match parameters.ret {
        Some(Ret::Headers) => out.put_slice(b" RET=HDRS"),
        Some(Ret::Full) => out.put_slice(b" RET=FULL"),
        None => {}
    }
    if let Some(envid) = parameters.envid {
        out.put_slice(b" ENVID=");
        let end = envid.char_indices().nth(100).map_or(envid.len(), |(at, _)| at);
        xtext(out, envid.as_bytes().get(..end).unwrap_or_default());
    }
    out.put_slice(b"\r\n");
}

/// `RCPT TO:<…>`; with `dsn` (the server announces it) also NOTIFY, and
/// ORCPT where something is to be notified.
pub fn rcpt(out: &mut BytesMut, to: &Mailbox, notify: Notify, dsn: bool) {
    out.put_slice(b"RCPT TO:<");
    out.put_slice(to.as_str().as_bytes());
    out.put_slice(b">");
    match notify {
        Notify::Never if dsn => out.put_slice(b" NOTIFY=NEVER"),
        Notify::Failure if dsn => {
            out.put_slice(b" NOTIFY=FAILURE ORCPT=");
            if to.needs_utf8() {
                // RFC 6533, section 3: as it is where SMTPUTF8 is in use.
                out.put_slice(b"utf-8;");
                utf8_address(out, to.as_str());
            } else {
                out.put_slice(b"rfc822;");
                xtext(out, to.as_str().as_bytes());
            }
        }
        _ => {}
    }
    out.put_slice(b"\r\n");
}

/// `BDAT n` (RFC 3030, section 2); `last` ends the message.
pub fn bdat(out: &mut BytesMut, octets: u64, last: bool) {
    out.put_slice(b"BDAT ");
    decimal(out, octets);
    out.put_slice(if last { b" LAST\r\n" } else { b"\r\n" });
}

/// `EHLO` or `LHLO` or `HELO` and our name, cut down to what a domain or an
/// address literal may hold (RFC 5321, section 4.1.1.1).
pub fn hello(out: &mut BytesMut, verb: &str, name: &str) {
    out.put_slice(verb.as_bytes());
    out.put_slice(b" ");
    let before = out.len();
    let fit = |octet: &u8| octet.is_ascii_alphanumeric() || b"-._[]:".contains(octet);
    out.extend(name.bytes().filter(fit).take(255));
    if out.len() == before {
        out.put_slice(b"localhost");
    }
    out.put_slice(b"\r\n");
}

fn decimal(out: &mut BytesMut, mut number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        if let Some(digit) = digits.get_mut(at) {
            *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        }
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.put_slice(digits.get(at..).unwrap_or_default());
}

/// RFC 3461, section 4: `+`, `=` and everything outside `!` to `~` as `+XX`.
fn xtext(out: &mut BytesMut, text: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &octet in text {
        if matches!(octet, b'!'..=b'~') && !matches!(octet, b'+' | b'=') {
            out.put_u8(octet);
        } else {
            let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or(b'0');
            out.put_slice(&[b'+', digit(octet >> 4), digit(octet & 15)]);
        }
    }
}

/// RFC 6533, section 3, `utf-8-addr-unitext`: only `\`, `+`, `=` and spaces
/// are written as `\x{HEX}`.
fn utf8_address(out: &mut BytesMut, text: &str) {
    for c in text.chars() {
        if c.is_ascii() && (matches!(c, '\\' | '+' | '=') || !c.is_ascii_graphic()) {
            out.put_slice(format!("\\x{{{:02X}}}", u32::from(c)).as_bytes());
        } else {
            out.put_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(write: impl FnOnce(&mut BytesMut)) -> String {
        let mut out = BytesMut::new();
        write(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn mail_with_everything_and_with_nothing() {
        let alice = Mailbox::parse("alice@example.com").unwrap();
        let all = MailParameters {
            size: Some(18_446_744_073_709_551_615),
            eight_bit: true,
            utf8: true,
            ret: Some(Ret::Headers),
            envid: Some("a+b=c\r\nDATA ü"),
        };
        assert_eq!(
            said(|out| mail(out, Some(&alice), all)),
            "MAIL FROM:<alice@example.com> SIZE=18446744073709551615 BODY=8BITMIME SMTPUTF8 RET=HDRS \
             ENVID=a+2Bb+3Dc+0D+0ADATA+20+C3+BC\r\n"
        );
        assert_eq!(said(|out| mail(out, None, MailParameters::default())), "MAIL FROM:<>\r\n");
    }

    // quirks: "NOTIFY on a server that does not announce DSN is a 5xx"
    #[test]
    fn notify_and_orcpt_only_where_dsn_is_announced() {
        let to = Mailbox::parse("\"a b+c\"@example.com").unwrap();
        assert_eq!(said(|out| rcpt(out, &to, Notify::Never, false)), "RCPT TO:<\"a b+c\"@example.com>\r\n");
        assert_eq!(
            said(|out| rcpt(out, &to, Notify::Never, true)),
            "RCPT TO:<\"a b+c\"@example.com> NOTIFY=NEVER\r\n"
        );
        assert_eq!(
            said(|out| rcpt(out, &to, Notify::Failure, true)),
            "RCPT TO:<\"a b+c\"@example.com> NOTIFY=FAILURE ORCPT=rfc822;\"a+20b+2Bc\"@example.com\r\n"
        );
        let utf8 = Mailbox::parse("ü+x@example.com").unwrap();
        assert!(
            said(|out| rcpt(out, &utf8, Notify::Failure, true))
                .ends_with("ORCPT=utf-8;ü\\x{2B}x@example.com\r\n")
        );
    }

    #[test]
    fn our_name_cannot_break_the_line() {
        assert_eq!(said(|out| hello(out, "EHLO", "a b\r\nQUIT.example")), "EHLO abQUIT.example\r\n");
        assert_eq!(said(|out| hello(out, "LHLO", "\r\n")), "LHLO localhost\r\n");
        assert_eq!(said(|out| bdat(out, 0, true)), "BDAT 0 LAST\r\n");
        assert_eq!(said(|out| bdat(out, 1234, false)), "BDAT 1234\r\n");
    }
}
