//! The first words of a connection: both sides say who they are, and part if it does not fit.
//!
//! Who connects speaks first. A refusal says why in words, so that the administrator who reads the log
//! of either side knows what to do. A program that does not speak this protocol (a browser, an NBD
//! client) gets one readable line. What a stranger can make us read before it is known is
//! [`HELLO_LEN_MAX`] bytes, for [`HANDSHAKE_TIMEOUT`].

use crate::connection::{Options, Peer, Reader, Sender, split, tune};
use crate::local::{self, LocalName};
use crate::stream::Stream;
use bytes::{Bytes, BytesMut};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use trefoil_core::wire::frame::{self, Decoder, Frame, FrameError};

/// The protocol that both sides must speak. Raised by any change of a message that travels.
pub const PROTOCOL_VERSION: u32 = 1;

/// Each side has this long for its Hello.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// The kernel has this long to connect.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A daemon of this host has this long to greet on its unix socket before TCP is tried.
pub const LOCAL_TIMEOUT: Duration = Duration::from_millis(500);

/// Bytes that are read of a peer before its Hello is whole.
const HELLO_LEN_MAX: usize = 1024;

const KIND_HELLO: u16 = 1;
const KIND_REFUSED: u16 = 2;

/// What a daemon is.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    /// Keeps the cluster map.
    Monitor = 1,
    /// Keeps objects.
    StorageNode = 2,
    /// Serves NBD; leads volumes.
    FrontEnd = 3,
    /// The administrator's command line.
    Client = 4,
}

impl Role {
    fn from_u8(byte: u8) -> Option<Role> {
        [Role::Monitor, Role::StorageNode, Role::FrontEnd, Role::Client]
            .into_iter()
            .find(|role| *role as u8 == byte)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Monitor => "monitor",
            Role::StorageNode => "storage node",
            Role::FrontEnd => "front end",
            Role::Client => "client",
        })
    }
}

/// Who speaks.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub protocol_version: u32,
    /// All zeros: not known yet; only for a daemon's first words to a monitor.
    pub cluster_id: [u8; 16],
    /// What it is.
    pub role: Role,
    /// Node id, or whatever names it among its role; 0 if it has none.
    pub id: u64,
    /// A storage node's incarnation, another daemon's boot id; 0 if it has none.
    pub incarnation: u64,
}

const HELLO_LEN: usize = 4 + 16 + 1 + 8 + 8;

impl Hello {
    /// Of this protocol version, without id and incarnation.
    pub fn new(role: Role, cluster_id: [u8; 16]) -> Hello {
        Hello { protocol_version: PROTOCOL_VERSION, cluster_id, role, id: 0, incarnation: 0 }
    }

    fn to_bytes(self) -> [u8; HELLO_LEN] {
        let mut out = [0; HELLO_LEN];
        out[..4].copy_from_slice(&self.protocol_version.to_le_bytes());
        out[4..20].copy_from_slice(&self.cluster_id);
        out[20] = self.role as u8;
        out[21..29].copy_from_slice(&self.id.to_le_bytes());
        out[29..].copy_from_slice(&self.incarnation.to_le_bytes());
        out
    }

    /// Longer ones are of a newer version: what is known is read, so that the version can be refused
    /// by its number.
    fn from_bytes(bytes: &[u8]) -> Result<Hello, String> {
        fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
            bytes.get(at..at + N)?.try_into().ok()
        }
        let version = array(bytes, 0).map(u32::from_le_bytes);
        if version.is_some_and(|version| version != PROTOCOL_VERSION) {
            return Err(format!(
                "protocol version {} here, {} there: run the same release of trefoil on both sides",
                PROTOCOL_VERSION,
                version.unwrap_or_default(),
            ));
        }
        let parse = || {
            Some(Hello {
                protocol_version: version?,
                cluster_id: array(bytes, 4)?,
                role: Role::from_u8(*bytes.get(20)?)?,
                id: u64::from_le_bytes(array(bytes, 21)?),
                incarnation: u64::from_le_bytes(array(bytes, 29)?),
            })
        };
        parse().ok_or_else(|| "malformed Hello".to_owned())
    }
}

/// Whom an accepting daemon lets in.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Its own Hello.
    pub hello: Hello,
    /// Roles that may connect.
    pub roles: &'static [Role],
    /// Lets in who does not know the cluster's id yet (monitors only).
    pub unknown_cluster: bool,
}

/// Whom a connecting daemon wants to find.
#[derive(Clone, Debug)]
pub struct Expect {
    /// What should be there.
    pub role: Role,
    /// `(id, incarnation)` that should be there. A node with another incarnation is another node.
    pub identity: Option<(u64, u64)>,
}

/// A connection that has been made.
pub struct Connected {
    /// Who the other side is.
    pub hello: Hello,
    /// The receiving side.
    pub reader: Reader,
    /// The sending side.
    pub sender: Sender,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody there, or the network failed.
    #[error("cannot connect to {address}: {error}")]
    Socket {
        /// Where to.
        address: SocketAddr,
        /// What the kernel says.
        error: io::Error,
    },
    /// No answer in time.
    #[error("{address} does not answer: no {what} within {} s", .limit.as_secs())]
    TimedOut {
        /// Where to.
        address: SocketAddr,
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
    /// The other side is no daemon of ours.
    #[error("{address} does not speak Trefoil's protocol: {error}; check address and port")]
    Foreign {
        /// Where to.
        address: SocketAddr,
        /// What is wrong with its answer.
        error: FrameError,
    },
    /// The other side refused us.
    #[error("{address} refuses: {text}")]
    Refused {
        /// Where to.
        address: SocketAddr,
        /// Its words.
        text: String,
    },
    /// We refuse the other side.
    #[error("{address} is not the one that was wanted: {text}")]
    Unexpected {
        /// Where to.
        address: SocketAddr,
        /// Why.
        text: String,
    },
}

/// Why an incoming connection was not accepted; for the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcceptError {
    #[error("{0}")]
    Socket(#[from] io::Error),
    #[error("said nothing for {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Silent,
    #[error("does not speak Trefoil's protocol: {0}")]
    Foreign(FrameError),
    #[error("refused: {0}")]
    Refused(String),
}

enum ReadHelloError {
    Socket(io::Error),
    Frame(FrameError),
}

/// Reads one small frame.
async fn read_small(stream: &mut Stream, buffer: &mut BytesMut) -> Result<Frame, ReadHelloError> {
    let mut decoder = Decoder::new();
    loop {
        if let Some(frame) = decoder.decode(buffer).map_err(ReadHelloError::Frame)? {
            return Ok(frame);
        }
        if decoder.wanted() > HELLO_LEN_MAX {
            let len = decoder.wanted() as u64;
            return Err(ReadHelloError::Frame(FrameError::TooLong { len }));
        }
        // Never more than a Hello: what follows it stays in the socket for the reader.
        let missing = (decoder.wanted() - buffer.len()) as u64;
        buffer.reserve(HELLO_LEN_MAX);
        match (&mut *stream).take(missing).read_buf(buffer).await {
            Ok(0) => {
                return Err(ReadHelloError::Socket(io::ErrorKind::UnexpectedEof.into()));
            }
            Ok(_) => {}
            Err(error) => return Err(ReadHelloError::Socket(error)),
        }
    }
}

fn small_frame(kind: u16, meta: &[u8]) -> Bytes {
    // Only longer than FRAME_MAX could fail; the texts are cut to far below it.
    frame::encode(kind, meta, 0).unwrap_or_default()
}

fn check_cluster(ours: [u8; 16], theirs: [u8; 16]) -> Result<(), String> {
    if ours == theirs {
        return Ok(());
    }
    let hex = |id: [u8; 16]| id.iter().map(|b| format!("{b:02x}")).collect::<String>();
    Err(format!(
        "another cluster: {} here, {} there; check the addresses in the configuration",
        hex(ours),
        hex(theirs)
    ))
}

/// Connects to `address` and says `hello`. A zero cluster id in `hello` takes the answer's.
/// Takes at most [`CONNECT_TIMEOUT`] and [`HANDSHAKE_TIMEOUT`] together.
///
/// Whoever is on this host and was asked for by its identity is reached through its unix socket, if it
/// has one and answers there within [`LOCAL_TIMEOUT`].
pub async fn connect(
    address: SocketAddr,
    hello: Hello,
    expect: &Expect,
    options: Options,
) -> Result<Connected, ConnectError> {
    if let Some((id, incarnation)) = expect.identity.filter(|_| options.local) {
        let name = LocalName::new(hello.cluster_id, expect.role, id, incarnation);
        match name.connect().and_then(local::ready) {
            Ok((stream, peer)) => {
                match greet(stream, peer, address, LOCAL_TIMEOUT, hello, expect, options).await {
                    Ok(connected) => return Ok(connected),
                    Err(error) => tracing::debug!(%peer, %error, "not by the unix socket, then by TCP"),
                }
            }
            // The usual case: it is on another host.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => tracing::debug!(%address, %error, "not by the unix socket, then by TCP"),
        }
    }
    let socket = |error| ConnectError::Socket { address, error };
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(|_| ConnectError::TimedOut { address, what: "connection", limit: CONNECT_TIMEOUT })?
        .map_err(socket)?;
    tune(&stream).map_err(socket)?;
    let stream = Stream::Tcp(stream);
    greet(stream, Peer::Tcp(address), address, HANDSHAKE_TIMEOUT, hello, expect, options).await
}

/// Says `hello` and looks at who answers within `limit`.
async fn greet(
    mut stream: Stream,
    peer: Peer,
    address: SocketAddr,
    limit: Duration,
    hello: Hello,
    expect: &Expect,
    options: Options,
) -> Result<Connected, ConnectError> {
    let socket = |error| ConnectError::Socket { address, error };
    let mut buffer = BytesMut::new();
    let answer = async {
        stream
            .write_all(&small_frame(KIND_HELLO, &hello.to_bytes()))
            .await
            .map_err(ReadHelloError::Socket)?;
        read_small(&mut stream, &mut buffer).await
    };
    let frame = match tokio::time::timeout(limit, answer).await {
        Err(_) => return Err(ConnectError::TimedOut { address, what: "greeting", limit }),
        Ok(Err(ReadHelloError::Socket(error))) => return Err(socket(error)),
        Ok(Err(ReadHelloError::Frame(error))) => {
            return Err(ConnectError::Foreign { address, error });
        }
        Ok(Ok(frame)) => frame,
    };
    if frame.kind == KIND_REFUSED {
        let text = String::from_utf8_lossy(&frame.meta).into_owned();
        return Err(ConnectError::Refused { address, text });
    }
    let theirs =
        admit_answer(&frame, hello, expect).map_err(|text| ConnectError::Unexpected { address, text })?;
    let (reader, sender) = split(stream, peer, options, buffer);
    Ok(Connected { hello: theirs, reader, sender })
}

/// Is it whom we wanted?
fn admit_answer(frame: &Frame, hello: Hello, expect: &Expect) -> Result<Hello, String> {
    if frame.kind != KIND_HELLO {
        return Err(format!("frame kind {} for a Hello", frame.kind));
    }
    let theirs = Hello::from_bytes(&frame.meta)?;
    if hello.cluster_id != [0; 16] {
        check_cluster(hello.cluster_id, theirs.cluster_id)?;
    }
    if theirs.role != expect.role {
        return Err(format!("a {} is there, a {} was wanted", theirs.role, expect.role));
    }
    if let Some(wanted) = expect.identity
        && wanted != (theirs.id, theirs.incarnation)
    {
        return Err(format!(
            "{} {} (incarnation {:016x}) is there, {} (incarnation {:016x}) was wanted; the map may be old",
            theirs.role, theirs.id, theirs.incarnation, wanted.0, wanted.1
        ));
    }
    Ok(theirs)
}

/// The other side of [`connect`].
pub(crate) async fn accept(
    mut stream: Stream,
    peer: Peer,
    policy: &Policy,
    options: Options,
) -> Result<Connected, AcceptError> {
    if let Stream::Tcp(stream) = &stream {
        tune(stream)?;
    }
    let mut buffer = BytesMut::new();
    let hello = tokio::time::timeout(HANDSHAKE_TIMEOUT, read_small(&mut stream, &mut buffer)).await;
    let frame = match hello {
        Err(_) => {
            refuse_in_words(stream, policy.hello.role).await;
            return Err(AcceptError::Silent);
        }
        Ok(Err(ReadHelloError::Socket(error))) => return Err(error.into()),
        Ok(Err(ReadHelloError::Frame(error))) => {
            refuse_in_words(stream, policy.hello.role).await;
            return Err(AcceptError::Foreign(error));
        }
        Ok(Ok(frame)) => frame,
    };
    let theirs = match admit(&frame, policy) {
        Ok(theirs) => theirs,
        Err(text) => {
            farewell(stream, &small_frame(KIND_REFUSED, text.as_bytes())).await;
            return Err(AcceptError::Refused(text));
        }
    };
    stream.write_all(&small_frame(KIND_HELLO, &policy.hello.to_bytes())).await?;
    let (reader, sender) = split(stream, peer, options, buffer);
    Ok(Connected { hello: theirs, reader, sender })
}

fn admit(frame: &Frame, policy: &Policy) -> Result<Hello, String> {
    if frame.kind != KIND_HELLO {
        return Err(format!("frame kind {} for a Hello", frame.kind));
    }
    let theirs = Hello::from_bytes(&frame.meta)?;
    if !(policy.unknown_cluster && theirs.cluster_id == [0; 16]) {
        check_cluster(policy.hello.cluster_id, theirs.cluster_id)?;
    }
    if !policy.roles.contains(&theirs.role) {
        return Err(format!(
            "a {} has no business with a {}; check the addresses in the configuration",
            theirs.role, policy.hello.role
        ));
    }
    Ok(theirs)
}

/// For those who do not speak the protocol: something that a human at the other end can read.
async fn refuse_in_words(stream: Stream, role: Role) {
    let line = format!(
        "This is a Trefoil {role} and speaks only Trefoil's own protocol (version {PROTOCOL_VERSION}). \
         Volumes are served by `trefoil nbd`, usually on port 10809.\r\n"
    );
    farewell(stream, line.as_bytes()).await;
}

/// For a connection over the limit.
pub(crate) async fn refuse_too_many(stream: Stream, max: usize) {
    let text = format!("all {max} connections are in use; try again later, or raise the limit");
    farewell(stream, &small_frame(KIND_REFUSED, text.as_bytes())).await;
}

/// Says something last. Closing a socket with unread bytes resets the connection, which may overtake
/// what was said; so what still comes is read for a moment, and dropped.
async fn farewell(mut stream: Stream, words: &[u8]) {
    const LINGER: Duration = Duration::from_millis(500);
    const READ_MAX: u64 = 64 << 10;
    let talk = async {
        stream.write_all(words).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut (&mut stream).take(READ_MAX), &mut tokio::io::sink()).await
    };
    // Best effort: the peer is a stranger, and the connection is over either way.
    let _ = tokio::time::timeout(LINGER, talk).await;
}
