//! Messages opened by a parser that is not ours: Python's `email` package.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

/// A line of base64 in, a line of JSON out.
const SCRIPT: &str = r"
import base64, email, email.policy, json, sys
for line in sys.stdin.buffer:
    message = email.message_from_bytes(base64.b64decode(line), policy=email.policy.default)
    defects = [repr(d) for part in message.walk() for d in part.defects]
    parts = message.get_payload() if message.is_multipart() else []
    def content(part):
        if part.get_content_maintype() == 'message':
            return b''.join(bytes(inner) for inner in part.get_payload())
        return part.get_payload(decode=True)
    status = parts[1].get_payload() if len(parts) > 1 and parts[1].is_multipart() else []
    answer = {
        'kind': message.get_content_type(),
        'reportType': message.get_param('report-type'),
        'defects': defects,
        'header': [[name, str(value)] for name, value in message.items()],
        'headerDefects': [repr(d) for value in message.values() for d in value.defects],
        'preamble': message.preamble or '',
        'epilogue': message.epilogue or '',
        'parts': [{
            'kind': part.get_content_type(),
            'encoding': part['content-transfer-encoding'],
            'content': base64.b64encode(content(part)).decode(),
        } for part in parts],
        'status': [[[name, str(value)] for name, value in block.items()] for block in status],
        'statusBodies': [block.get_payload() for block in status],
    }
    sys.stdout.write(json.dumps(answer) + '\n')
    sys.stdout.flush()
";

/// One Python for all messages of a test.
pub struct Reader {
    python: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

/// What it found in a message.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    pub kind: String,
    pub report_type: Option<String>,
    pub defects: Vec<String>,
    pub header: Fields,
    pub header_defects: Vec<String>,
    pub preamble: String,
    pub epilogue: String,
    pub parts: Vec<Part>,
    pub status: Vec<Fields>,
    pub status_bodies: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub struct Part {
    pub kind: String,
    pub encoding: Option<String>,
    pub content: String,
}

#[derive(Debug, Deserialize)]
pub struct Fields(pub Vec<(String, String)>);

impl Fields {
    pub fn names(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).collect()
    }

    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Part {
    pub fn octets(&self) -> Vec<u8> {
        BASE64_STANDARD.decode(&self.content).unwrap()
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.octets()).unwrap().replace("\r\n", "\n")
    }
}

impl Reader {
    /// `None` (said loudly, a failure in CI) where there is no Python.
    pub fn start(test: &str) -> Option<Self> {
        let Some(program) = super::program("python3") else {
            super::skipped(test, "python3 is not installed; scripts/bootstrap installs it");
            return None;
        };
        let mut python = Command::new(program)
            .args(["-I", "-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let from = BufReader::new(python.stdout.take().unwrap());
        Some(Self { to: python.stdin.take(), python, from })
    }

    pub fn read(&mut self, message: &[u8]) -> Found {
        let line = BASE64_STANDARD.encode(message) + "\n";
        self.to.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        self.from.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.to = None;
        drop(self.python.wait());
    }
}
