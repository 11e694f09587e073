//! `weft-controller`: Weft's control plane.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use weft_controller::{
    app::App,
    config::{Cli, Command, Config, RunArgs, Source},
    fswatch::Timing,
    index::{Cluster, Index},
    problems::Severity,
    source::{Change, Dir},
    tokens::JoinTokens,
};
use weft_runtime::{logging, signal, tls};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run(*args),
        Command::JoinToken { state, node } => join_token(&JoinTokens::new(&state), &node),
        Command::CheckManifests { source } => Ok(check_manifests(source)),
    };
    result.unwrap_or_else(|error| fail(&error))
}

fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    logging::init(&args.log)?;
    tls::install_provider();
    let config = Config::try_from(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let app = App::start(config, Timing::default()).await?;
        let readiness = app.readiness.clone();
        let shutdown = async move {
            signal::terminate().await;
            readiness.drain();
        };
        app.tasks.run(shutdown).await?;
        Ok(ExitCode::SUCCESS)
    })
}

#[expect(clippy::print_stdout, reason = "the token is this command's result")]
fn join_token(tokens: &JoinTokens, node: &str) -> anyhow::Result<ExitCode> {
    let token = tokens.create(node).context("make a join token")?;
    println!("{token}");
    Ok(ExitCode::SUCCESS)
}

#[expect(
    clippy::print_stdout,
    reason = "the problems are this command's result"
)]
fn check_manifests(source: Source) -> ExitCode {
    let Source::Dir(folder) = source;
    let mut dir = Dir::new(folder);
    let mut index = Index::new(Cluster::default());
    let scanned = dir.scan();
    for change in &scanned.changes {
        match change {
            Change::Apply(key, object) => index.apply(key, object),
            Change::Delete(key) => index.delete(key),
        }
    }
    let located = index.problems().into_iter();
    let located = located.map(|problem| dir.locate(problem));
    let mut problems: Vec<_> = scanned.problems.into_iter().chain(located).collect();
    problems.sort();
    for problem in &problems {
        println!("{problem}");
    }
    let sizes = index.sizes();
    println!(
        "{} pods ({} to be meshed), {} services, {} namespaces, {} problems",
        sizes.pods,
        sizes.meshed_pods,
        sizes.services,
        sizes.namespaces,
        problems.len()
    );
    match problems.iter().any(|one| one.severity == Severity::Error) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the log may not be set up, and this is for people"
)]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("weft-controller: {error:#}");
    ExitCode::FAILURE
}
