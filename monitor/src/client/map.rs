//! Fetching the cluster map: whole, in parts, or as the difference to the one that was got last.

use super::{CALL_TIMEOUT, CallError, MonitorClient, unexpected};
use crate::rpc::*;
use std::sync::Arc;
use std::time::Duration;
use trefoil_core::map::{ClusterMap, MAP_BYTES_MAX, MapDelta};

/// How often a map is asked for that the monitor has replaced before all of it was fetched.
const MAP_TRIES: usize = 5;
/// Bytes of a map that is read on the thread that also serves I/O: some milliseconds. A larger one is
/// read on another thread.
const READ_AT_ONCE_MAX: u64 = 256 << 10;
/// Nodes whose CRUSH map is checked within a millisecond or so, on the thread that also serves I/O.
const FEW_NODES: usize = 500;

impl MonitorClient {
    /// Asks for the map, or for the difference to the one that was got last.
    async fn ask_map(
        &self,
        have: u64,
        request: impl Fn(MapId) -> Request,
        timeout: Duration,
    ) -> Result<Option<Arc<ClusterMap>>, CallError> {
        for _ in 0..MAP_TRIES {
            let last = self.inner.last_map.borrow().clone();
            let base = last.as_ref().map_or(MapId::default(), |(id, _)| *id);
            let (response, payload, _) = self.call(&request(base), timeout).await?;
            let got = match response {
                Response::MapUnchanged { .. } => return Ok(None),
                Response::MapDelta { id, .. } => match changed(last, &payload).await {
                    Ok(map) => Some((id, map)),
                    Err(error) => {
                        tracing::warn!(error, "a change of the map does not fit: fetching the whole map");
                        *self.inner.last_map.borrow_mut() = None;
                        None
                    }
                },
                Response::Map { id, bytes, .. } => self.whole_map(id, bytes, payload, last).await?,
                other => return Err(unexpected(&other)),
            };
            // A map that is older than the one that the asker acts on, from a monitor that lags or from a
            // cluster that was restored over this one's head: never back in time.
            if let Some((_, map)) = &got
                && have > map.layout
            {
                return Ok(None);
            }
            if let Some(got) = got {
                let map = got.1.clone();
                let mut last = self.inner.last_map.borrow_mut();
                // Two may have asked at once: the later one stays.
                if last.as_ref().is_none_or(|(id, _)| id.boot != got.0.boot || id.version < got.0.version) {
                    *last = Some(got);
                }
                return Ok(Some(map));
            }
        }
        Err(CallError::Unavailable("the map changes faster than it can be fetched".to_owned()))
    }

    /// Fetches the rest of a map; none if the monitor does not have it any more.
    async fn whole_map(
        &self,
        id: MapId,
        total: u64,
        first: bytes::Bytes,
        last: Option<(MapId, Arc<ClusterMap>)>,
    ) -> Result<Option<(MapId, Arc<ClusterMap>)>, CallError> {
        if total > MAP_BYTES_MAX as u64 {
            return Err(CallError::Malformed(format!("a map of {total} bytes: at most {MAP_BYTES_MAX}")));
        }
        let mut parts = vec![first];
        loop {
            let offset = parts.iter().map(|part| part.len() as u64).sum();
            if offset >= total {
                break;
            }
            match self.call(&Request::MapPart { of: id, offset }, CALL_TIMEOUT).await {
                Ok((Response::MapPart, part, _)) if !part.is_empty() => parts.push(part),
                Ok((other, ..)) => return Err(unexpected(&other)),
                Err(CallError::Answered(RpcError::MapMoved)) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let read = move || {
            let bytes = if parts.len() == 1 { parts.remove(0) } else { parts.concat().into() };
            let (version, rest) = bytes.split_first().unwrap_or((&0, &[]));
            let mut map: ClusterMap = decode(*version, rest)?;
            if let Some((_, last)) = last {
                map.share(&last);
            }
            Ok(Arc::new(map))
        };
        let map = match total <= READ_AT_ONCE_MAX {
            true => read(),
            false => match tokio::task::spawn_blocking(read).await {
                Ok(read) => read,
                Err(error) => Err(error.to_string()),
            },
        };
        Ok(Some((id, map.map_err(CallError::Malformed)?)))
    }

    /// The map, unless its layout is `have`; with 0 the map as it is now, log positions included.
    pub async fn get_map(&self, have: u64) -> Result<Option<Arc<ClusterMap>>, CallError> {
        self.ask_map(have, |base| Request::GetMap { have, base }, CALL_TIMEOUT).await
    }

    /// The map as soon as its layout is not `have`, without log positions; none if that takes longer than `timeout` (which is
    /// cut to [`WAIT_MAX`]).
    pub async fn wait_map(&self, have: u64, timeout: Duration) -> Result<Option<Arc<ClusterMap>>, CallError> {
        let timeout = timeout.min(Duration::from_micros(WAIT_MAX));
        let micros = timeout.as_micros() as u64;
        let request = |base| Request::WaitMap { have, base, timeout: micros };
        self.ask_map(have, request, timeout + CALL_TIMEOUT).await
    }
}

/// The map that a difference makes of the last one.
async fn changed(last: Option<(MapId, Arc<ClusterMap>)>, payload: &[u8]) -> Result<Arc<ClusterMap>, String> {
    let (_, last) = last.ok_or("it is the difference to nothing")?;
    let (version, rest) = payload.split_first().unwrap_or((&0, &[]));
    let delta: MapDelta = decode(*version, rest)?;
    let here =
        payload.len() as u64 <= READ_AT_ONCE_MAX && !(delta.is_costly() && last.nodes.len() > FEW_NODES);
    let apply = move || {
        let mut map = ClusterMap::clone(&last);
        map.apply_delta(&delta).map_err(|error| error.to_string())?;
        Ok(Arc::new(map))
    };
    if here {
        return apply();
    }
    tokio::task::spawn_blocking(apply).await.unwrap_or_else(|error| Err(error.to_string()))
}
