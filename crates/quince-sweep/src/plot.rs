//! Plots as SVG that stands in a page: no script, colours from the page, and a description for who does not see them.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 380.0;
/// Left, right, above and below the plot itself.
const MARGINS: [f64; 4] = [76.0, 150.0, 16.0, 52.0];
/// About as wide and as high as a label is.
const LABEL: [f64; 2] = [58.0, 14.0];
/// Colours that the page has.
const COLOURS: usize = 6;

/// A point of a plot.
pub struct Point {
    pub x: f64,
    pub y: f64,
    /// What is written beside it.
    pub label: String,
    /// What is shown when it is pointed at, and read aloud.
    pub told: String,
    /// Its number among the series.
    pub series: usize,
    /// Whether it is on the line of the best.
    pub best: bool,
}

/// Points over two axes, the upper one in powers of ten.
pub struct Scatter<'a> {
    /// Unique in the page.
    pub id: &'a str,
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
    pub points: Vec<Point>,
    /// The names of the series.
    pub series: &'a [String],
}

/// Text as HTML has it.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl Scatter<'_> {
    /// The plot; empty if there is no point with a place.
    pub fn svg(&self) -> String {
        let points: Vec<&Point> =
            self.points.iter().filter(|p| p.x.is_finite() && p.y.is_finite() && p.y > 0.0).collect();
        let (Some(xs), Some(ys)) = (range(points.iter().map(|p| p.x)), range(points.iter().map(|p| p.y.log10())))
        else {
            return String::new();
        };
        let x = Axis::linear(xs, [MARGINS[0], WIDTH - MARGINS[1]]);
        let y = Axis::powers(ys, [HEIGHT - MARGINS[3], MARGINS[2]]);
        let mut svg = head(self.id, self.title, &self.described(&points), HEIGHT);
        self.axes(&mut svg, &x, &y);
        let mut best: Vec<(f64, f64)> =
            points.iter().filter(|p| p.best).map(|p| (x.place(p.x), y.place(p.y.log10()))).collect();
        best.sort_by(|a, b| a.0.total_cmp(&b.0));
        let line: Vec<String> = best.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        if line.len() > 1 {
            let _ = writeln!(svg, r#"<polyline class="front" points="{}"/>"#, line.join(" "));
        }
        let mut labels: Vec<(f64, f64)> = Vec::new();
        for point in &points {
            let (px, py) = (x.place(point.x), y.place(point.y.log10()));
            let _ = writeln!(svg, "<g><title>{}</title>{}", escaped(&point.told), mark(point.series, px, py));
            if point.best {
                let _ = writeln!(svg, r#"<circle class="ring" cx="{px:.1}" cy="{py:.1}" r="9"/>"#);
            }
            // Where labels would lie on each other the first is enough: all are in the table.
            if !labels.iter().any(|(x, y)| (x - px).abs() < LABEL[0] && (y - py).abs() < LABEL[1]) {
                labels.push((px, py));
                let _ =
                    write!(svg, r#"<text x="{:.1}" y="{:.1}">{}</text>"#, px + 11.0, py - 7.0, escaped(&point.label));
            }
            svg += "</g>\n";
        }
        self.legend(&mut svg);
        svg + "</svg>\n"
    }

    fn described(&self, points: &[&Point]) -> String {
        let told: Vec<&str> = points.iter().map(|point| point.told.as_str()).collect();
        format!("{} over {}: {}", self.y, self.x, told.join("; "))
    }

    fn axes(&self, svg: &mut String, x: &Axis, y: &Axis) {
        let (left, right, bottom) = (MARGINS[0], WIDTH - MARGINS[1], HEIGHT - MARGINS[3]);
        for (at, text) in y.ticks() {
            let _ = writeln!(svg, r#"<line class="grid" x1="{left}" x2="{right}" y1="{at:.1}" y2="{at:.1}"/>"#);
            let _ = writeln!(
                svg,
                r#"<text class="tick" x="{}" y="{:.1}" text-anchor="end">{text}</text>"#,
                left - 8.0,
                at + 4.0
            );
        }
        for (at, text) in x.ticks() {
            let (end, under) = (bottom + 5.0, bottom + 20.0);
            let _ = writeln!(svg, r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="{bottom}" y2="{end}"/>"#);
            let _ = writeln!(svg, r#"<text class="tick" x="{at:.1}" y="{under}" text-anchor="middle">{text}</text>"#);
        }
        let middle = (left + right) / 2.0;
        let _ =
            writeln!(svg, r#"<text x="{middle}" y="{}" text-anchor="middle">{}</text>"#, HEIGHT - 8.0, escaped(self.x));
        let across = (MARGINS[2] + bottom) / 2.0;
        let turned = format!(r#"transform="translate(16 {across}) rotate(-90)" text-anchor="middle""#);
        let _ = writeln!(svg, "<text {turned}>{}</text>", escaped(self.y));
    }

    fn legend(&self, svg: &mut String) {
        let left = WIDTH - MARGINS[1] + 24.0;
        for (i, name) in self.series.iter().enumerate() {
            let at = MARGINS[2] + 10.0 + i as f64 * 22.0;
            let _ = writeln!(
                svg,
                r#"{}<text x="{}" y="{}">{}</text>"#,
                mark(i, left, at),
                left + 14.0,
                at + 4.0,
                escaped(name)
            );
        }
        if !self.points.iter().any(|point| point.best) {
            return;
        }
        let at = MARGINS[2] + 10.0 + self.series.len() as f64 * 22.0;
        let _ = writeln!(svg, r#"<circle class="ring" cx="{left}" cy="{at}" r="7"/>"#);
        let _ = writeln!(svg, r#"<text x="{}" y="{}">nothing better</text>"#, left + 14.0, at + 4.0);
    }
}

/// Bars from the left, in powers of ten, each with its name and its number.
pub fn bars(id: &str, title: &str, rows: &[(String, f64)]) -> String {
    const ROW: f64 = 24.0;
    const NAMES: f64 = 190.0;
    let positive = || rows.iter().map(|(_, value)| *value).filter(|value| value.is_finite() && *value > 0.0);
    let Some((least, most)) = range(positive().map(f64::log10)) else { return String::new() };
    let (low, high) = (least.floor() - 0.2, most.max(least.floor() + 1.0));
    let told: Vec<String> = rows.iter().map(|(name, value)| format!("{name}: {value:.2e}")).collect();
    let mut svg = head(id, title, &told.join("; "), rows.len() as f64 * ROW + 12.0);
    for (i, (name, value)) in rows.iter().enumerate() {
        let top = i as f64 * ROW + 6.0;
        let share = if *value > 0.0 { ((value.log10() - low) / (high - low)).clamp(0.0, 1.0) } else { 0.0 };
        let (length, text) = (share * (WIDTH - NAMES - 90.0), top + 15.0);
        let _ = writeln!(svg, r#"<text x="{}" y="{text}" text-anchor="end">{}</text>"#, NAMES - 8.0, escaped(name));
        let _ = writeln!(
            svg,
            r#"<rect class="s0" x="{NAMES}" y="{top}" width="{length:.1}" height="{}" rx="2"/>"#,
            ROW - 6.0
        );
        let _ = writeln!(svg, r#"<text class="tick" x="{:.1}" y="{text}">{value:.2e}</text>"#, NAMES + length + 6.0);
    }
    svg + "</svg>\n"
}

fn head(id: &str, title: &str, description: &str, height: f64) -> String {
    let view = format!(r#"viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}""#);
    let (title, description) = (escaped(title), escaped(description));
    format!(
        "<svg {view} role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\n<title id=\"{id}-t\">{title}</title>\n<desc id=\"{id}-d\">{description}</desc>\n"
    )
}

/// A shape for each series, so that colour is not all that tells them apart.
fn mark(series: usize, x: f64, y: f64) -> String {
    let class = format!("mark s{}", series % COLOURS);
    let shape = |points: &[(f64, f64)]| {
        let points: Vec<String> = points.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
        format!(r#"<polygon class="{class}" points="{}"/>"#, points.join(" "))
    };
    match series % 4 {
        0 => format!(r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="5.5"/>"#),
        1 => shape(&[(-5.0, -5.0), (5.0, -5.0), (5.0, 5.0), (-5.0, 5.0)]),
        2 => shape(&[(0.0, -6.5), (6.0, 5.0), (-6.0, 5.0)]),
        _ => shape(&[(0.0, -7.0), (7.0, 0.0), (0.0, 7.0), (-7.0, 0.0)]),
    }
}

/// From numbers to places.
struct Axis {
    from: [f64; 2],
    to: [f64; 2],
    step: f64,
    powers: bool,
}

impl Axis {
    fn linear((least, most): (f64, f64), to: [f64; 2]) -> Axis {
        let room = ((most - least) * 0.06).max(most.abs() * 0.01).max(f64::MIN_POSITIVE);
        let (low, high) = ((least - room).max(0.0), most + room);
        let step = nice((high - low) / 6.0);
        Axis { from: [low, high], to, step, powers: false }
    }

    fn powers((least, most): (f64, f64), to: [f64; 2]) -> Axis {
        let (low, high) = (least - 0.12, most + 0.12);
        // Between whole powers 2 and 5 of each are marked where there is room.
        let step = if high - low > 3.0 { ((high - low) / 8.0).ceil() } else { 0.0 };
        Axis { from: [low, high], to, step, powers: true }
    }

    fn place(&self, value: f64) -> f64 {
        self.to[0] + (value - self.from[0]) / (self.from[1] - self.from[0]) * (self.to[1] - self.to[0])
    }

    fn ticks(&self) -> Vec<(f64, String)> {
        let [low, high] = self.from;
        let values: Vec<(f64, String)> = match self.powers {
            false => {
                let (first, last) = ((low / self.step).ceil() as i64, (high / self.step).floor() as i64);
                (first..=last).map(|i| (i as f64 * self.step, number(i as f64 * self.step))).collect()
            }
            true => {
                let powers =
                    (low.floor() as i32..=high.ceil() as i32).filter(|p| self.step < 2.0 || p % self.step as i32 == 0);
                let marks: &[f64] = if self.step == 0.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let values = powers.flat_map(|p| marks.iter().map(move |m| m * 10f64.powi(p)));
                values.map(|value| (value.log10(), number(value))).collect()
            }
        };
        let inside = values.into_iter().filter(|(value, _)| (low..=high).contains(value));
        inside.map(|(value, text)| (self.place(value), text)).collect()
    }
}

/// A step of 1, 2 or 5 times a power of ten, not below a number.
fn nice(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= step).unwrap_or(power * 10.0)
}

/// A number in few letters.
fn number(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        v if (1e-3..1e6).contains(&v.abs()) => {
            let text = format!("{v:.4}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        v => format!("{v:.0e}"),
    }
}

/// The least and the greatest; none without numbers.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |known, value| match known {
        None => Some((value, value)),
        Some((least, most)) => Some((f64::min(least, value), f64::max(most, value))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_inside_the_axis() {
        let texts = |axis: Axis| axis.ticks().into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        assert_eq!(texts(Axis::linear((0.7, 4.0), [0.0, 100.0])), ["1", "2", "3", "4"]);
        assert_eq!(texts(Axis::powers((-4.0, 0.5), [100.0, 0.0])), ["1e-4", "0.001", "0.01", "0.1", "1"]);
        assert_eq!(texts(Axis::powers((0.7, 1.1), [100.0, 0.0])), ["5", "10"]);
        let axis = Axis::linear((0.0, 10.0), [0.0, 100.0]);
        assert!((axis.place(5.0) - 48.0).abs() < 4.0);
    }

    #[test]
    fn what_has_no_place_is_left_out() {
        let point = |y| Point { x: 1.0, y, label: "a".into(), told: "t".into(), series: 0, best: true };
        let scatter = |points| Scatter { id: "p", title: "t", x: "x", y: "y", points, series: &[] }.svg();
        assert_eq!(scatter(vec![point(f64::NAN), point(0.0)]), "");
        assert_eq!(scatter(vec![point(1.0), point(f64::INFINITY)]).matches(">a</text>").count(), 1);
        assert_eq!(bars("b", "t", &[]), "");
        assert_eq!(bars("b", "t", &[("x".into(), 0.0), ("y".into(), 2.0)]).matches("<rect").count(), 2);
    }
}
