//! `rpop oauth login`: a person signs in, and a Secret with the refresh token
//! comes out.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use zeroize::Zeroizing;

use super::Exit;
use crate::domain::work::Settings;
use crate::net::{AddressPolicy, Connector};
use crate::oauth::client::Reach;
use crate::oauth::device::Client;
use crate::oauth::{Error, Url, browser, check_secret, device};

/// `rpop oauth`.
#[derive(Debug, Args)]
pub(crate) struct OAuth {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sign in at a provider, and print a Secret with the refresh token
    Login(Box<Login>),
}

/// Providers whose addresses are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Provider {
    /// Microsoft 365 and outlook.com: by a code that is typed in
    Microsoft,
    /// Google: by a browser on this machine
    Google,
}

const EXAMPLES: &str = "\
Examples:
  rpop oauth login --provider microsoft --client-id 1234-… --name m365 --namespace mail
  rpop oauth login --provider google --client-id … --client-secret-file secret --name gmail -o secret.yaml
  rpop oauth login --device-url https://…/device --token-url https://…/token --client-id rpop --scope pop";

/// `rpop oauth login`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Login {
    /// Whose addresses and scopes to use
    #[arg(long, value_enum)]
    provider: Option<Provider>,
    /// The identifier of the client that you have registered there
    #[arg(long, value_name = "ID")]
    client_id: String,
    /// A file with the client's secret, where the provider gives one
    #[arg(long, value_name = "FILE")]
    client_secret_file: Option<PathBuf>,
    /// Microsoft: the tenant, or `common`, `organizations`, `consumers`
    #[arg(long, default_value = "common")]
    tenant: String,
    /// The device authorization endpoint (RFC 8628)
    #[arg(long, value_name = "URL")]
    device_url: Option<String>,
    /// The authorization endpoint, for a sign-in by a browser on this machine
    #[arg(long, value_name = "URL", conflicts_with = "device_url")]
    auth_url: Option<String>,
    /// The token endpoint
    #[arg(long, value_name = "URL")]
    token_url: Option<String>,
    /// A scope to ask for; may be given several times
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// A file with PEM certificates to trust instead of the platform's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The port of 127.0.0.1 that the browser comes back to
    /// [default: any]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// The Secret's name
    #[arg(long, default_value = "oauth", value_parser = parse_name)]
    name: String,
    /// The Secret's namespace
    #[arg(short, long, default_value = "default", value_parser = parse_name)]
    namespace: String,
    /// The file to write, in mode 0600
    /// [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn parse_name(text: &str) -> Result<String, String> {
    let fits =
        |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-' || octet == b'.';
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let good = text.len() <= 253 && text.bytes().all(fits);
    if good && edge(text.chars().next()) && edge(text.chars().last()) {
        Ok(text.to_owned())
    } else {
        Err("a name has lower-case letters, digits, - and dots".to_owned())
    }
}

/// How the person signs in.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    Device(Url),
    Browser(Url),
}

/// Where, and what for.
#[derive(Debug)]
struct Place {
    way: Way,
    token_url: String,
    scopes: Vec<String>,
}

impl Login {
    /// The addresses: the preset's, where no other ones are given.
    fn place(&self) -> Result<Place, String> {
        let microsoft =
            |what: &str| format!("https://login.microsoftonline.com/{}/oauth2/v2.0/{what}", self.tenant);
        if !self.tenant.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')) {
            return Err("--tenant is a name or a number, like contoso.onmicrosoft.com".to_owned());
        }
        let (device, auth, token, scopes): (_, _, _, &[&str]) = match self.provider {
            Some(Provider::Microsoft) => (
                Some(microsoft("devicecode")),
                None,
                Some(microsoft("token")),
                &["https://outlook.office.com/POP.AccessAsUser.All", "offline_access"],
            ),
            Some(Provider::Google) => (
                None,
                Some("https://accounts.google.com/o/oauth2/v2/auth".to_owned()),
                Some("https://oauth2.googleapis.com/token".to_owned()),
                &["https://mail.google.com/"],
            ),
            None => (None, None, None, &[]),
        };
        let parse = |option: &str, text: &str| Url::parse(text).map_err(|why| format!("{option}: {why}"));
        let way = match (&self.device_url, &self.auth_url, device, auth) {
            (Some(url), _, _, _) => Way::Device(parse("--device-url", url)?),
            (None, Some(url), _, _) => Way::Browser(parse("--auth-url", url)?),
            (None, None, Some(url), _) => Way::Device(parse("--tenant", &url)?),
            (None, None, None, Some(url)) => Way::Browser(parse("--provider", &url)?),
            (None, None, None, None) => {
                return Err("give --provider, or --token-url with --device-url or --auth-url".to_owned());
            }
        };
        let token_url = self
            .token_url
            .clone()
            .or(token)
            .ok_or_else(|| "give --token-url, the provider's token endpoint".to_owned())?;
        let scopes = if self.scopes.is_empty() {
            scopes.iter().map(|&scope| scope.to_owned()).collect()
        } else {
            self.scopes.clone()
        };
        Ok(Place { way, token_url, scopes })
    }

    fn client(&self, place: &Place) -> Result<Client, String> {
        let read = |path: &Path| {
            fs::read(path).map(Zeroizing::new).map_err(|error| format!("{}: {error}", path.display()))
        };
        let secret = match &self.client_secret_file {
            Some(path) => {
                let octets = read(path)?;
                let text = octets.trim_ascii_end();
                Some(
                    check_secret(text, "client secret")
                        .map_err(|why| format!("{}: {why}", path.display()))?,
                )
            }
            None => None,
        };
        let ca_pem = self.ca.as_deref().map(read).transpose()?.map(|pem| pem.to_vec());
        // A provider may well be on this machine.
        let settings = Settings { allow_self_poll: true, ..Settings::default() };
        let timeouts = settings.timeouts;
        Ok(Client {
            token_url: Url::parse(&place.token_url).map_err(|why| format!("--token-url: {why}"))?,
            id: self.client_id.clone(),
            secret,
            scope: place.scopes.join(" "),
            reach: Reach {
                ca_pem,
                policy: AddressPolicy::new(&settings),
                connect: timeouts.connect,
                reply: timeouts.reply,
            },
        })
    }

    /// The Secret, and as comments what to write into the record.
    fn manifest(&self, place: &Place, client: &Client, refresh: &str) -> Zeroizing<String> {
        // JSON's quotes are YAML's, too.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        // Room for all of it: growing would leave copies behind.
        let mut text = Zeroizing::new(String::with_capacity(4096 + 2 * refresh.len()));
        let name = &self.name;
        let mut lines = String::new();
        let scopes: Vec<String> = place.scopes.iter().map(|scope| quoted(scope)).collect();
        let secret = if client.secret.is_some() {
            format!("#       clientSecretRef: {{name: {name}, key: clientSecret}}\n")
        } else {
            String::new()
        };
        let written = write!(
            lines,
            "# For the RpopRecord:\n#   remote:\n#     oauth2:\n#       tokenUrl: {}\n#       clientId: {}\n#       scopes: \
             [{}]\n{secret}#       refreshTokenSecretRef: {{name: {name}, key: refreshToken}}\napiVersion: v1\nkind: \
             Secret\nmetadata:\n  name: {name}\n  namespace: {}\ntype: Opaque\nstringData:\n",
            quoted(&place.token_url),
            quoted(&self.client_id),
            scopes.join(", "),
            self.namespace
        );
        debug_assert!(written.is_ok(), "writing to a String does not fail");
        text.push_str(&lines);
        for (key, value) in
            [("refreshToken", Some(refresh)), ("clientSecret", client.secret.as_ref().map(|it| it.as_str()))]
        {
            if let Some(value) = value {
                text.push_str("  ");
                text.push_str(key);
                text.push_str(": ");
                text.push_str(&Zeroizing::new(quoted(value)));
                text.push('\n');
            }
        }
        text
    }
}

/// Runs `rpop oauth …`.
pub(super) async fn run(arguments: OAuth) -> Exit {
    let Command::Login(login) = arguments.command;
    match sign_in(&login).await {
        Ok(()) => Exit::Good,
        Err((exit, message)) => {
            eprintln!("rpop: {message}");
            exit
        }
    }
}

async fn sign_in(login: &Login) -> Result<(), (Exit, String)> {
    let wrong = |message: String| (Exit::Misconfigured, message);
    let failed = |error: Error| (Exit::Failed, error.to_string());
    let place = login.place().map_err(wrong)?;
    let client = login.client(&place).map_err(wrong)?;
    let connector = Connector::new();
    let granted = match &place.way {
        Way::Device(url) => {
            let started = device::begin(&connector, &client, url).await.map_err(failed)?;
            eprintln!("Open {} and type in the code {}", started.place, started.user_code);
            if let Some(direct) = &started.direct {
                eprintln!("or open {direct}");
            }
            eprintln!("The code is good for {}.", minutes(started.lasts));
            device::wait(&connector, &client, &started).await.map_err(failed)?
        }
        Way::Browser(url) => {
            let started = browser::begin(&client, url, login.port).await.map_err(failed)?;
            eprintln!("Open this address in a browser on this machine:\n{}", started.address);
            eprintln!(
                "From elsewhere, give --port and forward it: ssh -L PORT:127.0.0.1:PORT. It is waited for 10 minutes."
            );
            browser::wait(&connector, &client, started).await.map_err(failed)?
        }
    };
    let Some(refresh) = granted.refresh else {
        let message = "the provider gave an access token, but no refresh token: ask for the scope that it wants for one \
                       (often offline_access)";
        return Err((Exit::Failed, message.to_owned()));
    };
    let manifest = login.manifest(&place, &client, &refresh);
    match &login.output {
        None => {
            super::print(manifest.as_bytes());
        }
        Some(path) => {
            write(path, manifest.as_bytes())
                .map_err(|error| (Exit::Failed, format!("{}: {error}", path.display())))?;
            eprintln!("Signed in: the Secret is in {}", path.display());
        }
    }
    Ok(())
}

fn minutes(lasts: Duration) -> String {
    match lasts.as_secs() {
        seconds @ ..120 => format!("{seconds} seconds"),
        seconds => format!("{} minutes", seconds / 60),
    }
}

/// In place of what was there, for this user alone.
fn write(path: &Path, octets: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file.write_all(octets).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        fs::remove_file(&new).ok();
    }
    written
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        login: Login,
    }

    fn login(line: &str) -> Login {
        Line::try_parse_from(std::iter::once("login").chain(line.split_whitespace())).unwrap().login
    }

    #[test]
    fn presets_know_their_addresses() {
        let place = login("--provider microsoft --client-id c --tenant contoso.example").place().unwrap();
        assert_eq!(place.token_url, "https://login.microsoftonline.com/contoso.example/oauth2/v2.0/token");
        let Way::Device(url) = place.way else { panic!("{place:?}") };
        assert_eq!(url.path, "/contoso.example/oauth2/v2.0/devicecode");
        assert!(place.scopes.contains(&"offline_access".to_owned()));
        let place = login("--provider google --client-id c --scope x").place().unwrap();
        assert!(matches!(place.way, Way::Browser(_)));
        assert_eq!(place.scopes, ["x"]);
        let own = "--client-id c --device-url https://a/d --token-url https://a/t";
        assert!(matches!(login(own).place().unwrap().way, Way::Device(_)));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (line, said) in [
            ("--client-id c", "--provider"),
            ("--client-id c --device-url https://a/d", "--token-url"),
            ("--client-id c --device-url http://a/d --token-url https://a/t", "clear text"),
            ("--provider microsoft --client-id c --tenant a/b", "--tenant"),
        ] {
            let error = login(line).place().unwrap_err();
            assert!(error.contains(said), "{line}: {error}");
        }
        let login = login("--client-id c --device-url https://a/d --token-url http://a/t");
        let error = login.client(&login.place().unwrap()).err().unwrap();
        assert!(error.contains("--token-url"), "{error}");
        assert!(Line::try_parse_from(["login", "--client-id", "c", "--name", "A_b"]).is_err());
    }

    #[test]
    fn the_secret_is_a_manifest_that_rpop_reads() {
        let login = login("--provider google --client-id c: --name gmail -n mail");
        let place = login.place().unwrap();
        let client =
            Client { secret: Some(Zeroizing::new("s #\"\\".into())), ..login.client(&place).unwrap() };
        let text = login.manifest(&place, &client, "1//r: #'\"");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret.yaml");
        write(&path, b"before").unwrap();
        write(&path, text.as_bytes()).unwrap();
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&path).unwrap());
        assert_eq!((mode & 0o777, fs::read_dir(folder.path()).unwrap().count()), (0o600, 1));
        let read: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(read["stringData"]["refreshToken"], "1//r: #'\"");
        assert_eq!(read["stringData"]["clientSecret"], "s #\"\\");
        assert_eq!(
            (&read["metadata"]["name"], &read["metadata"]["namespace"]),
            (&"gmail".into(), &"mail".into())
        );
        // What the comment says to write is an oauth2 of a record.
        let comment: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# ")).skip(1).collect();
        let comment = comment.join("\n");
        let read: serde_json::Value = serde_saphyr::from_str(&comment).unwrap();
        let oauth: crate::api::OAuth2 = serde_json::from_value(read["remote"]["oauth2"].clone()).unwrap();
        assert_eq!((&*oauth.client_id, oauth.scopes.len()), ("c:", 1));
        assert_eq!(oauth.refresh_token_secret_ref.unwrap().key, "refreshToken");
        assert!(oauth.client_secret_ref.is_some());
    }
}
