//! `weft version`.

/// Flags of `weft version`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print the version number only.
    #[arg(long)]
    short: bool,
    /// Print the version of the client only; the default while there is no cluster to ask.
    #[arg(long)]
    client: bool,
}

/// The text to print, without its last line break.
pub(crate) fn render(args: &Args) -> String {
    let version = env!("CARGO_PKG_VERSION");
    match args.short {
        true => version.to_owned(),
        false => format!("Client version: {version}"),
    }
}
