//! Targets of a Docker daemon: one a port and network of each container.

use super::{LIST_BYTES_MAX, Report, rest};
use crate::config::DockerSd;
use crate::http::{HttpClient, read_body};
use crate::target::TargetGroup;
use obs_model::{Labels, LabelsBuilder};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

/// Turns a name into a label name, as Prometheus does.
pub(super) fn sanitized(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

pub(super) fn text<'v>(v: &'v Value, path: &str) -> &'v str {
    v.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn targets(containers: &Value, networks: &Value, default_port: u16) -> Vec<Labels> {
    let by_id: BTreeMap<&str, &Value> =
        networks.as_array().into_iter().flatten().map(|n| (text(n, "/Id"), n)).collect();
    let mut out = Vec::new();
    for c in containers.as_array().into_iter().flatten() {
        let mut common = LabelsBuilder::default();
        common.push("__meta_docker_container_id", text(c, "/Id"));
        common.push("__meta_docker_container_name", text(c, "/Names/0"));
        common.push("__meta_docker_container_network_mode", text(c, "/HostConfig/NetworkMode"));
        for (name, v) in c.get("Labels").and_then(Value::as_object).into_iter().flatten() {
            let name = format!("__meta_docker_container_label_{}", sanitized(name));
            common.set(&name, v.as_str().unwrap_or_default());
        }
        let of = c.pointer("/NetworkSettings/Networks").and_then(Value::as_object);
        for network in of.into_iter().flat_map(|n| n.values()) {
            let ip = text(network, "/IPAddress");
            let mut b = common.clone();
            b.push("__meta_docker_network_ip", ip);
            if let Some(n) = by_id.get(text(network, "/NetworkID")) {
                b.push("__meta_docker_network_id", text(n, "/Id"));
                b.push("__meta_docker_network_name", text(n, "/Name"));
                b.push("__meta_docker_network_scope", text(n, "/Scope"));
                for key in ["Internal", "Ingress"] {
                    let is = n.get(key).and_then(Value::as_bool).unwrap_or(false);
                    let name = format!("__meta_docker_network_{}", key.to_ascii_lowercase());
                    b.push(name, is.to_string());
                }
                for (name, v) in n.get("Labels").and_then(Value::as_object).into_iter().flatten() {
                    let name = format!("__meta_docker_network_label_{}", sanitized(name));
                    b.set(&name, v.as_str().unwrap_or_default());
                }
            }
            let mut any = false;
            for port in c.get("Ports").and_then(Value::as_array).into_iter().flatten() {
                if text(port, "/Type") != "tcp" {
                    continue;
                }
                any = true;
                let number = |key: &str| port.get(key).and_then(Value::as_u64).unwrap_or(0);
                let mut b = b.clone();
                let private = number("PrivatePort");
                b.push("__meta_docker_port_private", private.to_string());
                if number("PublicPort") > 0 {
                    b.push("__meta_docker_port_public", number("PublicPort").to_string());
                    b.push("__meta_docker_port_public_ip", text(port, "/IP"));
                }
                b.push("__address__", format!("{ip}:{private}"));
                out.push(b.build());
            }
            if !any {
                // In the host's network there is no address of its own.
                let host = if text(c, "/HostConfig/NetworkMode") == "host" || ip.is_empty() {
                    "localhost"
                } else {
                    ip
                };
                b.push("__address__", format!("{host}:{default_port}"));
                out.push(b.build());
            }
        }
    }
    out
}

async fn fetch(c: &DockerSd, client: &HttpClient, path: &str) -> Result<Value, String> {
    let url = format!("{}{path}", c.base_url());
    let request = client.get(&url).await?.timeout(c.refresh_interval.0);
    let answer = request.send().await.map_err(|e| e.without_url().to_string())?;
    if !answer.status().is_success() {
        return Err(format!("{path}: HTTP status {}", answer.status()));
    }
    let body = read_body(answer, LIST_BYTES_MAX).await?;
    serde_json::from_slice(&body).map_err(|e| e.to_string())
}

pub(super) async fn run(c: DockerSd, folder: PathBuf, report: Report, stop: CancellationToken) {
    let socket = c.socket();
    let client = match HttpClient::with_socket(&c.http, &folder, socket.as_deref()) {
        Ok(client) => client,
        Err(e) => {
            tracing::error!(host = c.host, error = e, "containers cannot be discovered");
            return;
        }
    };
    loop {
        let found = async {
            let networks = fetch(&c, &client, "/networks").await?;
            let containers = fetch(&c, &client, "/containers/json").await?;
            Ok::<_, String>(targets(&containers, &networks, c.port))
        };
        match found.await {
            Ok(targets) => report(vec![TargetGroup { targets, labels: Labels::default() }]),
            Err(e) => tracing::warn!(host = c.host, error = e, "containers were not discovered"),
        }
        if !rest(&stop, c.refresh_interval.0).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn containers_become_targets() {
        let networks = json!([{"Id": "n1", "Name": "front", "Scope": "local", "Internal": false, "Ingress": false, "Labels": {"a.b": "c"}}]);
        let network = json!({"front": {"NetworkID": "n1", "IPAddress": "172.18.0.2"}});
        let containers = json!([
            {"Id": "1", "Names": ["/web"], "Labels": {"com.x/y": "z"}, "HostConfig": {"NetworkMode": "front"}, "Ports": [{"PrivatePort": 80, "PublicPort": 8080, "IP": "0.0.0.0", "Type": "tcp"}, {"PrivatePort": 53, "Type": "udp"}], "NetworkSettings": {"Networks": network}},
            {"Id": "2", "Names": ["/bare"], "HostConfig": {"NetworkMode": "host"}, "Ports": [], "NetworkSettings": {"Networks": {"host": {"NetworkID": "h", "IPAddress": ""}}}},
        ]);
        let got = targets(&containers, &networks, 80);
        assert_eq!(got.len(), 2);
        assert_eq!(got[0].get("__address__"), "172.18.0.2:80");
        assert_eq!(got[0].get("__meta_docker_container_label_com_x_y"), "z");
        assert_eq!(got[0].get("__meta_docker_network_label_a_b"), "c");
        assert_eq!(got[0].get("__meta_docker_port_public"), "8080");
        assert_eq!(got[1].get("__address__"), "localhost:80");
    }
}
