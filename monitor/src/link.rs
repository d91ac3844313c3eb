//! One connection of a client to a monitor: handing answers to those who wait, and finding out in time that
//! nobody is at the other end. Which monitor it goes to, and what to do when it ends, is [`crate::client`]'s.

use crate::rpc::{KIND_REQUEST, KIND_RESPONSE, Request, encode, split};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use trefoil_transport::{Frame, Reader, Sender};

/// A connection on which nothing has come for so long, although something is unanswered, is asked for a sign.
const PING_AFTER: Duration = Duration::from_millis(700);
/// A connection on which no sign has come for so long is given up.
const SILENT_MAX: Duration = Duration::from_millis(2000);
/// How often that is looked at.
const WATCH_EVERY: Duration = Duration::from_millis(250);
pub(crate) type Waiting = Rc<RefCell<HashMap<u64, oneshot::Sender<Frame>>>>;

/// A connection and the calls that wait on it. Closed when nobody uses it any more.
pub(crate) struct Link {
    pub sender: Sender,
    pub waiting: Waiting,
}

impl Link {
    /// On a connection that was just made.
    pub fn new(reader: Reader, sender: Sender) -> Rc<Link> {
        let waiting = Waiting::default();
        let heard = Rc::new(Cell::new(Instant::now()));
        tokio::task::spawn_local(listen(reader, waiting.clone(), heard.clone()));
        tokio::task::spawn_local(watch(sender.clone(), waiting.clone(), heard));
        Rc::new(Link { sender, waiting })
    }
}

/// Hands answers to those who wait, until the connection ends.
async fn listen(mut reader: Reader, waiting: Waiting, heard: Rc<Cell<Instant>>) {
    let mut frames = Vec::new();
    while reader.read_batch(&mut frames).await.is_ok() {
        heard.set(Instant::now());
        for frame in frames.drain(..) {
            if let Some((_, id, _)) = split(&frame.meta)
                && frame.kind == KIND_RESPONSE
                && let Some(asker) = waiting.borrow_mut().remove(&id)
            {
                // An asker that has given up needs no answer.
                let _ = asker.send(frame);
            }
        }
    }
    // Wakes all that wait with an error.
    waiting.borrow_mut().clear();
}

/// Gives a connection up whose monitor hangs, also when no call has waited for long yet.
async fn watch(sender: Sender, waiting: Waiting, heard: Rc<Cell<Instant>>) {
    let mut pinged = false;
    while sender.closed().is_none() {
        tokio::time::sleep(WATCH_EVERY).await;
        if waiting.borrow().is_empty() && !pinged {
            // Nothing is owed.
            heard.set(Instant::now());
        }
        let silent = heard.get().elapsed();
        if silent < PING_AFTER {
            pinged = false;
        } else if silent > SILENT_MAX {
            sender.close("the monitor does not answer");
        } else if !std::mem::replace(&mut pinged, true) {
            // Under an id that nobody waits for: any answer is a sign. A failure shows in `closed`.
            let sent = sender.push(KIND_REQUEST, |meta| encode(meta, 0, &Request::Ping), None);
            if sent.is_ok() {
                sender.flush();
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.sender.close("the client is gone");
    }
}

/// Takes a call out of those that wait, also when it is cancelled.
pub(crate) struct Ticket {
    pub waiting: Waiting,
    pub id: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.waiting.borrow_mut().remove(&self.id);
    }
}
