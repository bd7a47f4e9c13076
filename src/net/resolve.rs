//! Names to addresses, by the system's resolver.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;

use tokio::sync::Semaphore;

/// Addresses of one name that are looked at; more are of no use.
const MOST_ADDRESSES: usize = 32;

/// Lookups at one time. getaddrinfo cannot be cancelled, so a lookup that was
/// given up keeps its permit until the system lets it go: slow name servers
/// cannot take the whole blocking pool.
pub(super) const LOOKUPS: usize = 64;

/// The addresses of `host`; a literal needs no lookup.
pub(super) async fn resolve(lookups: &Arc<Semaphore>, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if bare.is_empty() || bare.len() > 255 || bare.contains('\0') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a host name"));
    }
    let permit = Arc::clone(lookups).acquire_owned().await.map_err(io::Error::other)?;
    let name = bare.to_owned();
    let found = tokio::task::spawn_blocking(move || {
        let found = (name.as_str(), port).to_socket_addrs().map(|list| {
            let mut unique: Vec<SocketAddr> = Vec::new();
            for address in list.take(MOST_ADDRESSES) {
                if !unique.contains(&address) {
                    unique.push(address);
                }
            }
            unique
        });
        drop(permit);
        found
    })
    .await
    .map_err(io::Error::other)??;
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no addresses"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn literals_need_no_resolver() {
        let none = Arc::new(Semaphore::new(0));
        let v6 = resolve(&none, "[2001:db8::1]", 995).await.unwrap();
        assert_eq!(v6, ["[2001:db8::1]:995".parse().unwrap()]);
        let v4 = resolve(&none, "192.0.2.1", 110).await.unwrap();
        assert_eq!(v4, ["192.0.2.1:110".parse().unwrap()]);
    }

    #[tokio::test]
    async fn names_are_looked_up_once_each_and_nonsense_is_refused() {
        let lookups = Arc::new(Semaphore::new(LOOKUPS));
        let found = resolve(&lookups, "localhost", 110).await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()));
        // An empty label: the resolver refuses it without asking anybody.
        assert!(resolve(&lookups, "no-such-host..invalid", 110).await.is_err());
        assert!(resolve(&lookups, "a\0b", 110).await.is_err());
        assert_eq!(lookups.available_permits(), LOOKUPS);
    }
}
