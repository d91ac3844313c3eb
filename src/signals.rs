//! SIGTERM and SIGINT: the first asks to stop, the second ends the process at once.

use std::io;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Becomes true when the process is to stop; every part that runs has its own clone.
pub type Shutdown = watch::Receiver<bool>;

/// Waits until `shutdown` says stop, or whoever could say so is gone.
pub async fn stopped(mut shutdown: Shutdown) {
    // An error means that the sender is gone: that is a stop as well.
    let _ = shutdown.wait_for(|stop| *stop).await;
}

/// Listens for SIGTERM and SIGINT from now on.
///
/// The first makes the returned [`Shutdown`] true. The second ends the process at once with the exit
/// code that shells expect: whatever a crash may do to us, it may do now. On a thread of its own, so
/// that it works when everything else hangs.
///
/// # Errors
///
/// The handlers cannot be installed.
pub fn listen() -> io::Result<Shutdown> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    let (sender, receiver) = watch::channel(false);
    let wait = async move {
        loop {
            let kind = tokio::select! {
                _ = terminate.recv() => SignalKind::terminate(),
                _ = interrupt.recv() => SignalKind::interrupt(),
            };
            if sender.send_replace(true) {
                std::process::exit(128 + kind.as_raw_value());
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(wait))?;
    Ok(receiver)
}
