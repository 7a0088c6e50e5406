//! Connections, windows and the flow table.

use serde::{Deserialize, Serialize};

/// Connections of a backend, or of a service as the sum over its backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Established flows, where every flow is recorded (`track = all`).
    pub active: Option<u64>,
    /// Flows whose client has not completed the handshake, where every flow is recorded.
    pub pending: Option<u64>,
    /// Elsewhere, for TCP: connections that began less those that ended. An estimate: repeated SYNs count twice, connections that end in
    /// silence are not noticed.
    pub active_estimate: Option<u64>,
    /// Records that named the backend at the last look at the flow table, in any state.
    pub recorded: u64,
    /// SYNs forwarded since the maps were loaded.
    pub syns: u64,
    /// Packets with FIN or RST that clients sent.
    pub fins: u64,
    /// Recorded flows whose handshake the client completed.
    pub opened: u64,
    /// Recorded flows that ended or expired after that.
    pub closed: u64,
}

/// Slots of a ring by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotStates {
    /// The ring alone decides.
    pub settled: u32,
    /// A change is announced: new flows still go to the backend before it, recorded.
    pub announced: u32,
    /// New flows go to the new backend; flows before the change are learned as they speak.
    pub moving: u32,
    /// Nothing is recorded any more, records still speak.
    pub residual: u32,
}

impl SlotStates {
    /// Slots that are not settled.
    pub fn unsettled(&self) -> u32 {
        self.announced + self.moving + self.residual
    }
}

/// Where a drain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainPhase {
    /// New flows still come, so that no repeated SYN is torn from its connection.
    Announced,
    /// No new flows; those that it has go on.
    Draining,
    /// No flow is left, or, where not every flow is recorded, its time is over.
    Ended,
    /// Its time is over and flows are left. A backend that is configured keeps them; one that is not is gone.
    TimedOut,
}

/// The drain of a backend: set by an operator, of weight 0, or no longer configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Where it stands.
    pub phase: DrainPhase,
    /// Recorded flows that are left, half-open ones included; `None` where not every flow is recorded.
    pub connections: Option<u64>,
    /// Time until no new flow comes.
    pub announced_for_s: u64,
    /// Time until it ends at the latest.
    pub ends_in_s: u64,
}

impl Drain {
    /// What happens now and when it ends, in one sentence.
    pub fn words(&self) -> String {
        let flows = match self.announced_for_s {
            0 => "no new flows".to_owned(),
            seconds => format!("announced for {seconds} s, then no new flows"),
        };
        let ends = self.ends_in_s;
        match (self.phase, self.connections) {
            (DrainPhase::Ended, Some(_)) => "ended: no connection is left".into(),
            (DrainPhase::Ended, None) => "ended: its time is over".into(),
            (DrainPhase::TimedOut, left) => format!("its time is over, {} connections are left", left.unwrap_or(0)),
            (_, Some(left)) => {
                format!("{flows}; ends when the last of {left} connections does, in {ends} s at the latest")
            }
            (_, None) => format!("{flows}; ends in {ends} s (not every flow is recorded: what is left is not known)"),
        }
    }
}

/// The flow table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowTable {
    /// Records that it is made for (`limits.flows_max`).
    pub records_max: u64,
    /// Places that it has, twice as many or more.
    pub places: u64,
    /// What the last look found; `None` before the first.
    pub look: Option<FlowLook>,
    /// What happened since the maps were loaded, each kind of event.
    pub events: Vec<FlowEventCount>,
    /// Backends that are no longer configured and drain.
    pub backends_leaving: u32,
    /// Ids of backends that are gone, not given out anew while records or owners name them.
    pub backend_ids_former: u32,
}

impl FlowTable {
    /// Records at the last look.
    pub fn records(&self) -> u64 {
        self.look.as_ref().map_or(0, |look| look.half_open + look.established + look.closing + look.once)
    }
}

/// A look at the flow table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowLook {
    /// Time since it began.
    pub age_s: u64,
    /// How long it took.
    pub duration_us: u64,
    /// Expired records that it removed.
    pub swept: u64,
    /// Records that a change of `limits.flows_max` left in the table before, as they have no room in the new one; they are found there.
    #[serde(default)]
    pub no_room: u64,
    /// By how much the counts of active and half-open flows were off the records, summed over backends.
    pub drift: u64,
    /// Records of flows of which a SYN was seen and nothing after it.
    pub half_open: u64,
    /// Records of established flows.
    pub established: u64,
    /// Records of flows of which a FIN or RST was seen.
    pub closing: u64,
    /// Records of flows that were learned by one packet.
    pub once: u64,
}

/// How often something happened to the flow table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowEventCount {
    /// Name, `snake_case`, stable.
    pub event: String,
    /// How often.
    pub count: u64,
}

/// `POST /v1/flows`: recorded flows. Each field that is present must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowQuery {
    /// Name of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Name of the backend within its service, as [`super::backend_name`] writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// `half_open`, `established`, `closing` or `once`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Flows that are listed at most, up to [`super::FLOWS_LISTED_MAX`]; more are counted.
    #[serde(default)]
    pub limit: u32,
}

/// Answer to a [`FlowQuery`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowList {
    /// Live records in the table.
    pub records: u64,
    /// Those that match.
    pub matched: u64,
    /// Those that match and are not listed.
    pub left_out: u64,
    /// The listed ones, in the order of the table, which is none.
    pub flows: Vec<FlowEntry>,
}

/// A recorded flow. The table holds no addresses: only who has a flow's tuple can find it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowEntry {
    /// Name of the service; `None` if it is gone.
    pub service: Option<String>,
    /// Slot that the flow had when it was recorded.
    pub slot: u32,
    /// Name of the backend within the service; `None` if it is gone.
    pub backend: Option<String>,
    /// Its id.
    pub backend_id: u32,
    /// `half_open`, `established`, `closing` or `once`.
    pub state: String,
    /// Seconds until it expires.
    pub left_s: u32,
}

/// `POST /v1/flows/flush`: removes records. Their flows are then as if never recorded; those on slots that move, and those of services that
/// record every flow, may go to another backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlushRequest {
    /// Only those of this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Only those of this backend of that service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
}

/// Answer to a [`FlushRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// Records removed.
    pub removed: u64,
}
