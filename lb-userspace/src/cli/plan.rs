//! `weir plan`: what a configuration would do to slots and flows, before it is applied.

use super::{
    config::{Text, diagnostics},
    exit::Exit,
    shell::Shell,
    table::{Cell, Column, Tone, table},
    unit,
};
use crate::api::{DiffRequest, PlanReport, ServiceAction, ServicePlan};

/// Runs `weir plan`.
pub fn run(shell: &Shell, text: &Text) -> anyhow::Result<Exit> {
    let (text, file) = text.read()?.unzip();
    let request = DiffRequest { text, file };
    let report = shell.ask(async |client| client.plan(&request).await)?;
    shell.show(&report, |report| render(report, shell.colour))?;
    Ok(Exit::Ok)
}

fn action(plan: &ServicePlan) -> Cell {
    match plan.action {
        ServiceAction::Added => Cell::toned("added", Tone::Good),
        ServiceAction::Removed => Cell::toned("removed", Tone::Bad),
        ServiceAction::Replaced => Cell::toned("replaced", Tone::Bad),
        ServiceAction::Changed => "changed".into(),
    }
}

fn render(report: &PlanReport, colour: bool) -> String {
    let mut out = diagnostics(&report.diagnostics);
    if !report.changed {
        out.push_str(&format!("nothing would change: revision {} says the same\n", report.revision));
        return out;
    }
    report.changes.iter().for_each(|change| out.push_str(&format!("- {change}\n")));
    if report.services.is_empty() {
        out.push_str("\nno slot and no flow would be touched\n");
        return out;
    }
    let columns = [
        Column::Left("SERVICE"),
        Column::Left("ACTION"),
        Column::Right("SLOTS MOVED"),
        Column::Right("SHARE"),
        Column::Right("FLOWS RECORDED"),
        Column::Right("ON MOVED SLOTS"),
        Column::Right("ANNOUNCED"),
        Column::Right("WINDOW"),
    ];
    let row = |s: &ServicePlan| {
        let moved = s.slots_moved > 0;
        let time = |seconds: u64| if moved && seconds > 0 { unit::duration(seconds) } else { "-".into() };
        let share = if s.slots == 0 { 0.0 } else { f64::from(s.slots_moved) / f64::from(s.slots) };
        vec![
            s.service.as_str().into(),
            action(s),
            s.slots_moved.to_string().into(),
            unit::percent(share).into(),
            s.flows_recorded.to_string().into(),
            s.flows_on_moved_slots.to_string().into(),
            time(s.announce_for_s).into(),
            time(s.window_s).into(),
        ]
    };
    out.push('\n');
    out.push_str(&table(&columns, report.services.iter().map(row).collect(), colour));
    for service in &report.services {
        for line in &service.flows {
            out.push_str(&format!("\n{}: {}", service.service, super::table::printable(line)));
        }
    }
    out.push_str("\n\nbackends without a result of their health check were taken to be up\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_and_flows_are_told_by_service() {
        let service = ServicePlan {
            service: "web".into(),
            action: ServiceAction::Changed,
            slots: 65_537,
            slots_moved: 6_554,
            whole: false,
            flows_recorded: 12,
            flows_on_moved_slots: 3,
            announce_for_s: 4,
            window_s: 7440,
            backends: Vec::new(),
            flows: vec!["6554 of 65537 slots move after 4s".into()],
        };
        let removed = ServicePlan {
            service: "old".into(),
            action: ServiceAction::Removed,
            slots_moved: 0,
            flows: vec!["its connections end at once".into()],
            ..service.clone()
        };
        let mut report = PlanReport {
            revision: 3,
            changed: true,
            changes: vec!["service web: backend 10.0.0.14:80 added, weight 2".into()],
            services: vec![service, removed],
            diagnostics: Vec::new(),
        };
        assert_eq!(
            render(&report, false),
            "\
- service web: backend 10.0.0.14:80 added, weight 2

SERVICE  ACTION   SLOTS MOVED  SHARE  FLOWS RECORDED  ON MOVED SLOTS  ANNOUNCED  WINDOW
web      changed         6554  10.0%              12               3         4s   2h04m
old      removed            0   0.0%              12               3          -       -

web: 6554 of 65537 slots move after 4s
old: its connections end at once

backends without a result of their health check were taken to be up
"
        );
        report.services.clear();
        assert!(render(&report, false).ends_with("\nno slot and no flow would be touched\n"));
        report.changed = false;
        assert_eq!(render(&report, false), "nothing would change: revision 3 says the same\n");
    }
}
