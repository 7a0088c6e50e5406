//! The summary plot: net cost of a packet against the number of flows, as SVG.
//!
//! Its greys and colours are of middle brightness, which can be read on white and on black; there is no background.

use std::fmt::Write;

use crate::report::{Row, flows_text};

/// What is drawn: program, case, colour.
const CURVES: [(&str, &str, &str); 6] = [
    ("lru", "flows", "#d1495b"),
    ("weir", "least_connections", "#b07d2b"),
    ("weir", "tracked", "#8f63c9"),
    ("weir", "residual", "#2f86c1"),
    ("minimal", "flows", "#7d8590"),
    ("weir", "settled", "#2a9d5c"),
];
const TEXT: &str = "#7d8590";
const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 400.0;
/// Edges of the area with the curves.
const LEFT: f64 = 60.0;
const RIGHT: f64 = 540.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 340.0;
/// Least distance between two labels, in pixels.
const LABEL: f64 = 17.0;

/// What a curve is called.
fn name(program: &str, case: &str) -> String {
    match program {
        "lru" => "minimal + kernel's LRU hash".into(),
        "minimal" => "minimal, no records".into(),
        program => format!("{program}, {case}"),
    }
}

/// Draws the rows of ways of keeping flows. `None` without two numbers of flows to draw between.
pub fn svg(rows: &[Row]) -> Option<String> {
    let of = |program: &str, case: &str| {
        let mut points: Vec<(u32, f64)> = rows
            .iter()
            .filter(|row| row.program == program && row.case == case)
            .map(|row| (row.flows, row.net_ns.max(0.0)))
            .collect();
        points.sort_by_key(|(flows, _)| *flows);
        points
    };
    let curves = CURVES.map(|(program, case, colour)| (name(program, case), colour, of(program, case)));
    let all = || curves.iter().flat_map(|(.., points)| points);
    let (first, last) = (all().map(|p| p.0).min()?, all().map(|p| p.0).max()?);
    if first == last {
        return None;
    }
    // A round number of steps of 100 ns.
    let top_ns = (all().map(|p| p.1).fold(0.0, f64::max) / 100.0).ceil().max(1.0) * 100.0;
    let decades = |flows: u32| f64::from(flows.max(1)).log10();
    let x = |flows: u32| LEFT + (decades(flows) - decades(first)) / (decades(last) - decades(first)) * (RIGHT - LEFT);
    let y = |ns: f64| BOTTOM - ns / top_ns * (BOTTOM - TOP);

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\" \
         fill=\"{TEXT}\">\n<title>Net cost of a packet against the number of flows</title>\n\
         <text x=\"{LEFT}\" y=\"22\">ns per packet, net of an empty program (IPv4, TCP, ipip, 100 backends)</text>\n"
    );
    for step in 0..=4 {
        let ns = top_ns * f64::from(step) / 4.0;
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {at:.1}H{RIGHT}\" stroke=\"{TEXT}\" stroke-opacity=\"0.35\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{ns:.0}</text>",
            LEFT - 8.0,
            y(ns) + 4.0,
            at = y(ns)
        );
    }
    let mut ticks: Vec<u32> = all().map(|p| p.0).collect();
    ticks.sort_unstable();
    ticks.dedup();
    for flows in ticks {
        let text = flows_text(flows);
        let text = text.trim_end_matches(" flows");
        let _ =
            writeln!(out, "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>", x(flows), BOTTOM + 22.0);
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">flows that send packets (logarithmic)</text>",
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 46.0
    );
    let mut labels = Vec::new();
    for (name, colour, points) in &curves {
        let Some((_, ns)) = points.last() else { continue };
        let path: Vec<String> = points.iter().map(|(flows, ns)| format!("{:.1} {:.1}", x(*flows), y(*ns))).collect();
        let _ = writeln!(out, "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", path.join("L"));
        for (flows, ns) in points {
            let _ = writeln!(out, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>", x(*flows), y(*ns));
        }
        labels.push((y(*ns), format!("{name}: {ns:.0}"), *colour));
    }
    // From the bottom up, none on top of another.
    labels.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut free = f64::INFINITY;
    for (at, label, colour) in labels {
        free = at.min(free - LABEL);
        let _ = writeln!(out, "<text x=\"{}\" y=\"{:.1}\" fill=\"{colour}\">{label}</text>", RIGHT + 10.0, free + 4.0);
    }
    out.push_str("</svg>\n");
    Some(out)
}
