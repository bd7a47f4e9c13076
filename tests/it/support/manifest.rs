//! Manifests as a user writes them.

use std::fmt::Write as _;

/// A `RpopRecord`, of which tests change what they are about.
#[derive(Debug, Clone)]
pub struct Record {
    /// `metadata.name`.
    pub name: String,
    /// The local account.
    pub account: String,
    /// `host[:port]` of the remote server.
    pub host: String,
    /// The remote account.
    pub user: String,
    /// The Secret's name; its key is `password`.
    pub secret: String,
    /// The mechanism.
    pub auth: String,
    /// The flow mapping behind `tls:`.
    pub tls: String,
    /// Further lines of `spec`, unindented.
    pub more: Vec<String>,
}

impl Record {
    /// `user` at loopback `port`, in clear text, to `user@local.test`.
    pub fn plain(name: &str, port: u16, user: &str) -> Self {
        Self {
            name: name.into(),
            account: format!("{user}@local.test"),
            host: format!("127.0.0.1:{port}"),
            user: user.into(),
            secret: "password".into(),
            auth: "Auto".into(),
            tls: "{mode: None}".into(),
            more: Vec::new(),
        }
    }

    /// Implicit TLS, the certificate verified against the Secret `ca`.
    pub fn implicit(self) -> Self {
        self.tls("{mode: Implicit, caRef: {name: ca, key: ca.crt}}")
    }

    /// STLS, likewise.
    pub fn starttls(self) -> Self {
        self.tls("{mode: StartTls, caRef: {name: ca, key: ca.crt}}")
    }

    /// Another TLS policy.
    pub fn tls(mut self, flow: &str) -> Self {
        flow.clone_into(&mut self.tls);
        self
    }

    /// Another mechanism.
    pub fn auth(mut self, auth: &str) -> Self {
        auth.clone_into(&mut self.auth);
        self
    }

    /// Another local account.
    pub fn to(mut self, account: &str) -> Self {
        account.clone_into(&mut self.account);
        self
    }

    /// Another Secret.
    pub fn secret(mut self, name: &str) -> Self {
        name.clone_into(&mut self.secret);
        self
    }

    /// One more line of `spec`, such as `leave: true`.
    pub fn with(mut self, line: &str) -> Self {
        self.more.push(line.into());
        self
    }

    /// The manifest.
    pub fn yaml(&self) -> String {
        let mut text = format!(
            "apiVersion: rpop.dev/v1alpha1\nkind: RpopRecord\nmetadata: {{name: {}, namespace: mail}}\nspec:\n\
             \x20 account: {}\n  pollEvery: 5m\n  remote:\n    host: \"{}\"\n    account: {}\n\
             \x20   passwordSecretRef: {{name: {}, key: password}}\n    auth: {}\n  tls: {}\n",
            self.name, self.account, self.host, self.user, self.secret, self.auth, self.tls
        );
        for line in &self.more {
            writeln!(text, "  {line}").expect("text");
        }
        text
    }
}

/// A Secret with one key, its value JSON-quoted (which YAML understands).
pub fn secret(name: &str, key: &str, value: &str) -> String {
    let value = serde_json::Value::from(value);
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: mail}}\nstringData:\n  {key}: {value}\n"
    )
}

/// A `RpopDomain`; `delivery` is the flow mapping behind that key.
pub fn domain(name: &str, delivery: &str) -> String {
    format!(
        "apiVersion: rpop.dev/v1alpha1\nkind: RpopDomain\nmetadata: {{name: {name}}}\nspec:\n\
         \x20 postmaster: postmaster@{name}\n  delivery: {delivery}\n"
    )
}

/// The `RpopSettings`; `lines` are lines of `spec`, unindented.
pub fn settings(lines: &[&str]) -> String {
    let mut text =
        String::from("apiVersion: rpop.dev/v1alpha1\nkind: RpopSettings\nmetadata: {name: default}\nspec:\n");
    for line in lines {
        writeln!(text, "  {line}").expect("text");
    }
    text
}
