//! The codes of configuration diagnostics: stable words that scripts may match, each with its severity and meaning.
//!
//! Invariant: every code has a golden file that shows it (`tests/config`), which a test checks against [`Code::ALL`].

use serde::{Serialize, Serializer};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// The configuration holds, but perhaps not as meant.
    Warning,
}

macro_rules! codes {
    ($($variant:ident $word:literal $severity:ident $meaning:literal;)*) => {
        /// What kind of finding a diagnostic is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $meaning] $variant,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable word, as shown in brackets.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }

            /// Whether the code refuses the configuration.
            pub const fn severity(self) -> Severity {
                match self {
                    $(Self::$variant => Severity::$severity,)*
                }
            }

            /// One sentence for a reference table.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => $meaning,)*
                }
            }
        }
    };
}

codes! {
    Syntax "syntax" Error "The text is not TOML.";
    DuplicateKey "duplicate-key" Error "A key or table is written twice.";
    ForeignFormat "foreign-format" Error "The file is written for another load balancer.";
    UnknownKey "unknown-key" Error "The key does not exist in that table.";
    MissingKey "missing-key" Error "A key without default is missing.";
    ConflictingKeys "conflicting-keys" Error "Two keys exclude each other.";
    WrongType "wrong-type" Error "The value has another type than the key.";
    BadValue "bad-value" Error "The word is none of those that the key knows.";
    OutOfRange "out-of-range" Error "The number lies outside the key's range.";
    BadDuration "bad-duration" Error "The text is not a duration.";
    BadName "bad-name" Error "The name is empty, too long or has characters that names cannot have.";
    BadInterface "bad-interface" Error "No interface can have that name.";
    DuplicateInterface "duplicate-interface" Error "An interface is listed twice.";
    TooManyInterfaces "too-many-interfaces" Error "More interfaces than a node can attach to.";
    BadPath "bad-path" Error "The path is relative, too long or has control characters.";
    BadListen "bad-listen" Error "The text is not an address with a port.";
    BadPrefix "bad-prefix" Error "The text is not a prefix of the length that outer sources need.";
    BadAddress "bad-address" Error "The text is not an IP address.";
    AddressKind "address-kind" Error "The address is of a kind that cannot be balanced.";
    DuplicateName "duplicate-name" Error "Two services have one name.";
    DuplicateService "duplicate-service" Error "Two services have one VIP, port and protocol.";
    DuplicateBackend "duplicate-backend" Error "A service lists a backend twice.";
    FamilyMismatch "family-mismatch" Error "The forwarding mode cannot cross address families.";
    VipIsBackend "vip-is-backend" Error "A backend's address is a VIP of this node.";
    BackendPort "backend-port" Error "The forwarding mode cannot change the port.";
    TimeoutAboveInterval "timeout-above-interval" Error "A probe may take longer than the time between probes.";
    RingSize "ring-size" Error "The ring size is not a prime number in range.";
    TrackConflict "track-conflict" Error "Every flow has to be recorded, and a key says otherwise.";
    ProtocolKey "protocol-key" Error "The key or its value does not belong to services of that protocol.";
    WindowAboveTimeout "window-above-timeout" Error "Records expire before the window is over that they have to last.";
    HealthPath "health-path" Error "The path of an HTTP check is not one that can be requested.";
    HealthHost "health-host" Error "The host of an HTTP check is not one that can be sent.";
    HealthPort "health-port" Error "The check of a service on all ports does not say which port to ask.";
    HealthKey "health-key" Error "The key does not belong to that type of check.";
    NatAmbiguous "nat-ambiguous" Error "Replies of a backend would belong to two services.";
    ServiceBackends "service-backends" Error "More backends in a service than a service can have.";
    LimitServices "limit-services" Error "More services than the limits allow.";
    LimitBackends "limit-backends" Error "More backends than the limits allow.";
    LimitRings "limit-rings" Error "The rings do not fit the arena.";
    BadUrl "bad-url" Error "The text is not an address of a store.";
    StoreKey "store-key" Error "The key does not belong to that kind of store.";
    StoreInsecure "store-insecure" Error "The store would be open to a network, or be reached over one, without protection.";
    StoreServices "store-services" Error "Services or pools stand in the file although a store holds them.";
    ObjectName "object-name" Error "An object of the store holds something else than its name says.";
    PoolUnknown "pool-unknown" Error "A VIP names a pool that does not exist.";
    PoolOverlap "pool-overlap" Error "An address of a pool is also something else.";
    PoolStore "pool-store" Error "There is no store from which an address of a pool could be leased.";
    NoServices "no-services" Warning "The configuration has no service.";
    NoBackends "no-backends" Warning "A service has no backend.";
    WeightIgnored "weight-ignored" Warning "The algorithm does not heed weights that differ.";
    ChosenHandover "chosen-handover" Warning "Flows of an algorithm that chooses do not survive a change of node.";
    RingSmall "ring-small" Warning "The ring is too small for an even balance.";
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn words_are_unique_and_plain() {
        let words: HashSet<_> = Code::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(words.len(), Code::ALL.len());
        assert!(words.iter().all(|w| w.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
        assert!(Code::ALL.iter().all(|c| c.meaning().ends_with('.')));
    }
}
