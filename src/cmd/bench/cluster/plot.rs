//! Plots as inline SVG: horizontal bars beside their aims, and latency percentiles on a logarithmic scale.
//!
//! Colours are classes of the page (`s0`, `s1`, ... by system), so that they follow light and dark. Every mark has its
//! value as text or title: nothing is told by colour alone.

use crate::cmd::bench::digits;
use std::fmt::Write;

/// Width of a plot, in its own units.
const WIDTH: f64 = 900.0;
/// For the names on the left.
const LEFT: f64 = 150.0;
/// For the numbers on the right.
const RIGHT: f64 = 110.0;
/// Above the first row: the axis.
const TOP: f64 = 26.0;
/// Of one bar.
const ROW: f64 = 15.0;
/// Between groups of bars.
const GAP: f64 = 13.0;
/// Systems that have a colour of their own.
pub const COLOURS: usize = 5;

/// One bar.
pub struct Bar {
    /// The system's number.
    pub system: usize,
    /// Its name.
    pub name: String,
    /// How long it is.
    pub value: f64,
    /// What else there is, drawn behind it and lighter.
    pub more: Option<f64>,
}

/// The bars of one job.
pub struct Group {
    /// The job.
    pub name: String,
    /// By system.
    pub bars: Vec<Bar>,
    /// Where the first should reach, and whether it did.
    pub aim: Option<Limit>,
}

/// An aim.
#[derive(Clone, Copy)]
pub struct Limit {
    /// How much.
    pub limit: f64,
    /// At least that much, or at most.
    pub at_least: bool,
    /// Whether it was met.
    pub met: bool,
}

/// One line of percentiles.
pub struct Latencies {
    /// The job; empty where it is that of the line above.
    pub name: String,
    /// Number and name of the system.
    pub system: (usize, String),
    /// p50, p99, p99.9 and the longest, in µs.
    pub us: [f64; 4],
}

/// For text and attributes.
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

/// The class of a system's colour.
pub fn colour(system: usize) -> usize {
    system % COLOURS
}

/// Bars from zero. One that is longer than `most` is cut off there, and says so.
pub fn bars(title: &str, groups: &[Group], most_shown: f64) -> String {
    let limits = groups.iter().filter_map(|group| group.aim.map(|aim| aim.limit));
    let bars = groups.iter().flat_map(|group| &group.bars);
    let values = bars.map(|bar| bar.value + bar.more.unwrap_or_default());
    let most = values.chain(limits).fold(0.0, f64::max).min(most_shown);
    if !most.is_finite() || most <= 0.0 {
        return String::new();
    }
    let step = step(most);
    let top = (most / step).ceil() * step;
    let x = |value: f64| LEFT + (value / top).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT);
    let rows: usize = groups.iter().map(|group| group.bars.len()).sum();
    let height = TOP + rows as f64 * ROW + groups.len() as f64 * GAP;
    let mut svg = Svg::new(title, height);
    let ticks = (top / step).round() as u32;
    for tick in 0..=ticks {
        let value = f64::from(tick) * step;
        svg.grid(x(value), height, &tick_label(value));
    }
    let mut y = TOP;
    for group in groups {
        let begun = y;
        for (n, Bar { system, name, value, more }) in group.bars.iter().enumerate() {
            let width = x(*value) - LEFT;
            let (class, name, told) = (colour(*system), escaped(name), digits(*value));
            svg.line(&format!(
                r#"<rect class="s{class}" x="{LEFT}" y="{:.1}" width="{width:.1}" height="{:.1}"><title>{name}: {told}</title></rect>"#,
                y + 1.5,
                ROW - 3.0
            ));
            let mut end = x(*value);
            let mut words = digits(*value);
            if let Some(more) = more {
                let width = x(*value + more) - end;
                svg.line(&format!(
                    r#"<rect class="s{class} more" x="{end:.1}" y="{:.1}" width="{width:.1}" height="{:.1}"/>"#,
                    y + 1.5,
                    ROW - 3.0
                ));
                end += width;
                words += &format!(" + {}", digits(*more));
            }
            let cut = if *value > top { "» " } else { "" };
            let mark = match group.aim.filter(|_| n == 0) {
                Some(aim) if aim.met => " ✓",
                Some(_) => " ✗",
                None => "",
            };
            svg.text(end + 5.0, y + ROW - 4.0, "start", "value", &format!("{cut}{words}{mark}"));
            y += ROW;
        }
        let middle = (begun + y) / 2.0 + 4.0;
        svg.text(LEFT - 8.0, middle, "end", "name", &escaped(&group.name));
        if let Some(aim) = group.aim {
            let at = x(aim.limit);
            let bound = if aim.at_least { "at least" } else { "at most" };
            svg.line(&format!(
                r#"<line class="aim" x1="{at:.1}" x2="{at:.1}" y1="{:.1}" y2="{:.1}"><title>aim: {bound} {}</title></line>"#,
                begun - 3.0,
                y + 3.0,
                digits(aim.limit)
            ));
        }
        y += GAP;
    }
    svg.end()
}

/// From the median to the longest, on a logarithmic scale.
pub fn latencies(title: &str, lines: &[Latencies]) -> String {
    let all = || lines.iter().flat_map(|line| line.us).filter(|us| us.is_finite() && *us > 0.0);
    let (least, most) = (all().fold(f64::MAX, f64::min), all().fold(0.0, f64::max));
    if most <= 0.0 {
        return String::new();
    }
    // Whole decades.
    let (low, high) = (least.log10().floor(), most.log10().ceil().max(least.log10().floor() + 1.0));
    let x = |us: f64| {
        let part = (us.max(f64::MIN_POSITIVE).log10() - low) / (high - low);
        LEFT + part.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    };
    let groups = lines.iter().filter(|line| !line.name.is_empty()).count();
    let height = TOP + lines.len() as f64 * ROW + groups as f64 * GAP;
    let mut svg = Svg::new(title, height);
    for decade in low as i32..=high as i32 {
        let us = 10f64.powi(decade);
        svg.grid(x(us), height, &time(us));
    }
    let mut y = TOP - GAP;
    for line in lines {
        if !line.name.is_empty() {
            y += GAP;
            svg.text(LEFT - 8.0, y + ROW - 4.0, "end", "name", &escaped(&line.name));
        }
        let (system, name) = &line.system;
        let (class, middle) = (colour(*system), y + ROW / 2.0);
        let [p50, p99, p999, max] = line.us.map(x);
        svg.line(&format!(
            r#"<g><title>{}: p50 {}, p99 {}, p99.9 {}, longest {}</title>"#,
            escaped(name),
            time(line.us[0]),
            time(line.us[1]),
            time(line.us[2]),
            time(line.us[3])
        ));
        svg.line(&format!(
            r#"<line class="l{class}" x1="{p50:.1}" x2="{max:.1}" y1="{middle:.1}" y2="{middle:.1}"/>"#
        ));
        svg.line(&format!(r#"<circle class="s{class}" cx="{p50:.1}" cy="{middle:.1}" r="4.5"/>"#));
        for at in [p99, p999] {
            let (from, to) = (middle - 5.0, middle + 5.0);
            svg.line(&format!(
                r#"<line class="l{class}" x1="{at:.1}" x2="{at:.1}" y1="{from:.1}" y2="{to:.1}"/>"#
            ));
        }
        svg.line(&format!(r#"<circle class="l{class} open" cx="{max:.1}" cy="{middle:.1}" r="3.5"/></g>"#));
        svg.text(max + 9.0, y + ROW - 4.0, "start", "value", &time(line.us[3]));
        y += ROW;
    }
    svg.end()
}

/// A time in the unit that suits it.
pub fn time(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{} s", short(us / 1e6)),
        us if us >= 1e3 => format!("{} ms", short(us / 1e3)),
        us => format!("{} µs", short(us)),
    }
}

/// Three digits at most, without zeros at the end.
fn short(n: f64) -> String {
    match n {
        n if n >= 100.0 => format!("{n:.0}"),
        n if n >= 10.0 => trimmed(&format!("{n:.1}")),
        n => trimmed(&format!("{n:.2}")),
    }
}

fn trimmed(number: &str) -> String {
    number.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Between two lines of a grid of about five: 1, 2 or 5 times a power of ten.
fn step(most: f64) -> f64 {
    let rough = most / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| *step >= rough).unwrap_or(rough)
}

fn tick_label(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        v if v >= 1e6 => format!("{v:.1e}"),
        v if v >= 1.0 => trimmed(&format!("{v:.2}")),
        v => trimmed(&format!("{v:.4}")),
    }
}

struct Svg(String);

impl Svg {
    fn new(title: &str, height: f64) -> Svg {
        let title = escaped(title);
        Svg(format!(
            "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>\n"
        ))
    }

    /// Writing to a string cannot fail.
    fn line(&mut self, text: &str) {
        let _ = writeln!(self.0, "{text}");
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
        self.line(&format!(
            r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#
        ));
    }

    fn grid(&mut self, x: f64, height: f64, label: &str) {
        let top = TOP - 6.0;
        self.line(&format!(r#"<line class="grid" x1="{x:.1}" x2="{x:.1}" y1="{top:.1}" y2="{height:.1}"/>"#));
        self.text(x, TOP - 12.0, "middle", "tick", label);
    }

    fn end(mut self) -> String {
        self.line("</svg>");
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_reach_as_far_as_their_value() {
        let aim = Limit { limit: 45.0, at_least: false, met: false };
        let bar = |system, name: &str, value, more| Bar { system, name: name.to_owned(), value, more };
        let bars_of = vec![bar(0, "trefoil", 50.0, None), bar(2, "<b>", 80.0, Some(20.0))];
        let svg = bars("CPU", &[Group { name: "a & b".to_owned(), bars: bars_of, aim: Some(aim) }], f64::MAX);
        // 640 wide, 100 at the end.
        assert!(svg.contains(r#"<rect class="s0" x="150" y="27.5" width="320.0""#), "{svg}");
        assert!(svg.contains(r#"<rect class="s2" x="150" y="42.5" width="512.0""#), "{svg}");
        assert!(svg.contains(r#"<rect class="s2 more" x="662.0" y="42.5" width="128.0""#), "{svg}");
        assert!(svg.contains(r#"class="aim" x1="438.0""#) && svg.contains("50.0 ✗"), "{svg}");
        assert!(
            svg.contains("a &amp; b")
                && svg.contains("&lt;b&gt;: 80.0")
                && svg.contains("80.0 + 20.0<")
                && !svg.contains("<b>"),
            "{svg}"
        );
        let long = Group { name: String::new(), bars: vec![bar(0, "", 9.0, None)], aim: None };
        let svg = bars("cut", &[long], 2.0);
        assert!(svg.contains(r#"width="640.0""#) && svg.contains("» 9.00"), "{svg}");
        assert_eq!(bars("nothing", &[], 1.0), "");
    }

    #[test]
    fn a_decade_is_as_wide_as_any_other() {
        let line =
            Latencies { name: "j".to_owned(), system: (0, "t".to_owned()), us: [100.0, 1e3, 1e4, 1e5] };
        let svg = latencies("latency", &[line]);
        let third = (WIDTH - LEFT - RIGHT) / 3.0;
        for n in 0..=3 {
            assert!(svg.contains(&format!(r#"x1="{:.1}""#, LEFT + third * f64::from(n))), "{n}: {svg}");
        }
        assert!(svg.contains("p50 100 µs, p99 1 ms, p99.9 10 ms, longest 100 ms"), "{svg}");
        assert_eq!(latencies("nothing", &[]), "");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.5, 45.25, 1234.0, 2.5e6].map(time), ["0.5 µs", "45.2 µs", "1.23 ms", "2.5 s"]);
        assert_eq!([1.0, 3.3, 47.0, 0.07].map(step), [0.2, 1.0, 10.0, 0.02]);
        assert_eq!([0.0, 0.2, 20.0, 2500.0].map(tick_label), ["0", "0.2", "20", "2500"]);
    }
}
