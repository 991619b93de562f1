//! Which addresses are not public.
//!
//! IPv4 by a list of what is special, from the IANA registry; IPv6 the other way round: only `2000::/3` is handed out to
//! the public, so everything else is refused, and inside it what is special. An address that carries an IPv4 address which
//! some machine on the way would unpack is judged by that one, or refused whole where the form has no use any more.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What kind of address this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Anybody's.
    Public,
    /// Not public; an operator may allow it. The text completes "it leads to …".
    Special(&'static str),
    /// It answers with the machine's own credentials. An operator may allow it only by writing this very address.
    Metadata,
    /// It is no address of one machine, or it is this machine in disguise. Nobody may allow it.
    Never(&'static str),
}

/// Addresses at which clouds tell a machine its credentials or serve its agent. `169.254.169.254` is shared by most;
/// `169.254.170.2` and `.23` serve containers and pods; `100.100.100.200` and `192.0.0.192` are two clouds' own;
/// `168.63.129.16` looks public and is not.
const METADATA_V4: [Ipv4Addr; 6] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(168, 63, 129, 16),
];

/// The same, in IPv6.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// The kind of an address.
pub(crate) fn kind(address: IpAddr) -> Kind {
    match address.to_canonical() {
        IpAddr::V4(address) => kind_v4(address),
        IpAddr::V6(address) => kind_v6(address),
    }
}

fn kind_v4(address: Ipv4Addr) -> Kind {
    if METADATA_V4.contains(&address) {
        return Kind::Metadata;
    }
    match address.octets() {
        [0, ..] => Kind::Never("an unspecified address"),
        [224..=239, ..] => Kind::Never("a multicast address"),
        [255, 255, 255, 255] => Kind::Never("the broadcast address"),
        [240..=255, ..] => Kind::Special("a reserved address"),
        [127, ..] => Kind::Special("a loopback address"),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Kind::Special("a private address"),
        [100, 64..=127, ..] => Kind::Special("a carrier's shared address"),
        [169, 254, ..] => Kind::Special("a link-local address"),
        [192, 0, 0, _] => Kind::Special("a protocol's own address"),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Kind::Special("a documentation address"),
        [192, 88, 99, _] => Kind::Special("a 6to4 relay"),
        [198, 18..=19, ..] => Kind::Special("a benchmark address"),
        _ => Kind::Public,
    }
}

fn kind_v6(address: Ipv6Addr) -> Kind {
    if METADATA_V6.contains(&address) {
        return Kind::Metadata;
    }
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Kind::Special("a loopback address"),
        // Unspecified, and IPv4-compatible addresses, which nothing has used for twenty years.
        [0, 0, 0, 0, 0, 0, ..] => Kind::Never("an unspecified or IPv4-compatible address"),
        // NAT64 by its well-known prefix: where a network translates, every IPv4 host has this form, so the one inside decides.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => match kind_v4(v4(high, low)) {
            Kind::Special(_) | Kind::Metadata => Kind::Never("NAT64 of a forbidden address"),
            public_or_never => public_or_never,
        },
        [0x64, 0xff9b, 1, ..] => Kind::Special("a network's own NAT64"),
        [0xff00..=0xffff, ..] => Kind::Never("a multicast address"),
        [0xfc00..=0xfdff, ..] => Kind::Special("a private address"),
        [0xfe80..=0xfebf, ..] => Kind::Special("a link-local address"),
        [0xfec0..=0xfeff, ..] => Kind::Special("a site-local address"),
        [0x2001, 0, ..] => Kind::Never("a Teredo address"),
        // The rest of the block for protocols: benchmark, ORCHID, and anycast of protocols that no web host speaks.
        [0x2001, 1..=0x1ff, ..] => Kind::Special("a protocol's own address"),
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Kind::Special("a documentation address"),
        [0x2002, ..] => Kind::Never("a 6to4 address"),
        // ISATAP: an IPv4 address in the lower half, under any prefix.
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] if kind_v4(v4(high, low)) != Kind::Public => {
            Kind::Never("ISATAP of a forbidden address")
        }
        [0x2000..=0x3fff, ..] => Kind::Public,
        _ => Kind::Special("a reserved address"),
    }
}

fn v4(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))
}
