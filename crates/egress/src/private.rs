//! What an operator allows although it is not public.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::host::{Host, Pattern};

/// More entries are a mistake; each is compared with each address.
const ENTRIES_MAX: usize = 1_000;

/// Hosts, addresses and ranges that may be reached although they are not public, and ports of them that may be reached
/// although they are not open for all.
///
/// Written as a list separated by commas or white space. An entry is a host name, `*.` and a domain, an address, or a range
/// (`10.1.0.0/16`), each optionally with a port (`registry.corp:5000`, `10.1.0.0/16:8443`, `[fd00::1]:443`,
/// `[fd00::/8]:443`). An entry by name allows whatever that name resolves to. An entry with a port allows that port only,
/// and opens it; one without allows the ports that are open for all.
///
/// Two things no entry of a wider kind allows: addresses of cloud metadata services, which need an entry with that very
/// address; and unspecified, multicast, broadcast, Teredo, 6to4 and disguised IPv4 addresses, which nothing allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrivateHosts {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    what: What,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Name(Pattern),
    /// The first address, and how many leading bits count.
    Range(IpAddr, u8),
}

/// Which entry of the list is wrong, and by which rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{entry}` is no host that may be allowed: {rule}")]
pub struct EntryError {
    /// The entry as written.
    pub entry: String,
    /// The rule that it breaks.
    pub rule: String,
}

impl PrivateHosts {
    /// True if nothing is allowed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// True if the port is opened for this host, or may turn out to be once its addresses are known.
    pub(crate) fn may_open(&self, host: &Host, port: u16) -> bool {
        self.entries.iter().any(|entry| {
            entry.port == Some(port)
                && match (&entry.what, host) {
                    (What::Name(pattern), host) => pattern.covers(host),
                    (What::Range(..), Host::Address(address)) => entry.what.holds(*address),
                    (What::Range(..), Host::Name(_)) => true,
                }
        })
    }

    /// True if an entry allows this address, as what `host` resolves to. `is_open` is whether the port is open for all;
    /// `by_address_only` is for addresses that only an entry with that very address allows.
    pub(crate) fn allow(
        &self,
        host: &Host,
        address: IpAddr,
        port: u16,
        is_open: bool,
        by_address_only: bool,
    ) -> bool {
        self.entries.iter().any(|entry| {
            let is_port = match entry.port {
                Some(only) => only == port,
                None => is_open,
            };
            let is_covered = match &entry.what {
                What::Name(pattern) => !by_address_only && pattern.covers(host),
                What::Range(_, bits) if by_address_only && *bits < bits_max(&address) => false,
                What::Range(..) => entry.what.holds(address),
            };
            is_port && is_covered
        })
    }

    /// True if, on this port, no address that the name may have needs an entry with a port of another host. For a caller
    /// who will not know the port when he knows the addresses: the port is open for all and the name is not listed for
    /// other ports only, or the name itself is listed with this port.
    pub(crate) fn may_be_any_address(&self, host: &Host, port: u16, is_open: bool) -> bool {
        let mut is_listed = false;
        for entry in &self.entries {
            let What::Name(pattern) = &entry.what else { continue };
            if pattern.covers(host) {
                match entry.port {
                    Some(only) if only == port => return true,
                    None if is_open => return true,
                    Some(_) | None => is_listed = true,
                }
            }
        }
        is_open && !is_listed
    }

    /// As [`allow`](Self::allow) for a caller who does not know the port and has asked
    /// [`may_be_any_address`](Self::may_be_any_address) before: ranges count only without a port.
    pub(crate) fn allow_on_unknown_port(&self, host: &Host, address: IpAddr, by_address_only: bool) -> bool {
        self.entries.iter().any(|entry| match &entry.what {
            What::Name(pattern) => !by_address_only && pattern.covers(host),
            What::Range(_, bits) if by_address_only && *bits < bits_max(&address) => false,
            What::Range(..) => entry.port.is_none() && entry.what.holds(address),
        })
    }
}

impl What {
    fn holds(&self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::Range(IpAddr::V4(first), bits), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(*bits)).unwrap_or(0);
                first.to_bits() == address.to_bits() & mask
            }
            (Self::Range(IpAddr::V6(first), bits), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(*bits)).unwrap_or(0);
                first.to_bits() == address.to_bits() & mask
            }
            (Self::Range(..), _) | (Self::Name(_), _) => false,
        }
    }
}

fn bits_max(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl FromStr for PrivateHosts {
    type Err = EntryError;

    fn from_str(text: &str) -> Result<Self, EntryError> {
        let entries = text
            .split(|letter: char| letter == ',' || letter.is_whitespace())
            .filter(|entry| !entry.is_empty())
            .map(entry)
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(entry) = entries.get(ENTRIES_MAX) {
            let rule = format!("at most {ENTRIES_MAX} entries are allowed");
            return Err(EntryError { entry: entry.to_string(), rule });
        }
        Ok(Self { entries })
    }
}

fn entry(text: &str) -> Result<Entry, EntryError> {
    let bad = |rule: &str| EntryError { entry: text.to_owned(), rule: rule.to_owned() };
    let (what, port) = if let Some(rest) = text.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or_else(|| bad("the bracket is not closed"))?;
        let port = match after.strip_prefix(':') {
            Some(port) => Some(port),
            None if after.is_empty() => None,
            None => return Err(bad("after the bracket only `:` and a port may follow")),
        };
        (inside, port)
    } else if text.matches(':').count() > 1 {
        let (_, after) = text.split_once('/').unwrap_or((text, ""));
        if after.contains(':') {
            return Err(bad("an IPv6 range with a port is written `[fd00::/8]:443`"));
        }
        (text, None)
    } else if let Some((what, port)) = text.split_once(':') {
        (what, Some(port))
    } else {
        (text, None)
    };
    let port = match port {
        None => None,
        Some(port) => {
            let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port.parse::<u16>().ok().filter(|port| is_number && *port > 0);
            Some(port.ok_or_else(|| bad("a port is a number from 1 to 65535"))?)
        }
    };
    Ok(Entry { what: what_of(what).map_err(|rule| bad(&rule))?, port })
}

fn what_of(text: &str) -> Result<What, String> {
    if let Some((first, bits)) = text.split_once('/') {
        let first: IpAddr =
            first.parse().map_err(|_| "a range is an address, `/` and a number of bits".to_owned())?;
        let bits_max = bits_max(&first);
        let bits = bits
            .parse::<u8>()
            .ok()
            .filter(|number| *number <= bits_max && number.to_string() == bits)
            .ok_or_else(|| format!("the number of bits is from 0 to {bits_max}"))?;
        if first != first.to_canonical() {
            return Err("write a range of IPv4 addresses as IPv4".to_owned());
        }
        let range = What::Range(first, bits);
        if !range.holds(first) {
            return Err(format!(
                "the address has bits beyond the first {bits}; write the first of the range"
            ));
        }
        return Ok(range);
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        let address = address.to_canonical();
        return Ok(What::Range(address, bits_max(&address)));
    }
    match text.parse::<Pattern>() {
        Ok(Pattern::Exact(Host::Address(address))) => Ok(What::Range(address, bits_max(&address))),
        Ok(pattern) => Ok(What::Name(pattern)),
        Err(_) => Err("it is neither a host name, `*.` and a domain, an address, nor a range".to_owned()),
    }
}

impl fmt::Display for PrivateHosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, entry) in self.entries.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{entry}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match &self.what {
            What::Name(pattern) => pattern.to_string(),
            What::Range(first, bits) if *bits == bits_max(first) => first.to_string(),
            What::Range(first, bits) => format!("{first}/{bits}"),
        };
        match self.port {
            None => f.write_str(&what),
            Some(port) if what.contains(':') => write!(f, "[{what}]:{port}"),
            Some(port) => write!(f, "{what}:{port}"),
        }
    }
}

impl Serialize for PrivateHosts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.entries.iter().map(Entry::to_string))
    }
}

impl<'de> Deserialize<'de> for PrivateHosts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<String>::deserialize(deserializer)?.join(",").parse().map_err(de::Error::custom)
    }
}
