//! What float16 did to a program, for people and for machines.

use crate::console::table;
use quince_engine::{Finding, RangeReport};
use serde::Serialize;

/// The report of `--precision fp16-strict`.
#[derive(Serialize)]
pub struct Report {
    /// Values that were rounded, in all calls.
    values: usize,
    /// Elements that became infinite, in all calls.
    overflowed: usize,
    /// Elements that are no numbers, those apart that come from elements that were none.
    nan: usize,
    /// The operations in which there was something, in the order of the program.
    findings: Vec<Row>,
    #[serde(skip)]
    calls: usize,
}

/// What there was in an operation, an input or a constant.
#[derive(Serialize)]
struct Row {
    function: String,
    name: String,
    #[serde(rename = "type")]
    kind: String,
    /// The first call in which there was something.
    call: usize,
    overflowed: usize,
    nan: usize,
    /// Whether all NaN come from NaN that went in.
    nan_carried: bool,
    subnormal: usize,
    underflowed: usize,
    inside: usize,
    max_abs: f32,
}

impl Report {
    /// What was found in `calls` calls.
    pub fn of(report: &RangeReport, calls: usize) -> Report {
        let findings: Vec<Row> = report.findings().into_iter().map(Row::of).collect();
        let nan = findings.iter().filter(|row| !row.nan_carried).map(|row| row.nan).sum();
        let overflowed = findings.iter().map(|row| row.overflowed).sum();
        Report { values: report.rounded(), overflowed, nan, findings, calls }
    }

    /// A table of what there was, and a line that says the worst of it.
    pub fn text(&self) -> String {
        let heading =
            ["function", "operation", "type", "overflowed", "NaN", "subnormal", "to zero", "inside", "max |x|", "call"];
        let shown: Vec<&Row> = self.findings.iter().filter(|row| !row.only_carries()).collect();
        let count = |n: usize| if n == 0 { "-".to_owned() } else { n.to_string() };
        let mut text = String::new();
        if !shown.is_empty() {
            text = table(
                &heading,
                &[3, 4, 5, 6, 7, 8, 9],
                shown.iter().map(|row| {
                    let counts = [row.overflowed, row.nan, row.subnormal, row.underflowed, row.inside].map(count);
                    let names = [row.function.clone(), row.name.clone(), row.kind.clone()];
                    let end = [format!("{:.4e}", row.max_abs), row.call.to_string()];
                    names.into_iter().chain(counts).chain(end).collect()
                }),
            );
        }
        let first = |found: fn(&Row) -> bool| shown.iter().find(|row| found(row)).map(|row| row.place());
        let mut said: Vec<String> = Vec::new();
        said.extend(first(|row| row.overflowed > 0).map(|place| format!("the first overflow is in {place}")));
        said.extend(first(|row| row.nan > 0).map(|place| format!("the first NaN is in {place}")));
        if said.is_empty() {
            said.push("no overflow, no NaN".to_owned());
        }
        let carried = self.findings.len() - shown.len();
        if carried > 0 {
            said.push(format!("{carried} more operations pass NaN on"));
        }
        let (inside, subnormal) = (total(&shown, |row| row.inside), total(&shown, |row| row.subnormal));
        if inside > 0 {
            said.push(format!("{inside} numbers inside operations are beyond float16"));
        }
        if subnormal > 0 {
            said.push(format!("{subnormal} elements are subnormal"));
        }
        text + &format!("float16: {} ({} values of {} calls)\n", said.join("; "), self.values, self.calls)
    }
}

fn total(rows: &[&Row], count: fn(&Row) -> usize) -> usize {
    rows.iter().map(|row| count(row)).sum()
}

impl Row {
    fn of(finding: &Finding) -> Row {
        let rounding = &finding.rounding;
        Row {
            function: finding.function.clone(),
            name: finding.name.clone(),
            kind: finding.kind.clone(),
            call: finding.call,
            overflowed: rounding.overflowed,
            nan: rounding.nan,
            nan_carried: rounding.nan > 0 && rounding.carried,
            subnormal: rounding.subnormal,
            underflowed: rounding.underflowed,
            inside: rounding.inside,
            max_abs: rounding.largest,
        }
    }

    /// Whether it only passes on what was no number before.
    fn only_carries(&self) -> bool {
        self.nan_carried && self.overflowed + self.subnormal + self.underflowed + self.inside == 0
    }

    fn place(&self) -> String {
        format!("`{}` ({}) of {}, call {}", self.name, self.kind, self.function, self.call)
    }
}
