//! An OAuth 2.0 provider: a token endpoint that does as it is told, and notes
//! what it was asked.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::{ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::authority::Identity;

/// What was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The request's target.
    pub path: String,
    /// Header fields, by their names in lower case.
    pub header: HashMap<String, String>,
    /// The form.
    pub form: HashMap<String, String>,
}

impl Asked {
    /// A field of the form; empty where there is none.
    pub fn field(&self, name: &str) -> &str {
        self.form.get(name).map_or("", String::as_str)
    }
}

/// What is answered.
pub enum Act {
    /// A status and JSON.
    Json(u16, Value),
    /// Octets as they are, then the end of the connection.
    Raw(Vec<u8>),
    /// Octets, and then the last ones over and over, a gigabyte in all.
    Endless(Vec<u8>),
    /// Octets, one each so many milliseconds.
    Slow(Vec<u8>, u64),
    /// Nothing.
    Silence,
}

impl Act {
    /// A token that lasts so many seconds.
    pub fn token(access: &str, seconds: i64, refresh: Option<&str>) -> Self {
        let mut answer = json!({"token_type": "Bearer", "access_token": access, "expires_in": seconds});
        if let Some(refresh) = refresh {
            answer["refresh_token"] = json!(refresh);
        }
        Self::Json(200, answer)
    }

    /// A refusal.
    pub fn error(error: &str) -> Self {
        Self::Json(400, json!({"error": error, "error_description": format!("about {error}")}))
    }

    /// HTTP of any kind.
    pub fn http(head: &str, body: &str) -> Self {
        Self::Raw(format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes())
    }
}

type Script = Box<dyn Fn(&Asked, usize) -> Act + Send + Sync>;

/// A running provider.
pub struct Provider {
    /// Its port.
    pub port: u16,
    tls: bool,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Provider {
    /// One over HTTP that answers by `script`, which is told how many requests
    /// came before.
    pub fn start(script: impl Fn(&Asked, usize) -> Act + Send + Sync + 'static) -> Self {
        Self::serve(None, Box::new(script))
    }

    /// One over HTTPS.
    pub fn with_tls(
        identity: &Identity,
        script: impl Fn(&Asked, usize) -> Act + Send + Sync + 'static,
    ) -> Self {
        Self::serve(Some(identity.server_config()), Box::new(script))
    }

    fn serve(tls: Option<Arc<rustls::ServerConfig>>, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let provider = Self { port, tls: tls.is_some(), asked: Arc::clone(&asked) };
        let script: Arc<Script> = Arc::new(script);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (tls, script, asked) = (tls.clone(), Arc::clone(&script), Arc::clone(&asked));
                std::thread::spawn(move || {
                    // What the client has no patience for ends here.
                    stream.set_read_timeout(Some(Duration::from_mins(1))).ok();
                    match tls {
                        None => talk(stream, &script, &asked),
                        Some(config) => {
                            let session = ServerConnection::new(config).expect("a session");
                            talk(StreamOwned::new(session, stream), &script, &asked);
                        }
                    }
                });
            }
        });
        provider
    }

    /// Its token endpoint.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}/token", self.port)
    }

    /// All that was asked.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn talk(stream: impl std::io::Read + std::io::Write, script: &Script, all: &Mutex<Vec<Asked>>) {
    let mut stream = BufReader::new(stream);
    let Some(asked) = request(&mut stream) else { return };
    let before = {
        let mut all = all.lock().unwrap();
        all.push(asked.clone());
        all.len() - 1
    };
    let out = stream.get_mut();
    // A client that has had enough hangs up.
    match script(&asked, before) {
        Act::Json(status, value) => {
            let body = value.to_string();
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            out.write_all((head + &body).as_bytes()).and_then(|()| out.flush()).ok();
        }
        Act::Raw(octets) => {
            out.write_all(&octets).and_then(|()| out.flush()).ok();
        }
        Act::Endless(octets) => {
            out.write_all(&octets).ok();
            let more = vec![*octets.last().unwrap_or(&b'x'); 1 << 20];
            for _ in 0..1024 {
                if out.write_all(&more).is_err() {
                    return;
                }
            }
        }
        Act::Slow(octets, pause) => {
            for octet in octets {
                if out.write_all(&[octet]).and_then(|()| out.flush()).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(pause));
            }
        }
        Act::Silence => drop(stream.read(&mut [0])),
    }
}

fn request(stream: &mut BufReader<impl std::io::Read>) -> Option<Asked> {
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut header = HashMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        header.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = header.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    let body = String::from_utf8(body).ok()?;
    let form = body.split('&').filter_map(|pair| pair.split_once('='));
    let form = form.map(|(name, value)| (name.to_owned(), plain(value))).collect();
    Some(Asked { path, header, form })
}

fn plain(text: &str) -> String {
    let mut octets = Vec::new();
    let mut parts = text.split('%');
    octets.extend_from_slice(parts.next().unwrap_or("").as_bytes());
    for part in parts {
        let (hex, rest) = part.split_at(2);
        octets.push(u8::from_str_radix(hex, 16).expect("an escape"));
        octets.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(octets).expect("text")
}
