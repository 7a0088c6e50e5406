//! A configuration as text: every key, defaults included, in the order of [`super::schema::KEYS`].
//!
//! Invariant: what is emitted checks without errors and parses back to the same [`Config`], unless a store holds its services: then
//! it is what a node runs, and not a file.

use std::{fmt::Write as _, path::PathBuf};

use super::{
    Config, HealthCheck, Node, Probe, Service, StoreConfig, duration, forward_word, on_marked_down_word,
    schema::{self, Table},
    store::{POOL_PREFIX, RedisServers},
};

/// The canonical TOML of a configuration.
pub fn emit(config: &Config) -> String {
    let mut out = String::new();
    node(&mut out, &config.node);
    if !config.store.is_file() {
        out.push_str("\n[store]\n");
        store_settings(&config.store).iter().for_each(|(key, value)| set(&mut out, key, value));
    }
    for pool in &config.pools {
        out.push_str("\n[[pool]]\n");
        set(&mut out, "name", &quoted(&pool.name));
        set(&mut out, "prefix", &quoted(&pool.prefix.to_string()));
    }
    for service in &config.services {
        self::service(&mut out, service, &settings(service));
    }
    out
}

fn node(out: &mut String, node: &Node) {
    out.push_str("[node]\n");
    if !node.name.is_empty() {
        set(out, "name", &quoted(&node.name));
    }
    let interfaces: Vec<String> = node.interfaces.iter().map(|name| quoted(name)).collect();
    set(out, "interfaces", &format!("[{}]", interfaces.join(", ")));
    set(out, "xdp_mode", &quoted(&node.xdp_mode.to_string()));
    set(out, "announce", &quoted(&node.announce.to_string()));
    set(out, "outer_source_v4", &quoted(&node.outer_source_v4.to_string()));
    set(out, "outer_source_v6", &quoted(&node.outer_source_v6.to_string()));
    set(out, "pin_dir", &quoted(&node.pin_dir.to_string_lossy()));
    set(out, "state_dir", &quoted(&node.state_dir.to_string_lossy()));
    if let Some(path) = &node.seed_file {
        set(out, "seed_file", &quoted(&path.to_string_lossy()));
    }
    out.push_str("\n[node.limits]\n");
    set(out, "services_max", &node.limits.services_max.to_string());
    set(out, "backends_max", &node.limits.backends_max.to_string());
    set(out, "ring_slots_max", &node.limits.ring_slots_max.to_string());
    set(out, "flows_max", &node.limits.flows_max.to_string());
    out.push_str("\n[node.metrics]\n");
    let listen = node.metrics_listen.map_or_else(|| "none".to_owned(), |address| address.to_string());
    set(out, "listen", &quoted(&listen));
    out.push_str("\n[node.api]\n");
    set(out, "socket", &quoted(&node.api_socket.to_string_lossy()));
    if let Some(group) = &node.api_group {
        set(out, "group", &quoted(group));
    }
}

/// The keys of `[store]` that are set, with their values in TOML.
pub(super) fn store_settings(store: &StoreConfig) -> Vec<(&'static str, String)> {
    let text = |path: &PathBuf| quoted(&path.to_string_lossy());
    let mut settings = vec![("kind", quoted(store.kind()))];
    let mut file = |key, path: &Option<PathBuf>| settings.extend(path.as_ref().map(|path| (key, text(path))));
    let (tls, insecure) = match store {
        StoreConfig::File => return settings,
        StoreConfig::Embedded(embedded) => {
            file("path", &Some(embedded.path.clone()));
            file("token_file", &embedded.token_file);
            settings.extend(embedded.listen.map(|listen| ("listen", quoted(&listen.to_string()))));
            (&embedded.tls, embedded.insecure)
        }
        StoreConfig::Remote(remote) => {
            file("token_file", &remote.token_file);
            settings.push(("url", quoted(&remote.url.to_string())));
            (&remote.tls, remote.insecure)
        }
        StoreConfig::Redis(redis) => {
            file("password_file", &redis.password_file);
            settings.extend(redis.user.as_ref().map(|user| ("user", quoted(user))));
            match &redis.servers {
                RedisServers::One(url) => settings.push(("url", quoted(&url.to_string()))),
                RedisServers::Sentinels { urls, master_name, server_tls, user, password_file } => {
                    let urls: Vec<String> = urls.iter().map(|url| quoted(&url.to_string())).collect();
                    settings.push(("sentinels", format!("[{}]", urls.join(", "))));
                    settings.push(("master_name", quoted(master_name)));
                    settings.extend(server_tls.map(|tls| ("server_tls", tls.to_string())));
                    settings.extend(user.as_ref().map(|user| ("sentinel_user", quoted(user))));
                    settings.extend(password_file.as_ref().map(|path| ("sentinel_password_file", text(path))));
                }
            }
            (&redis.tls, redis.insecure)
        }
    };
    let mut file = |key, path: &Option<PathBuf>| settings.extend(path.as_ref().map(|path| (key, text(path))));
    file("ca_file", &tls.ca_file);
    file("cert_file", &tls.cert_file);
    file("key_file", &tls.key_file);
    settings.push(("insecure", insecure.to_string()));
    let place = |key: &str| schema::keys(Table::Store).position(|known| known.name == key);
    settings.sort_by_key(|(key, _)| place(key));
    settings
}

/// `[[service]]` with these keys about algorithm and flows, which need not be the service's own.
pub(super) fn service(out: &mut String, service: &Service, settings: &[(&'static str, String)]) {
    out.push_str("\n[[service]]\n");
    set(out, "name", &quoted(&service.name));
    set(out, "vip", &quoted(&vip(service)));
    match service.key.port {
        0 => set(out, "port", "\"all\""),
        port => set(out, "port", &port.to_string()),
    }
    set(out, "protocol", &quoted(&service.key.protocol.to_string()));
    set(out, "forward", &quoted(forward_word(service.forward)));
    for (key, value) in settings {
        set(out, key, value);
    }
    if let Some(check) = &service.health_check {
        health_check(out, check);
    }
    for backend in &service.backends {
        out.push_str("\n[[service.backends]]\n");
        set(out, "address", &quoted(&backend.address.to_string()));
        if backend.port != 0 {
            set(out, "port", &backend.port.to_string());
        }
        set(out, "weight", &backend.weight.to_string());
        set(out, "max_connections", &backend.max_connections.to_string());
        set(out, "admin_state", &quoted(&backend.admin_state.to_string()));
    }
}

/// The VIP as the file has it.
pub(super) fn vip(service: &Service) -> String {
    service.pool.as_ref().map_or_else(|| service.key.vip.to_string(), |pool| format!("{POOL_PREFIX}{pool}"))
}

/// The keys of `[[service]]` about algorithm and flows, with their values in TOML.
pub(super) fn settings(service: &Service) -> Vec<(&'static str, String)> {
    let (algo, flows) = (service.algo, &service.flows);
    let time = |time| quoted(&duration::format(time));
    let mut settings = vec![
        ("algo", quoted(algo.word())),
        ("algo_config", format!("{{ ring_size = {} }}", algo.ring_size())),
        ("track", quoted(&flows.track.to_string())),
    ];
    settings.extend(service.udp_flows().map(|udp_flows| ("udp_flows", quoted(&udp_flows.to_string()))));
    settings.extend([
        ("on_marked_down", quoted(on_marked_down_word(flows.on_marked_down))),
        ("window", time(flows.window)),
        ("flow_timeout", time(flows.flow_timeout)),
        ("announce_for", time(flows.announce_for)),
        ("drain_timeout", time(flows.drain_timeout)),
    ]);
    settings
}

fn health_check(out: &mut String, check: &HealthCheck) {
    out.push_str("\n[service.health_check]\n");
    match &check.probe {
        Probe::Http { path, host } => {
            set(out, "type", "\"http\"");
            set(out, "path", &quoted(path));
            if let Some(host) = host {
                set(out, "host", &quoted(host));
            }
        }
        Probe::Tcp => set(out, "type", "\"tcp\""),
    }
    if let Some(port) = check.port {
        set(out, "port", &port.to_string());
    }
    set(out, "interval", &quoted(&duration::format(check.interval)));
    set(out, "timeout", &quoted(&duration::format(check.timeout)));
    set(out, "rise", &check.rise.to_string());
    set(out, "fall", &check.fall.to_string());
}

fn set(out: &mut String, key: &str, value: &str) {
    let _ = writeln!(out, "{key} = {value}");
}

/// A TOML basic string (TOML 1.0, "String").
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{check, code::Severity, sample},
        *,
    };

    #[test]
    fn text_is_quoted() {
        assert_eq!(quoted("a\"b\\c\u{7}ü"), r#""a\"b\\c\u0007ü""#);
    }

    proptest! {
        #[test]
        fn emitted_text_parses_back(config in sample::config()) {
            let text = emit(&config);
            let checked = check("emitted.toml", &text);
            prop_assert_eq!(checked.count(Severity::Error), 0, "{}", checked.render(&text, false));
            prop_assert_eq!(checked.config.map(|parsed| emit(&parsed)), Some(text));
        }

        #[test]
        fn nothing_is_lost(config in sample::config()) {
            prop_assert_eq!(check("emitted.toml", &emit(&config)).config, Some(config));
        }
    }
}
