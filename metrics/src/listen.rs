//! The configuration key `metrics_listen`, the same in every daemon.
//!
//! Left out, metrics are served on loopback, on the port [`PORT_OFFSET`] above the daemon's own: nothing to
//! configure, and several daemons on one host do not collide. What nobody asked for stops nobody: if that port is
//! taken, the daemon says so and serves without metrics. An address that was configured must work.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use tokio::net::TcpListener;

/// How far above the daemon's port the default one is.
pub const PORT_OFFSET: u16 = 1000;

/// Where metrics are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listen {
    /// On 127.0.0.1, [`PORT_OFFSET`] above the daemon's port. Nowhere if the daemon has no port of its own
    /// choice.
    #[default]
    Default,
    /// Nowhere.
    Off,
    /// There.
    At(SocketAddr),
}

/// Other hosts would see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "metrics_listen = \"{0}\" is reachable from other hosts and there is no encryption: listen on loopback, or set \
     allow_plaintext = true if everybody on that network may see names and sizes of volumes"
)]
pub struct NotLoopback(pub SocketAddr);

impl Listen {
    /// Refuses an address beyond loopback, unless that is allowed.
    pub fn check(self, allow_plaintext: bool) -> Result<(), NotLoopback> {
        match self {
            Listen::At(address) if !address.ip().is_loopback() && !allow_plaintext => {
                Err(NotLoopback(address))
            }
            _ => Ok(()),
        }
    }

    /// Where that is for a daemon that listens on `daemon`.
    pub fn address(self, daemon: Option<SocketAddr>) -> Option<SocketAddr> {
        match self {
            Listen::Off => None,
            Listen::At(address) => Some(address),
            Listen::Default => {
                // Of a port that the system chose nobody could tell where the metrics are.
                let port = daemon.map(|daemon| daemon.port()).filter(|port| *port > 0)?;
                Some((Ipv4Addr::LOCALHOST, port.checked_add(PORT_OFFSET)?).into())
            }
        }
    }

    /// Listens for a daemon whose configuration says that it listens on `daemon`.
    ///
    /// # Errors
    ///
    /// A configured address cannot be listened on.
    pub async fn bind(self, daemon: Option<SocketAddr>) -> io::Result<Option<TcpListener>> {
        let Some(address) = self.address(daemon) else { return Ok(None) };
        match TcpListener::bind(address).await {
            Ok(listener) => {
                tracing::info!(address = %listener.local_addr()?, "metrics are served");
                Ok(Some(listener))
            }
            Err(error) if self == Listen::Default => {
                tracing::warn!(%address, %error, "no metrics are served: set metrics_listen to a free address");
                Ok(None)
            }
            Err(error) => {
                let text = format!("metrics_listen = \"{address}\": cannot listen there: {error}");
                Err(io::Error::new(error.kind(), text))
            }
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Default => f.write_str("default"),
            Listen::Off => f.write_str("off"),
            Listen::At(address) => address.fmt(f),
        }
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        match text {
            "default" => Ok(Listen::Default),
            "off" => Ok(Listen::Off),
            text => text.parse().map(Listen::At).map_err(|_| {
                format!(
                    "{text:?} is no place for metrics: give ADDR:PORT, such as 127.0.0.1:11800, or \"off\""
                )
            }),
        }
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Listen, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_default_is_loopback_above_the_daemons_port() {
        let of = |daemon: &str| Listen::Default.address(Some(at(daemon)));
        assert_eq!(of("10.0.0.1:10810"), Some(at("127.0.0.1:11810")));
        assert_eq!(of("127.0.0.1:0"), None);
        assert_eq!(of("127.0.0.1:65000"), None);
        assert_eq!(Listen::Default.address(None), None);
        assert_eq!(Listen::Off.address(Some(at("127.0.0.1:1"))), None);
        assert_eq!(Listen::At(at("[::1]:9")).address(None), Some(at("[::1]:9")));
    }

    #[test]
    fn beyond_loopback_it_must_be_allowed() {
        let open = Listen::At(at("0.0.0.0:9"));
        assert!(open.check(false).unwrap_err().to_string().contains("allow_plaintext"));
        assert_eq!(open.check(true), Ok(()));
        assert_eq!(Listen::At(at("[::1]:9")).check(false), Ok(()));
        assert_eq!(Listen::Default.check(false), Ok(()));
    }

    #[test]
    fn it_is_written_as_it_is_read() {
        for (text, listen) in [
            ("\"default\"", Listen::Default),
            ("\"off\"", Listen::Off),
            ("\"127.0.0.1:9\"", Listen::At(at("127.0.0.1:9"))),
        ] {
            assert_eq!(serde_json::from_str::<Listen>(text).unwrap(), listen);
            assert_eq!(serde_json::to_string(&listen).unwrap(), text);
        }
        let told = serde_json::from_str::<Listen>("\"on\"").unwrap_err().to_string();
        assert!(told.contains("give ADDR:PORT"), "{told}");
    }

    #[tokio::test]
    async fn a_port_in_use_stops_only_who_asked_for_it() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let told = Listen::At(address).bind(None).await.unwrap_err().to_string();
        assert!(told.contains("metrics_listen") && told.contains(&address.to_string()), "{told}");
        let mut daemon = address;
        daemon.set_port(address.port() - PORT_OFFSET);
        assert!(Listen::Default.bind(Some(daemon)).await.unwrap().is_none());
    }
}
