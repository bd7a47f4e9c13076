//! The first signal drains, the second aborts.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::engine::ports::Stage;

/// Listens for SIGTERM and SIGINT from now on.
///
/// # Errors
/// When the process may not listen for signals.
pub fn listen() -> std::io::Result<watch::Receiver<Stage>> {
    let (sender, receiver) = watch::channel(Stage::Running);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        let name = either(&mut term, &mut int).await;
        tracing::info!(
            "{name}: no further polls; those under way end at their next message (a second signal drops them)"
        );
        sender.send_replace(Stage::Draining);
        let name = either(&mut term, &mut int).await;
        tracing::info!("{name} again: polls under way are dropped");
        sender.send_replace(Stage::Aborting);
        sender.closed().await;
    });
    Ok(receiver)
}

async fn either(term: &mut Signal, int: &mut Signal) -> &'static str {
    tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    }
}
