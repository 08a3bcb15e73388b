//! The report of a sweep as one page: no script, nothing from the network, light and dark.

use crate::outcome::{Outcome, SweepReport};
use crate::plot::{Point, Scatter, bars, escaped};
use std::fmt::Write;

const STYLE: &str = include_str!("html/page.css");

/// The plot in which nothing is best: what is small is not what is fast.
const SPEED: &str = "speed";
/// KL divergences below this are rounding.
const ROUNDING: f64 = 1e-7;

/// The page.
pub fn html(report: &SweepReport) -> String {
    let title = format!("Compression of {}", escaped(&report.model));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, \
         initial-scale=1\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
    );
    let tokens = report.variants.first().map_or(0, |first| first.quality.tokens);
    let _ = writeln!(
        page,
        "<p>Each variant was compressed, written, read back and run on {} ({tokens} places), which was not used for \
         calibration. KL divergence and the share of places with the same most likely token are against the uncompressed \
         variant. Calibration: {}.</p>",
        escaped(&report.text),
        escaped(&report.calibration)
    );
    summary(&mut page, report);
    section(
        &mut page,
        "Quality against size",
        "KL divergence from the uncompressed model: lower is better. The dashed line joins the variants that no other is \
         both smaller and better than.",
        &scatter(report, "kl", "KL divergence in nats per token", |outcome| {
            // The uncompressed model differs from itself by rounding at most.
            Some(outcome.quality.kl).filter(|kl| *kl > ROUNDING)
        }),
    );
    section(
        &mut page,
        "Perplexity against size",
        "How well the text is predicted: lower is better. The uncompressed model is the largest.",
        &scatter(report, "perplexity", "perplexity", |outcome| Some(outcome.quality.perplexity)),
    );
    section(
        &mut page,
        "Speed against size",
        "The median time of a call that decodes one token, on the machine that ran the sweep and while it did: a hint, no benchmark, and a phone is another machine.",
        &scatter(report, SPEED, "milliseconds per token", |outcome| outcome.decode_ms),
    );
    let parts: Vec<(String, f64)> = report.parts.iter().map(|part| (part.part.clone(), part.kl)).collect();
    let scheme = report.parts.first().map_or("", |part| part.scheme.as_str());
    section(
        &mut page,
        "What each part loses",
        &format!("KL divergence when this part alone is compressed ({}), the others as they are.", escaped(scheme)),
        &bars("parts", "KL divergence by part of the model", &parts),
    );
    table(&mut page, report);
    page + "</main>\n</body>\n</html>\n"
}

/// A sentence for who reads no more: the smallest variants that lose little.
fn summary(page: &mut String, report: &SweepReport) {
    for limit in [1.0, 5.0] {
        let fits = |outcome: &&Outcome| report.rise(outcome) <= limit;
        let Some(found) = report.variants.iter().filter(fits).min_by_key(|outcome| outcome.package_bytes) else {
            continue;
        };
        let _ = writeln!(
            page,
            "<p>The smallest whose perplexity rises by at most {limit} %: <strong>{}</strong>, {}, {} ({:+.2} %).</p>",
            escaped(&found.name),
            escaped(&found.scheme),
            megabytes(found.package_bytes),
            report.rise(found)
        );
    }
}

fn section(page: &mut String, title: &str, text: &str, svg: &str) {
    if !svg.is_empty() {
        let _ = writeln!(
            page,
            "<section>\n<h2>{title}</h2>\n<figure>\n{svg}<figcaption>{text}</figcaption>\n</figure>\n</section>"
        );
    }
}

fn scatter(report: &SweepReport, id: &str, y: &str, value: fn(&Outcome) -> Option<f64>) -> String {
    // A family looks the same in every plot.
    let mut series: Vec<String> = Vec::new();
    for outcome in &report.variants {
        if !series.contains(&outcome.family) {
            series.push(outcome.family.clone());
        }
    }
    let mut points = Vec::new();
    for outcome in &report.variants {
        let Some(found) = value(outcome) else { continue };
        let number = series.iter().position(|known| *known == outcome.family).unwrap_or_default();
        let size = megabytes(outcome.package_bytes);
        points.push(Point {
            x: outcome.package_bytes as f64 / 1e6,
            y: found,
            label: outcome.name.clone(),
            told: format!("{}: {size}, {y} {found:.4}", outcome.name),
            series: number,
            best: id != SPEED && report.is_on_front(outcome),
        });
    }
    let title = format!("{y} against size");
    Scatter { id, title: &title, x: "size of the package in MB", y, points, series: &series }.svg()
}

fn table(page: &mut String, report: &SweepReport) {
    page.push_str("<section>\n<h2>All variants</h2>\n<div class=\"table\" tabindex=\"0\" role=\"region\" aria-label=\"All variants\">\n<table>\n");
    page.push_str(
        "<caption>Variants that nothing is both smaller and better than are marked with a star.</caption>\n<thead><tr>",
    );
    let heads =
        ["variant", "weights", "package", "of weights", "perplexity", "rise", "KL", "same token", "ms per token"];
    for (i, head) in heads.iter().enumerate() {
        let class = if i < 2 { " class=\"text\"" } else { "" };
        let _ = write!(page, "<th scope=\"col\"{class}>{head}</th>");
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for outcome in &report.variants {
        let (class, star) = if report.is_on_front(outcome) { (" class=\"best\"", " ★") } else { ("", "") };
        let quality = &outcome.quality;
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\"{class}>{}{star}</th><td class=\"text\">{}</td><td>{}</td><td>{}</td><td>{:.4}</td><td>{:+.2} %</td>\
             <td>{:.5}</td><td>{:.1} %</td><td>{}</td></tr>",
            escaped(&outcome.name),
            escaped(&outcome.scheme),
            megabytes(outcome.package_bytes),
            megabytes(outcome.weight_bytes),
            quality.perplexity,
            report.rise(outcome),
            quality.kl,
            quality.top1 * 100.0,
            outcome.decode_ms.map_or("-".to_owned(), |time| format!("{time:.2}"))
        );
    }
    page.push_str("</tbody>\n</table>\n</div>\n</section>\n");
}

fn megabytes(bytes: u64) -> String {
    let digits = if bytes < 10_000_000 { 3 } else { 1 };
    format!("{:.digits$} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::tests::report;

    /// Elements that have no end of their own.
    const VOID: &[&str] = &["meta", "!DOCTYPE"];

    #[test]
    fn the_page_is_well_formed_and_needs_no_network() {
        let page = html(&report());
        let mut open: Vec<String> = Vec::new();
        let body = page.replace(STYLE, "");
        for tag in body.split('<').skip(1).filter_map(|rest| rest.split('>').next()) {
            let name: String =
                tag.trim_start_matches('/').chars().take_while(|c| !c.is_whitespace() && *c != '/').collect();
            match (tag.starts_with('/'), tag.ends_with('/') || VOID.contains(&name.as_str())) {
                (true, _) => assert_eq!(open.pop().as_deref(), Some(name.as_str()), "at </{name}>"),
                (false, true) => {}
                (false, false) => open.push(name),
            }
        }
        assert!(open.is_empty(), "{open:?}");
        for word in ["http:", "https:", "src=", "url(", "@import", "<script", "<link"] {
            assert!(!page.contains(word), "{word}");
        }
        assert!(page.contains("Compression of a &amp; b") && page.contains("&lt;palette&gt;"));
        assert_eq!(page.matches(" ★").count(), 3);
        assert_eq!(page.matches("role=\"img\"").count(), 4);
    }

    #[test]
    fn names_of_marks_are_unique() {
        let page = html(&report());
        let mut ids: Vec<&str> = page.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!((ids.len(), count), (8, 8));
    }
}
