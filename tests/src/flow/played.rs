//! What happened in sequences, in numbers: a run in which little happens proves little.

/// What a sequence came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Played {
    /// Packets.
    pub packets: u64,
    /// Flows whose clients were answered.
    pub flows: u64,
    /// Packets of open flows, each of which reached the rightful server.
    pub kept: u64,
    /// SYNs that came while a server of their service was full.
    pub met_full: u64,
    /// Packets that came while no server of their service was up.
    pub met_open: u64,
    /// Plans carried out.
    pub plans: u64,
    /// Steps towards a flow table of another size.
    pub resizing: u64,
    /// Adoptions.
    pub adoptions: u64,
}

impl std::ops::AddAssign for Played {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.flows += other.flows;
        self.kept += other.kept;
        self.met_full += other.met_full;
        self.met_open += other.met_open;
        self.plans += other.plans;
        self.resizing += other.resizing;
        self.adoptions += other.adoptions;
    }
}
