//! Debian's Prometheus and promtool: the API as the orchestrator asks it, service discovery, the rules and the configuration
//! that ship with weir.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lb_userspace::orchestrator::{
    discovery::{Group, groups},
    prometheus::{Prometheus, QueryError, instances, one_value},
    record::View,
    scale::Missing,
    watch::Node,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener as Listener,
};

fn assets() -> PathBuf {
    xtask::root().join("lb-userspace/assets/prometheus")
}

/// A Prometheus of our own, which dies with this value.
struct Server {
    child: Child,
    url: String,
    folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // What has ended cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(config: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, config)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let log = File::create(folder.path().join("log"))?;
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start prometheus (package prometheus)")?;
        Ok(Self { child, url: format!("http://127.0.0.1:{port}"), folder })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

/// Serves `/metrics` and, as JSON, `/sd`; answers until the test ends.
async fn serve(metrics: String, sd: Option<String>) -> Result<SocketAddr> {
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (metrics, sd) = (metrics.clone(), sd.clone());
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                let read = stream.read(&mut buffer).await.unwrap_or(0);
                let head = String::from_utf8_lossy(&buffer[..read]).into_owned();
                let (kind, body) = match sd {
                    Some(sd) if head.starts_with("GET /sd") => ("application/json", sd),
                    _ => ("text/plain; version=0.0.4", metrics),
                };
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                // A scraper that went away is served again next time.
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    Ok(address)
}

/// Asks until the one value of `expr` is `want`.
async fn until_value(server: &Server, prometheus: &Prometheus, expr: &str, want: f64) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let last = prometheus.query(expr).await;
        if let Ok(series) = &last
            && one_value(series) == Ok(want)
        {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("{expr} is {last:?} after 60 s, not {want}\n{}", server.log());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_real_prometheus_finds_the_fleet_and_answers() -> Result<()> {
    let metrics =
        "connections 12\nbroken NaN\nload{instance=\"10.0.0.1:9100\"} 1\nload{instance=\"10.0.0.2:9100\"} 0\n";
    let node = serve(metrics.to_owned(), None).await?;
    let mut view = View::default();
    let lease = Duration::from_secs(10);
    let ready_at = Some(node);
    let one = Node { beat: 1, lease, addresses: BTreeSet::new(), ready_at, revision: 1, ready: true, draining: false };
    view.nodes.insert("n1".into(), one);
    let dns = [("d1".to_owned(), serve("up_dns 1\n".to_owned(), None).await?.to_string())].into();
    let found: Vec<Group> = groups(&view, &dns);
    ensure!(found.len() == 2);
    let sd = serve(String::new(), Some(serde_json::to_string(&found)?)).await?;
    let shipped = fs::read_to_string(assets().join("prometheus.yml"))?;
    // The shipped configuration, with the place of the orchestrators and the pace of a test.
    let config = shipped
        .replace("10.0.0.5:9651", &sd.to_string())
        .replace("      - url: http://10.0.0.6:9651/sd\n        refresh_interval: 5s\n", "")
        .replace(": 5s", ": 1s")
        .replace("scrape_timeout: 4s", "scrape_timeout: 1s")
        .replace("weir.rules.yml", &assets().join("weir.rules.yml").display().to_string())
        .replace("scrape_interval: 1s", "scrape_interval: 1s\n  external_labels: {test: weir}");
    // `instance` of the series is kept as it was scraped.
    let config = config.replace("  - job_name: weir\n", "  - job_name: weir\n    honor_labels: true\n");
    let server = Server::start(&config)?;
    let prometheus = Prometheus::new(&server.url, Duration::from_secs(5))?;
    until_value(&server, &prometheus, "count(up{weir_role!=\"\"} == 1)", 2.0).await?;
    until_value(&server, &prometheus, "sum(connections{node=\"n1\"})", 12.0).await?;
    until_value(&server, &prometheus, "count(up{weir_role=\"dns\", weir_name=\"d1\"})", 1.0).await?;

    // What can come instead of one good number.
    let value = async |expr: &str| Ok::<_, QueryError>(one_value(&prometheus.query(expr).await?));
    assert_eq!(value("vector(3)").await?, Ok(3.0));
    assert_eq!(value("5").await?, Ok(5.0), "a scalar");
    assert_eq!(value("no_such_metric").await?, Err(Missing::Empty));
    assert_eq!(value("broken").await?, Err(Missing::NotANumber));
    assert_eq!(value("vector(1) / 0").await?, Err(Missing::NotANumber), "infinite");
    assert_eq!(value("load").await?, Err(Missing::Many(2)));
    let bad = instances(prometheus.query("load > 0").await?, "instance");
    assert_eq!(bad, ["10.0.0.1:9100".to_owned()].into());
    assert!(matches!(prometheus.query("sum(").await, Err(QueryError::Refused { kind, .. }) if kind == "bad_data"));
    assert!(matches!(prometheus.query("up[1m]").await, Err(QueryError::Kind(kind)) if kind == "matrix"));
    let prefixed = Prometheus::new(&format!("{}/prefix/", server.url), Duration::from_secs(5))?;
    assert!(matches!(prefixed.query("up").await, Err(QueryError::Unreadable { status: 404, .. })));
    Ok(())
}

/// Runs promtool in the folder of the assets.
fn promtool(arguments: &[&str]) -> Result<()> {
    let output =
        Command::new("promtool").args(arguments).current_dir(assets()).output().context("cannot run promtool")?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "promtool {arguments:?}: {text}");
    Ok(())
}

#[test]
fn the_shipped_rules_fire_when_they_should() -> Result<()> {
    promtool(&["check", "config", "prometheus.yml"])?;
    promtool(&["test", "rules", "weir.rules.test.yml"])
}

#[test]
fn every_alert_has_a_test() -> Result<()> {
    let rules = fs::read_to_string(assets().join("weir.rules.yml"))?;
    let tests = fs::read_to_string(assets().join("weir.rules.test.yml"))?;
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    ensure!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        // Once where it fires, which is where its labels are expected.
        let fires = tests.split("alertname: ").skip(1).any(|rest| {
            let test = rest.split("eval_time").next().unwrap_or_default();
            test.starts_with(alert) && test.contains("exp_labels")
        });
        ensure!(fires, "{alert} is not shown to fire in weir.rules.test.yml");
    }
    Ok(())
}

/// Each expression of the dashboard is one that Prometheus can read.
#[tokio::test]
async fn the_dashboards_expressions_are_good() -> Result<()> {
    let server = Server::start("global: {scrape_interval: 1s}\n")?;
    let prometheus = Prometheus::new(&server.url, Duration::from_secs(5))?;
    until_value(&server, &prometheus, "vector(1)", 1.0).await?;
    let text = fs::read_to_string(assets().join("weir.dashboard.json"))?;
    let dashboard: serde_json::Value = serde_json::from_str(&text)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    ensure!(panels.len() > 10);
    for target in panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten()) {
        let expr = target["expr"].as_str().context("no expr")?;
        let expr = expr.replace("$service", ".*").replace("$__rate_interval", "1m");
        prometheus.query(&expr).await.with_context(|| expr.clone())?;
    }
    Ok(())
}
