//! Targets of a Kubernetes cluster: its nodes, services, pods, endpoints and ingresses.
//!
//! Lists are read again and again instead of being watched: a cluster of thousands of pods answers
//! in tens of milliseconds, and a lost watch cannot leave a stale list.

use super::docker::{sanitized, text};
use super::{LIST_BYTES_MAX, Report, rest};
use crate::config::KubernetesSd;
use crate::http::{HttpClient, read_body};
use crate::target::TargetGroup;
use obs_model::{Labels, LabelsBuilder};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often lists are read.
const REFRESH: Duration = Duration::from_secs(10);
/// Pages of a list past which it is cut off, with this many objects each.
const PAGES_MAX: usize = 200;
const PAGE: usize = 500;
/// Where a pod finds who it is.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const IN_CLUSTER: &str = "https://kubernetes.default.svc";

const META: &str = "__meta_kubernetes_";

/// Adds labels and annotations of an object: `…_label_x`, `…_labelpresent_x` and so on.
fn add_object(b: &mut LabelsBuilder, role: &str, object: &Value) {
    b.set(&format!("{META}{role}_name"), text(object, "/metadata/name"));
    for (kind, key) in [("label", "labels"), ("annotation", "annotations")] {
        let map = object.pointer(&format!("/metadata/{key}")).and_then(Value::as_object);
        for (name, v) in map.into_iter().flatten() {
            let name = sanitized(name);
            b.set(&format!("{META}{role}_{kind}_{name}"), v.as_str().unwrap_or_default());
            b.set(&format!("{META}{role}_{kind}present_{name}"), "true");
        }
    }
}

fn array<'v>(v: &'v Value, path: &str) -> impl Iterator<Item = &'v Value> {
    v.pointer(path).and_then(Value::as_array).into_iter().flatten()
}

fn with_port(address: &str, port: u64) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

fn of_nodes(list: &[Value]) -> Vec<TargetGroup> {
    let one = |n: &Value| {
        let mut b = LabelsBuilder::default();
        add_object(&mut b, "node", n);
        b.push(format!("{META}node_provider_id"), text(n, "/spec/providerID"));
        let order =
            ["InternalIP", "InternalDNS", "ExternalIP", "ExternalDNS", "LegacyHostIP", "Hostname"];
        let address = |kind: &str| array(n, "/status/addresses").find(|a| text(a, "/type") == kind);
        let host = order.iter().find_map(|k| address(k)).map(|a| text(a, "/address"))?;
        for a in array(n, "/status/addresses") {
            let name = format!("{META}node_address_{}", sanitized(text(a, "/type")));
            b.set(&name, text(a, "/address"));
        }
        let port =
            n.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
        b.push("__address__", with_port(host, port.unwrap_or(10250)));
        b.push("instance", text(n, "/metadata/name"));
        Some(TargetGroup { targets: vec![b.build()], labels: Labels::default() })
    };
    list.iter().filter_map(one).collect()
}

/// Labels of a pod itself.
fn add_pod(b: &mut LabelsBuilder, p: &Value) {
    add_object(b, "pod", p);
    for (name, path) in [
        ("ip", "/status/podIP"),
        ("phase", "/status/phase"),
        ("node_name", "/spec/nodeName"),
        ("host_ip", "/status/hostIP"),
        ("uid", "/metadata/uid"),
    ] {
        b.set(&format!("{META}pod_{name}"), text(p, path));
    }
    let ready = array(p, "/status/conditions").find(|c| text(c, "/type") == "Ready");
    let ready = ready.map_or("unknown".to_owned(), |c| text(c, "/status").to_ascii_lowercase());
    b.set(&format!("{META}pod_ready"), &ready);
    let is_controller = |o: &&Value| o.get("controller").and_then(Value::as_bool) == Some(true);
    if let Some(o) = array(p, "/metadata/ownerReferences").find(is_controller) {
        b.set(&format!("{META}pod_controller_kind"), text(o, "/kind"));
        b.set(&format!("{META}pod_controller_name"), text(o, "/name"));
    }
}

/// Labels of a container, and of one of its ports.
fn add_container(b: &mut LabelsBuilder, p: &Value, c: &Value, is_init: bool, port: Option<&Value>) {
    let name = text(c, "/name");
    b.set(&format!("{META}pod_container_name"), name);
    b.set(&format!("{META}pod_container_image"), text(c, "/image"));
    b.set(&format!("{META}pod_container_init"), if is_init { "true" } else { "false" });
    let statuses =
        array(p, "/status/containerStatuses").chain(array(p, "/status/initContainerStatuses"));
    let id = statuses
        .into_iter()
        .find(|s| text(s, "/name") == name)
        .map_or("", |s| text(s, "/containerID"));
    b.set(&format!("{META}pod_container_id"), id);
    if let Some(port) = port {
        let number = port.get("containerPort").and_then(Value::as_u64).unwrap_or(0);
        b.set(&format!("{META}pod_container_port_name"), text(port, "/name"));
        b.set(&format!("{META}pod_container_port_number"), &number.to_string());
        let protocol = text(port, "/protocol");
        let protocol = if protocol.is_empty() { "TCP" } else { protocol };
        b.set(&format!("{META}pod_container_port_protocol"), protocol);
    }
}

fn containers(p: &Value) -> impl Iterator<Item = (&Value, bool)> {
    let own = array(p, "/spec/containers").map(|c| (c, false));
    own.chain(array(p, "/spec/initContainers").map(|c| (c, true)))
}

fn of_pods(list: &[Value]) -> Vec<TargetGroup> {
    let one = |p: &Value| {
        let ip = text(p, "/status/podIP");
        let finished = matches!(text(p, "/status/phase"), "Succeeded" | "Failed");
        if ip.is_empty() || finished {
            return None;
        }
        let mut common = LabelsBuilder::default();
        common.push(format!("{META}namespace"), text(p, "/metadata/namespace"));
        add_pod(&mut common, p);
        let mut targets = Vec::new();
        for (c, is_init) in containers(p) {
            let ports: Vec<&Value> = array(c, "/ports").collect();
            if ports.is_empty() {
                // Without a port; relabelling may add one.
                let mut b = LabelsBuilder::default();
                add_container(&mut b, p, c, is_init, None);
                b.push("__address__", ip);
                targets.push(b.build());
            }
            for port in ports {
                let number = port.get("containerPort").and_then(Value::as_u64).unwrap_or(0);
                let mut b = LabelsBuilder::default();
                add_container(&mut b, p, c, is_init, Some(port));
                b.push("__address__", with_port(ip, number));
                targets.push(b.build());
            }
        }
        Some(TargetGroup { targets, labels: common.build() })
    };
    list.iter().filter_map(one).collect()
}

fn add_service(b: &mut LabelsBuilder, s: &Value) {
    add_object(b, "service", s);
}

fn of_services(list: &[Value]) -> Vec<TargetGroup> {
    let one = |s: &Value| {
        let (name, namespace) = (text(s, "/metadata/name"), text(s, "/metadata/namespace"));
        let mut common = LabelsBuilder::default();
        common.push(format!("{META}namespace"), namespace);
        add_service(&mut common, s);
        let mut targets = Vec::new();
        for port in array(s, "/spec/ports") {
            let number = port.get("port").and_then(Value::as_u64).unwrap_or(0);
            let mut b = LabelsBuilder::default();
            b.push("__address__", format!("{name}.{namespace}.svc:{number}"));
            let kind = text(s, "/spec/type");
            for (name, value) in [
                ("port_name", text(port, "/name")),
                ("port_number", &number.to_string()),
                ("port_protocol", text(port, "/protocol")),
                ("type", kind),
            ] {
                b.push(format!("{META}service_{name}"), value);
            }
            if kind == "ExternalName" {
                b.push(format!("{META}service_external_name"), text(s, "/spec/externalName"));
            } else {
                b.push(format!("{META}service_cluster_ip"), text(s, "/spec/clusterIP"));
            }
            if kind == "LoadBalancer" {
                b.push(format!("{META}service_loadbalancer_ip"), text(s, "/spec/loadBalancerIP"));
            }
            targets.push(b.build());
        }
        TargetGroup { targets, labels: common.build() }
    };
    list.iter().map(one).collect()
}

type ByName<'v> = HashMap<(&'v str, &'v str), &'v Value>;

fn by_name(list: &[Value]) -> ByName<'_> {
    list.iter().map(|v| ((text(v, "/metadata/namespace"), text(v, "/metadata/name")), v)).collect()
}

/// One address of endpoints or of a slice, as both kinds describe it.
struct Place<'v> {
    ip: &'v str,
    ready: bool,
    hostname: &'v str,
    node: &'v str,
    target: Option<&'v Value>,
}

struct Related<'v> {
    services: ByName<'v>,
    pods: ByName<'v>,
}

/// Makes the target of an address and port; of a pod's address it gets the pod's labels too.
fn endpoint(role: &str, namespace: &str, a: &Place<'_>, port: &Value, r: &Related<'_>) -> Labels {
    let number = port.get("port").and_then(Value::as_u64).unwrap_or(0);
    // Slices name their labels after themselves, endpoints after a single endpoint.
    let is_slice = role == "endpointslice";
    let prefix = if is_slice { "endpointslice_" } else { "endpoint_" };
    let of = if is_slice { "endpointslice_endpoint_" } else { "endpoint_" };
    let ready = if is_slice { "conditions_ready" } else { "ready" };
    let mut b = LabelsBuilder::default();
    b.push("__address__", with_port(a.ip, number));
    b.push(format!("{META}{prefix}port_name"), text(port, "/name"));
    b.push(format!("{META}{prefix}port_protocol"), text(port, "/protocol"));
    if is_slice {
        b.push(format!("{META}endpointslice_port"), number.to_string());
    }
    b.push(format!("{META}{of}hostname"), a.hostname);
    b.push(format!("{META}{of}node_name"), a.node);
    b.push(format!("{META}{of}{ready}"), a.ready.to_string());
    let Some(target) = a.target else { return b.build() };
    let (kind, name) = (text(target, "/kind"), text(target, "/name"));
    b.push(format!("{META}{prefix}address_target_kind"), kind);
    b.push(format!("{META}{prefix}address_target_name"), name);
    if kind == "Pod"
        && let Some(pod) = r.pods.get(&(namespace, name))
    {
        add_pod(&mut b, pod);
        let hit = containers(pod).find_map(|(c, is_init)| {
            let port = array(c, "/ports")
                .find(|p| p.get("containerPort").and_then(Value::as_u64) == Some(number))?;
            Some((c, is_init, port))
        });
        if let Some((c, is_init, port)) = hit {
            add_container(&mut b, pod, c, is_init, Some(port));
        }
    }
    b.build()
}

fn of_endpoints(list: &[Value], r: &Related<'_>) -> Vec<TargetGroup> {
    let one = |e: &Value| {
        let namespace = text(e, "/metadata/namespace");
        let mut common = LabelsBuilder::default();
        common.push(format!("{META}namespace"), namespace);
        add_object(&mut common, "endpoints", e);
        if let Some(s) = r.services.get(&(namespace, text(e, "/metadata/name"))) {
            add_service(&mut common, s);
        }
        let mut targets = Vec::new();
        for subset in array(e, "/subsets") {
            for (path, ready) in [("/addresses", true), ("/notReadyAddresses", false)] {
                for a in array(subset, path) {
                    let place = Place {
                        ip: text(a, "/ip"),
                        ready,
                        hostname: text(a, "/hostname"),
                        node: text(a, "/nodeName"),
                        target: a.get("targetRef"),
                    };
                    let ports = array(subset, "/ports");
                    targets.extend(ports.map(|p| endpoint("endpoints", namespace, &place, p, r)));
                }
            }
        }
        TargetGroup { targets, labels: common.build() }
    };
    list.iter().map(one).collect()
}

fn of_slices(list: &[Value], r: &Related<'_>) -> Vec<TargetGroup> {
    let one = |e: &Value| {
        let namespace = text(e, "/metadata/namespace");
        let mut common = LabelsBuilder::default();
        common.push(format!("{META}namespace"), namespace);
        add_object(&mut common, "endpointslice", e);
        common.push(format!("{META}endpointslice_address_type"), text(e, "/addressType"));
        let service = e.pointer("/metadata/labels/kubernetes.io~1service-name");
        let service = service.and_then(Value::as_str).unwrap_or_default();
        if let Some(s) = r.services.get(&(namespace, service)) {
            add_service(&mut common, s);
        }
        let mut targets = Vec::new();
        for a in array(e, "/endpoints") {
            // An endpoint of which nothing is known counts as ready.
            let ready = a.pointer("/conditions/ready").and_then(Value::as_bool).unwrap_or(true);
            for ip in array(a, "/addresses").filter_map(Value::as_str) {
                let place = Place {
                    ip,
                    ready,
                    hostname: text(a, "/hostname"),
                    node: text(a, "/nodeName"),
                    target: a.get("targetRef"),
                };
                let ports = array(e, "/ports");
                targets.extend(ports.map(|p| endpoint("endpointslice", namespace, &place, p, r)));
            }
        }
        TargetGroup { targets, labels: common.build() }
    };
    list.iter().map(one).collect()
}

fn of_ingresses(list: &[Value]) -> Vec<TargetGroup> {
    let one = |i: &Value| {
        let mut common = LabelsBuilder::default();
        common.push(format!("{META}namespace"), text(i, "/metadata/namespace"));
        add_object(&mut common, "ingress", i);
        common.push(format!("{META}ingress_class_name"), text(i, "/spec/ingressClassName"));
        let tls: Vec<&str> = array(i, "/spec/tls")
            .flat_map(|t| array(t, "/hosts").filter_map(Value::as_str))
            .collect();
        let mut targets = Vec::new();
        for rule in array(i, "/spec/rules") {
            let host = text(rule, "/host");
            let scheme = if tls.contains(&host) { "https" } else { "http" };
            let mut paths: Vec<&str> = array(rule, "/http/paths")
                .map(|p| text(p, "/path"))
                .filter(|p| !p.is_empty())
                .collect();
            if paths.is_empty() {
                paths.push("/");
            }
            for path in paths {
                let mut b = LabelsBuilder::default();
                b.push("__address__", host);
                b.push(format!("{META}ingress_scheme"), scheme);
                b.push(format!("{META}ingress_host"), host);
                b.push(format!("{META}ingress_path"), path);
                targets.push(b.build());
            }
        }
        TargetGroup { targets, labels: common.build() }
    };
    list.iter().map(one).collect()
}

/// Reads lists of an API server.
struct Api<'a> {
    base: String,
    client: &'a HttpClient,
    config: &'a KubernetesSd,
}

impl Api<'_> {
    /// Returns all objects of a kind in the namespaces that are wanted.
    async fn list(&self, group: &str, kind: &str, role: &str) -> Result<Vec<Value>, String> {
        let selectors = self.config.selectors.iter().find(|s| s.role == role);
        let mut query = vec![("limit".to_owned(), PAGE.to_string())];
        if let Some(s) = selectors {
            let both = [("labelSelector", &s.label), ("fieldSelector", &s.field)];
            query.extend(
                both.iter()
                    .filter(|(_, v)| !v.is_empty())
                    .map(|(n, v)| ((*n).to_owned(), (*v).clone())),
            );
        }
        let names = &self.config.namespaces.names;
        let places: Vec<String> = if names.is_empty() || kind == "nodes" {
            vec![format!("{}{group}/{kind}", self.base)]
        } else {
            names.iter().map(|n| format!("{}{group}/namespaces/{n}/{kind}", self.base)).collect()
        };
        let mut out = Vec::new();
        for place in places {
            let mut next = String::new();
            for _ in 0..PAGES_MAX {
                let mut url = url::Url::parse(&place).map_err(|e| format!("{place}: {e}"))?;
                url.query_pairs_mut().extend_pairs(&query);
                if !next.is_empty() {
                    url.query_pairs_mut().append_pair("continue", &next);
                }
                let request = self.client.get(url.as_str()).await?;
                let request =
                    request.header("Accept", "application/json").timeout(Duration::from_secs(30));
                let answer = request.send().await.map_err(|e| e.without_url().to_string())?;
                if !answer.status().is_success() {
                    return Err(format!("{kind}: HTTP status {}", answer.status()));
                }
                let body = read_body(answer, LIST_BYTES_MAX).await?;
                let mut page: Value = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
                next = text(&page, "/metadata/continue").to_owned();
                if let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) {
                    out.extend(items);
                }
                if next.is_empty() {
                    break;
                }
            }
        }
        Ok(out)
    }

    async fn groups(&self) -> Result<Vec<TargetGroup>, String> {
        let core = "/api/v1";
        match self.config.role.as_str() {
            "node" => Ok(of_nodes(&self.list(core, "nodes", "node").await?)),
            "pod" => Ok(of_pods(&self.list(core, "pods", "pod").await?)),
            "service" => Ok(of_services(&self.list(core, "services", "service").await?)),
            "ingress" => {
                let group = "/apis/networking.k8s.io/v1";
                Ok(of_ingresses(&self.list(group, "ingresses", "ingress").await?))
            }
            role => {
                let services = self.list(core, "services", "service").await?;
                let pods = self.list(core, "pods", "pod").await?;
                let related = Related { services: by_name(&services), pods: by_name(&pods) };
                if role == "endpoints" {
                    let list = self.list(core, "endpoints", role).await?;
                    return Ok(of_endpoints(&list, &related));
                }
                let group = "/apis/discovery.k8s.io/v1";
                Ok(of_slices(&self.list(group, "endpointslices", role).await?, &related))
            }
        }
    }
}

pub(super) async fn run(c: KubernetesSd, folder: PathBuf, report: Report, stop: CancellationToken) {
    let mut http = c.http.clone();
    let base = if c.api_server.is_empty() {
        // In a pod: the cluster's own address, and the pod's account.
        http.bearer_token_file.get_or_insert_with(|| Path::new(ACCOUNT).join("token"));
        http.tls_config.ca_file.get_or_insert_with(|| Path::new(ACCOUNT).join("ca.crt"));
        IN_CLUSTER.to_owned()
    } else {
        c.api_server.trim_end_matches('/').to_owned()
    };
    let client = match HttpClient::new(&http, &folder) {
        Ok(client) => client,
        Err(e) => {
            tracing::error!(api = base, error = e, "the cluster cannot be discovered");
            return;
        }
    };
    let api = Api { base, client: &client, config: &c };
    loop {
        match api.groups().await {
            Ok(groups) => report(groups),
            Err(e) => tracing::warn!(role = c.role, error = e, "the cluster was not discovered"),
        }
        if !rest(&stop, REFRESH).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Value {
        json!({
            "metadata": {"name": "web-1", "namespace": "prod", "uid": "u", "labels": {"app.kubernetes.io/name": "web"}, "annotations": {"prometheus.io/scrape": "true"}, "ownerReferences": [{"kind": "ReplicaSet", "name": "web", "controller": true}]},
            "spec": {"nodeName": "n1", "containers": [{"name": "main", "image": "i:1", "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]}, {"name": "side", "image": "s:1"}]},
            "status": {"podIP": "10.0.0.5", "hostIP": "10.1.0.1", "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [{"name": "main", "containerID": "c://1"}]},
        })
    }

    #[test]
    fn pods_give_a_target_a_port() {
        let groups = of_pods(&[pod(), json!({"status": {"phase": "Failed", "podIP": "1.1.1.1"}})]);
        assert_eq!(groups.len(), 1);
        let (common, t) = (&groups[0].labels, &groups[0].targets);
        assert_eq!(common.get("__meta_kubernetes_pod_label_app_kubernetes_io_name"), "web");
        assert_eq!(
            common.get("__meta_kubernetes_pod_annotationpresent_prometheus_io_scrape"),
            "true"
        );
        assert_eq!(common.get("__meta_kubernetes_pod_controller_kind"), "ReplicaSet");
        assert_eq!(common.get("__meta_kubernetes_pod_ready"), "true");
        assert_eq!(t[0].get("__address__"), "10.0.0.5:8080");
        assert_eq!(t[0].get("__meta_kubernetes_pod_container_id"), "c://1");
        assert_eq!(t[1].get("__address__"), "10.0.0.5");
    }

    #[test]
    fn endpoints_know_their_service_and_pod() {
        let service = json!({"metadata": {"name": "web", "namespace": "prod", "labels": {"team": "x"}}, "spec": {"type": "ClusterIP", "clusterIP": "10.9.0.1", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}});
        let endpoints = json!({"metadata": {"name": "web", "namespace": "prod"}, "subsets": [{"addresses": [{"ip": "10.0.0.5", "nodeName": "n1", "targetRef": {"kind": "Pod", "name": "web-1"}}], "notReadyAddresses": [{"ip": "10.0.0.6"}], "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}]});
        let slice = json!({"metadata": {"name": "web-abc", "namespace": "prod", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.5"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "web-1"}}], "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]});
        let (services, pods) = ([service.clone()], [pod()]);
        let r = Related { services: by_name(&services), pods: by_name(&pods) };
        let g = &of_endpoints(&[endpoints], &r)[0];
        assert_eq!(g.labels.get("__meta_kubernetes_service_label_team"), "x");
        assert_eq!(g.targets[0].get("__meta_kubernetes_pod_container_port_name"), "http");
        assert_eq!(g.targets[0].get("__meta_kubernetes_endpoint_ready"), "true");
        assert_eq!(g.targets[1].get("__meta_kubernetes_endpoint_ready"), "false");
        let g = &of_slices(&[slice], &r)[0];
        assert_eq!(g.labels.get("__meta_kubernetes_service_name"), "web");
        assert_eq!(
            g.targets[0].get("__meta_kubernetes_endpointslice_address_target_name"),
            "web-1"
        );
        assert_eq!(g.targets[0].get("__meta_kubernetes_pod_name"), "web-1");
        let g = &of_services(&[service])[0];
        assert_eq!(g.targets[0].get("__address__"), "web.prod.svc:80");
    }

    #[test]
    fn nodes_and_ingresses() {
        let node = json!({"metadata": {"name": "n1", "labels": {"zone": "a"}}, "status": {"addresses": [{"type": "Hostname", "address": "h"}, {"type": "InternalIP", "address": "10.1.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}}});
        let g = &of_nodes(&[node])[0];
        assert_eq!(g.targets[0].get("__address__"), "10.1.0.1:10250");
        assert_eq!(g.targets[0].get("instance"), "n1");
        let ingress = json!({"metadata": {"name": "i", "namespace": "prod"}, "spec": {"tls": [{"hosts": ["x.io"]}], "rules": [{"host": "x.io", "http": {"paths": [{"path": "/a"}, {"path": "/b"}]}}, {"host": "y.io"}]}});
        let t = &of_ingresses(&[ingress])[0].targets;
        let got: Vec<_> = t
            .iter()
            .map(|t| {
                (
                    t.get("__address__"),
                    t.get("__meta_kubernetes_ingress_scheme"),
                    t.get("__meta_kubernetes_ingress_path"),
                )
            })
            .collect();
        assert_eq!(got, [("x.io", "https", "/a"), ("x.io", "https", "/b"), ("y.io", "http", "/")]);
    }
}
