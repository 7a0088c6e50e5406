//! `weir pool list|set|delete`: the addresses that nodes lease, as the store has them.

use std::net::IpAddr;

use clap::Subcommand;
use ipnet::IpNet;
use serde::Serialize;

use super::{
    exit::Exit,
    shell::{Shell, block_on},
    store::{self, StoreArgs, WriteArgs, failed},
    table::{Cell, Column, Tone, table},
};
use crate::{
    model::{Config, Incremental},
    store::{document::document, edit, node::NodeStatus},
};

/// What there is to do where pools stand in a file.
const IN_THE_FILE: &str = "pools need a store";

/// `weir pool`.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// List the pools of the store: prefix, services that use it, and which node has which address
    List {
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Create a pool, or change the prefix of one: nodes whose address is no longer in it lease another
    Set {
        /// Name of the pool; a service has it as `vip = "pool:NAME"`
        name: String,
        /// The addresses: 203.0.113.32/28
        prefix: IpNet,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Delete a pool that no service uses
    Delete {
        /// Name of the pool
        name: String,
        #[command(flatten)]
        write: WriteArgs,
    },
}

/// A pool: what `-o json` lists.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Pool {
    name: String,
    prefix: IpNet,
    /// Names of the services whose VIP is of this pool.
    services: Vec<String>,
    /// Address and node, as live nodes report.
    leases: Vec<Lease>,
}

/// An address of a pool that a node serves.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Lease {
    address: IpAddr,
    node: String,
}

/// Runs `weir pool ...`.
pub fn run(shell: &Shell, command: &PoolCommand) -> anyhow::Result<Exit> {
    match command {
        PoolCommand::List { store } => {
            let shared = store::place(store)?.store(IN_THE_FILE)?;
            let (snapshot, nodes) = block_on(async {
                let snapshot = shared.store.snapshot().await.map_err(failed)?;
                Ok((snapshot, shared.store.nodes().await.map_err(failed)?))
            })?;
            let objects = snapshot.map(|snapshot| snapshot.objects).unwrap_or_default();
            let document = document(&shared.file_name, shared.local.clone(), &objects);
            let checked = Incremental::default().document(&document);
            let config = checked.config.ok_or_else(|| {
                super::exit::Failure::new(Exit::ConfigInvalid, "what the store holds is no configuration for this node")
                    .hint("`weir config history` says who wrote it, `weir config rollback` takes it back")
            })?;
            shell.show(&pools(&config, &nodes), |pools| list(pools, shell.colour))?;
            Ok(Exit::Ok)
        }
        PoolCommand::Set { name, prefix, write } => {
            let shared = store::place(&write.store)?.store(IN_THE_FILE)?;
            let subject = format!("pool set {name} {prefix}");
            store::change(shell, &shared, write, &subject, |objects| edit::set_pool(objects, name, *prefix))
        }
        PoolCommand::Delete { name, write } => {
            let shared = store::place(&write.store)?.store(IN_THE_FILE)?;
            store::change(shell, &shared, write, &format!("pool delete {name}"), |objects| {
                edit::delete_pool(objects, name)
            })
        }
    }
}

fn pools(config: &Config, nodes: &[NodeStatus]) -> Vec<Pool> {
    let served = |prefix: &IpNet| {
        let of = |node: &NodeStatus| {
            let mine = node.report.addresses.iter().filter(|address| prefix.contains(*address)).copied();
            mine.map(|address| Lease { address, node: node.report.node.clone() }).collect::<Vec<_>>()
        };
        let mut leases: Vec<Lease> = nodes.iter().filter(|node| node.live).flat_map(of).collect();
        leases.sort_by_key(|lease| lease.address);
        leases
    };
    let pool = |pool: &crate::model::Pool| {
        let services = config.services.iter().filter(|service| service.pool.as_ref() == Some(&pool.name));
        let services = services.map(|service| service.name.clone()).collect();
        Pool { name: pool.name.clone(), prefix: pool.prefix, services, leases: served(&pool.prefix) }
    };
    config.pools.iter().map(pool).collect()
}

fn list(pools: &[Pool], colour: bool) -> String {
    if pools.is_empty() {
        return "the store has no pool\n".into();
    }
    let columns = ["POOL", "PREFIX", "SERVICES", "LEASES"].map(Column::Left);
    let row = |pool: &Pool| -> Vec<Cell> {
        let leases: Vec<String> = pool.leases.iter().map(|lease| format!("{} {}", lease.node, lease.address)).collect();
        let services =
            if pool.services.is_empty() { Cell::toned("-", Tone::Faint) } else { pool.services.join(" ").into() };
        vec![pool.name.as_str().into(), pool.prefix.to_string().into(), services, leases.join(", ").into()]
    };
    table(&columns, pools.iter().map(row).collect(), colour)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_shown_with_who_uses_it() {
        let lease = |last: u8, node: &str| Lease { address: [192, 0, 2, last].into(), node: node.into() };
        let pools = [
            Pool {
                name: "front".into(),
                prefix: "192.0.2.0/28".parse().unwrap(),
                services: vec!["web".into(), "dns".into()],
                leases: vec![lease(0, "lb1"), lease(1, "lb2")],
            },
            Pool { name: "p".into(), prefix: "2001:db8::/120".parse().unwrap(), services: vec![], leases: vec![] },
        ];
        assert_eq!(
            list(&pools, false),
            "POOL   PREFIX          SERVICES  LEASES\n\
             front  192.0.2.0/28    web dns   lb1 192.0.2.0, lb2 192.0.2.1\n\
             p      2001:db8::/120  -\n"
        );
        assert_eq!(list(&[], false), "the store has no pool\n");
    }
}
