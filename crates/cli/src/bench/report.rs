//! What a bench came to: the same rows as tables for people and as JSON for machines.

use std::fmt;

use comfy_table::{CellAlignment, Table as Drawn, presets};
use serde_json::{Map, Value, json};

use super::machine::Machine;

/// One run of one bench.
pub(super) struct Report {
    pub(super) bench: &'static str,
    pub(super) machine: Machine,
    /// What the run was made with.
    pub(super) settings: Vec<(&'static str, Value)>,
    pub(super) tables: Vec<Table>,
    pub(super) aims: Vec<Aim>,
    /// What a reader must know to read the figures rightly.
    pub(super) notes: Vec<String>,
}

/// Rows of figures under one title.
pub(super) struct Table {
    /// Its name in JSON.
    key: &'static str,
    title: String,
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

/// A column: its name in JSON, unit included, and its heading.
struct Column {
    key: &'static str,
    heading: &'static str,
}

/// One figure or word.
#[derive(Clone, Debug)]
pub(super) enum Cell {
    Text(String),
    Count(u64),
    /// A figure, with as many decimals as it deserves.
    Figure(f64),
    Nothing,
}

/// What was hoped for, and what came out.
pub(super) struct Aim {
    pub(super) what: String,
    pub(super) bound: Bound,
    pub(super) measured: f64,
    /// The unit of both; empty for a ratio.
    pub(super) unit: &'static str,
}

/// On which side of a figure the aim lies.
#[derive(Clone, Copy)]
pub(super) enum Bound {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}

impl Bound {
    /// The name of the side in JSON, the same in words, and the figure.
    fn parts(self) -> (&'static str, &'static str, f64) {
        match self {
            Self::AtLeast(least) => ("at_least", "at least", least),
            Self::AtMost(most) => ("at_most", "at most", most),
            Self::Below(limit) => ("below", "below", limit),
        }
    }
}

impl Table {
    /// An empty table with these columns: name in JSON, heading.
    pub(super) fn new<const N: usize>(
        key: &'static str,
        title: impl Into<String>,
        columns: [(&'static str, &'static str); N],
    ) -> Self {
        let columns = columns.into_iter().map(|(key, heading)| Column { key, heading }).collect();
        Self { key, title: title.into(), columns, rows: Vec::new() }
    }

    /// Adds a row with as many cells as there are columns.
    pub(super) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        assert_eq!(N, self.columns.len(), "each row has a cell for each column");
        self.rows.push(cells.into());
    }

    fn to_json(&self) -> Value {
        let row = |cells: &Vec<Cell>| -> Value {
            let fields = self.columns.iter().zip(cells);
            fields.map(|(column, cell)| (column.key.to_owned(), cell.to_json())).collect::<Map<_, _>>().into()
        };
        self.rows.iter().map(row).collect()
    }

    fn draw(&self) -> Drawn {
        let mut drawn = Drawn::new();
        drawn.load_preset(presets::UTF8_HORIZONTAL_ONLY);
        drawn.set_header(self.columns.iter().map(|column| column.heading));
        for cells in &self.rows {
            drawn.add_row(cells.iter().map(|cell| {
                let alignment = match cell {
                    Cell::Text(_) => CellAlignment::Left,
                    Cell::Count(_) | Cell::Figure(_) | Cell::Nothing => CellAlignment::Right,
                };
                comfy_table::Cell::new(cell.to_string()).set_alignment(alignment)
            }));
        }
        drawn
    }
}

impl Cell {
    fn to_json(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Count(count) => json!(count),
            // Further digits are noise.
            Self::Figure(figure) => json!((figure * 1e4).round() / 1e4),
            Self::Nothing => Value::Null,
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => formatter.write_str(text),
            Self::Count(count) => formatter.write_str(&grouped(*count)),
            Self::Figure(figure) => formatter.write_str(&shown(*figure)),
            Self::Nothing => formatter.write_str("–"),
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<usize> for Cell {
    fn from(count: usize) -> Self {
        Self::Count(count as u64)
    }
}

impl From<u64> for Cell {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<f64> for Cell {
    fn from(figure: f64) -> Self {
        Self::Figure(figure)
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(cell: Option<T>) -> Self {
        cell.map_or(Self::Nothing, Into::into)
    }
}

/// About three digits.
fn shown(figure: f64) -> String {
    let size = figure.abs();
    if size >= 1000.0 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is rounded and positive"
        )]
        let digits = grouped(size.round() as u64);
        return if figure < 0.0 { format!("-{digits}") } else { digits };
    }
    let decimals = match size {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 0.1 => 2,
        _ => 3,
    };
    format!("{figure:.decimals$}")
}

/// Digits in groups of three.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

impl Aim {
    fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtLeast(least) => self.measured >= least,
            Bound::AtMost(most) => self.measured <= most,
            Bound::Below(limit) => self.measured < limit,
        }
    }

    fn to_json(&self) -> Value {
        let (side, _, bound) = self.bound.parts();
        let measured = Cell::Figure(self.measured).to_json();
        json!({"aim": self.what, side: bound, "measured": measured, "unit": self.unit, "is_met": self.is_met()})
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_met() { "met   " } else { "missed" };
        let (_, side, bound) = self.bound.parts();
        let unit = if self.unit.is_empty() { String::new() } else { format!(" {}", self.unit) };
        let (what, measured) = (&self.what, shown(self.measured));
        write!(formatter, "{verdict}  {what}: {measured}{unit} (aim: {side} {}{unit})", shown(bound))
    }
}

impl Report {
    /// The whole run as one object.
    pub(super) fn to_json(&self) -> Value {
        let settings: Map<String, Value> =
            self.settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let tables: Map<String, Value> =
            self.tables.iter().map(|table| (table.key.to_owned(), table.to_json())).collect();
        json!({
            "bench": self.bench,
            "version": env!("CARGO_PKG_VERSION"),
            "is_release_build": !cfg!(debug_assertions),
            "machine": self.machine.to_json(),
            "settings": settings,
            "results": tables,
            "aims": self.aims.iter().map(Aim::to_json).collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "posthouse bench {} · {}", self.bench, self.machine)?;
        let settings: Vec<String> =
            self.settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
        writeln!(formatter, "{}", settings.join(" · "))?;
        for table in &self.tables {
            writeln!(formatter, "\n{}\n{}", table.title, table.draw())?;
        }
        if !self.aims.is_empty() {
            writeln!(formatter, "\nAims")?;
        }
        for aim in &self.aims {
            writeln!(formatter, "  {aim}")?;
        }
        for note in &self.notes {
            write!(formatter, "\n{note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_shown_with_about_three_digits() {
        let shown = [0.0123, 0.5, 12.345, 123.4, 1234.5, -0.25, 1_234_567.0].map(shown);
        assert_eq!(shown, ["0.012", "0.50", "12.3", "123", "1,235", "-0.25", "1,234,567"]);
    }

    #[test]
    fn a_row_is_an_object_in_json() {
        let mut table = Table::new("appends", "Appends", [("sessions", "sessions"), ("p50_ms", "p50 ms")]);
        table.row([64_usize.into(), 1.234_567.into()]);
        assert_eq!(table.to_json(), json!([{"sessions": 64, "p50_ms": 1.2346}]));
    }

    #[test]
    fn an_aim_says_whether_it_is_met() {
        let aim =
            Aim { what: "reopening".to_owned(), bound: Bound::Below(100.0), measured: 130.0, unit: "ms" };
        assert_eq!(aim.to_string(), "missed  reopening: 130 ms (aim: below 100 ms)");
    }
}
