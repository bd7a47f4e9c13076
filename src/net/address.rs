//! Which addresses may be connected to (`remoteNetworks`), and which are this
//! mail system's own (`ownAddresses`, `allowSelfPoll`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::domain::work::{Network, Settings};

/// The rule for addresses of remote hosts. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct AddressPolicy {
    allow: Arc<[Network]>,
    deny: Arc<[Network]>,
    own: Arc<[Network]>,
    own_names: Arc<[Arc<str>]>,
    allow_self: bool,
}

/// Why an address may not be polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is one of our own.
    SelfPoll,
    /// `remoteNetworks` forbids it.
    Network,
}

impl AddressPolicy {
    /// The rule as the settings give it. Names among `ownAddresses` are
    /// compared as names; to have their addresses refused as well, resolve
    /// [`Self::own_names`] and add them by [`Self::with_own`].
    pub fn new(settings: &Settings) -> Self {
        let mut own = Vec::new();
        let mut names: Vec<Arc<str>> = Vec::new();
        for text in &settings.own_addresses {
            match Network::parse(text.trim_start_matches('[').trim_end_matches(']')) {
                Some(network) => own.push(network),
                None => names.push(Arc::clone(text)),
            }
        }
        Self {
            allow: settings.allow_networks.clone().into(),
            deny: settings.deny_networks.clone().into(),
            own: own.into(),
            own_names: names.into(),
            allow_self: settings.allow_self_poll,
        }
    }

    /// Adds addresses that are our own, as those the deliveries resolve to.
    #[must_use]
    pub fn with_own(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut own = self.own.to_vec();
        for address in addresses {
            let address = address.to_canonical();
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            if !own.iter().any(|network| network.contains(address)) {
                own.push(Network { address, prefix });
            }
        }
        self.own = own.into();
        self
    }

    /// Adds hosts that are our own: names are kept, address literals are added
    /// as such.
    #[must_use]
    pub fn with_own_names<'a>(mut self, hosts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut names = self.own_names.to_vec();
        let mut literals = Vec::new();
        for host in hosts {
            match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
                Ok(address) => literals.push(address),
                Err(_) if names.iter().any(|name| **name == *host) => {}
                Err(_) => names.push(host.into()),
            }
        }
        self.own_names = names.into();
        self.with_own(literals)
    }

    /// Adds the addresses of this host's network interfaces. Where they cannot
    /// be listed, loopback is still known as our own.
    #[must_use]
    pub fn with_interfaces(self) -> Self {
        let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
        self.with_own(interfaces.iter().map(if_addrs::Interface::ip))
    }

    /// The names among `ownAddresses`.
    pub fn own_names(&self) -> &[Arc<str>] {
        &self.own_names
    }

    /// Whether own addresses are refused at all.
    pub fn guards_self(&self) -> bool {
        !self.allow_self
    }

    /// Judges a host by its name alone.
    ///
    /// # Errors
    /// [`Refusal::SelfPoll`] for a name in `ownAddresses`.
    pub fn check_name(&self, host: &str) -> Result<(), Refusal> {
        let bare = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
        if !self.allow_self && self.own_names.iter().any(|own| bare(own) == bare(host)) {
            return Err(Refusal::SelfPoll);
        }
        Ok(())
    }

    /// Judges one address. An IPv4 address inside an IPv6 one (mapped, or
    /// behind NAT64, RFC 6052) is judged as well.
    ///
    /// # Errors
    /// See [`Refusal`]; being our own comes first.
    pub fn check(&self, address: IpAddr) -> Result<(), Refusal> {
        let address = address.to_canonical();
        if !self.allow_self && self.is_own(address) {
            return Err(Refusal::SelfPoll);
        }
        let inner = nat64(address).map(IpAddr::V4);
        let within = |list: &[Network]| {
            list.iter().any(|network| {
                network.contains(address) || inner.is_some_and(|inner| network.contains(inner))
            })
        };
        if within(&self.deny) || !(self.allow.is_empty() || within(&self.allow)) {
            return Err(Refusal::Network);
        }
        Ok(())
    }

    /// `0.0.0.0` and `::` reach this host on the systems we run on.
    fn is_own(&self, address: IpAddr) -> bool {
        address.is_loopback()
            || address.is_unspecified()
            || self.own.iter().any(|network| network.contains(address))
    }
}

/// The IPv4 address in `64:ff9b::/96`.
fn nat64(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = address else { return None };
    let prefix = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);
    let low = u32::try_from(v6.to_bits() & u128::from(u32::MAX)).ok()?;
    (v6.to_bits() >> 32 == prefix.to_bits() >> 32).then(|| Ipv4Addr::from_bits(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn networks(list: &[&str]) -> Vec<Network> {
        list.iter().map(|text| Network::parse(text).unwrap()).collect()
    }

    #[test]
    fn own_addresses_are_refused_in_every_disguise() {
        // quirks: "A loop through our own trace header, ... self-poll through an alias name or an IP address."
        let settings = Settings {
            own_addresses: vec!["203.0.113.0/28".into(), "[2001:db8::25]".into(), "Mail.Example.COM".into()],
            ..Settings::default()
        };
        let policy = AddressPolicy::new(&settings).with_own([ip("::ffff:198.51.100.7")]);
        for own in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "0.0.0.0",
            "::",
            "::ffff:127.0.0.1",
            "203.0.113.5",
            "::ffff:203.0.113.5",
            "2001:db8::25",
            "198.51.100.7",
        ] {
            assert_eq!(policy.check(ip(own)), Err(Refusal::SelfPoll), "{own}");
        }
        assert_eq!(policy.check(ip("203.0.113.16")), Ok(()));
        assert_eq!(policy.check_name("mail.example.com."), Err(Refusal::SelfPoll));
        assert_eq!(policy.check_name("pop.example.com"), Ok(()));
    }

    #[test]
    fn allow_self_poll_lifts_the_guard_and_nothing_else() {
        let settings = Settings {
            allow_self_poll: true,
            deny_networks: networks(&["127.0.0.2/32"]),
            own_addresses: vec!["me.example".into()],
            ..Settings::default()
        };
        let policy = AddressPolicy::new(&settings);
        assert_eq!(policy.check(ip("127.0.0.1")), Ok(()));
        assert_eq!(policy.check_name("me.example"), Ok(()));
        assert_eq!(policy.check(ip("127.0.0.2")), Err(Refusal::Network));
    }

    #[test]
    fn deny_wins_over_allow_also_for_mapped_and_nat64_addresses() {
        let settings = Settings {
            allow_networks: networks(&["10.0.0.0/8", "64:ff9b::/96"]),
            deny_networks: networks(&["10.1.0.0/16", "169.254.0.0/16"]),
            ..Settings::default()
        };
        let policy = AddressPolicy::new(&settings);
        assert_eq!(policy.check(ip("10.2.0.1")), Ok(()));
        assert_eq!(policy.check(ip("10.1.0.1")), Err(Refusal::Network));
        assert_eq!(policy.check(ip("::ffff:10.1.0.1")), Err(Refusal::Network));
        assert_eq!(policy.check(ip("192.0.2.1")), Err(Refusal::Network));
        assert_eq!(policy.check(ip("64:ff9b::169.254.169.254")), Err(Refusal::Network));
    }

    #[test]
    fn this_hosts_interfaces_are_own() {
        let policy = AddressPolicy::new(&Settings::default()).with_interfaces();
        for interface in if_addrs::get_if_addrs().unwrap() {
            assert_eq!(policy.check(interface.ip()), Err(Refusal::SelfPoll));
        }
    }
}
