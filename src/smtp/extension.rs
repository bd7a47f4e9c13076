//! What a server announces in its answer to EHLO or LHLO.

use super::reply::Reply;

/// The service extensions of one server, as announced on one connection in
/// its present state: asked again after STARTTLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one keyword of the server's answer")]
pub struct Extensions {
    /// RFC 2920.
    pub pipelining: bool,
    /// BDAT (RFC 3030).
    pub chunking: bool,
    /// RFC 6152.
    pub eight_bit_mime: bool,
    /// RFC 6531.
    pub smtp_utf8: bool,
    /// RFC 3461.
    pub dsn: bool,
    /// RFC 3207.
    pub start_tls: bool,
    /// RFC 2034.
    pub enhanced_status_codes: bool,
    /// SIZE (RFC 1870) is announced.
    pub size: bool,
    /// The largest message in octets, where the server names a bound.
    pub max_size: Option<u64>,
    /// AUTH PLAIN (RFC 4954, RFC 4616).
    pub auth_plain: bool,
    /// AUTH LOGIN (draft-murchison-sasl-login).
    pub auth_login: bool,
}

impl Extensions {
    /// Reads a positive answer to EHLO or LHLO. Its first line is the server's
    /// name and greeting; keywords are matched without regard to case, unknown
    /// ones passed over.
    pub fn parse(reply: &Reply) -> Self {
        let mut found = Self::default();
        for line in reply.lines().skip(1) {
            // Old servers write "AUTH=LOGIN PLAIN".
            let mut words =
                line.split(|octet| matches!(octet, b' ' | b'\t' | b'=')).filter(|word| !word.is_empty());
            let Some(keyword) = words.next() else { continue };
            match keyword.to_ascii_uppercase().as_slice() {
                b"PIPELINING" => found.pipelining = true,
                b"CHUNKING" => found.chunking = true,
                b"8BITMIME" => found.eight_bit_mime = true,
                b"SMTPUTF8" => found.smtp_utf8 = true,
                b"DSN" => found.dsn = true,
                b"STARTTLS" => found.start_tls = true,
                b"ENHANCEDSTATUSCODES" => found.enhanced_status_codes = true,
                b"SIZE" => {
                    found.size = true;
                    let limit = words.next().and_then(|word| std::str::from_utf8(word).ok()?.parse().ok());
                    // 0 is "no fixed maximum" (RFC 1870, section 4).
                    found.max_size = limit.filter(|limit| *limit > 0);
                }
                b"AUTH" => {
                    for mechanism in words {
                        found.auth_plain |= mechanism.eq_ignore_ascii_case(b"PLAIN");
                        found.auth_login |= mechanism.eq_ignore_ascii_case(b"LOGIN");
                    }
                }
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::reply::Decoder;
    use bytes::BytesMut;

    fn parse(answer: &str) -> Extensions {
        let reply = Decoder::default().decode(&mut BytesMut::from(answer)).unwrap().unwrap();
        Extensions::parse(&reply)
    }

    #[test]
    fn postfix_answer() {
        let found = parse(
            "250-mail.example\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-ETRN\r\n250-STARTTLS\r\n250-AUTH PLAIN LOGIN\r\n\
             250-AUTH=LOGIN PLAIN\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-DSN\r\n250-SMTPUTF8\r\n250 CHUNKING\r\n",
        );
        assert_eq!(
            found,
            Extensions {
                pipelining: true,
                chunking: true,
                eight_bit_mime: true,
                smtp_utf8: true,
                dsn: true,
                start_tls: true,
                enhanced_status_codes: true,
                size: true,
                max_size: Some(10_240_000),
                auth_plain: true,
                auth_login: true,
            }
        );
    }

    #[test]
    fn the_name_in_the_first_line_is_no_keyword() {
        assert_eq!(parse("250 DSN\r\n"), Extensions::default());
        assert_eq!(parse("250-x\r\n250-size 0\r\n250-Size\r\n250-SIZE x\r\n250 \r\n").max_size, None);
    }
}
