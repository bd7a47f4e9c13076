use super::*;

fn life(seconds: u64) -> Life {
    Life { from: Instant::now(), wall: SystemTime::now(), lasts: Duration::from_secs(seconds) }
}

/// At which seconds of its life a token is renewed, and no longer used.
async fn turns(lasts: u64) -> (u64, u64) {
    let life = life(lasts);
    let begin = Instant::now();
    while life.is_early() {
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let renewed = begin.elapsed().as_secs();
    while life.is_usable() {
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    (renewed, begin.elapsed().as_secs())
}

#[tokio::test(start_paused = true)]
async fn tokens_are_renewed_early_and_never_used_at_their_end() {
    assert_eq!(turns(3600).await, (3300, 3590));
    assert_eq!(turns(600).await, (540, 590));
    assert_eq!(turns(60).await, (50, 50));
    assert_eq!(turns(5).await, (0, 0), "too short to be kept at all");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_costs_a_renewal_at_most() {
    let mut slept = life(3600);
    slept.wall -= Duration::from_hours(1);
    assert!(!slept.is_usable(), "the machine slept: the monotonic clock stood still");
    let mut back = life(3600);
    back.wall += Duration::from_hours(48);
    assert!(back.is_early(), "the clock was set back: the monotonic one knows");
    tokio::time::advance(Duration::from_hours(1)).await;
    assert!(!back.is_usable());
}

#[test]
fn texts_are_told_apart_in_a_digest() {
    assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
    assert_eq!(digest(&["a"]), digest(&["a"]));
}

#[test]
fn what_can_be_no_token_is_said_and_not_shown() {
    assert_eq!(&**check(b"1//0g", "refresh token").unwrap(), "1//0g");
    for (octets, said) in [
        (&b""[..], "empty"),
        (b"s3cret\n", "echo -n"),
        (b"s3cret\r\nx", "line breaks"),
        (b"s3cret\xff", "ASCII"),
    ] {
        let error = check(octets, "refresh token").unwrap_err();
        assert!(error.contains(said) && !error.contains("s3cret"), "{error}");
    }
}

struct OneSecret;

impl Secrets for OneSecret {
    fn get<'a>(
        &'a self,
        _: &'a SecretRef,
    ) -> crate::engine::ports::Pending<'a, Result<Zeroizing<Vec<u8>>, SecretError>> {
        Box::pin(async { Ok(Zeroizing::new(b"r0".to_vec())) })
    }
}

#[tokio::test]
async fn a_token_whose_early_renewal_fails_is_used_as_long_as_it_lasts() {
    let state = tempfile::tempdir().unwrap();
    let store = Arc::new(crate::local::tokens::FileTokens::new(state.path()));
    let tokens = Tokens::new(Arc::new(Connector::new()), Arc::new(OneSecret), store);
    // Nobody listens there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let secret = SecretRef {
        kind: SecretKind::Secret,
        namespace: "mail".into(),
        name: "s".into(),
        key: "refreshToken".into(),
    };
    let oauth = OAuth2 {
        token_url: format!("http://{closed}/token").into(),
        client_id: "c".into(),
        scopes: Vec::new(),
        client_secret: None,
        refresh_token: Some(secret),
        ca: None,
    };
    let settings = Settings::default();
    let request = tokens.0.request("alice", &oauth, &settings).await.unwrap();
    let key = key("alice", &oauth, &request);
    let put = |age: u64| {
        let mut life = life(1000);
        life.from -= Duration::from_secs(age);
        let token = Token { access: Zeroizing::new("old".into()), life };
        tokens.0.entries().insert(key, Entry { token: Some(Arc::new(token)), ..Entry::default() });
    };
    put(950);
    for _ in 0..2 {
        let access = tokens.get("alice", &oauth, &settings).await.unwrap();
        assert_eq!((&**access.token, access.fresh), ("old", false));
    }
    put(995);
    let error = tokens.get("alice", &oauth, &settings).await.unwrap_err();
    assert_eq!(error.code(), Code::TokenUnavailable, "{error}");
    assert!(
        error.to_string().contains(&closed.to_string()) || error.to_string().contains("127.0.0.1"),
        "{error}"
    );
}
