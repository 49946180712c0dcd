//! The plot of a run as SVG, made by hand: IOPS and p99 of the healthy load by tick, how many dead
//! controllers are live as a step line, and the outages shaded. One picture, no script.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::outcome::{Seen, Tick};

const WIDTH: f64 = 900.0;
/// Of one of the three panels.
const HEIGHT: f64 = 130.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 40.0;
const GAP: f64 = 34.0;

/// A panel: its name, its unit's largest value, and the value of a tick.
struct Panel<'a> {
    name: &'a str,
    color: &'a str,
    is_step: bool,
    value: fn(&Tick) -> f64,
}

const PANELS: [Panel<'_>; 3] = [
    Panel { name: "healthy IOPS", color: "#1f6fb2", is_step: false, value: iops },
    Panel { name: "healthy p99, us", color: "#b2451f", is_step: false, value: |t| t.p99 as f64 },
    Panel { name: "others live", color: "#2f7d32", is_step: true, value: |t| t.live as f64 },
];

fn iops(tick: &Tick) -> f64 {
    tick.ios as f64 / super::TICK.as_secs_f64()
}

/// Writes the plot of a run.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, seen: &Seen, report: &Value) -> Result<()> {
    let text = plot(seen, &title(report));
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn title(report: &Value) -> String {
    let text = |key: &str| report[key].as_str().unwrap_or_default();
    let (name, transport) = (text("scenario"), text("transport"));
    format!("{} on {transport}, QD {}", escaped(name), report["iodepth"])
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn plot(seen: &Seen, title: &str) -> String {
    let ticks: Vec<&Tick> = seen.ticks.iter().filter(|t| t.at >= seen.started).collect();
    let end = ticks.last().map_or(seen.started + 1, |tick| tick.at);
    let span = (end - seen.started).max(1) as f64;
    let x = |at: u64| LEFT + WIDTH * at.saturating_sub(seen.started) as f64 / span;
    let bottom = TOP + 3.0 * (HEIGHT + GAP);
    let (width, height) = (LEFT + WIDTH + 20.0, bottom + 10.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"18\" font-size=\"14\">{title}</text>\n"
    );
    for outage in &seen.outages {
        let (from, to) = (x(outage.at[0]), x(outage.at[1]).min(LEFT + WIDTH));
        let (width, height) = (to - from, bottom - GAP - TOP);
        // Writing to a string does not fail.
        let _ = writeln!(
            svg,
            "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height}\" \
             fill=\"#ddd\"><title>{}</title></rect>",
            outage.fault
        );
    }
    for (index, panel) in PANELS.iter().enumerate() {
        let top = TOP + index as f64 * (HEIGHT + GAP);
        panel.draw(&mut svg, top, &ticks, &x);
    }
    seconds(&mut svg, span / 1e6, bottom - GAP + 14.0);
    svg.push_str("</svg>\n");
    svg
}

impl Panel<'_> {
    fn draw(&self, svg: &mut String, top: f64, ticks: &[&Tick], x: &dyn Fn(u64) -> f64) {
        let most = ticks.iter().map(|tick| (self.value)(tick)).fold(1.0, f64::max);
        let y = |value: f64| top + HEIGHT * (1.0 - value / most);
        let mut points = String::new();
        let mut before = None;
        for tick in ticks {
            let (x, y) = (x(tick.at), y((self.value)(tick)));
            if let (true, Some(before)) = (self.is_step, before) {
                let _ = write!(points, "{x:.1},{before:.1} ");
            }
            let _ = write!(points, "{x:.1},{y:.1} ");
            before = Some(y);
        }
        let (base, label) = (top + HEIGHT, LEFT - 6.0);
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{}\">{}</text>\n\
             <text x=\"{label}\" y=\"{}\" text-anchor=\"end\">{most:.0}</text>\n\
             <text x=\"{label}\" y=\"{base}\" text-anchor=\"end\">0</text>\n\
             <path d=\"M{LEFT} {top}V{base}H{}\" fill=\"none\" stroke=\"#888\"/>\n\
             <polyline points=\"{points}\" fill=\"none\" stroke=\"{}\"/>",
            top - 4.0,
            self.name,
            top + 10.0,
            LEFT + WIDTH,
            self.color
        );
    }
}

/// About ten marks of the time, in seconds.
fn seconds(svg: &mut String, span: f64, y: f64) {
    let steps = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0];
    let step = steps.into_iter().find(|step| span / step <= 12.0).unwrap_or(600.0);
    let mut at = 0.0;
    while at <= span {
        let x = LEFT + WIDTH * at / span;
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{at} s</text>");
        at += step;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Fault;
    use crate::scenario::outcome::Outage;

    #[test]
    fn a_plot_has_three_lines_and_each_outage() {
        let tick = |i: u64| Tick {
            at: i * 250_000,
            ios: 100,
            p99: 40,
            gap: 0,
            gap_less: 0,
            syns: 0,
            live: (i % 2) as usize,
        };
        let at = [2_000_000, 6_000_000, 9_000_000];
        let outage =
            Outage { fault: Fault::Kill, at, ctrls: Vec::new(), loses: None, misnamed: None };
        let seen =
            Seen { ticks: (1..=40).map(tick).collect(), outages: vec![outage], ..Seen::default() };
        let svg = plot(&seen, "a &amp; b");
        assert_eq!(svg.matches("<polyline").count(), 3);
        assert_eq!(svg.matches("<title>kill</title>").count(), 1);
        assert!(svg.contains("width=\"360.0\""), "four of ten seconds: {svg}");
        assert!(svg.contains(">400<") && svg.ends_with("</svg>\n"), "{svg}");
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    }

    #[test]
    fn a_run_without_a_tick_is_an_empty_plot() {
        assert!(plot(&Seen::default(), "x").contains("polyline"));
    }
}
