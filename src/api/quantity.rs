//! Sizes as Kubernetes users write them: `50Mi`, `10M`, `1048576`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of octets, in the notation of a Kubernetes quantity; the notation
/// is kept, so that what is read is written back as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity {
    text: String,
    octets: u64,
}

/// What is not a [`Quantity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not of the form.
    #[error("not a size: write a whole number with a unit, like 50Mi or 2Gi")]
    Form,
    /// More than 64 bits hold.
    #[error("a size that is too large")]
    TooLarge,
}

impl Quantity {
    /// The octets that it stands for.
    pub fn octets(&self) -> u64 {
        self.octets
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = (text.get(..digits).unwrap_or(""), text.get(digits..).unwrap_or(""));
        let factor: u64 = match unit {
            "" => 1,
            "k" => 1000,
            "M" => 1000_u64.pow(2),
            "G" => 1000_u64.pow(3),
            "T" => 1000_u64.pow(4),
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => return Err(QuantityError::Form),
        };
        if number.is_empty() {
            return Err(QuantityError::Form);
        }
        let octets = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(factor))
            .ok_or(QuantityError::TooLarge)?;
        Ok(Self { text: text.to_owned(), octets })
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // `x-kubernetes-int-or-string`: a plain number is as good.
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Quantity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size like 50Mi")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, octets: u64) -> Result<Quantity, E> {
                Ok(Quantity { text: octets.to_string(), octets })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Quantity {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "x-kubernetes-validations": [{
                "rule": r"string(self).matches('^([1-9][0-9]{0,14}|[1-9][0-9]{0,11}(k|Ki)|[1-9][0-9]{0,8}Mi?|[1-9][0-9]{0,5}Gi?|[1-9][0-9]{0,2}Ti?)$')",
                "message": "write a size as a whole number with a unit, like 50Mi or 2Gi",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_kubernetes_quantities() {
        for (text, octets) in
            [("50Mi", 50 << 20), ("10M", 10_000_000), ("123", 123), ("1Ki", 1024), ("2Gi", 2 << 30)]
        {
            assert_eq!(text.parse::<Quantity>().unwrap().octets(), octets, "{text}");
        }
        for bad in ["", "Mi", "50MB", "5m", "-1", "1.5Gi", "50 Mi", "1e3"] {
            assert_eq!(bad.parse::<Quantity>(), Err(QuantityError::Form), "{bad}");
        }
        assert_eq!("99999999999Ti".parse::<Quantity>(), Err(QuantityError::TooLarge));
        assert_eq!(serde_json::from_str::<Quantity>("1048576").unwrap().octets(), 1 << 20);
        let kept: Quantity = serde_json::from_str("\"50Mi\"").unwrap();
        assert_eq!(serde_json::to_string(&kept).unwrap(), "\"50Mi\"");
    }
}
