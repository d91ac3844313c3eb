//! From a configuration to a serving front end, and to its end.
//!
//! The thread that this is called on is the first shard: it has the listeners and the metrics, and watches the others
//! (`threads`). With one shard it is all there is.

use crate::config::{ConfigError, NbdConfig};
use crate::metrics;
use crate::server::{ListenError, doors};
use crate::shard::{Shard, server_config};
use crate::shards::{Place, holders};
use crate::threads::{self, Life, ShardError, Threads};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use tokio::task::LocalSet;

/// Where the front end serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// TCP addresses, with the ports that were bound.
    pub tcp: Vec<SocketAddr>,
    /// The unix socket.
    pub socket: Option<PathBuf>,
}

/// Why a front end does not start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// It cannot serve metrics where it was told to.
    #[error(transparent)]
    Metrics(std::io::Error),
    /// One of its threads does not serve.
    #[error(transparent)]
    Shard(#[from] ShardError),
}

/// Runs a front end until `shutdown` resolves, then releases its volumes. `ready` is called when it
/// listens. Waits for the monitors first: nothing can be served that nobody knows.
/// Must run on a `current_thread` runtime; the thread is the front end's own. Further shards have threads of their
/// own, which end with it.
///
/// An error after `ready`: a shard has died or hangs. The others were stopped in order. The process should end, for
/// what hangs holds its volumes' clients.
pub async fn run(
    config: NbdConfig,
    ready: impl FnOnce(Ready),
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    config.check()?;
    run_boxed(config, Box::new(ready), Box::pin(shutdown)).await
}

/// Not generic, so that this crate generates what it calls, and not every crate that runs a front end.
fn run_boxed<'a>(
    config: NbdConfig,
    ready: Box<dyn FnOnce(Ready) + 'a>,
    shutdown: Pin<Box<dyn Future<Output = ()> + 'a>>,
) -> Pin<Box<dyn Future<Output = Result<(), RunError>> + 'a>> {
    Box::pin(async move { LocalSet::new().run_until(serve(config, ready, shutdown, threads::run)).await })
}

async fn serve(
    config: NbdConfig,
    ready: impl FnOnce(Ready),
    shutdown: impl Future<Output = ()>,
    life: Life,
) -> Result<(), RunError> {
    tokio::pin!(shutdown);
    let metrics_listener =
        config.metrics_listen.bind(config.listen.first().copied()).await.map_err(RunError::Metrics)?;
    let place = Place { number: 0, of: config.shards };
    let mut holders = holders(&config).into_iter();
    // There is at least one: the configuration was checked.
    let Some(me) = holders.next() else { return Err(ConfigError::Shards(config.shards).into()) };
    let (door, others) = match config.shards {
        1 => (None, Vec::new()),
        shards => {
            let mut doors = doors(shards, server_config(&config).bytes_max).into_iter();
            (doors.next(), holders.zip(doors).collect())
        }
    };
    // Dropped by a panic or an error here, they stop as well.
    let mut threads = Threads::start(&config, others, life)?;
    let shard = tokio::select! {
        shard = async {
            let shard = Shard::start(&config, me, place, door).await;
            threads.ready().await.map(|()| shard)
        } => shard,
        () = &mut shutdown => {
            threads.stopped().await?;
            return Ok(());
        }
    };
    let (shard, serving) = match shard.map_err(RunError::from).and_then(|shard| {
        let serving = listen(&shard, &config)?;
        Ok((shard, serving))
    }) {
        Ok(serves) => serves,
        Err(error) => {
            let _ = threads.stopped().await;
            return Err(error);
        }
    };
    let shard = Rc::new(shard);
    let scrapes = metrics_listener.map(|listener| {
        let (shard, others) = (Rc::downgrade(&shard), threads.snapshots());
        tokio::task::spawn_local(trefoil_metrics::serve(
            listener,
            async move || {
                let mut snapshot = shard.upgrade().map(|shard| shard.snapshot()).unwrap_or_default();
                others(&mut snapshot).await;
                snapshot
            },
            metrics::render,
        ))
    });
    tracing::info!(?serving, shards = config.shards, "the front end serves");
    ready(serving);
    let failed = tokio::select! {
        () = &mut shutdown => None,
        () = shard.front.broken() => Some(ShardError::Panicked(0)),
        error = threads.failed() => Some(error),
    };
    match &failed {
        None => tracing::info!("stopping"),
        Some(error) => tracing::error!("{error}; stopping what is left"),
    }
    threads.tell();
    if let Some(scrapes) = scrapes {
        scrapes.abort();
        let _ = scrapes.await;
    }
    // What has panicked itself is not to be trusted with an orderly end.
    if let Some(shard) = Rc::into_inner(shard).filter(|_| !matches!(failed, Some(ShardError::Panicked(0)))) {
        shard.stop().await;
    }
    let stopped = threads.stopped().await;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(stopped?),
    }
}

fn listen(shard: &Shard, config: &NbdConfig) -> Result<Ready, ListenError> {
    let mut serving = Ready { tcp: Vec::new(), socket: config.socket.clone() };
    for address in &config.listen {
        serving.tcp.push(shard.server.listen_tcp(*address)?);
    }
    if let Some(socket) = &config.socket {
        shard.server.listen_unix(socket)?;
    }
    Ok(serving)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::time::Duration;
    use trefoil_monitor::{Monitor, MonitorConfig};

    #[test]
    fn a_shard_that_dies_is_the_end_of_all() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(LocalSet::new().run_until(async {
            let (listen, data_dir) = ("127.0.0.1:0".parse().unwrap(), dir.path().join("monitor"));
            let config = MonitorConfig { listen, data_dir, ..MonitorConfig::default() };
            let monitor = Monitor::start(config).await.unwrap();
            let monitors = vec![monitor.address()];
            tokio::task::spawn_local(monitor.run(std::future::pending()));
            let socket = dir.path().join("nbd.sock");
            let config = NbdConfig {
                monitors,
                socket: Some(socket.clone()),
                shards: 3,
                metrics_listen: trefoil_metrics::Listen::Off,
                ..NbdConfig::default()
            };
            let life: Life = |job| match job.place.number {
                2 => {
                    let _ = job.ready.send(());
                    panic!("on purpose")
                }
                _ => threads::run(job),
            };
            let served = Cell::new(false);
            let run = serve(config, |_| served.set(true), std::future::pending(), life);
            let ended = tokio::time::timeout(Duration::from_secs(20), run).await.expect("it ends");
            assert!(served.get());
            let error = ended.unwrap_err();
            assert!(matches!(error, RunError::Shard(ShardError::Panicked(2))), "{error}");
            assert!(error.to_string().contains("shard 2 has panicked"), "{error}");
            assert!(!socket.exists(), "nobody listens");
        }));
    }
}
