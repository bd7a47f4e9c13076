//! From a work item to a session in TRANSACTION state, and what its maildrop
//! holds.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::Engine;
use super::plan::Plan;
use super::ports::{SecretError, Secrets};
use super::report::{PollError, Scope};
use crate::domain::code::Code;
use crate::domain::envelope::Recipient;
use crate::domain::ledger::{Findings, Survey};
use crate::domain::text::causes;
use crate::domain::work::{Endpoint, SecretRef, Settings, TlsMode, TlsPolicy, WorkItem};
use crate::message::{Trace, TraceContext};
use crate::net::{ChannelBindings, ConnectOptions, Stream, TlsMaterial};
use crate::pop3::{
    ChannelBinding, Client, Command, Credentials, Deadlines, Error, Event, Expire, LoginPolicy, Mechanism,
    Question,
};

/// A message that LIST says is larger than this (4 TiB) is not.
const MOST_OCTETS: u64 = 1 << 42;

/// A session after its login.
pub(super) struct Session {
    pub(super) client: Client<Stream>,
    pub(super) pipelining: bool,
    pub(super) login_delay: Option<Duration>,
    /// EXPIRE 0 is announced.
    pub(super) expires_at_once: bool,
    asks_capa: bool,
    /// By LIST, where it was asked for together with UIDL; in rising order.
    listed: Option<Vec<(u32, u64)>>,
    /// By STAT.
    messages: u32,
    octets: u64,
    mechanism: Mechanism,
    tls: Option<&'static str>,
    peer: Option<IpAddr>,
}

/// What `rpop check --connect` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Messages in the maildrop.
    pub messages: u64,
    /// Their octets, by STAT.
    pub octets: u64,
    /// Of these not known to the ledger; `None` without UIDL.
    pub unseen: Option<u64>,
    /// The TLS version, if TLS is used.
    pub tls: Option<&'static str>,
    /// How the login was done.
    pub mechanism: Mechanism,
}

/// What a maildrop holds.
pub(super) enum Maildrop {
    /// By UIDL, held against the ledger.
    Listed(Findings),
    /// The server has no UIDL: so many messages.
    Counted(u32),
}

/// Connects, secures and logs in.
///
/// # Errors
/// Each with the code and scope that decide what waits.
pub(super) async fn open(
    engine: &Engine,
    item: &WorkItem,
    settings: &Settings,
    plan: &mut Plan,
) -> Result<Session, PollError> {
    let material = tls_material(&*engine.secrets, &item.remote.tls).await?;
    let password = secret(&*engine.secrets, &item.remote.password).await?;
    let knew = plan.without_capa;
    let credentials = Credentials::password(&*item.remote.account, password);
    credentials.validate().map_err(|error| unusable(&item.remote.password, &error))?;
    let client = match connect(engine, item, settings, &material, plan).await {
        // The server hung up on CAPA: it is not asked again.
        Err(_) if plan.without_capa && !knew => connect(engine, item, settings, &material, plan).await?,
        other => other?,
    };
    log_in(client, item, &credentials, plan).await
}

async fn connect(
    engine: &Engine,
    item: &WorkItem,
    settings: &Settings,
    material: &TlsMaterial,
    plan: &mut Plan,
) -> Result<Client<Stream>, PollError> {
    let domains = item.unified.as_ref().map_or(&[][..], |unified| &unified.domains);
    let destinations = std::iter::once(&item.destination).chain(domains.iter().map(|to| &to.destination));
    let hosts = destinations.flat_map(|to| [&to.smtp, &to.lmtp].into_iter().flatten());
    let deliveries = hosts.filter_map(|host| match &host.endpoint {
        Endpoint::Tcp(name, _) => Some(&**name),
        Endpoint::Unix(_) => None,
    });
    let policy = engine.connector.address_policy(settings, deliveries, settings.timeouts.connect).await;
    let options = ConnectOptions { policy: Some(&policy), source: item.source_address };
    let (host, port, tls) = (&*item.remote.host, item.remote.port, &*item.remote.tls);
    let deadlines = Deadlines::from(&settings.timeouts);
    let wait = settings.timeouts.connect;
    let connector = &engine.connector;
    let failed = |error: &crate::net::Error| {
        // A source address is this machine's trouble, whatever host it was for.
        let scope = match error.code() {
            Code::SourceAddressUnavailable => Scope::Local,
            _ => Scope::Host,
        };
        PollError { code: error.code(), message: causes(error), scope }
    };
    let stream =
        connector.open(host, port, &options, tls, material, wait).await.map_err(|error| failed(&error))?;
    let mut client = Client::greet(stream, deadlines).await.map_err(|error| protocol(&error))?;
    if !plan.without_capa {
        capabilities(&mut client, plan).await?;
    }
    if tls.mode == TlsMode::StartTls {
        let greeting = client.greeting().clone();
        let stream = client.start_tls().await.map_err(|error| protocol(&error))?;
        let stream = connector
            .secure(stream, host, tls, material, wait)
            .await
            .map_err(|error| failed(&error.into()))?;
        client = Client::after_tls(stream, greeting, deadlines);
        // What was announced in the clear may have been forged.
        if !plan.without_capa {
            capabilities(&mut client, plan).await?;
        }
    }
    Ok(client)
}

async fn capabilities(client: &mut Client<Stream>, plan: &mut Plan) -> Result<(), PollError> {
    match client.capabilities().await {
        Ok(_) => Ok(()),
        Err(error) => {
            // Some servers hang up on what they do not know: the next session
            // of this poll does not ask.
            plan.without_capa |= error.is_dropped_on_capa();
            Err(protocol(&error))
        }
    }
}

async fn log_in(
    mut client: Client<Stream>,
    item: &WorkItem,
    credentials: &Credentials,
    plan: &Plan,
) -> Result<Session, PollError> {
    let tls = &item.remote.tls;
    let clearance = client.stream().clearance(tls).map_err(|error| PollError {
        code: error.code(),
        message: error.to_string(),
        scope: Scope::Host,
    })?;
    let bindings = client.stream().channel_bindings();
    let binding = channel_binding(&bindings);
    let policy = LoginPolicy {
        choice: item.remote.auth,
        apop: item.remote.apop,
        encrypted: clearance.encrypted(),
        // Only whoever writes `tls: {mode: None}` wants the password in clear.
        clear_text_allowed: tls.mode == TlsMode::None,
        host: &item.remote.host,
        port: item.remote.port,
        binding: binding.as_ref(),
        end_point: bindings.server_end_point.as_deref(),
    };
    let peer = client.stream().peer().map(|peer| peer.ip());
    let version = client.stream().tls_version();
    client.utf8().await.map_err(|error| protocol(&error))?;
    let mechanism = client.login(credentials, &policy).await.map_err(|error| protocol(&error))?;
    Ok(Session {
        client,
        asks_capa: !plan.without_capa,
        listed: None,
        expires_at_once: false,
        messages: 0,
        octets: 0,
        pipelining: false,
        login_delay: None,
        mechanism,
        tls: version,
        peer,
    })
}

/// What a login can be bound to: the connection itself, by TLS 1.3, or else
/// the server's certificate (RFC 9266, section 3).
fn channel_binding(bindings: &ChannelBindings) -> Option<ChannelBinding> {
    let exporter = bindings.exporter.map(ChannelBinding::Exporter);
    exporter.or_else(|| bindings.server_end_point.clone().map(ChannelBinding::ServerEndPoint))
}

impl Session {
    /// Asks for the capabilities again and what the maildrop holds.
    ///
    /// # Errors
    /// `UidlMissing` where messages are to be left and cannot be told apart.
    pub(super) async fn survey(
        &mut self,
        item: &WorkItem,
        mut survey: Survey<'_>,
    ) -> Result<Maildrop, PollError> {
        // Where nothing is left on the server the sizes of all that is listed
        // will be wanted: LIST rides along and saves a round trip.
        let lists = !item.leave && self.client.known_capabilities().is_some_and(|known| known.pipelining);
        let questions = [Question::Capabilities, Question::Stat, Question::Uidl, Question::List];
        let questions = if lists { &questions[..] } else { &questions[..3] };
        self.client.ahead(if self.asks_capa { questions } else { &questions[1..] });
        if self.asks_capa {
            // It may say more, or less, than before the login.
            self.client.capabilities().await.map_err(|error| protocol(&error))?;
        }
        if let Some(known) = self.client.known_capabilities() {
            self.pipelining = known.pipelining;
            self.login_delay = known.login_delay;
            self.expires_at_once = known.expire == Some(Expire::Days(0));
        }
        let stat = self.client.stat().await.map_err(|error| protocol(&error))?;
        (self.messages, self.octets) = (stat.messages, stat.octets);
        let listing = self.client.uidl(|number, uid| survey.see(number, uid)).await;
        if lists && matches!(listing, Ok(_) | Err(Error::Unsupported { .. })) {
            let mut sizes = Vec::with_capacity((stat.messages as usize).min(10_000));
            match self.client.list(|number, size| sizes.push((number, size))).await {
                Ok(_) => {
                    sizes.sort_unstable_by_key(|(number, _)| *number);
                    self.listed = Some(sizes);
                }
                Err(Error::Refused { .. } | Error::Unsupported { .. }) => {}
                Err(error) => return Err(protocol(&error)),
            }
        }
        match listing {
            Ok(listing) => {
                if listing.void_lines > 0 {
                    survey.void_line();
                }
                Ok(Maildrop::Listed(survey.finish()))
            }
            Err(Error::Unsupported { reply, .. }) if item.leave => Err(PollError {
                code: Code::UidlMissing,
                message: format!(
                    "the server has no UIDL ({reply}), so messages that are left there cannot be told from new \
                     ones: set spec.leave to false for this record"
                ),
                scope: Scope::Account,
            }),
            Err(Error::Unsupported { .. }) => Ok(Maildrop::Counted(stat.messages)),
            Err(error) => Err(protocol(&error)),
        }
    }

    /// Fills in the sizes, by one LIST or by some.
    ///
    /// # Errors
    /// Those of the session; a LIST that is refused is none.
    pub(super) async fn sizes(&mut self, wanted: &[u32]) -> Result<HashMap<u32, u64>, PollError> {
        let mut sizes = HashMap::with_capacity(wanted.len());
        let few = wanted.len() * 4 < self.messages as usize && wanted.len() <= 256;
        if wanted.is_empty() {
            return Ok(sizes);
        }
        // An absurd size is as good as none, and must not overflow sums.
        let sane = |size: u64| size <= MOST_OCTETS;
        if let Some(listed) = self.listed.take() {
            let of_use = |(number, size): &(u32, u64)| wanted.binary_search(number).is_ok() && sane(*size);
            sizes.extend(listed.into_iter().filter(of_use));
        } else if self.pipelining && few {
            for number in wanted {
                self.client.send(Command::ListOne(*number));
            }
            while self.client.in_flight() > 0 {
                if let Event::Reply { reply, .. } =
                    self.client.event().await.map_err(|error| protocol(&error))?
                    && let Some((number, size)) = reply.numbers()
                    && sane(size)
                {
                    sizes.extend(u32::try_from(number).ok().map(|number| (number, size)));
                }
            }
        } else {
            let listed = self.client.list(|number, size| {
                if wanted.binary_search(&number).is_ok() && sane(size) {
                    sizes.insert(number, size);
                }
            });
            match listed.await {
                Ok(_) | Err(Error::Refused { .. } | Error::Unsupported { .. }) => {}
                Err(error) => return Err(protocol(&error)),
            }
        }
        Ok(sizes)
    }

    /// The trace header of this session's messages.
    pub(super) fn trace(&self, item: &WorkItem, engine: &Engine, recipient: &Recipient) -> Arc<Trace> {
        Arc::new(Trace::new(&TraceContext {
            remote_host: Arc::clone(&item.remote.host),
            remote_address: self.peer,
            host_name: Arc::clone(&engine.host_name),
            encrypted: self.tls.is_some(),
            account: item.account.clone(),
            recipients: vec![item.account.clone(), recipient.address.clone()],
            key: engine.trace_key,
        }))
    }

    /// What `rpop check` shows of it.
    pub(super) fn checked(&self, unseen: Option<u64>) -> Checked {
        Checked {
            messages: u64::from(self.messages),
            octets: self.octets,
            unseen,
            tls: self.tls,
            mechanism: self.mechanism,
        }
    }
}

/// The TLS material that a policy names.
async fn tls_material(secrets: &dyn Secrets, policy: &TlsPolicy) -> Result<TlsMaterial, PollError> {
    let mut material = TlsMaterial::default();
    if policy.mode == TlsMode::None {
        return Ok(material);
    }
    if let Some(ca) = &policy.ca {
        material.ca_pem = Some(secret(secrets, ca).await?.to_vec());
    }
    if let Some((certificate, key)) = &policy.client_certificate {
        let chain = secret(secrets, certificate).await?.to_vec();
        material.client_pem = Some((chain, secret(secrets, key).await?));
    }
    Ok(material)
}

async fn secret(secrets: &dyn Secrets, at: &SecretRef) -> Result<Zeroizing<Vec<u8>>, PollError> {
    secrets.get(at).await.map_err(|error| match error {
        SecretError::Missing(message) | SecretError::Unavailable(message) => {
            local(Code::SecretMissing, message)
        }
    })
}

/// Credentials that cannot be sent; whoever is to mend a password is told where
/// it is.
fn unusable(at: &SecretRef, error: &Error) -> PollError {
    let message = match error {
        Error::Password(_) => format!("Secret {}/{}, key {}: {error}", at.namespace, at.name, at.key),
        _ => error.to_string(),
    };
    local(error.code(), message)
}

fn local(code: Code, message: String) -> PollError {
    PollError { code, message, scope: Scope::Local }
}

/// A failure of the POP3 side.
pub(super) fn protocol(error: &Error) -> PollError {
    let scope = match error.scope() {
        crate::pop3::Scope::Host => Scope::Host,
        crate::pop3::Scope::Account => Scope::Account,
    };
    PollError { code: error.code(), message: causes(error), scope }
}
