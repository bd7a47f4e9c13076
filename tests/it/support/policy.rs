//! A policy service for Postfix (its SMTPD_POLICY_README), as greylisting
//! daemons are: it decides what the real Postfix answers.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What Postfix asks.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// `RCPT`, `DATA` or `END-OF-MESSAGE`.
    pub state: String,
    /// MAIL FROM.
    pub sender: String,
    /// RCPT TO; at other states only where there is one recipient.
    pub recipient: String,
}

type Decide = dyn Fn(&Question) -> Option<String> + Send + Sync;

/// A running service.
pub struct Policy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    decide: Box<Decide>,
    asked: AtomicUsize,
    ended: AtomicBool,
}

impl Policy {
    /// Starts one; `decide` returns an action of access(5), such as `450
    /// 4.2.1 later`, or has no opinion.
    pub fn start(decide: impl Fn(&Question) -> Option<String> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            decide: Box::new(decide),
            asked: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().filter_map(Result::ok) {
                if serving.ended.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || drop(serve(&shared, stream)));
            }
        });
        Self { address, shared }
    }

    /// For a restriction list of Postfix.
    pub fn restriction(&self) -> String {
        format!("check_policy_service inet:{}", self.address)
    }

    /// Questions so far, those that are not answered yet included.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
    }
}

fn serve(shared: &Shared, stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut question = Question::default();
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        match line.trim_end().split_once('=') {
            Some(("protocol_state", value)) => value.clone_into(&mut question.state),
            Some(("sender", value)) => value.clone_into(&mut question.sender),
            Some(("recipient", value)) => value.clone_into(&mut question.recipient),
            Some(_) => {}
            None => {
                shared.asked.fetch_add(1, Ordering::SeqCst);
                let action = (shared.decide)(&question).unwrap_or_else(|| "DUNNO".into());
                reader.get_mut().write_all(format!("action={action}\n\n").as_bytes())?;
                question = Question::default();
            }
        }
        line.clear();
    }
    Ok(())
}
