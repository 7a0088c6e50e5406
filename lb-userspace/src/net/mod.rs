//! The machine's network as netlink shows it: interfaces, next hops, addresses.
//!
//! Owns every netlink socket and the packet socket that announces VIPs. Refuses to know services, rings and maps.
//! Nothing here reads `/sys/class/net`: it shows the namespace in which `/sys` was mounted, not the one of this process.
//! Sockets belong to the network namespace of the thread that opens them.
//!
//! | module | what |
//! |---|---|
//! | [`interface`] | links by name: MAC, MTU, state, counters, the XDP mode in force |
//! | [`next_hop`] | pure: links, routes and neighbours in, [`Resolution`] out |
//! | [`events`] | pure: what netlink messages mean |
//! | [`resolver`] | the loop that keeps resolutions true and neighbours fresh |
//! | [`announce`] | VIPs on an interface, gratuitous ARP and unsolicited neighbour advertisements |
//! | [`frame`] | pure: the bytes of those announcements |
//! | [`forwarding`] | pure: settings that replies of `nat` services need |
//! | [`sysctl`], [`offload`] | settings that `weir doctor` looks at |
//! | [`doctor`] | pure: what is wrong with those settings and what to do |

pub mod announce;
pub mod doctor;
pub mod events;
pub mod forwarding;
pub mod frame;
pub mod interface;
pub mod netlink;
pub mod next_hop;
pub mod offload;
pub mod resolver;
pub mod sysctl;

pub use announce::Announcer;
pub use interface::{Attached, Interface};
pub use netlink::Error;
pub use next_hop::{Cause, Resolution};
pub use resolver::{Resolver, Table};
