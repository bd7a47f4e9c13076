//! The addresses of a provider's endpoints.

use std::fmt;
use std::net::IpAddr;

use hyper::Uri;

use crate::domain::text::escape;

/// An address that tokens may be sent to: `https`, or `http` on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// TLS; without it only loopback addresses are connected to.
    pub tls: bool,
    /// A name, or an address literal without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// As in the request: path and query.
    pub path: String,
    /// The value of the Host field.
    pub authority: String,
}

impl Url {
    /// Reads an absolute URL.
    ///
    /// # Errors
    /// What is wrong with it, and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("`{}` {what}", escape(text));
        if text.contains('#') {
            return Err(wrong("has a fragment (#…): write it without"));
        }
        let uri: Uri = text.parse().map_err(|_| wrong("is no URL: write https://HOST/PATH"))?;
        let authority =
            uri.authority().ok_or_else(|| wrong("is no absolute URL: write https://HOST/PATH"))?;
        if authority.as_str().contains('@') {
            return Err(format!(
                "the URL at {} holds a user name: write clientId and clientSecretRef instead",
                escape(authority.host())
            ));
        }
        let bare = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if is_loopback(&bare) => false,
            Some("http") => {
                return Err(wrong(
                    "must begin with https://: a token must not cross the network in clear text",
                ));
            }
            _ => return Err(wrong("must begin with https://")),
        };
        // What the library takes for no port may be one that is out of range.
        let given = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
        let port = match given.strip_prefix(':').map(str::parse) {
            Some(Ok(0) | Err(_)) => return Err(wrong("has no port from 1 to 65535")),
            Some(Ok(port)) => port,
            None if tls => 443,
            None => 80,
        };
        if bare.is_empty() {
            return Err(wrong("names no host"));
        }
        Ok(Self {
            tls,
            host: bare,
            port,
            path: uri.path_and_query().map_or_else(|| "/".to_owned(), |path| path.as_str().to_owned()),
            authority: authority.as_str().to_owned(),
        })
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl fmt::Display for Url {
    /// Without path and query, which may be long: for messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", escape(&self.authority))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_over_tls_or_stay_on_this_machine() {
        let url = Url::parse("https://Login.Example.com/common/oauth2/v2.0/token?p=1").unwrap();
        assert_eq!((url.tls, &*url.host, url.port), (true, "login.example.com", 443));
        assert_eq!(url.path, "/common/oauth2/v2.0/token?p=1");
        let url = Url::parse("http://127.0.0.1:8080").unwrap();
        assert_eq!((url.tls, &*url.host, url.port, &*url.path), (false, "127.0.0.1", 8080, "/"));
        assert_eq!(Url::parse("http://[::1]:1/t").unwrap().host, "::1");
        assert_eq!(Url::parse("http://localhost/t").unwrap().port, 80);
        assert_eq!(Url::parse("https://[2001:db8::1]:8443/t").unwrap().port, 8443);
        for (bad, said) in [
            ("http://login.example.com/token", "clear text"),
            ("http://127.0.0.1.example.com/token", "clear text"),
            ("http://localhost.example.com/", "clear text"),
            ("http://10.0.0.1/", "clear text"),
            ("https://user:secret@login.example.com/token", "user name"),
            ("http://127.0.0.1@login.example.com/token", "user name"),
            ("https://login.example.com/token#x", "fragment"),
            ("https://login.example.com:0/token", "port"),
            ("https://login.example.com:65536/token", "port"),
            ("ftp://login.example.com/", "https://"),
            ("login.example.com/token", "URL"),
            ("/token", "absolute"),
            ("https:///token", "URL"),
            ("https://a b/", "URL"),
            ("https://a/\r\nX: y", "URL"),
            ("", "URL"),
        ] {
            let error = Url::parse(bad).unwrap_err();
            assert!(error.contains(said) && !error.contains("secret"), "{bad:?}: {error}");
        }
    }
}
