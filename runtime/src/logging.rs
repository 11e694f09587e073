//! Process log: filter and format, and how an error is written with its causes.

use std::{error::Error, fmt};

use tracing_subscriber::{
    EnvFilter, fmt as subscriber, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Plain,
    /// One JSON object per line.
    Json,
}

/// Settings of the process log, for `#[command(flatten)]`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What to log: a level, or `module=level` pairs, as in `info,weft_agent=debug`.
    #[arg(long, env = "WEFT_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// How log lines look.
    #[arg(long, env = "WEFT_LOG_FORMAT", default_value = "plain", value_enum)]
    pub log_format: Format,
}

/// Sends the process log to stderr.
///
/// # Errors
/// When the filter does not parse, or a log is set up already.
pub fn init(args: &Args) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log)
        .map_err(|error| anyhow::anyhow!("--log {:?}: {error}", args.log))?;
    let layer = subscriber::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    match args.log_format {
        Format::Plain => registry.with(layer.with_ansi(false)).try_init()?,
        Format::Json => registry.with(layer.json().flatten_event(true)).try_init()?,
    }
    Ok(())
}

/// Writes an error and its causes in one line: `connect to 10.0.0.1:80: connection refused`.
pub fn report<'error>(error: &'error (dyn Error + 'static)) -> Report<'error> {
    Report(error)
}

/// See [`report`].
pub struct Report<'error>(&'error (dyn Error + 'static));

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
