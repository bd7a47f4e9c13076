//! What goes over the line with each mechanism (RFC 5034).

use std::time::SystemTime;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use zeroize::Zeroizing;

use super::{Credentials, Failed, LoginPolicy, Mechanism, Secret, Shown};
use crate::domain::text::shown;
use crate::pop3::apop;
use crate::pop3::client::{Client, no_status};
use crate::pop3::error::Error;
use crate::pop3::reply::Reply;
use crate::pop3::sasl::{self, Malformed, bearer, cram_md5, ntlm, plain, scram};

/// The longest command line, its line end included (RFC 2449, section 4).
const MAX_COMMAND: usize = 255;

/// What a server says within AUTH.
enum Said {
    /// `+` and, in base64, a challenge.
    Challenge(Bytes),
    /// `+OK` or `-ERR`.
    Reply(Reply),
}

type Step<T> = Result<T, Failed>;

/// Nothing of the password was sent when this went wrong.
fn early(error: Error) -> Failed {
    Failed { error, shown: Shown::Nothing }
}

/// The server had seen a proof when this went wrong.
fn late(error: Error) -> Failed {
    Failed { error, shown: Shown::Proof }
}

fn accepted(command: &'static str, reply: Reply) -> Result<(), Error> {
    if reply.is_ok() { Ok(()) } else { Err(Error::Refused { command, reply, said: None, login: true }) }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Client<S> {
    /// One login by one mechanism.
    pub(super) async fn attempt(
        &mut self,
        mechanism: Mechanism,
        credentials: &Credentials,
        policy: &LoginPolicy<'_>,
    ) -> Step<()> {
        let user = credentials.user.as_str();
        match (&credentials.secret, mechanism) {
            (Secret::Password(password), Mechanism::Apop) => self.apop(user, password).await,
            (Secret::Password(password), Mechanism::UserPass) => self.user(user, password).await,
            (Secret::Password(password), Mechanism::Plain) => {
                self.in_one(mechanism, &plain::message(user, password)).await
            }
            (Secret::Password(password), Mechanism::Login) => self.in_two_words(user, password).await,
            (Secret::Password(password), Mechanism::CramMd5) => self.cram_md5(user, password).await,
            (Secret::Password(password), Mechanism::ScramSha256 | Mechanism::ScramSha256Plus) => {
                self.scram(mechanism, user, password, policy).await
            }
            (Secret::Password(password), Mechanism::Ntlm | Mechanism::Msn) => {
                self.ntlm(mechanism, user, password, policy).await
            }
            (Secret::Bearer(token), Mechanism::XOAuth2) => {
                self.bearer(mechanism, &bearer::xoauth2(user, token)).await
            }
            (Secret::Bearer(token), Mechanism::OAuthBearer) => {
                self.bearer(mechanism, &bearer::oauthbearer(user, policy.host, policy.port, token)).await
            }
            _ => Err(early(Error::NoMechanism(format!("{mechanism} needs other credentials")))),
        }
    }

    async fn apop(&mut self, user: &str, password: &[u8]) -> Step<()> {
        self.in_step().map_err(early)?;
        let Some(challenge) = self.greeting().challenge.clone() else {
            return Err(early(Error::NoMechanism("the greeting holds no challenge for APOP".to_owned())));
        };
        let digest = apop::answer(&challenge, password);
        self.secrets.push(Zeroizing::new(digest.as_bytes().to_vec()));
        self.queue_secret("APOP", &[b"APOP ", user.as_bytes(), b" ", digest.as_bytes(), b"\r\n"]);
        let (reply, _) = self.reply("APOP").await.map_err(late)?;
        accepted("APOP", reply).map_err(late)
    }

    /// USER and PASS; in one flight where the server takes that.
    async fn user(&mut self, user: &str, password: &[u8]) -> Step<()> {
        self.in_step().map_err(early)?;
        let password: [&[u8]; 3] = [b"PASS ", password, b"\r\n"];
        self.queue_secret("USER", &[b"USER ", user.as_bytes(), b"\r\n"]);
        let at_once = self.pipelines();
        if at_once {
            self.queue_secret("PASS", &password);
        }
        let (reply, _) = self.reply("USER").await.map_err(late)?;
        if at_once {
            let (pass, _) = self.reply("PASS").await.map_err(late)?;
            accepted("USER", reply).map_err(late)?;
            return accepted("PASS", pass).map_err(late);
        }
        accepted("USER", reply).map_err(late)?;
        self.in_step().map_err(late)?;
        self.queue_secret("PASS", &password);
        let (reply, _) = self.reply("PASS").await.map_err(late)?;
        accepted("PASS", reply).map_err(late)
    }

    /// A mechanism of one message, which comes with the command where it is
    /// short enough (RFC 5034, section 4).
    async fn in_one(&mut self, mechanism: Mechanism, message: &[u8]) -> Step<()> {
        let command = mechanism.command();
        let encoded = sasl::encode(message);
        self.secrets.push(Zeroizing::new(encoded.as_bytes().to_vec()));
        let opened = self.open(mechanism, &encoded, Some(&encoded)).await;
        match opened.map_err(|failed| late(failed.error))? {
            Said::Reply(reply) => accepted(command, reply).map_err(late),
            Said::Challenge(_) => Err(late(one_too_many(command))),
        }
    }

    /// LOGIN. What the server asks with is of no meaning.
    async fn in_two_words(&mut self, user: &str, password: &[u8]) -> Step<()> {
        const COMMAND: &str = "AUTH LOGIN";
        self.begin(Mechanism::Login, None).await?;
        let (user, password) = (sasl::encode(user.as_bytes()), sasl::encode(password));
        for word in [&user, &password] {
            self.secrets.push(Zeroizing::new(word.as_bytes().to_vec()));
        }
        self.respond(COMMAND, &user).map_err(early)?;
        self.go_ahead(COMMAND).await?;
        self.respond(COMMAND, &password).map_err(early)?;
        self.verdict(COMMAND, None).await
    }

    async fn cram_md5(&mut self, user: &str, password: &[u8]) -> Step<()> {
        const COMMAND: &str = "AUTH CRAM-MD5";
        self.in_step().map_err(early)?;
        self.queue_secret(COMMAND, &[COMMAND.as_bytes(), b"\r\n"]);
        let challenge = self.challenge(COMMAND).await?;
        let challenge = match challenge.and_then(|octets| cram_md5::Challenge::parse(&octets)) {
            Ok(challenge) => challenge,
            Err(what) => return Err(self.cancel(COMMAND, what).await),
        };
        self.answer(COMMAND, &challenge.answer(user, password)).map_err(early)?;
        self.verdict(COMMAND, None).await
    }

    async fn scram(
        &mut self,
        mechanism: Mechanism,
        user: &str,
        password: &[u8],
        policy: &LoginPolicy<'_>,
    ) -> Step<()> {
        let command = mechanism.command();
        let plus = self.capabilities.as_ref().is_some_and(|known| known.has_sasl("SCRAM-SHA-256-PLUS"));
        let binding = match policy.binding.filter(|_| policy.encrypted) {
            Some(binding) if mechanism == Mechanism::ScramSha256Plus => scram::Binding::Used(binding),
            // Said of a server that does offer it, this is a lie, and ends
            // the login: so it is noticed when the offer did not reach us.
            Some(_) if !plus => scram::Binding::NotOffered,
            _ => scram::Binding::Impossible,
        };
        let start = scram::Start::new(user, binding, random().map_err(early)?);
        let first = sasl::encode(&start.message());
        let first = match self.open(mechanism, &first, Some(&first)).await? {
            Said::Challenge(base64) => sasl::decode(&base64),
            Said::Reply(reply) => return Err(early(unasked(command, reply))),
        };
        if let Ok(octets) = &first
            && let Ok(scram::ServerFinal::Refusal(said)) = scram::ServerFinal::parse(octets)
        {
            self.respond(command, "").map_err(early)?;
            return self.verdict(command, Some(said)).await.map_err(|failed| early(failed.error));
        }
        let challenged = match first.and_then(|first| start.hear(&first)) {
            Ok(challenged) => challenged,
            Err(what) => return Err(self.cancel(command, what).await),
        };
        // Up to half a second of arithmetic: elsewhere, so that other sessions
        // of this thread go on.
        let password = Zeroizing::new(password.to_vec());
        let proving = tokio::task::spawn_blocking(move || challenged.prove(&password));
        let proof = proving.await.map_err(|error| early(Error::NoMechanism(error.to_string())))?;
        self.answer(command, proof.message()).map_err(early)?;
        let last = match self.said(command).await.map_err(late)? {
            Said::Reply(reply) if reply.is_ok() => return Err(late(Error::Impostor { command })),
            Said::Reply(reply) => return accepted(command, reply).map_err(late),
            Said::Challenge(last) => sasl::decode(&last).and_then(|last| scram::ServerFinal::parse(&last)),
        };
        match last {
            Ok(scram::ServerFinal::Signature(signature)) if proof.is_by_the_server(&signature) => {
                self.respond(command, "").map_err(late)?;
                self.verdict(command, None).await
            }
            Ok(scram::ServerFinal::Signature(_)) => {
                self.stop(command).await;
                Err(late(Error::Impostor { command }))
            }
            Ok(scram::ServerFinal::Refusal(said)) => {
                self.respond(command, "").map_err(late)?;
                self.verdict(command, Some(said)).await
            }
            Err(what) => Err(self.cancel(command, what).await),
        }
    }

    async fn bearer(&mut self, mechanism: Mechanism, message: &[u8]) -> Step<()> {
        let command = mechanism.command();
        let encoded = sasl::encode(message);
        self.secrets.push(Zeroizing::new(encoded.as_bytes().to_vec()));
        // Microsoft's servers take XOAUTH2 in two steps only.
        let with_command = Some(encoded.as_str()).filter(|_| mechanism == Mechanism::OAuthBearer);
        match self.open(mechanism, &encoded, with_command).await.map_err(|failed| late(failed.error))? {
            Said::Reply(reply) => accepted(command, reply).map_err(late),
            Said::Challenge(reason) => {
                let read = sasl::decode(&reason).and_then(|reason| bearer::Refusal::parse(&reason));
                let said = match read {
                    Ok(refusal) => refusal.text,
                    Err(what) => what.to_string(),
                };
                // An octet of no meaning (RFC 7628, section 3.2.3), or an
                // empty line: the refusal proper follows.
                let nothing = if mechanism == Mechanism::OAuthBearer { "AQ==" } else { "" };
                self.respond(command, nothing).map_err(late)?;
                self.verdict(command, Some(said)).await
            }
        }
    }

    async fn ntlm(
        &mut self,
        mechanism: Mechanism,
        user: &str,
        password: &[u8],
        policy: &LoginPolicy<'_>,
    ) -> Step<()> {
        let command = mechanism.command();
        let Ok(password) = std::str::from_utf8(password) else {
            return Err(early(Error::Password("the password is not UTF-8, which NTLM needs")));
        };
        let login = ntlm::Login::new(user, password, policy.end_point);
        self.begin(mechanism, None).await?;
        let first = ntlm::negotiate();
        self.answer(command, &first).map_err(early)?;
        let challenge = self.challenge(command).await?;
        let read = challenge.and_then(|octets| ntlm::Challenge::parse(&octets).map(|read| (read, octets)));
        let (challenge, octets) = match read {
            Ok(read) => read,
            Err(what) => return Err(self.cancel(command, what).await),
        };
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let fresh = ntlm::Fresh {
            client_challenge: random().map_err(early)?,
            time: ntlm::Fresh::time_of(since_1970),
        };
        let Ok(answer) = challenge.answer(&login, fresh, &first, &octets) else {
            self.stop(command).await;
            return Err(early(Error::UserName(
                "the server takes user names in ASCII only, and this one is not",
            )));
        };
        self.answer(command, &answer).map_err(early)?;
        self.verdict(command, None).await
    }

    /// Sends `AUTH` and the first response, `with_command` where that is short
    /// enough; what the server says to it.
    async fn open(&mut self, mechanism: Mechanism, response: &str, with_command: Option<&str>) -> Step<Said> {
        let command = mechanism.command();
        let sent = self.begin(mechanism, with_command).await?;
        if !sent {
            self.respond(command, response).map_err(early)?;
        }
        let said = self.said(command).await.map_err(early)?;
        // It did not take the response that came with the command, and asks
        // for it.
        if sent && matches!(&said, Said::Challenge(asked) if asked.is_empty()) {
            self.respond(command, response).map_err(early)?;
            return self.said(command).await.map_err(early);
        }
        Ok(said)
    }

    /// Sends `AUTH` with the first response where it is given and short
    /// enough, and otherwise waits for the server to ask; whether it was sent.
    async fn begin(&mut self, mechanism: Mechanism, response: Option<&str>) -> Step<bool> {
        let command = mechanism.command();
        self.in_step().map_err(early)?;
        if let Some(response) = response.filter(|text| command.len() + text.len() + 3 <= MAX_COMMAND) {
            self.queue_secret(command, &[command.as_bytes(), b" ", response.as_bytes(), b"\r\n"]);
            return Ok(true);
        }
        self.queue_secret(command, &[command.as_bytes(), b"\r\n"]);
        self.go_ahead(command).await?;
        Ok(false)
    }

    /// Waits until the server asks for a response; with what does not matter.
    /// Some servers say `+OK` in place of `+`.
    async fn go_ahead(&mut self, command: &'static str) -> Step<()> {
        match self.said(command).await.map_err(early)? {
            Said::Challenge(_) => Ok(()),
            Said::Reply(reply) => accepted(command, reply).map_err(early),
        }
    }

    /// A challenge, with what is wrong with it.
    async fn challenge(&mut self, command: &'static str) -> Step<Result<Vec<u8>, Malformed>> {
        match self.said(command).await.map_err(early)? {
            Said::Challenge(base64) => Ok(sasl::decode(&base64)),
            Said::Reply(reply) => Err(early(unasked(command, reply))),
        }
    }

    /// The last word, behind what the mechanism itself may have `said`.
    async fn verdict(&mut self, command: &'static str, said: Option<String>) -> Step<()> {
        match self.said(command).await.map_err(late)? {
            Said::Reply(reply) if reply.is_ok() && said.is_none() => Ok(()),
            Said::Reply(reply) if reply.is_ok() => Err(late(Error::Protocol(format!(
                "the server refuses {command} and accepts it in the same breath: {reply}"
            )))),
            Said::Reply(reply) => Err(late(Error::Refused { command, reply, said, login: true })),
            Said::Challenge(_) => Err(late(one_too_many(command))),
        }
    }

    /// Sends what is a secret, in base64.
    fn answer(&mut self, command: &'static str, octets: &[u8]) -> Result<(), Error> {
        let encoded = sasl::encode(octets);
        self.secrets.push(Zeroizing::new(encoded.as_bytes().to_vec()));
        self.respond(command, &encoded)
    }

    /// Sends a line of base64.
    fn respond(&mut self, command: &'static str, encoded: &str) -> Result<(), Error> {
        self.in_step()?;
        self.queue_secret(command, &[encoded.as_bytes(), b"\r\n"]);
        Ok(())
    }

    /// Waits for a challenge or a reply.
    async fn said(&mut self, command: &'static str) -> Result<Said, Error> {
        let (line, _) = self.line_of(command, 2 + sasl::MAX_CHALLENGE + 2).await?;
        // Base64 holds no blank, so that `+ OK` is no `+OK`.
        let challenge = match &line[..] {
            b"+" => Some(line.slice(1..)),
            _ if line.starts_with(b"+ ") => Some(line.slice(2..)),
            _ => None,
        };
        if let Some(challenge) = challenge {
            // It may hold what makes guessing at the password easier.
            tracing::debug!(target: "rpop::transcript", "<< + ({} octets)", challenge.len());
            return Ok(Said::Challenge(challenge));
        }
        let line = self.censored(line);
        tracing::debug!(target: "rpop::transcript", "<< {}", shown(&line));
        let reply = Some(line.clone()).filter(|line| line.len() <= Reply::MAX_LINE);
        let reply = reply.and_then(|line| Reply::parse(&line)).ok_or_else(|| no_status(command, &line))?;
        Ok(Said::Reply(reply.detached()))
    }

    /// A challenge cannot be answered: takes the login back (RFC 5034,
    /// section 4).
    async fn cancel(&mut self, command: &'static str, what: Malformed) -> Failed {
        self.stop(command).await;
        early(Error::Challenge { command, what })
    }

    /// Says `*` and waits for the answer; the session is not used any more,
    /// and so it does not matter which.
    async fn stop(&mut self, command: &'static str) {
        if self.respond(command, "*").is_ok() {
            drop(self.said(command).await);
        }
    }
}

/// The end of a login in which nothing was proved.
fn unasked(command: &'static str, reply: Reply) -> Error {
    if reply.is_ok() {
        return Error::Protocol(format!("the server accepts {command} without asking for a proof: {reply}"));
    }
    Error::Refused { command, reply, said: None, login: true }
}

fn one_too_many(command: &str) -> Error {
    Error::Protocol(format!("the server asks once more than {command} has answers"))
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut octets = [0; N];
    getrandom::fill(&mut octets)
        .map_err(|error| Error::NoMechanism(format!("the system gives no random numbers: {error}")))?;
    Ok(octets)
}
