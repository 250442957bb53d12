//! The table: one row for each figure, one column for each socket and one for the bare programs.

use std::fmt;

use crate::sample::Samples;

/// Rows of the bare programs; the promises are ratios to these.
pub(crate) mod bare {
    pub(crate) const RUN: &str = "bare crun run";
    pub(crate) const EXEC: &str = "bare crun exec";
    pub(crate) const ADD: &str = "bare CNI ADD";
    pub(crate) const DEL: &str = "bare CNI DEL";
}

/// Rows that promises are about.
pub(crate) mod rows {
    pub(crate) const BRIDGE: &str = "RunPodSandbox, bridge";
    pub(crate) const HOST: &str = "RunPodSandbox, host network";
    pub(crate) const CREATE: &str = "CreateContainer";
    pub(crate) const START: &str = "StartContainer";
    pub(crate) const CREATE_START: &str = "CreateContainer + StartContainer";
    pub(crate) const EXEC: &str = "ExecSync true";
    pub(crate) const PULL: &str = "pull of the big image";
    pub(crate) const RESTART: &str = "restart to ready, pods running";
    pub(crate) const DAEMON: &str = "daemon, PSS with pods";
    pub(crate) const HELPERS: &str = "helpers, PSS per pod";
}

/// What a figure is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Milliseconds,
    Seconds,
    PodsPerSecond,
    Megabytes,
    Kilobytes,
    MegabytesPerSecond,
    SecondsPerGigabyte,
    Count,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
            Self::PodsPerSecond => "pods/s",
            Self::Megabytes => "MB",
            Self::Kilobytes => "kB",
            Self::MegabytesPerSecond => "MB/s",
            Self::SecondsPerGigabyte => "s/GB",
            Self::Count => "",
        }
    }
}

#[derive(Debug)]
struct Row {
    name: String,
    unit: Unit,
    cells: Vec<Samples>,
}

/// All figures of a run.
#[derive(Debug)]
pub(crate) struct Report {
    columns: Vec<String>,
    rows: Vec<Row>,
    failures: Vec<String>,
    skipped: Vec<String>,
}

impl Report {
    /// With a column for each socket's name.
    pub(crate) fn new(columns: Vec<String>) -> Self {
        Self { columns, rows: Vec::new(), failures: Vec::new(), skipped: Vec::new() }
    }

    /// The samples of one cell; the row is made at the first mention, and keeps its place.
    pub(crate) fn cell(&mut self, column: usize, name: &str, unit: Unit) -> &mut Samples {
        let at = self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            let cells = vec![Samples::default(); self.columns.len()];
            self.rows.push(Row { name: name.to_owned(), unit, cells });
            self.rows.len() - 1
        });
        &mut self.rows[at].cells[column]
    }

    /// Notes that a measurement could not be made; it is printed below the table.
    pub(crate) fn fail(&mut self, column: &str, what: &str, error: &dyn fmt::Display) {
        let text = format!("{column}: {what}: {error}");
        crate::progress(&text);
        if !self.failures.contains(&text) {
            self.failures.push(text);
        }
    }

    /// Notes that a daemon does not have something; that is no failure.
    pub(crate) fn skip(&mut self, column: &str, what: &str, why: &dyn fmt::Display) {
        let text = format!("{column}: {what}: {why}");
        if !self.skipped.contains(&text) {
            self.skipped.push(text);
        }
    }

    /// What could not be measured.
    pub(crate) fn failures(&self) -> &[String] {
        &self.failures
    }

    fn median(&self, name: &str, column: usize) -> Option<f64> {
        self.rows.iter().find(|row| row.name == name)?.cells.get(column)?.median()
    }

    /// The table's cells as text, heading first.
    fn table(&self) -> Vec<Vec<String>> {
        let sockets = self.columns.len().saturating_sub(1);
        let mut heading = vec![String::new(), "unit".to_owned()];
        for name in &self.columns[..sockets] {
            heading.extend([name.clone(), "p95".to_owned()]);
        }
        for other in self.columns[..sockets].iter().skip(1) {
            heading.push(format!("{}/{other}", self.columns[0]));
        }
        let mut table = vec![heading];
        for row in self.rows.iter().filter(|row| !row.cells[..sockets].iter().all(Samples::is_empty)) {
            let mut line = vec![row.name.clone(), row.unit.name().to_owned()];
            for cell in &row.cells[..sockets] {
                // One or two samples have no percentile worth the name.
                let p95 = if cell.len() > 4 { cell.p95() } else { None };
                line.extend([figure(cell.median()), figure(p95)]);
            }
            let first = row.cells.first().and_then(Samples::median);
            for other in row.cells[..sockets].iter().skip(1) {
                line.push(ratio(first, other.median()).map_or_else(dash, |ratio| format!("{ratio:.2}")));
            }
            table.push(line);
        }
        table
    }

    /// The bare programs, in the last column.
    fn floors(&self) -> Vec<Vec<String>> {
        let last = self.columns.len() - 1;
        let rows = self.rows.iter().filter(|row| !row.cells[last].is_empty());
        let line = |row: &Row| {
            let cell = &row.cells[last];
            vec![row.name.clone(), row.unit.name().to_owned(), figure(cell.median()), figure(cell.p95())]
        };
        let mut table = vec![vec![String::new(), "unit".into(), self.columns[last].clone(), "p95".into()]];
        table.extend(rows.map(line));
        table
    }

    /// The promises that the first socket does not keep.
    pub(crate) fn broken(&self) -> Vec<&'static str> {
        let broken =
            |promise: &&Promise| self.measured(promise, 0).is_some_and(|value| value > promise.at_most);
        PROMISES.iter().filter(broken).map(|promise| promise.text).collect()
    }

    fn measured(&self, promise: &Promise, column: usize) -> Option<f64> {
        let value = self.median(promise.row, column);
        match promise.per {
            Per::Bare(floor) => ratio(value, self.median(floor, self.columns.len() - 1)),
            Per::Value => value,
            Per::OtherSocket if self.columns.len() < 3 => None,
            Per::OtherSocket => ratio(value, self.median(promise.row, usize::from(column == 0))),
        }
    }

    /// What criox promises, with the figures of every socket beside it.
    fn promises(&self) -> Vec<Vec<String>> {
        let last = self.columns.len() - 1;
        let mut heading = vec!["promise".to_owned(), "at most".to_owned()];
        heading.extend_from_slice(&self.columns[..last]);
        let mut table = vec![heading];
        for promise in PROMISES {
            let mut line = vec![promise.text.to_owned(), figure(Some(promise.at_most))];
            line.extend((0..last).map(|column| {
                self.measured(promise, column).map_or_else(dash, |value| {
                    let mark = if column == 0 && value > promise.at_most { " (!)" } else { "" };
                    figure(Some(value)) + mark
                })
            }));
            if line[2..].iter().any(|cell| *cell != dash()) {
                table.push(line);
            }
        }
        table
    }
}

/// What a promised figure is divided by.
enum Per {
    /// A bare program of the same run.
    Bare(&'static str),
    /// Nothing: the figure itself.
    Value,
    /// The same figure of the first other socket.
    OtherSocket,
}

struct Promise {
    text: &'static str,
    row: &'static str,
    per: Per,
    at_most: f64,
}

const PROMISES: &[Promise] = &[
    Promise {
        text: "create and start / crun run",
        row: rows::CREATE_START,
        per: Per::Bare(bare::RUN),
        at_most: 1.5,
    },
    Promise {
        text: "host-network sandbox / crun run",
        row: rows::HOST,
        per: Per::Bare(bare::RUN),
        at_most: 0.4,
    },
    Promise { text: "ExecSync / crun exec", row: rows::EXEC, per: Per::Bare(bare::EXEC), at_most: 1.3 },
    Promise { text: "bridge sandbox / CNI ADD", row: rows::BRIDGE, per: Per::Bare(bare::ADD), at_most: 1.5 },
    Promise { text: "restart with pods (ms)", row: rows::RESTART, per: Per::Value, at_most: 300.0 },
    Promise { text: "daemon with pods (MB)", row: rows::DAEMON, per: Per::Value, at_most: 25.0 },
    Promise { text: "helpers per pod (kB)", row: rows::HELPERS, per: Per::Value, at_most: 300.0 },
    Promise { text: "pull / the other's pull", row: rows::PULL, per: Per::OtherSocket, at_most: 1.0 },
];

fn ratio(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    other.filter(|other| *other > 0.0).and_then(|other| one.map(|one| one / other))
}

fn dash() -> String {
    "–".to_owned()
}

/// Three digits that count.
fn figure(value: Option<f64>) -> String {
    match value {
        None => dash(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

/// The first column to the left, the others to the right.
fn aligned(table: &[Vec<String>], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let width = |column: usize| {
        let cells = table.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    for line in table {
        let mut text = String::new();
        for (column, cell) in line.iter().enumerate() {
            let width = width(column);
            text += &match column {
                0 => format!("{cell:width$}"),
                _ => format!("  {cell:>width$}"),
            };
        }
        writeln!(f, "{}", text.trim_end())?;
    }
    writeln!(f)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for table in [self.table(), self.floors(), self.promises()] {
            if table.len() > 1 {
                aligned(&table, f)?;
            }
        }
        for skipped in &self.skipped {
            writeln!(f, "left out: {skipped}")?;
        }
        for failure in &self.failures {
            writeln!(f, "not measured: {failure}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new(vec!["criox".into(), "other".into(), "bare".into()]);
        report.cell(0, rows::EXEC, Unit::Milliseconds).push(10.0);
        report.cell(1, rows::EXEC, Unit::Milliseconds).push(40.0);
        report.cell(2, bare::EXEC, Unit::Milliseconds).push(8.0);
        report
    }

    #[test]
    fn the_table_has_every_socket_and_the_ratio_to_the_first() {
        let text = report().to_string();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["unit", "criox", "p95", "other", "p95", "criox/other"]);
        assert_eq!(lines[1], ["ExecSync", "true", "ms", "10.0", "–", "40.0", "–", "0.25"]);
        assert!(text.contains("ExecSync / crun exec"), "{text}");
    }

    #[test]
    fn a_broken_promise_is_marked_and_an_unmeasured_one_is_left_out() {
        let mut report = report();
        assert_eq!(report.promises().len(), 2);
        assert_eq!(report.promises()[1][1..], ["1.30", "1.25", "5.00"]);
        assert!(report.broken().is_empty());
        for _ in 0..2 {
            report.cell(0, rows::EXEC, Unit::Milliseconds).push(16.0);
        }
        assert_eq!(report.promises()[1][1..], ["1.30", "2.00 (!)", "5.00"]);
        assert_eq!(report.broken(), ["ExecSync / crun exec"]);
    }

    #[test]
    fn a_socket_alone_is_compared_with_no_other() {
        let mut report = Report::new(vec!["criox".into(), "bare".into()]);
        report.cell(0, rows::PULL, Unit::Seconds).push(3.0);
        assert_eq!(report.promises().len(), 1);
    }

    #[test]
    fn a_failure_is_told_below_the_table() {
        let mut report = report();
        report.skip("criox", "statistics", &"not there yet");
        assert!(report.failures().is_empty());
        report.fail("other", "pull", &"no registry");
        assert_eq!(report.failures().len(), 1);
        let text = report.to_string();
        assert!(text.contains("\nleft out: criox: statistics: not there yet\n"), "{text}");
        assert!(text.ends_with("not measured: other: pull: no registry\n"), "{text}");
    }
}
