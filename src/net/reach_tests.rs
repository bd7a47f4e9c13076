//! Reaching hosts: names, addresses, policy, source address and deadlines.

use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};

use super::*;
use crate::domain::code::Code;
use crate::domain::work::{Settings, Source};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_unix_socket_is_connected_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lmtp");
    let listener = UnixListener::bind(&path).unwrap();
    let connector = Connector::new();
    let mut stream = connector.connect_unix(&path, SOON).await.unwrap();
    let (mut theirs, _) = listener.accept().await.unwrap();
    theirs.write_all(b"220 hi\r\n").await.unwrap();
    let mut got = [0; 8];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"220 hi\r\n");
    assert_eq!(stream.peer(), None);
    let gone = folder.path().join("gone");
    let error = connector.connect_unix(&gone, SOON).await.unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
}

fn options<'a>(policy: Option<&'a AddressPolicy>, source: Option<&str>) -> ConnectOptions<'a> {
    ConnectOptions {
        policy,
        source: source.and_then(|text| Source::first_of(text.split(' ').map(|text| text.parse().unwrap()))),
    }
}

#[tokio::test]
async fn our_own_addresses_are_not_polled_by_name_or_number() {
    // quirks: "self-poll through an alias name or an IP address."
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let guarded =
        AddressPolicy::new(&Settings { own_addresses: vec!["me.example".into()], ..Settings::default() });
    let connector = Connector::new();
    for host in ["localhost", "127.0.0.1", "127.1.2.3", "0.0.0.0", "[::1]", "::ffff:127.0.0.1", "ME.example."]
    {
        let error = connector.connect(host, port, &options(Some(&guarded), None), SOON).await.unwrap_err();
        assert_eq!(error.code(), Code::SelfPoll, "{host}: {error}");
        assert!(error.to_string().contains("RpopSettings.allowSelfPoll"), "{error}");
    }
    let allowed = AddressPolicy::new(&Settings { allow_self_poll: true, ..Settings::default() });
    for host in ["localhost", "127.0.0.1"] {
        connector.connect(host, port, &options(Some(&allowed), None), SOON).await.unwrap();
    }
    connector.connect("127.0.0.1", port, &options(None, None), SOON).await.unwrap();
}

#[tokio::test]
async fn what_deliveries_and_own_names_resolve_to_is_own() {
    // quirks: "self-poll through an alias name or an IP address."
    let settings = Settings { own_addresses: vec!["nowhere..invalid".into()], ..Settings::default() };
    let connector = Connector::new();
    let deliveries = ["192.0.2.25", "2001:db8::25", "localhost"];
    let policy = connector.address_policy(&settings, deliveries, SOON).await;
    for own in ["192.0.2.25", "::ffff:192.0.2.25", "2001:db8::25", "127.0.0.1"] {
        assert!(policy.check(own.parse().unwrap()).is_err(), "{own}");
    }
    assert!(policy.check("192.0.2.26".parse().unwrap()).is_ok());
    assert!(policy.check_name("nowhere..invalid").is_err());
}

#[tokio::test]
async fn networks_that_are_not_allowed_are_not_reached() {
    let denied = AddressPolicy::new(&Settings {
        allow_self_poll: true,
        deny_networks: vec!["127.0.0.0/8".parse_network(), "::1".parse_network()],
        ..Settings::default()
    });
    for host in ["localhost", "127.0.0.1"] {
        let error = Connector::new().connect(host, 1, &options(Some(&denied), None), SOON).await.unwrap_err();
        assert_eq!(error.code(), Code::AddressRefused);
        assert!(error.to_string().contains("RpopSettings.remoteNetworks"), "{error}");
    }
}

trait ParseNetwork {
    fn parse_network(&self) -> crate::domain::work::Network;
}

impl ParseNetwork for str {
    fn parse_network(&self) -> crate::domain::work::Network {
        crate::domain::work::Network::parse(self).unwrap()
    }
}

#[tokio::test]
async fn a_source_address_is_used_or_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connector = Connector::new();
    connector.connect("127.0.0.1", port, &options(None, Some("127.0.0.9")), SOON).await.unwrap();
    let (_, from) = listener.accept().await.unwrap();
    assert_eq!(from.ip(), "127.0.0.9".parse::<IpAddr>().unwrap());
    for source in ["192.0.2.55", "::1"] {
        let error =
            connector.connect("127.0.0.1", port, &options(None, Some(source)), SOON).await.unwrap_err();
        assert_eq!(error.code(), Code::SourceAddressUnavailable, "{error}");
        assert!(error.to_string().contains(source), "{error}");
    }
}

#[tokio::test]
async fn each_family_is_connected_to_from_its_own_address() {
    let Ok(six) = TcpListener::bind("[::1]:0").await else {
        return eprintln!("*** SKIPPED each_family_is_connected_to_from_its_own_address: no IPv6 here");
    };
    let four = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connector = Connector::new();
    let both = options(None, Some("127.0.0.9 ::1"));
    for (listener, host, wanted) in [(&four, "127.0.0.1", "127.0.0.9"), (&six, "[::1]", "::1")] {
        let port = listener.local_addr().unwrap().port();
        connector.connect(host, port, &both, SOON).await.unwrap();
        assert_eq!(listener.accept().await.unwrap().1.ip().to_string(), wanted);
    }
    // Of a host with both kinds of addresses only the one kind is connected to.
    let port = four.local_addr().unwrap().port();
    connector.connect("localhost", port, &options(None, Some("127.0.0.9")), SOON).await.unwrap();
    assert_eq!(four.accept().await.unwrap().1.ip().to_string(), "127.0.0.9");
}

#[tokio::test]
async fn names_and_ports_that_lead_nowhere_are_told_apart() {
    let connector = Connector::new();
    let none = ConnectOptions::default();
    let error = connector.connect("no-such-host..invalid", 110, &none, SOON).await.unwrap_err();
    assert_eq!(error.code(), Code::HostNotFound, "{error}");
    assert!(error.to_string().contains("no-such-host..invalid"), "{error}");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let error = connector.connect("127.0.0.1", port, &none, SOON).await.unwrap_err();
    assert_eq!(error.code(), Code::HostUnreachable, "{error}");
    assert!(error.to_string().contains(&format!("port {port}")), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_connection_that_is_not_answered_has_a_deadline() {
    // quirks: "no phase without a deadline (CVE-2011-1947)."
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(0).unwrap();
    let silent = full.local_addr().unwrap();
    let _fill = TcpStream::connect(silent).await.unwrap();
    let none = ConnectOptions::default();
    let error = Connector::new()
        .connect("127.0.0.1", silent.port(), &none, Duration::from_millis(300))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::TimedOut);
    assert!(error.to_string().contains("no connection within 0.3 s"), "{error}");
}
