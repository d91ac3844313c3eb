//! How a monitor with an empty directory comes to be one of a cluster.
//!
//! **Founding.** Each of the first monitors has the same list `peers`. The one with the lowest number asks all
//! others who they are; when *every one* has answered that it is new, it draws the cluster's id and
//! begins the log with all of them as voters, each by the incarnation that it said. The others wait until
//! somebody knows the cluster's id. So a monitor that has lost its directory never founds anything: the
//! others know a cluster, and it waits, as a stranger, to be added.
//!
//! **Joining.** A later monitor has `join`, addresses of monitors. It learns the cluster's id from
//! them and waits until an administrator adds it.
//!
//! Until then it answers who it is, and to everybody else that it does not lead.

use crate::config::{MonitorConfig, PeerConfig};
use crate::peers::{self, ask_who};
use crate::raft::{Identity, Member, PeerAnswer, PeerRequest, Who};
use crate::rpc::{self, KIND_PEER_REQUEST, KIND_PEER_RESPONSE, KIND_REQUEST, KIND_RESPONSE, RpcError};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpListener;
use trefoil_transport::{Connected, Hello, Policy, RateLimit, Role, ServeOptions};

/// Between two rounds of questions.
const PAUSE: Duration = Duration::from_millis(200);
/// What is waited for is said this often.
const SAY_EVERY: Duration = Duration::from_secs(10);

pub(crate) type Members = BTreeMap<u64, Member>;

/// What a new monitor has found out.
pub(crate) struct Founded {
    pub cluster_id: [u8; 16],
    /// It begins the log, with these. None: others do.
    pub members: Option<Members>,
}

/// Finds the cluster, or founds it. `random`: the id of a cluster that is founded.
///
/// `identity.cluster_id` is not zero where a founder was interrupted before it began the log: the id that it
/// drew stays.
///
/// Errors: another cluster, or another monitor, is where one of ours should be.
pub(crate) async fn find(
    config: &MonitorConfig,
    address: SocketAddr,
    identity: &Identity,
    random: [u8; 16],
) -> anyhow::Result<Founded> {
    // Who is new itself knows no cluster, and lets in who knows none.
    let mut hello = Hello::new(Role::Monitor, [0; 16]);
    (hello.id, hello.incarnation) = (identity.id, identity.incarnation);
    let me = (identity.id, Member { address, incarnation: identity.incarnation });
    let others: Vec<&PeerConfig> = config.peers.iter().filter(|peer| peer.id != identity.id).collect();
    let founds = config.join.is_empty() && others.iter().all(|peer| peer.id > identity.id);
    let log = RateLimit::new(SAY_EVERY);
    loop {
        let mut members: Members = [me.clone()].into();
        let mut missing = Vec::new();
        for peer in &others {
            match ask_who(peer.address, hello).await {
                Ok(who) => {
                    check(peer.address, &who, identity, Some(peer.id))?;
                    if knows_a_cluster(&who, identity) {
                        return Ok(Founded { cluster_id: who.cluster_id, members: None });
                    }
                    let member = Member { address: peer.address, incarnation: who.incarnation };
                    members.insert(who.id, member);
                }
                Err(error) => missing.push(format!("{} at {}: {error}", peer.id, peer.address)),
            }
        }
        for join in &config.join {
            match ask_who(*join, hello).await {
                Ok(who) if who.cluster_id != [0; 16] => {
                    check(*join, &who, identity, None)?;
                    return Ok(Founded { cluster_id: who.cluster_id, members: None });
                }
                Ok(_) => missing.push(format!("{join}: it is new as well")),
                Err(error) => missing.push(format!("{join}: {error}")),
            }
        }
        if founds && missing.is_empty() {
            let cluster_id = if identity.cluster_id == [0; 16] { random } else { identity.cluster_id };
            return Ok(Founded { cluster_id, members: Some(members) });
        }
        if let Some(kept_back) = log.allow() {
            let missing = missing.join("; ");
            tracing::info!(
                missing,
                kept_back,
                "waiting for other monitors, to find the cluster or to found it"
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The other one has a cluster that this one has not.
fn knows_a_cluster(who: &Who, identity: &Identity) -> bool {
    let begun = who.initialised || identity.cluster_id == [0; 16];
    who.cluster_id != [0; 16] && begun
}

fn check(at: SocketAddr, who: &Who, identity: &Identity, id: Option<u64>) -> anyhow::Result<()> {
    anyhow::ensure!(
        who.cluster_name == identity.cluster_name,
        "the monitor at {at} is of cluster {:?}, this one of {:?}: check addresses and `cluster_name`",
        who.cluster_name,
        identity.cluster_name
    );
    let theirs = who.cluster_id;
    anyhow::ensure!(
        theirs == [0; 16] || identity.cluster_id == [0; 16] || theirs == identity.cluster_id,
        "the monitor at {at} is of another cluster than this one has begun to found: was a directory copied?"
    );
    if let Some(id) = id {
        anyhow::ensure!(
            who.id == id,
            "the monitor at {at} has id {}, and `peers` says {id}: give every monitor the same `peers`, and its own `id`",
            who.id
        );
    }
    Ok(())
}

/// Answers on a listener for as long as this monitor is new. Never ends.
pub(crate) async fn serve_meanwhile(listener: TcpListener, connections_max: usize, identity: Identity) {
    let mut hello = Hello::new(Role::Monitor, identity.cluster_id);
    (hello.id, hello.incarnation) = (identity.id, identity.incarnation);
    let roles = &[Role::StorageNode, Role::FrontEnd, Role::Client, Role::Monitor];
    let mut options = ServeOptions::new(Policy { hello, roles, unknown_cluster: true });
    options.connections_max = connections_max;
    let identity = Rc::new(identity);
    trefoil_transport::serve(listener, options, move |connected| converse(identity.clone(), connected)).await;
}

async fn converse(identity: Rc<Identity>, connected: Connected) {
    let Connected { mut reader, sender, hello } = connected;
    let mut frames = Vec::new();
    while reader.read_batch(&mut frames).await.is_ok() {
        for frame in frames.drain(..) {
            let Some((_, id, _)) = rpc::split(&frame.meta) else {
                return sender.close("a frame that is no request");
            };
            let sent = match frame.kind {
                KIND_REQUEST => {
                    let why = "it is new, and has not joined a cluster yet".to_owned();
                    let error = RpcError::NotLeading { why, leader: None };
                    let response = rpc::Response::Error(error);
                    sender.push(KIND_RESPONSE, |meta| rpc::encode(meta, id, &response), None)
                }
                KIND_PEER_REQUEST if hello.role == Role::Monitor => {
                    let answer = match peers::decode::<PeerRequest>(&frame.payload) {
                        Ok(PeerRequest::Who) => PeerAnswer::Who(Who {
                            id: identity.id,
                            incarnation: identity.incarnation,
                            cluster_id: identity.cluster_id,
                            cluster_name: identity.cluster_name.clone(),
                            initialised: false,
                            members: Vec::new(),
                            members_at: (0, 0),
                        }),
                        Ok(_) => PeerAnswer::Refused("it has not joined a cluster yet".to_owned()),
                        Err(error) => PeerAnswer::Refused(error),
                    };
                    let payload = postcard::to_stdvec(&answer).unwrap_or_default().into();
                    sender.push(KIND_PEER_RESPONSE, |meta| rpc::begin(meta, id), Some(payload))
                }
                _ => return sender.close("a frame that is no request"),
            };
            if sent.is_err() {
                return;
            }
        }
        sender.flush();
    }
}
