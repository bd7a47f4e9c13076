//! `activitySchedule`: from the fields to what the engine works with.

use jiff::civil::Weekday;
use jiff::tz::{TimeZone, TimeZoneDatabase};

use super::work::Unusable;
use super::{ActivitySchedule, Day};
use crate::domain::schedule::{Schedule, Window, WindowError};
use crate::domain::text::{escape, suggest};

/// The schedule; or what is wrong with each of its parts.
pub(super) fn schedule(spec: &ActivitySchedule) -> Result<Schedule, Vec<Unusable>> {
    let mut faults = Vec::new();
    let zone = zone(&spec.time_zone)
        .map_err(|message| faults.push(Unusable { path: "spec.activitySchedule.timeZone", message }));
    let mut windows = Vec::with_capacity(spec.windows.len());
    for window in &spec.windows {
        match Window::new(window.days.iter().map(|day| weekday(*day)), &window.from, &window.to) {
            Ok(window) => windows.push(window),
            Err(error) => {
                let path = match error {
                    WindowError::From => "spec.activitySchedule.windows[].from",
                    WindowError::To | WindowError::Empty => "spec.activitySchedule.windows[].to",
                };
                faults.push(Unusable { path, message: error.to_string() });
            }
        }
    }
    match zone {
        Ok(zone) if faults.is_empty() => Ok(Schedule::new(zone, windows)),
        _ => Err(faults),
    }
}

fn weekday(day: Day) -> Weekday {
    match day {
        Day::Mon => Weekday::Monday,
        Day::Tue => Weekday::Tuesday,
        Day::Wed => Weekday::Wednesday,
        Day::Thu => Weekday::Thursday,
        Day::Fri => Weekday::Friday,
        Day::Sat => Weekday::Saturday,
        Day::Sun => Weekday::Sunday,
    }
}

/// The time zone of that name, by this machine's database, since people keep
/// that up to date, and else by the one that is built in.
fn zone(name: &str) -> Result<TimeZone, String> {
    let built_in = TimeZoneDatabase::bundled();
    TimeZone::get(name).or_else(|_| built_in.get(name)).map_err(|_| {
        let known: Vec<String> = built_in.available().map(|name| name.to_string()).collect();
        let last = |name: &str| name.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
        let wanted = last(name);
        let close = known
            .iter()
            .find(|known| last(known) == wanted)
            .map(String::as_str)
            .or_else(|| suggest(name, known.iter().map(String::as_str)));
        let name = escape(name);
        match close {
            Some(close) => format!("there is no time zone `{name}`: did you mean `{close}`?"),
            None => format!(
                "there is no time zone `{name}`: write one of the IANA names, like Europe/Berlin or UTC"
            ),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_known_by_their_names_and_others_are_told_which_was_meant() {
        for name in ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5"] {
            zone(name).unwrap();
        }
        for (name, meant) in
            [("Berlin", "`Europe/Berlin`"), ("Europe/Berln", "`Europe/Berlin`"), ("CST9", "IANA")]
        {
            let message = zone(name).unwrap_err();
            assert!(message.contains(meant), "{message}");
        }
        assert!(zone("../../etc/passwd").is_err());
    }

    #[test]
    fn the_database_is_built_in() {
        TimeZoneDatabase::bundled().get("Europe/Berlin").unwrap();
    }

    #[test]
    fn each_part_that_cannot_be_used_is_told() {
        let spec: ActivitySchedule = serde_json::from_value(serde_json::json!({
            "timeZone": "Mars/Base", "windows": [{"from": "08:00", "to": "08:00"}, {"from": "25:00", "to": "08:00"}]
        }))
        .unwrap();
        let faults = schedule(&spec).unwrap_err();
        let paths: Vec<&str> = faults.iter().map(|fault| fault.path).collect();
        assert_eq!(
            paths,
            [
                "spec.activitySchedule.timeZone",
                "spec.activitySchedule.windows[].to",
                "spec.activitySchedule.windows[].from"
            ]
        );
    }
}
