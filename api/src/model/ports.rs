//! Sets of ports, as users write them: `25,587,4000-5000`.

use std::{fmt, str::FromStr};

use crate::proto::node::PortRange;

/// A set of TCP ports, kept as sorted ranges that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet(Vec<(u16, u16)>);

/// Why a list of ports cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidPorts {
    /// Not a number from 1 to 65535.
    #[error("{0:?} is not a port (1 to 65535)")]
    Port(String),
    /// The first port of a range is behind its last.
    #[error("port range {0}-{1} runs backwards")]
    Backwards(u16, u16),
}

impl PortSet {
    /// Makes a set of inclusive ranges, merging those that touch.
    ///
    /// # Errors
    /// When a range runs backwards.
    pub fn from_ranges(ranges: impl IntoIterator<Item = (u16, u16)>) -> Result<Self, InvalidPorts> {
        let mut ranges: Vec<_> = ranges.into_iter().collect();
        if let Some(&(first, last)) = ranges.iter().find(|(first, last)| first > last) {
            return Err(InvalidPorts::Backwards(first, last));
        }
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(previous) if u32::from(first) <= u32::from(previous.1) + 1 => {
                    previous.1 = previous.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        Ok(Self(merged))
    }

    /// Whether the port is in the set.
    pub fn contains(&self, port: u16) -> bool {
        self.0
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&port))
    }

    /// The inclusive ranges, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = (u16, u16)> + '_ {
        self.0.iter().copied()
    }

    /// Whether no port is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for PortSet {
    type Err = InvalidPorts;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let port = |text: &str| {
            text.trim()
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| InvalidPorts::Port(text.trim().to_owned()))
        };
        let ranges: Result<Vec<(u16, u16)>, _> = text
            .split(',')
            .filter(|item| !item.trim().is_empty())
            .map(|item| match item.split_once('-') {
                Some((first, last)) => Ok((port(first)?, port(last)?)),
                None => port(item).map(|port| (port, port)),
            })
            .collect();
        Self::from_ranges(ranges?)
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl TryFrom<&[PortRange]> for PortSet {
    type Error = InvalidPorts;

    fn try_from(ranges: &[PortRange]) -> Result<Self, Self::Error> {
        let port = |number: u32| {
            u16::try_from(number)
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| InvalidPorts::Port(number.to_string()))
        };
        let ranges: Result<Vec<_>, _> = ranges
            .iter()
            .map(|range| Ok((port(range.first)?, port(range.last)?)))
            .collect();
        Self::from_ranges(ranges?)
    }
}

impl From<&PortSet> for Vec<PortRange> {
    fn from(ports: &PortSet) -> Self {
        ports
            .ranges()
            .map(|(first, last)| PortRange {
                first: first.into(),
                last: last.into(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_lists_parse_merge_and_print() {
        for (text, expected) in [
            ("25, 587,3306", Ok("25,587,3306")),
            ("5-7,8,6-9", Ok("5-9")),
            ("65535,1-65535", Ok("1-65535")),
            ("", Ok("")),
            ("http", Err(InvalidPorts::Port("http".into()))),
            ("0", Err(InvalidPorts::Port("0".into()))),
            ("9-3", Err(InvalidPorts::Backwards(9, 3))),
        ] {
            let printed = text.parse::<PortSet>().map(|ports| ports.to_string());
            assert_eq!(printed, expected.map(ToOwned::to_owned), "{text:?}");
        }
    }
}
