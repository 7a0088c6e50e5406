//! Service discovery for Prometheus (`http_sd`): every node, orchestrator and DNS server of the fleet, as the store has them.
//!
//! Pure. The form is that of Prometheus' `http_sd_config`: a list of groups of targets with labels.

use std::collections::BTreeMap;

use serde::Serialize;

use super::record::View;

/// Targets that share labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// `HOST:PORT` each.
    pub targets: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

fn group(target: String, role: &str, name: &str) -> Group {
    let labels = [("weir_role", role), ("weir_name", name)];
    Group { targets: vec![target], labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into() }
}

/// The groups; `dns` are the DNS servers' metrics, by name.
pub fn groups(view: &View, dns: &BTreeMap<String, String>) -> Vec<Group> {
    let nodes = view.nodes.iter().filter_map(|(name, node)| Some(group(node.ready_at?.to_string(), "node", name)));
    let orchestrators =
        view.workers.iter().filter_map(|(name, at)| Some(group(at.value.address.clone()?, "orchestrator", name)));
    let dns = dns.iter().map(|(name, address)| group(address.clone(), "dns", name));
    nodes.chain(orchestrators).chain(dns).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::orchestrator::{
        placement::Beat,
        record::{At, Version},
        watch::Node,
    };

    #[test]
    fn every_part_of_the_fleet_is_listed() {
        let mut view = View::default();
        let node = Node {
            beat: 1,
            lease: Duration::from_secs(10),
            addresses: Default::default(),
            ready_at: Some(([10, 0, 0, 1], 9650).into()),
            revision: 1,
            ready: true,
            draining: false,
        };
        view.nodes.insert("n1".into(), node.clone());
        view.nodes.insert("n2".into(), Node { ready_at: None, ..node });
        let beat = Beat { holder: "o1/x".into(), beat: 1, generation: 1, address: Some("10.0.0.5:9652".into()) };
        view.workers.insert("o1".into(), At { version: Version(1), value: beat });
        let dns = BTreeMap::from([("d1".to_owned(), "10.0.0.53:9653".to_owned())]);
        let json = serde_json::to_value(groups(&view, &dns)).unwrap();
        assert_eq!(
            json,
            serde_json::json!([
                {"targets": ["10.0.0.1:9650"], "labels": {"weir_role": "node", "weir_name": "n1"}},
                {"targets": ["10.0.0.5:9652"], "labels": {"weir_role": "orchestrator", "weir_name": "o1"}},
                {"targets": ["10.0.0.53:9653"], "labels": {"weir_role": "dns", "weir_name": "d1"}},
            ])
        );
    }
}
