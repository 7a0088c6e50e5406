//! `weir flow list|get|flush`.

use std::{
    io::{BufRead as _, IsTerminal as _},
    path::PathBuf,
};

use clap::{Args, Subcommand, builder::PossibleValuesParser};
use lb_core::abi::flow::FlowState;

use super::{
    backend,
    exit::{Exit, Failure},
    explain::{self, craft},
    shell::{Shell, Watch},
    table::{Column, table},
    unit,
};
use crate::api::{FlowEntry, FlowList, FlowQuery, FlushRequest};

/// `weir flow`.
#[derive(Debug, Subcommand)]
pub enum FlowCommand {
    /// List recorded flows; records hold no addresses, `weir flow get` finds the one of a tuple
    List {
        #[command(flatten)]
        of: Of,
        /// Only those in this state
        #[arg(long, value_name = "STATE", value_parser = PossibleValuesParser::new(FlowState::ALL.map(FlowState::name)))]
        state: Option<String>,
        /// List this many at most; the others are counted
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=100_000))]
        limit: u32,
        #[command(flatten)]
        watch: Watch,
    },
    /// Show what the data plane knows of one flow: its record, slot, owner and where new flows go
    Get {
        /// Protocol of the flow
        #[arg(value_name = "PROTO")]
        protocol: craft::Protocol,
        /// The client's end: 192.0.2.7:40000, [2001:db8::7]:40000
        #[arg(value_name = "SRC")]
        source: craft::Endpoint,
        /// The service's end: 203.0.113.1:80, [2001:db8::1]:80
        #[arg(value_name = "VIP")]
        destination: craft::Endpoint,
        /// Folder of the pinned maps; the agent's unless given, /sys/fs/bpf/weir if no agent answers
        #[arg(long, value_name = "DIR")]
        pin_dir: Option<PathBuf>,
    },
    /// Forget recorded flows: they may move to another backend
    Flush {
        #[command(flatten)]
        of: Of,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// Whose flows.
#[derive(Args, Clone, Debug, Default)]
pub struct Of {
    /// Only those of this service
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Only those of this backend: `web/10.0.0.11:80`, or `10.0.0.11:80` together with --service
    #[arg(long, value_name = "SERVICE/BACKEND")]
    backend: Option<String>,
}

impl Of {
    /// Names of service and backend.
    fn names(&self, shell: &Shell) -> anyhow::Result<(Option<String>, Option<String>)> {
        let Some(backend) = &self.backend else { return Ok((self.service.clone(), None)) };
        let text = match &self.service {
            Some(service) if !backend.contains('/') => format!("{service}/{backend}"),
            _ => backend.clone(),
        };
        let (service, name) = backend::named(shell, &text)?;
        if self.service.as_ref().is_some_and(|other| *other != service) {
            return Err(Failure::new(Exit::Usage, "--service and --backend name two services").into());
        }
        Ok((Some(service), Some(name)))
    }
}

/// Runs `weir flow ...`.
pub fn run(shell: &Shell, command: &FlowCommand) -> anyhow::Result<Exit> {
    match command {
        FlowCommand::List { of, state, limit, watch } => {
            let (service, backend) = of.names(shell)?;
            let query = FlowQuery { service, backend, state: state.clone(), limit: *limit };
            let ask = async |client: &crate::api::client::Client| client.flows(&query).await;
            shell.repeat(*watch, ask, |answer, _| list(answer, shell.colour))?;
        }
        FlowCommand::Get { protocol, source, destination, pin_dir } => {
            let trace = explain::of_flow(shell, *protocol, *source, *destination, pin_dir.clone())?;
            if trace.service.is_none() {
                let message = format!("{} belongs to no service that forwards: {}", trace.packet, trace.reason);
                return Err(Failure::new(Exit::NotFound, message).hint("`weir explain` says why").into());
            }
            let recorded = trace.flow.as_ref().is_some_and(|flow| flow.record.is_some());
            shell.show(&trace, |trace| explain::flow(trace, shell.colour))?;
            return Ok(if recorded { Exit::Ok } else { Exit::NotFound });
        }
        FlowCommand::Flush { of, yes } => {
            let (service, backend) = of.names(shell)?;
            if !yes {
                let query = FlowQuery { service: service.clone(), backend: backend.clone(), ..FlowQuery::default() };
                let found = shell.ask(async |client| client.flows(&query).await)?;
                if !confirmed(found.matched)? {
                    return Err(Failure::new(Exit::Failure, "nothing was removed").into());
                }
            }
            let request = FlushRequest { service, backend };
            let flushed = shell.ask(async |client| client.flush(&request).await)?;
            shell.show(&flushed, |flushed| format!("{} removed\n", records(flushed.removed)))?;
        }
    }
    Ok(Exit::Ok)
}

fn records(n: u64) -> String {
    if n == 1 { "1 recorded flow".into() } else { format!("{n} recorded flows") }
}

/// Asks on the terminal, where there is one.
fn confirmed(matched: u64) -> anyhow::Result<bool> {
    let what = records(matched);
    if !std::io::stdin().is_terminal() {
        let message = format!("{what} would be removed, and there is no terminal to ask on");
        return Err(Failure::new(Exit::Usage, message).hint("say --yes").into());
    }
    eprint!(
        "{what} will be removed; those that a change moved, and all where every flow is recorded, may move. Go on? [y/N] "
    );
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn list(answer: &FlowList, colour: bool) -> String {
    let columns = [
        Column::Left("SERVICE"),
        Column::Right("SLOT"),
        Column::Left("BACKEND"),
        Column::Left("STATE"),
        Column::Right("EXPIRES IN"),
    ];
    let row = |f: &FlowEntry| {
        vec![
            f.service.as_deref().unwrap_or("(gone)").into(),
            f.slot.to_string().into(),
            f.backend.clone().unwrap_or_else(|| format!("(gone, id {})", f.backend_id)).into(),
            f.state.replace('_', "-").into(),
            unit::duration(u64::from(f.left_s)).into(),
        ]
    };
    let mut out = if answer.flows.is_empty() {
        String::new()
    } else {
        table(&columns, answer.flows.iter().map(row).collect(), colour)
    };
    out.push_str(&match (answer.matched, answer.left_out) {
        (matched, 0) if matched == answer.records => format!("{} in the table\n", records(matched)),
        (matched, 0) => format!("{} of {} in the table\n", records(matched), answer.records),
        (matched, left_out) => {
            format!(
                "{left_out} more of {} are left out (of {} in the table): --limit\n",
                records(matched),
                answer.records
            )
        }
    });
    out.push_str("records hold no addresses: `weir flow get PROTO SRC VIP` finds the one of a flow\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_said() {
        let flow = |backend: Option<&str>| FlowEntry {
            service: Some("web".into()),
            slot: 17,
            backend: backend.map(Into::into),
            backend_id: 9,
            state: "half_open".into(),
            left_s: 65,
        };
        let mut answer =
            FlowList { records: 9, matched: 5, left_out: 3, flows: vec![flow(Some("10.0.0.1:80")), flow(None)] };
        let note = "records hold no addresses: `weir flow get PROTO SRC VIP` finds the one of a flow\n";
        assert_eq!(
            list(&answer, false),
            format!(
                "\
SERVICE  SLOT  BACKEND       STATE      EXPIRES IN
web        17  10.0.0.1:80   half-open       1m05s
web        17  (gone, id 9)  half-open       1m05s
3 more of 5 recorded flows are left out (of 9 in the table): --limit
{note}"
            )
        );
        (answer.matched, answer.left_out) = (2, 0);
        assert!(list(&answer, false).ends_with(&format!("\n2 recorded flows of 9 in the table\n{note}")));
        assert_eq!(list(&FlowList::default(), false), format!("0 recorded flows in the table\n{note}"));
    }
}
