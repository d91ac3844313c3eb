//! What front ends' metrics say of volumes: fetched over HTTP, read from Prometheus' text format.
//!
//! Reads only the families that `top` shows, and trusts none of it: an answer is bounded, a line that makes no sense
//! is no reason to stop, and who does not answer in time is said to be out of reach.

use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a scrape may take.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of an answer. Exporters cut theirs off below it.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Requests of one kind to one volume, since its front end has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Op {
    /// How many.
    pub count: u64,
    /// What they took together.
    pub seconds: f64,
    /// Bytes.
    pub bytes: u64,
    /// For the upper end of each bucket, in µs, how many took no longer.
    pub buckets: BTreeMap<u64, u64>,
}

/// A volume, as its front end counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Volume {
    pub read: Op,
    pub write: Op,
    pub in_flight: u64,
}

/// The metrics at `address`: volumes by name.
pub async fn volumes(address: SocketAddr) -> anyhow::Result<BTreeMap<String, Volume>> {
    let text = timeout(SCRAPE_TIMEOUT, fetch(address)).await.context("no answer in time")??;
    Ok(parse(&text))
}

async fn fetch(address: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    let text = String::from_utf8(answer).context("the answer is no text")?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.lines().next().is_some_and(|line| line.contains(" 200 ")) => {
            Ok(body.to_owned())
        }
        Some((head, _)) => bail!("the answer is {:?}", head.lines().next().unwrap_or_default()),
        None => bail!("the answer is not HTTP"),
    }
}

/// What is of use in a text of metrics.
pub fn parse(text: &str) -> BTreeMap<String, Volume> {
    let mut volumes: BTreeMap<String, Volume> = BTreeMap::new();
    for (name, labels, value) in text.lines().filter_map(sample) {
        let Some(what) = name.strip_prefix("trefoil_nbd_request") else { continue };
        let label = |key: &str| labels.iter().find(|(label, _)| *label == key).map(|(_, text)| text.as_str());
        let Some(volume) = label("volume") else { continue };
        if what == "s_in_flight" {
            volumes.entry(volume.to_owned()).or_default().in_flight = value as u64;
            continue;
        }
        let volume = volumes.entry(volume.to_owned()).or_default();
        let op = match label("op") {
            Some("read") => &mut volume.read,
            Some("write") => &mut volume.write,
            _ => continue,
        };
        match (what, label("le").and_then(|le| le.parse::<f64>().ok())) {
            ("_duration_seconds_count", _) => op.count = value as u64,
            ("_duration_seconds_sum", _) => op.seconds = value,
            ("_bytes_total", _) => op.bytes = value as u64,
            ("_duration_seconds_bucket", Some(le)) if le.is_finite() => {
                op.buckets.insert((le * 1e6).round() as u64, value as u64);
            }
            _ => {}
        }
    }
    volumes
}

type Labels<'t> = Vec<(&'t str, String)>;

/// A line as name, labels and value; none where it is a comment or makes no sense.
fn sample(line: &str) -> Option<(&str, Labels<'_>, f64)> {
    let end = line.find(['{', ' ']).filter(|_| !line.starts_with('#'))?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while let Some((key, quoted)) = rest.split_once("=\"") {
            let mut text = String::new();
            let mut chars = quoted.char_indices();
            let end = loop {
                match chars.next()? {
                    (at, '"') => break at + 1,
                    (_, '\\') => text.push(match chars.next()?.1 {
                        'n' => '\n',
                        c => c,
                    }),
                    (_, c) => text.push(c),
                }
            };
            labels.push((key, text));
            rest = &quoted[end..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}')?;
    }
    Some((name, labels, rest.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# HELP trefoil_nbd_request_duration_seconds How long.
# TYPE trefoil_nbd_request_duration_seconds histogram
trefoil_nbd_request_duration_seconds_bucket{volume=\"a\",op=\"read\",le=\"0.000016\"} 3
trefoil_nbd_request_duration_seconds_bucket{volume=\"a\",op=\"read\",le=\"0.000032\"} 5
trefoil_nbd_request_duration_seconds_bucket{volume=\"a\",op=\"read\",le=\"+Inf\"} 6
trefoil_nbd_request_duration_seconds_sum{volume=\"a\",op=\"read\"} 0.5
trefoil_nbd_request_duration_seconds_count{volume=\"a\",op=\"read\"} 6
trefoil_nbd_request_duration_seconds_count{volume=\"a\",op=\"trim\"} 9
trefoil_nbd_request_bytes_total{volume=\"a\",op=\"write\"} 4096
trefoil_nbd_requests_in_flight{volume=\"b\\\"}\\\\\\n\"} 2
trefoil_nbd_requests_in_flight{volume=\"broken} 2
process_open_fds 12
";

    #[test]
    fn volumes_are_read_and_what_makes_no_sense_is_passed_over() {
        let volumes = parse(TEXT);
        assert_eq!(volumes.keys().collect::<Vec<_>>(), ["a", "b\"}\\\n"]);
        let a = &volumes["a"];
        assert_eq!((a.read.count, a.read.seconds, a.write.bytes), (6, 0.5, 4096));
        assert_eq!(a.read.buckets, [(16, 3), (32, 5)].into());
        assert_eq!(volumes["b\"}\\\n"].in_flight, 2);
        assert_eq!(sample("process_open_fds 12").map(|it| it.2), Some(12.0));
        assert_eq!(sample("x{a=\"b\" 1"), None);
    }
}
