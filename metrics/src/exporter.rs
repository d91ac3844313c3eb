//! `GET /metrics`, and nothing else of HTTP.
//!
//! Runs on the daemon's own thread, so that it can look at the daemon without a lock; hence it must never hold
//! that thread. A scrape takes a snapshot there (a copy of numbers) and leaves the text to a thread that may
//! wait, one scrape at a time. All else is bounded: connections, bytes of a request, and the time of a
//! connection from its first byte to its last, so that a slow reader costs a text in memory for a while and
//! nothing more. One request for each connection: scrapes are seconds apart.

use crate::process;
use crate::text::{CONTENT_TYPE, Text};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Connections at once. One more is closed at once.
pub const CONNECTIONS_MAX: usize = 8;
/// Bytes of a request, headers included.
pub const REQUEST_BYTES_MAX: usize = 8 << 10;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// A connection that takes longer than this is closed: Prometheus gives up after 10 s by default.
pub const CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);
/// The pause after an error of the listener (out of descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

/// Answers scrapes for ever: `snapshot` runs on this thread and may wait but not work for long, `render` runs on
/// another one. Must be called within a `LocalSet`. Its connections end with it.
pub async fn serve<S: Send + 'static>(
    listener: TcpListener,
    snapshot: impl AsyncFn() -> S + 'static,
    render: fn(&S, &mut Text),
) {
    serve_within(CONNECTION_TIME_MAX, listener, snapshot, render).await;
}

/// Where a scrape's text goes.
type Wanted = oneshot::Sender<io::Result<String>>;

async fn serve_within<S: Send + 'static>(
    time_max: Duration,
    listener: TcpListener,
    snapshot: impl AsyncFn() -> S + 'static,
    render: fn(&S, &mut Text),
) {
    let mut connections = JoinSet::new();
    // The connections' tasks have no share of the daemon: only this one, which ends when it is dropped.
    let (sender, mut wanted) = mpsc::channel::<Wanted>(CONNECTIONS_MAX);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(reply) = wanted.recv() => {
                // Who asked may have gone meanwhile.
                if !reply.is_closed() {
                    let snapshot = snapshot().await;
                    let _ = reply.send(text_of(snapshot, render).await);
                }
                continue;
            }
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a scrape could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            tracing::debug!("more than {CONNECTIONS_MAX} scrapes at once: one is turned away");
            continue;
        }
        let sender = sender.clone();
        connections.spawn_local(async move {
            match timeout(time_max, converse(stream, sender)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a scrape has failed"),
                Err(_) => tracing::debug!("a scrape has taken too long"),
            }
        });
    }
}

async fn text_of<S: Send + 'static>(snapshot: S, render: fn(&S, &mut Text)) -> io::Result<String> {
    let rendered = tokio::task::spawn_blocking(move || {
        let mut text = Text::default();
        process::render(&mut text);
        render(&snapshot, &mut text);
        text.finish()
    });
    rendered.await.map_err(io::Error::other)
}

/// What a request comes to.
enum Answer {
    Metrics { head_only: bool },
    Refused(&'static str),
}

async fn converse(mut stream: TcpStream, scrape: mpsc::Sender<Wanted>) -> io::Result<()> {
    let (status, kind, body, head_only) = match read_request(&mut stream).await? {
        Answer::Refused(status) => (status, "text/plain", format!("{status}\n"), false),
        Answer::Metrics { head_only } => {
            let (reply, text) = oneshot::channel();
            scrape.send(reply).await.map_err(io::Error::other)?;
            let body = text.await.map_err(io::Error::other)??;
            ("200 OK", CONTENT_TYPE, body, head_only)
        }
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if !head_only {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

async fn read_request(stream: &mut TcpStream) -> io::Result<Answer> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(answer) = understand(&bytes) {
            return Ok(answer);
        }
        if bytes.len() >= REQUEST_BYTES_MAX {
            return Ok(Answer::Refused("431 Request Header Fields Too Large"));
        }
    }
}

/// None: there is more to come.
fn understand(bytes: &[u8]) -> Option<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Some(Answer::Refused("431 Request Header Fields Too Large"));
        }
        Err(_) => return Some(Answer::Refused("400 Bad Request")),
    }
    let path = request.path.unwrap_or_default();
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    Some(match (request.method, path) {
        (Some("GET"), "/metrics") => Answer::Metrics { head_only: false },
        (Some("HEAD"), "/metrics") => Answer::Metrics { head_only: true },
        (Some("GET" | "HEAD"), _) => Answer::Refused("404 Not Found"),
        _ => Answer::Refused("405 Method Not Allowed"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tokio::task::LocalSet;
    use tokio::time::Instant;

    /// A body that no socket buffer takes as a whole.
    const LARGE: usize = 24 << 20;

    async fn started(bytes: usize, time_max: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let render = |bytes: &usize, text: &mut Text| {
            text.gauge("x", &"h".repeat(*bytes), 7.0);
        };
        tokio::task::spawn_local(serve_within(time_max, listener, async move || bytes, render));
        address
    }

    async fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn metrics_are_given_and_all_else_is_refused() {
        let test = async {
            let address = started(3, CONNECTION_TIME_MAX).await;
            let answer = ask(address, b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(
                head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4;"),
                "{head}"
            );
            assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
            assert!(body.contains("\nx 7\n") && body.contains("\nprocess_open_fds "), "{body}");
            let answer = ask(address, b"HEAD /metrics HTTP/1.0\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
            let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
            let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(REQUEST_BYTES_MAX));
            for (request, status) in [
                ("GET / HTTP/1.1\r\n\r\n", "404"),
                ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
                ("\x16\x03\x01 tls?\r\n\r\n", "400"),
                (many.as_str(), "431"),
                (long.as_str(), "431"),
            ] {
                let answer = ask(address, request.as_bytes()).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            }
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn slow_readers_hold_neither_the_thread_nor_the_other_scrapes() {
        let test = async {
            let address = started(LARGE, CONNECTION_TIME_MAX).await;
            let mut slow = Vec::new();
            for _ in 0..3 {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await.unwrap();
                slow.push(stream);
            }
            // They have their answers under way.
            for stream in &slow {
                stream.readable().await.unwrap();
            }
            let mut turns = 0;
            let one = async {
                let answer = ask(address, b"GET /metrics HTTP/1.1\r\n\r\n").await;
                assert!(answer.len() > LARGE);
            };
            let turning = async {
                loop {
                    turns += 1;
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                () = one => {}
                () = turning => {}
            }
            assert!(turns > 100, "the thread had other turns: {turns}");
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn who_says_nothing_is_closed_and_too_many_are_turned_away() {
        let test = async {
            const TIME_MAX: Duration = Duration::from_secs(1);
            let address = started(3, TIME_MAX).await;
            let start = Instant::now();
            let mut silent = Vec::new();
            for _ in 0..CONNECTIONS_MAX {
                silent.push(TcpStream::connect(address).await.unwrap());
            }
            let mut byte = [0];
            let mut extra = TcpStream::connect(address).await.unwrap();
            assert_eq!(extra.read(&mut byte).await.unwrap(), 0, "turned away");
            let at_once = start.elapsed();
            for mut stream in silent {
                assert_eq!(stream.read(&mut byte).await.unwrap(), 0, "closed without a word");
            }
            assert!(at_once < start.elapsed() && start.elapsed() >= TIME_MAX, "{at_once:?}");
            assert!(ask(address, b"GET /metrics HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        };
        LocalSet::new().run_until(test).await;
    }
}
