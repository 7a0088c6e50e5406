//! Who gets in: ACL users and TLS of Redis, tokens and certificates of the served store.

use std::{net::TcpListener as StdListener, path::Path, sync::Arc};

use lb_locks::torture::server::{RedisServer, ServerOptions};
use lb_userspace::store::{
    Store, StoreError,
    http::{Access, ClientTls, Door, Endpoint, HttpStore, ServerTls, serve},
    memory::MemoryStore,
    redis::{Login, RedisConfig, Servers, Tls},
    secret::Secret,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::net::TcpListener;

use super::{
    faults::{Follower, insist},
    rig::{config, run, set, store, write},
};

/// An authority that signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> Vec<u8> {
        self.0.pem().into_bytes()
    }

    /// A certificate for `name` and its key, PEM.
    fn sign(&self, name: &str) -> (Vec<u8>, Secret) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        // OpenSSL takes a certificate that has its issuer's name for one that signed itself.
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem().into_bytes(), Secret::new(&key.serialize_pem()))
    }
}

/// What a user needs who may do nothing else.
const RIGHTS: &str = "~weir:* &weir:* -@all +@read +@write +@pubsub +@scripting +@transaction +@connection +wait +time \
                      -@dangerous +role";

#[test]
fn an_acl_user_with_few_rights_is_enough() {
    run(async {
        let server = super::rig::redis();
        server.command(&format!("ACL SETUSER weir on >hunter2 {RIGHTS}")).unwrap();
        server.command("ACL SETUSER default off").unwrap();
        let with = |login: Login| RedisConfig { login, ..config(server.address(), "weir") };
        let user = |password: &str| Login { user: Some("weir".into()), password: Some(Secret::new(password)) };
        let good = store(with(user("hunter2")));
        let follower = Follower::start(Arc::clone(&good), 1);
        insist(&good, "service/a", "1").await;
        follower.agrees(&good).await;
        assert_eq!(good.nodes().await, Ok(Vec::new()));
        for (login, what) in [(Login::default(), "nobody"), (user("hunter3"), "a wrong password")] {
            let error = store(with(login)).snapshot().await.unwrap_err();
            assert!(matches!(error, StoreError::Denied(_)), "{what}: {error:?}");
            assert!(!error.to_string().contains("hunter"), "{error}");
        }
        // Another prefix is not this user's.
        let mut other = with(user("hunter2"));
        other.prefix = "other".into();
        let error = store(other).snapshot().await.unwrap_err();
        assert!(matches!(error, StoreError::Denied(_)), "{error:?}");
    });
}

fn redis_with_tls(folder: &Path, authority: &Authority) -> (RedisServer, u16) {
    let (certificate, key) = authority.sign("localhost");
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let port = StdListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let arguments = [
        ("--tls-port", port.to_string()),
        ("--tls-cert-file", file("cert.pem", &certificate)),
        ("--tls-key-file", file("key.pem", key.expose().as_bytes())),
        ("--tls-ca-cert-file", file("ca.pem", &authority.pem())),
    ];
    let arguments = arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
    (RedisServer::start(ServerOptions { arguments, ..ServerOptions::default() }).expect("redis-server"), port)
}

#[test]
fn redis_over_tls_trusts_one_authority() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let (authority, stranger) = (Authority::new(), Authority::new());
        let (_server, port) = redis_with_tls(folder.path(), &authority);
        let with = |tls: Tls| {
            let mut config = RedisConfig::new(Servers::Standalone(("localhost".into(), port)));
            config.tls = Some(tls);
            store(config)
        };
        let identity = Some(authority.sign("node-a"));
        let good = with(Tls { ca: Some(authority.pem()), identity: identity.clone() });
        let follower = Follower::start(Arc::clone(&good), 1);
        insist(&good, "service/a", "1").await;
        follower.agrees(&good).await;
        for (tls, what) in [
            (Tls { ca: Some(stranger.pem()), identity }, "another authority"),
            (Tls { ca: Some(authority.pem()), identity: None }, "no certificate of one's own"),
            (Tls { ca: Some(authority.pem()), identity: Some(stranger.sign("node-a")) }, "a stranger's certificate"),
        ] {
            let error = with(tls).snapshot().await.unwrap_err();
            assert!(matches!(error, StoreError::Unavailable(_) | StoreError::Refused(_)), "{what}: {error:?}");
        }
    });
}

struct Served {
    port: u16,
    task: tokio::task::JoinHandle<Result<(), StoreError>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn served(tls: Option<ServerTls>, access: Access) -> Served {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let door = match tls {
        Some(tls) => Door::Tls(listener, tls),
        None => Door::Tcp(listener),
    };
    Served { port, task: tokio::spawn(serve(door, Arc::new(MemoryStore::default()), access)) }
}

fn through(endpoint: Endpoint, token: Option<&str>) -> Arc<dyn Store> {
    Arc::new(HttpStore::new(endpoint, token.map(Secret::new), false).unwrap())
}

#[test]
fn a_token_opens_the_served_store() {
    run(async {
        let access = Access { tokens: vec![Secret::new("old"), Secret::new("hunter2")], insecure: false };
        let served = served(None, access).await;
        let with = |token| through(Endpoint::Tcp("127.0.0.1".into(), served.port), token);
        for token in [None, Some("hunter3"), Some("")] {
            let error = with(token).snapshot().await.unwrap_err();
            assert!(matches!(error, StoreError::Denied(_)), "{token:?}: {error:?}");
            assert!(with(token).subscribe().await.is_err(), "{token:?}");
            assert!(write(&with(token), &[set("service/a", "1")]).await.is_err(), "{token:?}");
        }
        for token in ["hunter2", "old"] {
            assert!(write(&with(Some(token)), &[set("service/a", token)]).await.is_ok());
        }
        assert_eq!(with(Some("old")).snapshot().await.unwrap().unwrap().revision.number, 2);
        let elsewhere = HttpStore::new(Endpoint::Tcp("192.0.2.1".into(), 1), Some(Secret::new("x")), false);
        assert!(elsewhere.unwrap_err().to_string().contains("without TLS"));
    });
}

#[test]
fn certificates_open_the_served_store() {
    run(async {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let (chain, key) = authority.sign("localhost");
        let tls = ServerTls::new(&chain, &key, Some(&authority.pem())).unwrap();
        let served = served(Some(tls), Access::default()).await;
        let with = |ca: &Authority, identity: Option<&(Vec<u8>, Secret)>| {
            let identity = identity.map(|(chain, key)| (&**chain, key));
            let tls = ClientTls::new(Some(&ca.pem()), identity).unwrap();
            through(Endpoint::Tls("localhost".into(), served.port, tls), None)
        };
        let (ours, theirs) = (authority.sign("node-a"), stranger.sign("node-a"));
        let good = with(&authority, Some(&ours));
        let follower = Follower::start(Arc::clone(&good), 1);
        insist(&good, "service/a", "1").await;
        follower.agrees(&good).await;
        assert!(with(&authority, None).snapshot().await.is_err(), "no certificate");
        assert!(with(&authority, Some(&theirs)).snapshot().await.is_err(), "a stranger's certificate");
        assert!(with(&stranger, Some(&ours)).snapshot().await.is_err(), "a server that is not trusted");
        let wrong = ServerTls::new(&chain, &Secret::new("no key: hunter2"), None).unwrap_err().to_string();
        assert!(!wrong.contains("hunter2"), "{wrong}");
    });
}

#[test]
fn a_store_is_not_served_to_everybody_by_accident() {
    run(async {
        let open = async || Door::Tcp(TcpListener::bind(("0.0.0.0", 0)).await.unwrap());
        let store = || Arc::new(MemoryStore::default());
        let plain = serve(open().await, store(), Access::default()).await;
        assert!(plain.unwrap_err().to_string().contains("insecure"), "nothing is asked of callers");
        let access = Access { tokens: vec![Secret::new("hunter2")], insecure: false };
        assert!(serve(open().await, store(), access).await.is_err(), "the token would be read on the way");
        let insecure = serve(open().await, store(), Access { insecure: true, ..Access::default() });
        assert!(tokio::time::timeout(std::time::Duration::from_millis(300), insecure).await.is_err(), "it serves");
    });
}
