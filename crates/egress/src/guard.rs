//! From a host and a port to the addresses that may be connected to.
//!
//! Names are resolved here, once, and judged afterwards, address by address. The caller connects to what it gets and asks
//! nobody again: a name that is public now and private a moment later gains nothing by it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::time::timeout;

use crate::address::{Kind, kind};
use crate::host::Host;
use crate::names::Names;
use crate::private::PrivateHosts;
use crate::refusal::Refusal;

/// The ports that are open for every host: the web's.
pub const PORTS_DEFAULT: [u16; 2] = [80, 443];

/// How long resolving a name may take, waiting for its turn included. Resolvers try again after five seconds.
const LOOKUP_TIME_MAX: Duration = Duration::from_secs(12);
/// How many addresses of a name are of use. A hostile name server may give hundreds.
const ADDRESSES_MAX: usize = 8;

/// Decides which addresses may be connected to.
#[derive(Clone, Debug)]
pub struct Guard {
    private: PrivateHosts,
    ports: BTreeSet<u16>,
    names: Names,
}

impl Guard {
    /// A guard that allows what is public and what `private` names, on the web's ports and on `more_ports`.
    pub fn new(private: PrivateHosts, more_ports: impl IntoIterator<Item = u16>) -> Self {
        let ports = PORTS_DEFAULT.into_iter().chain(more_ports).collect();
        Self { private, ports, names: Names::system() }
    }

    /// The same guard with other answers for names.
    pub fn with_names(self, names: Names) -> Self {
        Self { names, ..self }
    }

    /// The addresses of a host that may be connected to on this port, best first; at least one. Takes at most 12 seconds.
    pub async fn resolve(&self, host: &Host, port: u16) -> Result<Vec<SocketAddr>, Refusal> {
        // Before anything is looked up: a lookup is a message to whoever owns the name.
        self.check_port(host, port)?;
        let is_open = self.ports.contains(&port);
        let addresses = self.addresses(host).await?;
        let allowed = |address: IpAddr, by_address_only: bool| {
            self.private.allow(host, address, port, is_open, by_address_only)
        };
        let addresses = judge(host, &addresses, |kind, address| match kind {
            // The port may be open for other addresses only.
            Kind::Public => is_open || allowed(address, false),
            Kind::Special(_) => allowed(address, false),
            Kind::Metadata => allowed(address, true),
            Kind::Never(_) => false,
        });
        let addresses = addresses.map_err(|refusal| match refusal {
            Refusal::Address { kind: PUBLIC, .. } => Refusal::Port { host: host.clone(), port },
            refusal => refusal,
        })?;
        Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }

    /// Refuses what can be refused without a lookup: a port that is open for no address of the host and, if the host is an
    /// address, that address.
    pub(crate) fn check(&self, host: &Host, port: u16) -> Result<(), Refusal> {
        self.check_port(host, port)?;
        let is_open = self.ports.contains(&port);
        match host {
            // The resolver will not know the port, so what depends on addresses *and* port is refused here.
            Host::Name(_) if !self.private.may_be_any_address(host, port, is_open) => {
                Err(Refusal::Port { host: host.clone(), port })
            }
            Host::Name(_) => Ok(()),
            Host::Address(address) => judge(host, &[*address], |kind, address| match kind {
                Kind::Public => is_open || self.private.allow(host, address, port, is_open, false),
                Kind::Special(_) => self.private.allow(host, address, port, is_open, false),
                Kind::Metadata => self.private.allow(host, address, port, is_open, true),
                Kind::Never(_) => false,
            })
            .map(drop),
        }
    }

    /// As [`resolve`](Self::resolve) for a caller who is not told the port and has called [`check`](Self::check) with it.
    pub(crate) async fn resolve_checked(&self, host: &Host) -> Result<Vec<IpAddr>, Refusal> {
        let addresses = self.addresses(host).await?;
        judge(host, &addresses, |kind, address| match kind {
            Kind::Public => true,
            Kind::Special(_) => self.private.allow_on_unknown_port(host, address, false),
            Kind::Metadata => self.private.allow_on_unknown_port(host, address, true),
            Kind::Never(_) => false,
        })
    }

    fn check_port(&self, host: &Host, port: u16) -> Result<(), Refusal> {
        if self.ports.contains(&port) || self.private.may_open(host, port) {
            return Ok(());
        }
        Err(Refusal::Port { host: host.clone(), port })
    }

    async fn addresses(&self, host: &Host) -> Result<Vec<IpAddr>, Refusal> {
        let name = match host {
            Host::Address(address) => return Ok(vec![*address]),
            Host::Name(name) => name,
        };
        // By definition, whatever a resolver says.
        if name == "localhost" || name.ends_with(".localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let unresolved = |reason: String| Refusal::Unresolved { host: host.clone(), reason };
        let found = timeout(LOOKUP_TIME_MAX, self.names.look_up(name))
            .await
            .map_err(|_| Refusal::LookupTimeout { host: host.clone() })?
            .map_err(|error| unresolved(error.to_string()))?;
        if found.is_empty() {
            return Err(unresolved("it has no address".to_owned()));
        }
        Ok(found.into_iter().map(|address| address.to_canonical()).collect())
    }
}

/// What a refused address is called when it is public: then it was the port.
const PUBLIC: &str = "a public address";

/// The good ones of the addresses, each once; the reason why the first is not good if none is.
fn judge(
    host: &Host,
    addresses: &[IpAddr],
    is_good: impl Fn(Kind, IpAddr) -> bool,
) -> Result<Vec<IpAddr>, Refusal> {
    let mut good = Vec::new();
    for &address in addresses {
        if good.len() < ADDRESSES_MAX && !good.contains(&address) && is_good(kind_here(address), address) {
            good.push(address);
        }
    }
    match (good.is_empty(), addresses.first()) {
        (true, Some(&address)) => {
            let (kind, can_be_allowed) = match kind_here(address) {
                Kind::Public => (PUBLIC, true),
                Kind::Special(kind) => (kind, true),
                Kind::Metadata => ("a cloud's metadata service", false),
                Kind::Never(kind) => (kind, false),
            };
            Err(Refusal::Address { host: host.clone(), address, kind, can_be_allowed })
        }
        (true, None) | (false, _) => Ok(good),
    }
}

/// The kind of an address as seen from this machine: its own are reached past whatever stands before them for others.
fn kind_here(address: IpAddr) -> Kind {
    match kind(address) {
        Kind::Public if is_own(address) => Kind::Special("an address of this machine"),
        kind => kind,
    }
}

/// Whether an address is one of this machine's: then it is where packets to it would come from. Sends nothing.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    // What has no route is not here.
    source.is_ok_and(|source| source.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_this_machine_is_told_from_others() {
        for (address, expected) in [("127.0.0.1", true), ("8.8.8.8", false), ("2001:4860:4860::8888", false)]
        {
            assert_eq!(is_own(address.parse().unwrap()), expected, "{address}");
        }
        let route = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
            socket.connect("8.8.8.8:9")?;
            socket.local_addr()
        });
        if let Ok(ours) = route {
            assert!(is_own(ours.ip()), "{ours}");
        }
    }
}
