//! The demo: builds the mesh with real programs on two nodes; shows it until Ctrl-C, or with
//! `--once` checks it and ends.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use weft_tests::demo::{
    cast::Demo,
    checks, faults,
    summary::{Look, table},
};

/// Shows the mesh at work on two nodes made of network namespaces.
#[derive(Parser)]
#[command(name = "weft-demo", after_help = "Example: weft-demo --once")]
struct Args {
    /// Runs a fixed script, prints one row per check, and ends; fails if a check does.
    #[arg(long)]
    once: bool,
    /// Name of the world: everything it makes is called `weft-NAME-...`.
    #[arg(long, default_value = "demo")]
    name: String,
    /// Seconds between two summaries.
    #[arg(long, default_value_t = 3)]
    interval: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = stop_flag().and_then(|stop| match args.once {
        true => once(&args, &stop),
        false => show(&args, &stop),
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A flag that Ctrl-C or SIGTERM sets. The world is taken down by whoever looks at it.
fn stop_flag() -> Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    // Registered before anything is built, so that nothing is left behind.
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    drop(guard);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        set.store(true, Ordering::Relaxed);
    });
    Ok(flag)
}

fn build(args: &Args, stop: &AtomicBool) -> Result<Demo> {
    let tell = |step: &str| {
        if stop.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        println!("  {step}");
        Ok(())
    };
    println!("building the demo:");
    Demo::build(&args.name, &tell).context("build the demo")
}

fn once(args: &Args, stop: &AtomicBool) -> Result<ExitCode> {
    let demo = build(args, stop)?;
    println!("checking it:");
    let mut failed = 0;
    for (name, check) in checks::CHECKS.iter().chain(faults::CHECKS) {
        if stop.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        failed += u32::from(!row(name, &check(&demo)));
    }
    if failed > 0 {
        // Before they go with the last check.
        eprintln!("{}", logs(&demo));
    }
    failed += u32::from(!row("nothing left behind", &faults::nothing_left(demo)));
    println!("{failed} checks failed");
    Ok(match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Prints the row of a check; whether it succeeded.
fn row(name: &str, result: &Result<String>) -> bool {
    match result {
        Ok(detail) => println!("ok    {name:<28} {detail}"),
        Err(error) => println!("FAIL  {name:<28} {error:#}"),
    }
    result.is_ok()
}

fn logs(demo: &Demo) -> String {
    let nodes = demo.world.nodes().iter();
    nodes.map(|node| node.log_tails(40)).collect()
}

fn show(args: &Args, stop: &AtomicBool) -> Result<ExitCode> {
    let demo = build(args, stop)?;
    let load = demo.start_traffic()?;
    println!("\n{}", demo.suggestions()?);
    println!("Ctrl-C ends the demo and removes everything.\n");
    let mut before = Look::now(demo.world.metrics()?);
    while !stop.load(Ordering::Relaxed) {
        wait(Duration::from_secs(args.interval), stop);
        match demo.world.metrics() {
            Ok(scrape) => {
                let now = Look::now(scrape);
                println!("{}", table(&now.since(&before)));
                before = now;
            }
            // Somebody may just be trying what happens without the agent.
            Err(error) => println!("no metrics: {error:#}"),
        }
    }
    println!("\nremoving the demo");
    drop(load);
    let left = faults::nothing_left(demo)?;
    println!("{left}");
    Ok(ExitCode::SUCCESS)
}

fn wait(time: Duration, stop: &AtomicBool) {
    let step = Duration::from_millis(100);
    let mut left = time;
    while !left.is_zero() && !stop.load(Ordering::Relaxed) {
        std::thread::park_timeout(step.min(left));
        left = left.saturating_sub(step);
    }
}
