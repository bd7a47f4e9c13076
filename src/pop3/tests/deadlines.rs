use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

use super::*;
use crate::domain::code::Code;
use crate::domain::work::AuthChoice;
use crate::pop3::{Command, Credentials, Error, Event, LoginPolicy, Scope};

async fn last(client: &mut Client<DuplexStream>) -> Error {
    loop {
        if let Err(error) = client.event().await {
            return error;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_given_up_after_the_reply_deadline() {
    let (near, _far) = duplex(64);
    let started = Instant::now();
    let error = Client::greet(near, deadlines()).await.unwrap_err();
    assert_eq!(started.elapsed(), Duration::from_mins(1));
    assert_eq!((error.code(), error.scope()), (Code::TimedOut, Scope::Host));

    let (mut client, _server) = client([]).await;
    let started = Instant::now();
    client.send(Command::Noop);
    assert_eq!(last(&mut client).await.code(), Code::TimedOut);
    assert_eq!(started.elapsed(), Duration::from_mins(1));
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_trickles_is_given_up_too() {
    // quirks: "One byte a second: a floor on the rate, not only on the silence."
    let (near, far) = duplex(64);
    tokio::spawn(async move {
        let mut far = far;
        while far.write_all(b"+").await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
    });
    let started = Instant::now();
    let error = Client::greet(near, deadlines()).await.unwrap_err();
    assert_eq!(error.code(), Code::TimedOut);
    assert!(started.elapsed() <= Duration::from_mins(1));
}

#[tokio::test(start_paused = true)]
async fn a_message_slower_than_the_floor_is_given_up() {
    // quirks: "One byte a second: a floor on the rate, not only on the silence."
    let (mut client, server) = client([("RETR 7", &b"+OK\r\n"[..])]).await;
    client.send(Command::Retr(7));
    tokio::spawn(async move {
        let mut far = server.await.unwrap();
        while far.write_all(b"x").await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
    });
    let started = Instant::now();
    let error = last(&mut client).await;
    assert!(matches!(error, Error::Stalled { number: 7, silent: false, octets: 60..=62, .. }), "{error:?}");
    assert_eq!(started.elapsed().as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn a_message_a_little_faster_than_the_floor_is_not() {
    let (mut client, server) = client([("RETR 7", &b"+OK\r\n"[..])]).await;
    client.send(Command::Retr(7));
    tokio::spawn(async move {
        let mut far = server.await.unwrap();
        for _ in 0..300 {
            far.write_all(&[b'x'; 1100]).await.unwrap();
            sleep(Duration::from_secs(1)).await;
        }
        far.write_all(b"\r\n.\r\n").await.unwrap();
        far
    });
    loop {
        if let Event::End(end) = client.event().await.unwrap() {
            assert_eq!(end.tally.octets, 330_002);
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_glued_terminator_is_known_by_silence_and_its_octets() {
    // quirks: "Terminator glued to the last line (Exchange 2000)"
    for (body, glued, octets) in [
        (&b"+OK\r\nlast line.\r\n"[..], true, 12),
        (b"+OK\r\nlast line\r\n", false, 11),
        (b"+OK\r\n", false, 0),
    ] {
        let (mut client, _server) = client([("RETR 3", body)]).await;
        client.send(Command::Retr(3));
        let started = Instant::now();
        let error = last(&mut client).await;
        match error {
            Error::Stalled { number: 3, octets: found, ends_with_dot_crlf, silent: true } => {
                assert_eq!((found, ends_with_dot_crlf), (octets, glued));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(started.elapsed(), Duration::from_secs(30));
    }
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_stops_is_given_up() {
    let (mut client, _server) = client([("UIDL", &b"+OK\r\n1 a\r\n"[..])]).await;
    let started = Instant::now();
    let error = client.uidl(|_, _| {}).await.unwrap_err();
    assert_eq!(error.code(), Code::TimedOut);
    assert_eq!(started.elapsed(), Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_reads_nothing_is_given_up() {
    let (near, mut far) = duplex(16);
    far.write_all(b"+OK\r\n").await.unwrap();
    let mut client = Client::greet(near, deadlines()).await.unwrap();
    client.capabilities = Some(crate::pop3::Capabilities { pipelining: true, ..Default::default() });
    (1..=50).for_each(|number| client.send(Command::Retr(number)));
    assert_eq!(last(&mut client).await.code(), Code::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn waits_that_are_broken_off_count_and_time_spent_elsewhere_does_not() {
    let (mut client, server) = client([("NOOP", &b""[..])]).await;
    client.send(Command::Noop);
    let mut waited = Duration::ZERO;
    let error = loop {
        let started = Instant::now();
        tokio::select! {
            event = client.event() => {
                waited += started.elapsed();
                break event.unwrap_err();
            }
            () = sleep(Duration::from_secs(7)) => waited += started.elapsed(),
        }
        // A slow destination.
        sleep(Duration::from_mins(5)).await;
    };
    assert_eq!(error.code(), Code::TimedOut);
    assert_eq!(waited, Duration::from_mins(1));
    drop(server);
}

#[tokio::test(start_paused = true)]
async fn each_reply_has_its_own_deadline() {
    let (near, far) = duplex(1024);
    tokio::spawn(async move {
        let mut far = far;
        far.write_all(b"+OK\r\n").await.unwrap();
        let mut heard = [0; 30];
        far.read_exact(&mut heard).await.unwrap();
        for _ in 0..5 {
            sleep(Duration::from_secs(50)).await;
            far.write_all(b"+OK\r\n").await.unwrap();
        }
        far
    });
    let mut client = Client::greet(near, deadlines()).await.unwrap();
    client.capabilities = Some(crate::pop3::Capabilities { pipelining: true, ..Default::default() });
    (0..5).for_each(|_| client.send(Command::Noop));
    for _ in 0..5 {
        assert!(matches!(client.event().await, Ok(Event::Reply { .. })));
    }
}

#[tokio::test(start_paused = true)]
async fn no_phase_is_without_a_deadline() {
    // quirks: "Auto-logout while the SMTP side stalls; per-read **and** whole-session deadlines; no phase without a deadline"
    // quirks: "STLS stripped, refused or stalled while TLS is required aborts"
    const CAPA: Step = ("CAPA", b"+OK\r\nUSER\r\nSASL PLAIN\r\nUTF8\r\n.\r\n");
    let credentials = Credentials::password("u", Zeroizing::new(vec![b'p'; 300]));
    let policy = |choice, apop| LoginPolicy { choice, apop, ..LoginPolicy::ENCRYPTED };
    let (apop, user, plain) = (
        policy(AuthChoice::Auto, true),
        policy(AuthChoice::UserPass, false),
        policy(AuthChoice::Plain, false),
    );

    let mut phases = 0;
    macro_rules! phase {
        ($steps:expr, |$client:ident| $body:expr) => {{
            let (near, _held) = server([("", &b"+OK ready <1.2@h>\r\n"[..])].into_iter().chain($steps));
            let mut $client = Client::greet(near, deadlines()).await.unwrap();
            $client.capabilities = None;
            let started = Instant::now();
            let error: Error = $body.await.map(|_| ()).unwrap_err();
            assert_eq!(error.code(), Code::TimedOut, "{error}");
            assert!(started.elapsed() <= Duration::from_mins(1), "{error}");
            phases += 1;
        }};
    }
    phase!([], |client| client.capabilities());
    phase!([("CAPA", &b"+OK\r\nUSER\r\n"[..])], |client| client.capabilities());
    phase!([], |client| client.start_tls());
    phase!([CAPA], |client| async {
        client.capabilities().await.unwrap();
        client.utf8().await
    });
    phase!([], |client| client.login(&credentials, &apop));
    phase!([], |client| client.login(&credentials, &user));
    phase!([("USER u", &b"+OK\r\n"[..])], |client| client.login(&credentials, &user));
    phase!([], |client| client.login(&credentials, &plain));
    phase!([("AUTH PLAIN", &b"+ \r\n"[..])], |client| client.login(&credentials, &plain));
    // Each step of the mechanisms with challenges.
    let (login, cram, ntlm) = (
        policy(AuthChoice::Login, false),
        policy(AuthChoice::CramMd5, false),
        policy(AuthChoice::Ntlm, false),
    );
    for choice in [login, cram, ntlm, policy(AuthChoice::ScramSha256, false), policy(AuthChoice::Msn, false)]
    {
        phase!([], |client| client.login(&credentials, &choice));
    }
    for steps in [vec![("AUTH LOGIN", &b"+\r\n"[..])], vec![("AUTH LOGIN", b"+\r\n"), ("dQ==", b"+\r\n")]] {
        phase!(steps, |client| client.login(&credentials, &login));
    }
    phase!([("AUTH CRAM-MD5", &b"+ PDEuMkBoPg==\r\n"[..])], |client| client.login(&credentials, &cram));
    phase!([("AUTH NTLM", &b"+OK\r\n"[..])], |client| client.login(&credentials, &ntlm));
    let token = Credentials::bearer("u", Zeroizing::new("t".to_owned()));
    let (xoauth2, oauthbearer) = (policy(AuthChoice::XOAuth2, false), policy(AuthChoice::OAuthBearer, false));
    for choice in [xoauth2, oauthbearer] {
        phase!([], |client| client.login(&token, &choice));
    }
    phase!([("AUTH XOAUTH2", &b"+ \r\n"[..])], |client| client.login(&token, &xoauth2));
    phase!([], |client| client.stat());
    phase!([], |client| client.uidl(|_, _| {}));
    phase!([("LIST", &b"+OK\r\n1 2\r\n.\r"[..])], |client| client.list(|_, _| {}));
    for command in [Command::Retr(1), Command::Dele(1), Command::Noop, Command::Rset, Command::Quit] {
        phase!([], |client| async {
            client.send(command);
            Err::<(), _>(last(&mut client).await)
        });
    }
    assert_eq!(phases, 29);
}
