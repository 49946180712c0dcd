//! Our addresses, and by which neighbour a destination is reached.
//!
//! On link if it shares a prefix with one of our addresses, else by the gateway of its family,
//! else unroutable. The longest prefix wins.

use std::net::IpAddr;

/// One of our addresses, with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// The address.
    pub ip: IpAddr,
    /// Bits that its network has in common.
    pub prefix: u8,
}

/// How to reach a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The neighbour to send to.
    pub next_hop: IpAddr,
    /// The address of ours to send from.
    pub source: IpAddr,
}

/// Our addresses and gateways.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    addresses: Vec<Cidr>,
    gateways: Vec<IpAddr>,
}

/// An address or gateway that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// Longer than the address.
    #[error("prefix length {} is too long for {}", .0.prefix, .0.ip)]
    Prefix(Cidr),
    /// Not an address of a single interface.
    #[error("{0} cannot be an interface address")]
    NotUnicast(IpAddr),
    /// No address of ours is in the gateway's network.
    #[error("gateway {0} is not on the link of any of our addresses")]
    GatewayOffLink(IpAddr),
}

impl Routes {
    /// Adds one of our addresses.
    ///
    /// # Errors
    /// [`RouteError::Prefix`], [`RouteError::NotUnicast`].
    pub fn add_address(&mut self, address: Cidr) -> Result<(), RouteError> {
        let bits = if address.ip.is_ipv4() { 32 } else { 128 };
        if address.prefix > bits {
            return Err(RouteError::Prefix(address));
        }
        if !is_unicast(address.ip) {
            return Err(RouteError::NotUnicast(address.ip));
        }
        self.addresses.push(address);
        Ok(())
    }

    /// Sets the gateway of its family, which must be on link.
    ///
    /// # Errors
    /// [`RouteError::GatewayOffLink`].
    pub fn set_gateway(&mut self, gateway: IpAddr) -> Result<(), RouteError> {
        if self.on_link(gateway).is_none() {
            return Err(RouteError::GatewayOffLink(gateway));
        }
        self.gateways.retain(|old| old.is_ipv4() != gateway.is_ipv4());
        self.gateways.push(gateway);
        Ok(())
    }

    /// Whether `ip` is one of our addresses.
    pub fn is_ours(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|address| address.ip == ip)
    }

    /// How to reach `destination`; `None` if there is no way.
    pub fn to(&self, destination: IpAddr) -> Option<Route> {
        if !is_unicast(destination) || self.is_ours(destination) {
            return None;
        }
        let mut next_hop = destination;
        let mut source = self.on_link(destination);
        if source.is_none() {
            let same = |gateway: &&IpAddr| gateway.is_ipv4() == destination.is_ipv4();
            next_hop = *self.gateways.iter().find(same)?;
            source = self.on_link(next_hop);
        }
        source.map(|source| Route { next_hop, source })
    }

    /// Our address in the network of `ip`.
    fn on_link(&self, ip: IpAddr) -> Option<IpAddr> {
        let near = |address: &&Cidr| common_prefix(address.ip, ip) >= u32::from(address.prefix);
        let same = |address: &&Cidr| address.ip.is_ipv4() == ip.is_ipv4();
        let candidates = self.addresses.iter().filter(same).filter(near);
        // `rev`, for the first of several equals.
        candidates.rev().max_by_key(|address| address.prefix).map(|address| address.ip)
    }
}

/// Whether `ip` can name one machine.
pub fn is_unicast(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(broadcast || ip.is_multicast() || ip.is_unspecified() || ip.is_loopback())
}

/// Leading bits that two addresses share; 0 for different families.
pub fn common_prefix(a: IpAddr, b: IpAddr) -> u32 {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn routes() -> Routes {
        let mut routes = Routes::default();
        for (text, prefix) in [("10.0.0.1", 8), ("10.0.7.1", 24), ("fd00::1", 64)] {
            routes.add_address(Cidr { ip: ip(text), prefix }).unwrap();
        }
        routes
    }

    fn hop(next_hop: &str, source: &str) -> Option<Route> {
        Some(Route { next_hop: ip(next_hop), source: ip(source) })
    }

    #[test]
    fn longest_prefix_wins() {
        let routes = routes();
        assert_eq!(routes.to(ip("10.0.7.9")), hop("10.0.7.9", "10.0.7.1"));
        assert_eq!(routes.to(ip("10.0.8.9")), hop("10.0.8.9", "10.0.0.1"));
        assert_eq!(routes.to(ip("fd00::9")), hop("fd00::9", "fd00::1"));
    }

    #[test]
    fn gateway_serves_its_family_only() {
        let mut routes = routes();
        assert_eq!(routes.to(ip("192.0.2.1")), None);
        routes.set_gateway(ip("10.0.7.254")).unwrap();
        assert_eq!(routes.to(ip("192.0.2.1")), hop("10.0.7.254", "10.0.7.1"));
        assert_eq!(routes.to(ip("2001:db8::1")), None);
        assert_eq!(
            routes.set_gateway(ip("192.0.2.254")),
            Err(RouteError::GatewayOffLink(ip("192.0.2.254")))
        );
    }

    #[test]
    fn what_names_no_machine_is_unroutable() {
        let routes = routes();
        for text in ["255.255.255.255", "224.0.0.1", "0.0.0.0", "127.0.0.1", "::", "ff02::1"] {
            assert_eq!(routes.to(ip(text)), None, "{text}");
        }
        assert_eq!(routes.to(ip("10.0.7.1")), None, "ourselves");
    }

    #[test]
    fn impossible_addresses_are_refused() {
        let mut routes = Routes::default();
        let long = Cidr { ip: ip("10.0.0.1"), prefix: 33 };
        assert_eq!(routes.add_address(long), Err(RouteError::Prefix(long)));
        let group = Cidr { ip: ip("224.0.0.1"), prefix: 4 };
        assert_eq!(routes.add_address(group), Err(RouteError::NotUnicast(group.ip)));
    }
}
