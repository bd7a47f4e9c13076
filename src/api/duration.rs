//! Durations as Kubernetes users write them: `90s`, `5m`, `1h30m`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A span of time in Go's notation, in whole hours, minutes and seconds
/// (`1h30m`). At most a year.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub std::time::Duration);

/// What is not a [`Duration`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not of the form.
    #[error("not a duration: write hours, minutes and seconds like 90s, 5m or 1h30m")]
    Form,
    /// More than a year.
    #[error("a duration of more than a year (8760h)")]
    TooLong,
}

const YEAR: u64 = 8760 * 3600;

impl Duration {
    /// From seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(std::time::Duration::from_secs(seconds))
    }
}

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let mut total = 0_u64;
        let mut number: Option<u64> = None;
        // Each unit at most once and in this order, as Go prints them.
        let mut units = [('h', 3600), ('m', 60), ('s', 1)].into_iter();
        for c in text.chars() {
            if let Some(digit) = c.to_digit(10) {
                let next = number.unwrap_or(0) * 10 + u64::from(digit);
                if next > YEAR {
                    return Err(DurationError::TooLong);
                }
                number = Some(next);
            } else {
                let (_, seconds) = units.find(|(unit, _)| *unit == c).ok_or(DurationError::Form)?;
                total += number.take().ok_or(DurationError::Form)? * seconds;
            }
        }
        if text.is_empty() || number.is_some() {
            return Err(DurationError::Form);
        }
        if total > YEAR {
            return Err(DurationError::TooLong);
        }
        Ok(Self::from_secs(total))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.0.as_secs();
        let (hours, minutes, seconds) = (all / 3600, all / 60 % 60, all % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        if seconds > 0 || all == 0 {
            write!(f, "{seconds}s")?;
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    // The message of a CEL rule tells what to write; that of a `pattern`
    // would only repeat the expression.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 16,
            "x-kubernetes-validations": [{
                "rule": r"self != '' && self.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$')",
                "message": "write a duration in hours, minutes and seconds, like 90s, 5m or 1h30m",
            }, {
                "rule": r"self == '' || !self.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$') || duration(self) <= duration('8760h')",
                "message": "write at most a year, which is 8760h",
            }],
        })
    }
}

/// `spec.pollEvery`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollEvery {
    /// Poll in this rhythm.
    Every(Duration),
    /// The record is to be removed.
    Never,
    /// The record is kept and not polled.
    Disabled,
}

impl Default for PollEvery {
    fn default() -> Self {
        Self::Every(Duration::from_secs(300))
    }
}

impl fmt::Display for PollEvery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every(duration) => duration.fmt(f),
            Self::Never => f.write_str("Never"),
            Self::Disabled => f.write_str("Disabled"),
        }
    }
}

impl Serialize for PollEvery {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PollEvery {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        match text.as_ref() {
            "Never" => Ok(Self::Never),
            "Disabled" => Ok(Self::Disabled),
            other => other.parse().map(Self::Every).map_err(de::Error::custom),
        }
    }
}

impl JsonSchema for PollEvery {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "PollEvery".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 16,
            "x-kubernetes-validations": [
                {
                    "rule": r"self in ['Never', 'Disabled'] || (self != '' && self.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$'))",
                    "message": "write a duration of at least 10s, like 5m or 1h30m, or Disabled (keep the record, do not poll) or Never (remove the record)",
                },
                {
                    "rule": r"self in ['Never', 'Disabled', ''] || !self.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$') || (duration(self) >= duration('10s') && duration(self) <= duration('8760h'))",
                    "message": "write at least 10s and at most 8760h: servers lock out accounts that log in more often than every few seconds",
                },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print_as_in_go() {
        for (text, seconds) in [("90s", 90), ("5m", 300), ("1h30m", 5400), ("1h0m5s", 3605), ("0s", 0)] {
            assert_eq!(text.parse::<Duration>().unwrap(), Duration::from_secs(seconds), "{text}");
        }
        assert_eq!(Duration::from_secs(90).to_string(), "1m30s");
        assert_eq!(Duration::from_secs(0).to_string(), "0s");
        for bad in ["", "5", "m", "5m1h", "5M", "1d", "-5m", "5 m", "1.5h", "5m5m"] {
            assert_eq!(bad.parse::<Duration>(), Err(DurationError::Form), "{bad}");
        }
        assert_eq!("99999999999999999999h".parse::<Duration>(), Err(DurationError::TooLong));
        assert_eq!("8760h1s".parse::<Duration>(), Err(DurationError::TooLong));
    }

    #[test]
    fn poll_every_keeps_its_two_words() {
        for text in ["Never", "Disabled", "5m"] {
            let read: PollEvery = serde_json::from_value(text.into()).unwrap();
            assert_eq!(read.to_string(), text);
        }
        assert!(serde_json::from_value::<PollEvery>("never".into()).is_err());
    }
}
