//! Lists of ports as annotations write them: numbers, ranges and names of ports.

use weft_api::model::{InvalidPorts, PortSet};

/// Ports by number or name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortList {
    ports: PortSet,
    names: Vec<String>,
}

impl PortList {
    /// Parses `25,587,4000-5000,redis`.
    ///
    /// # Errors
    /// When an item is neither a port, a range of ports nor a name.
    pub fn parse(text: &str) -> Result<Self, InvalidPorts> {
        let mut list = Self::default();
        let mut numbers = Vec::new();
        for item in text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            match is_port_name(item) {
                true => list.names.push(item.to_owned()),
                false => numbers.push(item),
            }
        }
        list.ports = numbers.join(",").parse()?;
        Ok(list)
    }

    /// Makes the list of a set.
    pub const fn of(ports: PortSet) -> Self {
        Self {
            ports,
            names: Vec::new(),
        }
    }

    /// Whether a port is in it, by number or by name.
    pub fn contains(&self, number: u16, name: Option<&str>) -> bool {
        self.ports.contains(number)
            || name.is_some_and(|name| self.names.iter().any(|known| known == name))
    }

    /// The numbers, with names looked up; names that lead nowhere are returned beside them.
    pub fn resolve(&self, find: impl Fn(&str) -> Option<u16>) -> (PortSet, Vec<&str>) {
        let mut unknown = Vec::new();
        let named = self.names.iter().filter_map(|name| {
            let port = find(name);
            if port.is_none() {
                unknown.push(name.as_str());
            }
            port.map(|port| (port, port))
        });
        let ranges: Vec<_> = self.ports.ranges().chain(named).collect();
        (PortSet::from_ranges(ranges).unwrap_or_default(), unknown)
    }
}

/// Port names of Kubernetes: at most 15 characters, lower case, with a letter in them.
fn is_port_name(text: &str) -> bool {
    text.len() <= 15
        && text.bytes().any(|byte| byte.is_ascii_lowercase())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}
