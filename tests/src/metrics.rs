//! Reads Prometheus' text format, to ask what the daemons counted.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

/// One line of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name of the series.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

/// One scrape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    /// All samples, in the order of the text.
    pub samples: Vec<Sample>,
}

impl Sample {
    /// Value of a label; empty if it has none.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    fn matches(&self, labels: &[(&str, &str)]) -> bool {
        labels
            .iter()
            .all(|(name, value)| self.label(name) == *value)
    }
}

impl Scrape {
    /// Parses a scrape.
    ///
    /// # Errors
    /// Names the first line that is no sample.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim);
        let samples: Result<Vec<Sample>> = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| sample(line).with_context(|| format!("metrics line {line:?}")))
            .collect();
        Ok(Self { samples: samples? })
    }

    /// Samples of a series that have these labels.
    pub fn select<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> + 'a {
        self.samples
            .iter()
            .filter(move |sample| sample.name == name && sample.matches(labels))
    }

    /// Sum of a series over all samples that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels).map(|sample| sample.value).sum()
    }

    /// Whether the series has a sample.
    pub fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|sample| sample.name == name)
    }

    /// Counts below each bound of a histogram, bounds ascending.
    pub fn buckets(&self, name: &str, labels: &[(&str, &str)]) -> Vec<(f64, f64)> {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for sample in self.select(name, labels) {
            let bound = match sample.label("le") {
                "+Inf" => f64::INFINITY,
                bound => bound.parse().unwrap_or(f64::NAN),
            };
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, count)) => *count += sample.value,
                None => buckets.push((bound, sample.value)),
            }
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        buckets
    }
}

/// Quantile from cumulative buckets, interpolated within one as Prometheus does.
pub fn quantile(buckets: &[(f64, f64)], q: f64) -> Option<f64> {
    let total = buckets.last().map(|(_, count)| *count)?;
    if total <= 0.0 {
        return None;
    }
    let rank = q * total;
    let mut below = (0.0, 0.0);
    for &(bound, count) in buckets {
        if count >= rank {
            if bound.is_infinite() {
                return Some(below.0);
            }
            let width = (count - below.1).max(f64::MIN_POSITIVE);
            return Some(below.0 + (bound - below.0) * (rank - below.1) / width);
        }
        below = (bound, count);
    }
    None
}

fn sample(line: &str) -> Result<Sample> {
    let (name, labels, rest) = match line.split_once('{') {
        None => {
            let (name, rest) = line.split_once(' ').context("no value")?;
            (name, BTreeMap::new(), rest)
        }
        Some((name, rest)) => {
            let (labels, rest) = labels(rest)?;
            (name, labels, rest)
        }
    };
    let value = rest.split_whitespace().next().context("no value")?;
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value: value.parse().context("value")?,
    })
}

/// Reads `a="b",c="d"}` and gives what follows it.
fn labels(mut text: &str) -> Result<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (name, rest) = text.split_once("=\"").context("label without value")?;
        let (value, rest) = quoted(rest).context("label value without end")?;
        labels.insert(name.to_owned(), value);
        text = rest;
    }
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((index, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[index + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scrapes_are_parsed_summed_and_made_into_quantiles() {
        let text = "# HELP a b\n\
            up 1\n\
            response_total{direction=\"inbound\",tls=\"true\"} 3\n\
            response_total{direction=\"inbound\",tls=\"true\",x=\"a\\\"}b\"} 4 1700000000\n\
            l_bucket{le=\"1\"} 0\nl_bucket{le=\"2\"} 10\nl_bucket{le=\"+Inf\"} 10\n\
            # EOF\n";
        let scrape = Scrape::parse(text).unwrap();
        assert_eq!(scrape.sum("response_total", &[("tls", "true")]), 7.0);
        assert_eq!(scrape.sum("response_total", &[("x", "a\"}b")]), 4.0);
        assert!(scrape.has("up") && !scrape.has("down"));
        let buckets = scrape.buckets("l_bucket", &[]);
        assert_eq!(quantile(&buckets, 0.5), Some(1.5));
        assert_eq!(quantile(&[], 0.5), None);
        assert!(Scrape::parse("x{a=\"b} 1").is_err());
    }
}
