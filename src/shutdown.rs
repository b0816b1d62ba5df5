//! One signal that ends everything, and who waits for it.

use tokio::sync::watch;

/// Waits for the end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// Asks for the end; so does dropping it.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

/// A trigger and what waits for it.
pub fn shutdown() -> (ShutdownTrigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (ShutdownTrigger(sender), Shutdown(receiver))
}

impl ShutdownTrigger {
    /// Asks everything to end.
    pub fn trigger(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Returns when the end was asked for.
    pub async fn requested(&mut self) {
        // An error means that the trigger is gone, which asks for the same.
        let _ = self.0.wait_for(|requested| *requested).await;
    }

    /// Whether the end was asked for.
    pub fn is_requested(&self) -> bool {
        // As in `requested`, a trigger that is gone asks for the same.
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

/// Returns at the first SIGTERM or SIGINT.
pub async fn termination_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).expect("a signal handler can be installed");
    let mut interrupt = signal(SignalKind::interrupt()).expect("a signal handler can be installed");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
