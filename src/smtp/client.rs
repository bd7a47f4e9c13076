//! A connection from its greeting to the point where mail may be sent.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, BytesMut};
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncWrite};
use zeroize::Zeroizing;

use super::Error;
use super::command;
use super::extension::Extensions;
use super::reply::{DecodeError, Reply};
use super::wire::Wire;

/// Which of the two protocols is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// RFC 5321.
    Smtp,
    /// RFC 2033.
    Lmtp,
}

/// A SASL login.
#[derive(Clone)]
pub struct Credentials {
    /// The authentication identity.
    pub user: String,
    /// Never shown.
    pub password: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Whether PLAIN and LOGIN can carry them: neither part empty, no NUL
    /// (RFC 4616), no CR or LF (a secret with a stray line end).
    pub fn are_usable(&self) -> bool {
        let usable = |part: &[u8]| !part.is_empty() && !part.iter().any(|o| matches!(o, 0 | b'\r' | b'\n'));
        usable(self.user.as_bytes()) && usable(&self.password)
    }
}

/// A client in the part of a session before mail.
#[derive(Debug)]
pub struct Client<S> {
    wire: Wire<S>,
    protocol: Protocol,
    extensions: Extensions,
    reply: Duration,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Awaits the greeting; each reply has the deadline `reply`.
    ///
    /// # Errors
    /// [`Error::Refused`] where the greeting is not 2yz.
    pub async fn greet(stream: S, protocol: Protocol, reply: Duration) -> Result<Self, Error> {
        let mut client = Self::after_tls(stream, protocol, reply);
        let greeting = client.wire.exchange("greeting", reply).await?;
        positive("the connection", greeting)?;
        Ok(client)
    }

    /// A client over a stream that STARTTLS has secured: there is no second
    /// greeting, and all that was announced before is forgotten (RFC 3207,
    /// section 4.2).
    pub fn after_tls(stream: S, protocol: Protocol, reply: Duration) -> Self {
        Self { wire: Wire::new(stream), protocol, extensions: Extensions::default(), reply }
    }

    /// Says EHLO or LHLO. A server that knows no EHLO is greeted by HELO and
    /// has no extensions.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub async fn hello(&mut self, name: &str) -> Result<Extensions, Error> {
        let verb = match self.protocol {
            Protocol::Smtp => "EHLO",
            Protocol::Lmtp => "LHLO",
        };
        self.wire.say(|out| command::hello(out, verb, name));
        let reply = self.wire.exchange("reply to the greeting", self.reply).await?;
        if reply.is_permanent() && self.protocol == Protocol::Smtp {
            self.wire.say(|out| command::hello(out, "HELO", name));
            let reply = self.wire.exchange("reply to HELO", self.reply).await?;
            positive("HELO", reply)?;
            self.extensions = Extensions::default();
        } else {
            self.extensions = Extensions::parse(&positive(verb, reply)?);
        }
        Ok(self.extensions)
    }

    /// What the last [`hello`](Self::hello) found.
    pub fn extensions(&self) -> Extensions {
        self.extensions
    }

    /// Says STARTTLS and yields the stream for the handshake.
    ///
    /// # Errors
    /// [`Error::Refused`] with the client given back for those who may go on
    /// in clear text; [`Error::Injected`] for octets behind the reply, which
    /// an attacker may have put there (CVE-2011-0411).
    pub async fn start_tls(mut self) -> Result<S, (Error, Option<Self>)> {
        self.wire.say(|out| out.put_slice(b"STARTTLS\r\n"));
        let reply = match self.wire.exchange("reply to STARTTLS", self.reply).await {
            Ok(reply) => reply,
            Err(error) => return Err((error, None)),
        };
        if self.wire.has_input() {
            return Err((Error::Injected, None));
        }
        if reply.code() != 220 {
            return Err((Error::Refused { to: "STARTTLS", reply }, Some(self)));
        }
        Ok(self.wire.into_parts().0)
    }

    /// Logs in by AUTH PLAIN or, where only that is offered, AUTH LOGIN. The
    /// caller has made sure that the octets may be sent over this stream.
    ///
    /// # Errors
    /// [`Error::NoMechanism`], [`Error::Credentials`], [`Error::Refused`].
    pub async fn authenticate(&mut self, credentials: &Credentials) -> Result<(), Error> {
        if !credentials.are_usable() {
            return Err(Error::Credentials);
        }
        let password: &[u8] = &credentials.password;
        if self.extensions.auth_plain {
            let plain = Zeroizing::new([&b"\0"[..], credentials.user.as_bytes(), b"\0", password].concat());
            let token = Zeroizing::new(STANDARD.encode(&plain));
            let secrets = [token.as_bytes(), password];
            // RFC 4954, section 4: the line with an initial response must fit
            // into the 512 octets of any command line.
            if token.len() <= 490 {
                return self.last_step("AUTH PLAIN", Some(token.as_bytes()), &secrets).await;
            }
            self.challenge("AUTH PLAIN", None, &secrets).await?;
            return self.last_step("", Some(token.as_bytes()), &secrets).await;
        }
        if self.extensions.auth_login {
            let user = Zeroizing::new(STANDARD.encode(&credentials.user));
            let token = Zeroizing::new(STANDARD.encode(password));
            let secrets = [user.as_bytes(), token.as_bytes(), password];
            self.challenge("AUTH LOGIN", None, &secrets).await?;
            self.challenge("", Some(user.as_bytes()), &secrets).await?;
            return self.last_step("", Some(token.as_bytes()), &secrets).await;
        }
        Err(Error::NoMechanism)
    }

    async fn challenge(&mut self, verb: &str, token: Option<&[u8]>, secrets: &[&[u8]]) -> Result<(), Error> {
        let reply = self.auth_line(verb, token, secrets).await?;
        match reply.code() {
            334 => Ok(()),
            code if code >= 400 => Err(Error::Refused { to: "AUTH", reply }),
            _ => Err(Error::OutOfStep { to: "AUTH", reply }),
        }
    }

    async fn last_step(&mut self, verb: &str, token: Option<&[u8]>, secrets: &[&[u8]]) -> Result<(), Error> {
        let reply = self.auth_line(verb, token, secrets).await?;
        if reply.is_intermediate() {
            // One challenge more than the mechanism has.
            return Err(Error::OutOfStep { to: "AUTH", reply });
        }
        positive("AUTH", reply).map(drop)
    }

    /// Sends a line of the exchange. A server that repeats what it was told
    /// is not quoted.
    async fn auth_line(
        &mut self,
        verb: &str,
        token: Option<&[u8]>,
        secrets: &[&[u8]],
    ) -> Result<Reply, Error> {
        let line = |out: &mut BytesMut| {
            out.put_slice(verb.as_bytes());
            if let Some(token) = token {
                out.put_slice(if verb.is_empty() { b"" } else { b" " });
                out.put_slice(token);
            }
            out.put_slice(b"\r\n");
        };
        if token.is_some() {
            self.wire.say_secret(verb, line);
        } else {
            self.wire.say(line);
        }
        let repeats = |text: &[u8]| secrets.iter().any(|secret| memmem::find(text, secret).is_some());
        let reply = match self.wire.exchange("reply to AUTH", self.reply).await {
            Ok(reply) if repeats(reply.text()) => reply.without_text(),
            Err(Error::Reply(DecodeError::Malformed(text))) if repeats(text.as_bytes()) => {
                return Err(DecodeError::Malformed("***".to_owned()).into());
            }
            other => other?,
        };
        if token.is_some() {
            self.wire.told(&reply);
        }
        Ok(reply)
    }

    /// The connection, ready for mail.
    pub fn into_wire(self) -> (Wire<S>, Extensions) {
        (self.wire, self.extensions)
    }
}

fn positive(to: &'static str, reply: Reply) -> Result<Reply, Error> {
    if reply.is_positive() {
        Ok(reply)
    } else if reply.is_intermediate() {
        Err(Error::OutOfStep { to, reply })
    } else {
        Err(Error::Refused { to, reply })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream};

    const REPLY: Duration = Duration::from_mins(1);

    /// Plays `script`: each pair is a line to expect (empty: none) and what
    /// to answer. Yields what was left unread.
    fn server(script: &[(&'static str, &'static str)]) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(4096);
        let script = script.to_vec();
        tokio::spawn(async move {
            let mut theirs = BufReader::new(theirs);
            for (expected, answer) in script {
                if !expected.is_empty() {
                    let mut line = String::new();
                    theirs.read_line(&mut line).await.unwrap();
                    assert_eq!(line, format!("{expected}\r\n"));
                }
                theirs.write_all(answer.as_bytes()).await.unwrap();
            }
            let mut rest = String::new();
            theirs.read_line(&mut rest).await.unwrap();
            assert_eq!(rest, "", "nothing more is to come");
        });
        ours
    }

    fn secret() -> Credentials {
        Credentials { user: "user".to_owned(), password: Zeroizing::new(b"pass".to_vec()) }
    }

    #[tokio::test]
    async fn falls_back_to_helo_for_smtp_only() {
        let stream = server(&[("", "220 old\r\n"), ("EHLO me", "502 what?\r\n"), ("HELO me", "250 hi\r\n")]);
        let mut client = Client::greet(stream, Protocol::Smtp, REPLY).await.unwrap();
        assert_eq!(client.hello("me").await.unwrap(), Extensions::default());
        let stream = server(&[("", "220-two\r\n220 lines\r\n"), ("LHLO me", "500 what?\r\n")]);
        let mut client = Client::greet(stream, Protocol::Lmtp, REPLY).await.unwrap();
        assert!(matches!(client.hello("me").await, Err(Error::Refused { to: "LHLO", .. })));
    }

    // quirks: "421 at the banner"
    #[tokio::test]
    async fn a_greeting_that_refuses_is_told_with_its_text() {
        let stream = server(&[("", "421 4.3.2 too many \x1b[31mconnections\r\n")]);
        let error = Client::greet(stream, Protocol::Smtp, REPLY).await.unwrap_err();
        assert!(error.is_transient());
        assert_eq!(
            error.to_string(),
            "the connection was answered with 421 4.3.2 too many \\u{1b}[31mconnections"
        );
    }

    // quirks: "STARTTLS injection"
    #[tokio::test]
    async fn octets_behind_starttls_fail_it() {
        for answer in ["220 go\r\n250 injected\r\n", "220 go\r\n2", "220 go\r\n\n"] {
            let stream =
                server(&[("", "220 x\r\n"), ("EHLO me", "250-x\r\n250 STARTTLS\r\n"), ("STARTTLS", answer)]);
            let mut client = Client::greet(stream, Protocol::Smtp, REPLY).await.unwrap();
            assert!(client.hello("me").await.unwrap().start_tls);
            assert!(matches!(client.start_tls().await, Err((Error::Injected, None))));
        }
    }

    #[tokio::test]
    async fn a_refused_starttls_gives_the_client_back() {
        let stream = server(&[("", "220 x\r\n"), ("STARTTLS", "454 no\r\n"), ("EHLO me", "250 x\r\n")]);
        let client = Client::greet(stream, Protocol::Smtp, REPLY).await.unwrap();
        let Err((Error::Refused { .. }, Some(mut client))) = client.start_tls().await else { panic!() };
        client.hello("me").await.unwrap();
    }

    // quirks: "`334` without a space (CVE-2025-61962)"
    #[tokio::test]
    async fn auth_login_with_bare_334() {
        let stream = server(&[
            ("", "220 x\r\n"),
            ("EHLO me", "250-x\r\n250 AUTH=LOGIN\r\n"),
            ("AUTH LOGIN", "334\r\n"),
            ("dXNlcg==", "334\r\n"),
            ("cGFzcw==", "235 in\r\n"),
        ]);
        let mut client = Client::greet(stream, Protocol::Smtp, REPLY).await.unwrap();
        client.hello("me").await.unwrap();
        client.authenticate(&secret()).await.unwrap();
    }

    #[tokio::test]
    async fn auth_plain_is_preferred_and_long_secrets_take_two_steps() {
        let hello = ("EHLO me", "250-x\r\n250 AUTH LOGIN PLAIN\r\n");
        let stream = server(&[("", "220 x\r\n"), hello, ("AUTH PLAIN AHVzZXIAcGFzcw==", "535 5.7.8 no\r\n")]);
        let mut client = Client::greet(stream, Protocol::Smtp, REPLY).await.unwrap();
        client.hello("me").await.unwrap();
        let error = client.authenticate(&secret()).await.unwrap_err();
        assert!(matches!(error, Error::Refused { to: "AUTH", .. }) && !error.is_transient());

        let long = Credentials { user: "u".to_owned(), password: Zeroizing::new(vec![b'p'; 600]) };
        let token: &'static str =
            Box::leak(STANDARD.encode([&b"\0u\0"[..], &[b'p'; 600]].concat()).into_boxed_str());
        let stream = server(&[("", "220 x\r\n"), hello, ("AUTH PLAIN", "334 \r\n"), (token, "235 in\r\n")]);
        let mut client = Client::greet(stream, Protocol::Smtp, REPLY).await.unwrap();
        client.hello("me").await.unwrap();
        client.authenticate(&long).await.unwrap();
    }

    #[tokio::test]
    async fn a_server_that_repeats_a_secret_is_not_quoted() {
        for said in ["500 5.5.2 what is AUTH PLAIN AHVzZXIAcGFzcw==?\r\n", "what is AHVzZXIAcGFzcw==\r\n"] {
            let stream = server(&[
                ("", "220 x\r\n"),
                ("EHLO me", "250-x\r\n250 AUTH PLAIN\r\n"),
                ("AUTH PLAIN AHVzZXIAcGFzcw==", said),
            ]);
            let mut client = Client::greet(stream, Protocol::Smtp, REPLY).await.unwrap();
            client.hello("me").await.unwrap();
            let error = client.authenticate(&secret()).await.unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains("***") && !text.contains("AHVz"), "{text}");
        }
    }

    #[tokio::test]
    async fn secrets_that_would_break_the_exchange_are_not_sent_nor_shown() {
        let stream = server(&[("", "220 x\r\n"), ("EHLO me", "250-x\r\n250 AUTH PLAIN\r\n")]);
        let mut client = Client::greet(stream, Protocol::Smtp, REPLY).await.unwrap();
        client.hello("me").await.unwrap();
        let bad = Credentials { user: "u".to_owned(), password: Zeroizing::new(b"hunter2\n".to_vec()) };
        assert!(!format!("{bad:?}").contains("hunter2"));
        assert!(matches!(client.authenticate(&bad).await, Err(Error::Credentials)));
    }
}
