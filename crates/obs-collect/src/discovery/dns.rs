//! Targets from DNS records: SRV, A, AAAA, MX and NS, asked of the servers of `/etc/resolv.conf`.

use super::{Report, rest};
use crate::config::DnsSd;
use crate::target::TargetGroup;
use hickory_resolver::TokioResolver;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use obs_model::{Labels, LabelsBuilder};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Asks for the names until it is stopped. A name that is not there has no targets; where no server
/// answers those of before stay.
pub(super) async fn run(c: DnsSd, report: Report, stop: CancellationToken) {
    let mut known: BTreeMap<String, TargetGroup> = BTreeMap::new();
    loop {
        match resolver() {
            Ok(r) => {
                for name in &c.names {
                    match lookup(&r, &c, name).await {
                        Ok(group) => drop(known.insert(name.clone(), group)),
                        Err(e) => tracing::warn!(name, error = %e, "name was not resolved"),
                    }
                }
            }
            Err(e) => tracing::warn!(error = %e, "names cannot be resolved"),
        }
        report(known.values().cloned().collect());
        if !rest(&stop, c.refresh_interval.0.max(Duration::from_secs(1))).await {
            return;
        }
    }
}

/// Reads the system's settings anew; answers are not kept, as a refresh asks for news.
fn resolver() -> Result<TokioResolver, NetError> {
    let mut builder = TokioResolver::builder_tokio()?;
    builder.options_mut().cache_size = 0;
    builder.build()
}

async fn lookup(resolver: &TokioResolver, c: &DnsSd, name: &str) -> Result<TargetGroup, NetError> {
    let kind = match c.kind.to_ascii_uppercase().as_str() {
        "A" => RecordType::A,
        "AAAA" => RecordType::AAAA,
        "MX" => RecordType::MX,
        "NS" => RecordType::NS,
        _ => RecordType::SRV,
    };
    let found = match resolver.lookup(name, kind).await {
        Ok(found) => found.answers().to_vec(),
        Err(e) if e.is_no_records_found() => Vec::new(),
        Err(e) => return Err(e),
    };
    let mut targets: Vec<Labels> =
        found.iter().filter_map(|r| target(&r.data, c.port, name)).collect();
    targets.sort();
    targets.dedup();
    Ok(TargetGroup { targets, labels: Labels::default() })
}

/// Returns the target that a record names; other records, such as aliases on the way, name none.
fn target(record: &RData, port: u16, name: &str) -> Option<Labels> {
    let host = |n: &Name| n.to_ascii().trim_end_matches('.').to_owned();
    let mut b = LabelsBuilder::default();
    b.push("__meta_dns_name", name);
    let address = match record {
        RData::A(ip) => format!("{}:{port}", ip.0),
        RData::AAAA(ip) => format!("[{}]:{port}", ip.0),
        RData::SRV(srv) => {
            let host = host(&srv.target);
            b.push("__meta_dns_srv_record_target", host.as_str());
            b.push("__meta_dns_srv_record_port", srv.port.to_string());
            format!("{host}:{}", srv.port)
        }
        RData::MX(mx) => {
            let host = host(&mx.exchange);
            b.push("__meta_dns_mx_record_target", host.as_str());
            format!("{host}:{port}")
        }
        RData::NS(ns) => {
            let host = host(&ns.0);
            b.push("__meta_dns_ns_record_target", host.as_str());
            format!("{host}:{port}")
        }
        _ => return None,
    };
    b.push("__address__", address);
    Some(b.build())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Span;
    use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
    use hickory_resolver::net::runtime::TokioRuntimeProvider;
    use std::net::Ipv4Addr;
    use tokio::net::UdpSocket;

    /// Answers every question with records, or with a code that says why not.
    async fn server(code: u8, records: Vec<(u16, Vec<u8>)>) -> TokioResolver {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = socket.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut buf = [0; 512];
            while let Ok((n, peer)) = socket.recv_from(&mut buf).await {
                // The question ends with the root's label, its type and its class.
                let end = 12 + buf[12..n].iter().position(|b| *b == 0).unwrap() + 5;
                let mut answer = buf[..end].to_vec();
                answer[2..12].copy_from_slice(&[
                    0x81,
                    0x80 | code,
                    0,
                    1,
                    0,
                    records.len() as u8,
                    0,
                    0,
                    0,
                    0,
                ]);
                for (kind, data) in &records {
                    answer.extend([0xc0, 12]);
                    answer.extend(kind.to_be_bytes());
                    answer.extend([0, 1, 0, 0, 0, 60]);
                    answer.extend((data.len() as u16).to_be_bytes());
                    answer.extend(data);
                }
                socket.send_to(&answer, peer).await.unwrap();
            }
        });
        let mut connection = ConnectionConfig::udp();
        connection.port = port;
        let ip = Ipv4Addr::LOCALHOST.into();
        let servers = vec![NameServerConfig::new(ip, true, vec![connection])];
        let config = ResolverConfig::from_name_servers(servers);
        let provider = TokioRuntimeProvider::default();
        let mut builder = TokioResolver::builder_with_config(config, provider);
        builder.options_mut().cache_size = 0;
        builder.options_mut().attempts = 0;
        builder.build().unwrap()
    }

    fn labels(of: &str) -> Vec<u8> {
        let label = |l: &str| [&[l.len() as u8], l.as_bytes()].concat();
        [of.split('.').flat_map(label).collect(), vec![0]].concat()
    }

    async fn found(kind: &str, code: u8, records: Vec<(u16, Vec<u8>)>) -> Result<String, NetError> {
        let c = DnsSd {
            names: vec![],
            kind: kind.into(),
            port: 9100,
            refresh_interval: Span(Duration::from_secs(30)),
        };
        let group = lookup(&server(code, records).await, &c, "_metrics._tcp.shop.test.").await?;
        Ok(group.targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    }

    #[tokio::test]
    async fn each_record_is_a_target() {
        let srv = |port: u16, host: &str| {
            (33, [&[0, 10, 0, 5][..], &port.to_be_bytes(), &labels(host)].concat())
        };
        let name = r#"__meta_dns_name="_metrics._tcp.shop.test.""#;
        let both = vec![srv(8080, "b.shop.test"), srv(8081, "a.shop.test")];
        assert_eq!(
            found("SRV", 0, both).await.unwrap(),
            [("a", 8081), ("b", 8080)]
                .map(|(host, port)| format!(r#"{{__address__="{host}.shop.test:{port}", {name}, __meta_dns_srv_record_port="{port}", __meta_dns_srv_record_target="{host}.shop.test"}}"#))
                .join(" ")
        );
        let a = vec![(5, labels("alias.test")), (1, vec![10, 0, 0, 7])];
        assert_eq!(
            found("a", 0, a).await.unwrap(),
            format!(r#"{{__address__="10.0.0.7:9100", {name}}}"#)
        );
        let mx = vec![(15, [vec![0, 1], labels("mail.test")].concat())];
        assert_eq!(
            found("MX", 0, mx).await.unwrap(),
            format!(
                r#"{{__address__="mail.test:9100", __meta_dns_mx_record_target="mail.test", {name}}}"#
            )
        );
        // A name that is not there has no targets; a server in trouble says nothing of it.
        assert_eq!(found("SRV", 3, vec![]).await.unwrap(), "");
        assert!(found("SRV", 2, vec![]).await.is_err());
    }
}
