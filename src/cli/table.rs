//! Tables and figures for people.

use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::telemetry::logs;

/// Rows that are shown of a table of results; more are counted.
pub(crate) const MOST_ROWS: usize = 40;
/// A cell is cut behind so many characters, unless it is the last one.
const WIDEST: usize = 48;

/// Text in columns, two blanks apart.
pub(crate) struct Table {
    head: Vec<&'static str>,
    /// Figures stand at the right.
    figures: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns; such as begin with `>` hold figures.
    pub(crate) fn new(columns: &[&'static str]) -> Self {
        Self {
            head: columns.iter().map(|name| name.strip_prefix('>').unwrap_or(name)).collect(),
            figures: columns.iter().map(|name| name.starts_with('>')).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; control characters are escaped.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        let last = cells.len().saturating_sub(1);
        let cells = cells.into_iter().enumerate().map(|(at, cell)| {
            let mut clean = String::with_capacity(cell.len());
            logs::escape_into(&mut clean, &cell);
            if at < last { cut(&clean, WIDEST) } else { clean }
        });
        self.rows.push(cells.collect());
    }
}

/// Puts more at the end of a text.
pub(crate) fn add(text: &mut String, more: fmt::Arguments<'_>) {
    text.write_fmt(more).expect("a String takes everything");
}

/// The beginning of a text, with a mark where it was cut.
pub(crate) fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |at: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
            cells.chain(self.head.get(at).map(|name| name.len())).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let mut line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut text = String::new();
            for ((cell, width), figure) in cells.zip(&widths).zip(&self.figures) {
                let gap = width - cell.chars().count().min(*width);
                if *figure {
                    text.extend(std::iter::repeat_n(' ', gap));
                }
                text.push_str(cell);
                if !*figure {
                    text.extend(std::iter::repeat_n(' ', gap));
                }
                text.push_str("  ");
            }
            writeln!(f, "{}", text.trim_end())
        };
        line(&mut self.head.iter().copied())?;
        self.rows.iter().try_for_each(|row| line(&mut row.iter().map(String::as_str)))
    }
}

/// `12.3 MB`.
pub(crate) fn size(octets: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut figure = octets as f64;
    let mut unit = 0;
    while figure >= 999.5 && unit + 1 < UNITS.len() {
        figure /= 1000.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 || figure >= 99.5 { format!("{figure:.0} {name}") } else { format!("{figure:.1} {name}") }
}

/// `0.83s`, `12.3s`, `4m05s`, `3h12m`, `5d`.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..10 => format!("{:.2}s", time.as_secs_f64()),
        10..60 => format!("{:.1}s", time.as_secs_f64()),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..172_800 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d", seconds / 86400),
    }
}

/// `5m`, `1h30m`, as manifests say it.
pub(crate) fn interval(time: Duration) -> String {
    let (mut rest, mut text) = (time.as_secs(), String::new());
    for (unit, name) in [(86_400, 'd'), (3600, 'h'), (60, 'm'), (1, 's')] {
        if rest >= unit {
            text.push_str(&(rest / unit).to_string());
            text.push(name);
            rest %= unit;
        }
    }
    text
}

/// `1 message`, `2 messages`.
pub(crate) fn number(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_their_names() {
        let mut table = Table::new(&["RECORD", ">NEW", "RESULT"]);
        table.row(vec!["mail/a".into(), "12".into(), "ok".into()]);
        table.row(vec!["mail/first-isp".into(), "3".into(), "a\nb".into()]);
        assert_eq!(
            table.to_string(),
            "RECORD          NEW  RESULT\nmail/a           12  ok\nmail/first-isp    3  a\\nb\n"
        );
    }

    #[test]
    fn figures_are_short() {
        for (octets, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (12_345, "12.3 kB"),
            (999_950, "1.0 MB"),
            (123_456_789, "123 MB"),
        ] {
            assert_eq!(size(octets), text);
        }
        for (seconds, text) in
            [(0.831, "0.83s"), (12.34, "12.3s"), (245.0, "4m05s"), (11_520.0, "3h12m"), (1e6, "11d")]
        {
            assert_eq!(span(Duration::from_secs_f64(seconds)), text);
        }
        assert_eq!(interval(Duration::from_mins(90)), "1h30m");
        assert_eq!(interval(Duration::from_secs(10)), "10s");
    }
}
