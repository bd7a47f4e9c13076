//! What is wrong with a manifest, and where.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::domain::text::shown;
use crate::domain::work::RecordKey;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// Works, but perhaps not as meant.
    Warning,
    /// The object is not taken up.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file, as it was named or found.
    pub file: Arc<Path>,
    /// From 1; 0 where the finding is about the whole file.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    /// How many characters to underline.
    pub length: u32,
    /// How bad it is.
    pub severity: Severity,
    /// The record it is about, if it is about one.
    pub record: Option<RecordKey>,
    /// The object and field: `RpopRecord mail/isp: spec.remote.host`.
    pub subject: String,
    /// What is wrong, and what to write.
    pub message: String,
    /// The line of the file, where it may be shown.
    pub excerpt: Option<Box<str>>,
}

impl Diagnostic {
    /// One line, for logs: `FILE:LINE:COLUMN: SUBJECT: MESSAGE`.
    pub fn line(&self) -> String {
        let place = if self.line > 0 { format!(":{}:{}", self.line, self.column) } else { String::new() };
        let subject =
            if self.subject.is_empty() { String::new() } else { format!(" {}:", shown(&self.subject)) };
        format!("{}{place}:{subject} {}", self.file.display(), self.message)
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.severity, self.message)?;
        let gutter = self.line.to_string().len().max(1);
        write!(f, "{:gutter$}--> {}", "", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        writeln!(f)?;
        if let Some(excerpt) = &self.excerpt {
            let indent = usize::try_from(self.column.saturating_sub(1)).unwrap_or(0);
            let room = excerpt.chars().count().saturating_sub(indent).max(1);
            let length = usize::try_from(self.length).unwrap_or(1).clamp(1, room);
            writeln!(f, "{:gutter$} |", "")?;
            writeln!(f, "{:>gutter$} | {excerpt}", self.line)?;
            writeln!(f, "{:gutter$} | {:indent$}{:^<length$}", "", "", "")?;
        }
        if !self.subject.is_empty() {
            writeln!(f, "{:gutter$} = in {}", "", shown(&self.subject))?;
        }
        Ok(())
    }
}
