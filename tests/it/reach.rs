//! From where hosts are connected to, and which may be: as the server at the
//! other end sees it.

use crate::support::dovecot::Dovecot;
use crate::support::manifest::{self, Record};
use crate::support::pop3::Pop3;
use crate::support::rig::Rig;
use crate::support::rpop::{self, Site};
use crate::support::wait_until;

/// The peers that Dovecot's log names for logins of `user`.
fn peers(provider: &Dovecot, user: &str) -> Vec<String> {
    let log = provider.log();
    let logins =
        log.lines().filter(|line| line.contains("Login: ") && line.contains(&format!("user=<{user}>")));
    logins.filter_map(|line| Some(line.split("rip=").nth(1)?.split(',').next()?.to_owned())).collect()
}

/// The domain of a record says from where it is polled, and each family of
/// addresses has its own; other domains' records go from the settings' address.
#[test]
fn each_domains_records_are_polled_from_its_own_addresses() {
    let test = "each_domains_records_are_polled_from_its_own_addresses";
    let Some(provider) = Dovecot::start(test) else { return };
    let users = ["alice", "bob", "carol", "dora"];
    provider.add(users);
    for user in users {
        provider.inbox(user).fill_generated(user, 2, 500);
    }
    let six = std::net::TcpListener::bind("[::1]:0").is_ok();
    let site = Site::for_delivery(&rpop::lmtp(provider.lmtp));
    let domain = |name: &str, more: &str| {
        let yaml =
            manifest::domain(name, &rpop::lmtp(provider.lmtp)).replace("spec:", &format!("spec:\n  {more}"));
        site.write(&format!("domain-{name}.yaml"), &yaml);
    };
    domain("five.test", "assignedAddresses: [127.0.0.5, \"::1\", 127.0.0.6]\n  useForOutgoing: true");
    domain("six.test", "assignedAddresses: [127.0.0.6]");
    site.settings(&["useDomainAddresses: true", "sourceAddress: 127.0.0.9"]);
    let at = |name: &str, user: &str, domain: &str, host: &str| {
        let record = Record::plain(name, provider.pop3, user).to(&format!("{user}@{domain}"));
        site.record(&Record { host: format!("{host}:{}", provider.pop3), ..record });
    };
    at("a", "alice", "five.test", "127.0.0.1");
    at("b", "bob", "six.test", "127.0.0.1");
    at("c", "carol", "local.test", "127.0.0.1");
    if six {
        at("d", "dora", "five.test", "[::1]");
    }
    site.once().expect(0);
    assert_eq!(peers(&provider, "alice"), ["127.0.0.5"]);
    assert_eq!(peers(&provider, "bob"), ["127.0.0.9"], "its domain does not offer its addresses");
    assert_eq!(peers(&provider, "carol"), ["127.0.0.9"]);
    if six {
        assert_eq!(peers(&provider, "dora"), ["::1"]);
    }

    // Live: without useDomainAddresses the settings' address is for all.
    let mut running = site.start(&[]);
    running.wait_to_say("polls");
    site.settings(&["sourceAddress: 127.0.0.8"]);
    running.wait_to_say("useForOutgoing has no effect: RpopSettings has useDomainAddresses off");
    wait_until("a login from the other address", || {
        peers(&provider, "alice").last().is_some_and(|peer| peer == "127.0.0.8")
    });
    drop(running);
}

/// An address that this machine lacks is an error on the records that want it;
/// no other one is taken, and no other record is disturbed.
#[test]
fn an_address_that_is_not_ours_is_never_replaced_by_another() {
    let rig = Rig::new(Pop3::new().generated("m", 3, 300));
    let domain = manifest::domain("far.test", &rpop::lmtp(rig.sink.port()))
        .replace("spec:", "spec:\n  assignedAddresses: [192.0.2.77]\n  useForOutgoing: true");
    rig.site.write("domain-far.yaml", &domain);
    rig.site.settings(&["useDomainAddresses: true"]);
    let other = Pop3::new().generated("o", 3, 300).start();
    rig.site.record(&Record::plain("far", other.port(), "alice").to("alice@far.test"));
    let run = rig.poll().expect(1);
    run.says("mail/far: SourceAddressUnavailable: the source address 192.0.2.77 cannot be used");
    run.says("no network interface of this host has it");
    assert_eq!((other.sessions(), rig.sink.accepted()), (0, 3));
    // Of the other family: the host has no address of it.
    rig.site.write("domain-far.yaml", &domain.replace("192.0.2.77", "\"2001:db8::77\""));
    let run = rig.poll().expect(1);
    run.says("the host has only IPv4 addresses");
    assert_eq!(other.sessions(), 0);
    // One that is there, in the place of the host's own family.
    rig.site.write("domain-far.yaml", &domain.replace("192.0.2.77", "\"2001:db8::77\", 127.0.0.7"));
    rig.poll().expect(0);
    assert_eq!((other.sessions(), rig.sink.accepted()), (1, 6));
}

#[test]
fn addresses_that_cannot_be_are_refused_with_what_to_write() {
    let rig = Rig::new(Pop3::new());
    let check = |says: &str| {
        let run = rig.site.rpop(&["check", "-f", rig.site.manifests().to_str().unwrap()]).expect(2);
        run.says(says);
    };
    let domain = |more: &str| {
        let yaml = manifest::domain("far.test", &rpop::lmtp(1)).replace("spec:", &format!("spec:\n  {more}"));
        rig.site.write("domain-far.yaml", &yaml);
    };
    domain("useForOutgoing: true");
    check("useForOutgoing needs assignedAddresses");
    for wrong in ["eth0", "\"[::1]\"", "0.0.0.0", "\"::\"", "10.0.0.0/8"] {
        domain(&format!("assignedAddresses: [{wrong}]"));
        check("write IP addresses of this host, without brackets");
    }
}
