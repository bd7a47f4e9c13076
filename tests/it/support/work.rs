//! Items of work, as manifests would come to them.

use std::sync::Arc;

use rpop::domain::envelope::Mailbox;
use rpop::domain::work::{
    AuthChoice, Destination, Endpoint, Limits, Login, MailHost, OnReject, OnUidChange, RecordKey, Remote,
    SecretKind, SecretRef, TlsMode, TlsPolicy, WorkItem,
};

/// A destination on a loopback port, in clear text.
pub fn mail_host(port: u16) -> MailHost {
    MailHost {
        endpoint: Endpoint::Tcp("127.0.0.1".into(), port),
        ehlo_name: None,
        tls: TlsPolicy { mode: TlsMode::None, ..TlsPolicy::default() },
        auth: None,
        detail_separator: "+".into(),
        null_sender_without_dsn: true,
    }
}

/// A record that moves the mail of `alice` at loopback port `pop3` to an
/// account of `local.test`, by SMTP to loopback port `smtp`. The password is
/// in the Secret `password`. Not polled until it is given an interval.
pub fn item(namespace: &str, name: &str, account: &str, pop3: u16, smtp: u16) -> WorkItem {
    let namespace: Arc<str> = namespace.into();
    let password = SecretRef {
        kind: SecretKind::Secret,
        namespace: Arc::clone(&namespace),
        name: "password".into(),
        key: "password".into(),
    };
    WorkItem {
        key: RecordKey { namespace, name: name.into() },
        uid: 1,
        account: Mailbox::parse(account).expect("an address"),
        remote: Remote {
            host: "127.0.0.1".into(),
            port: pop3,
            account: "alice".into(),
            login: Login::Password(password),
            auth: AuthChoice::Auto,
            apop: false,
            tls: Arc::new(TlsPolicy { mode: TlsMode::None, ..TlsPolicy::default() }),
        },
        interval: None,
        leave: false,
        keep_for_days: None,
        delete_seen: false,
        mailbox: None,
        destination: Arc::new(Destination {
            domain: "local.test".into(),
            smtp: Some(mail_host(smtp)),
            lmtp: None,
            maildir: None,
        }),
        postmaster: None,
        limits: Limits { message_size: None, messages_per_session: None },
        on_reject: OnReject::Leave,
        on_uid_change: OnUidChange::Pause,
        source_address: None,
        unified: None,
    }
}
