//! Keeps asking an HTTP server until its standard input ends, and says how many answers failed.
//!
//! Runs inside a pod as a client under load. Prints one JSON object per line: progress while it
//! runs, the result at the end (see `weft_tests::hammer`).
#![expect(clippy::print_stdout, reason = "its output is its result")]

use std::{
    io::Read as _,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use parking_lot::Mutex;
use tokio::time::Instant;
use weft_tests::{
    hammer::{CONNECT, Report, Speaker},
    http,
};

/// Keeps asking an HTTP server until standard input ends.
#[derive(Parser)]
struct Args {
    /// Server to ask.
    target: SocketAddr,
    /// Path to ask for.
    #[arg(long, default_value = "/")]
    path: String,
    /// How many ask at the same time.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Keeps connections open between requests; otherwise each request opens its own.
    #[arg(long)]
    keep: bool,
    /// Longest time for one request, in milliseconds.
    #[arg(long, default_value_t = 20_000)]
    limit_ms: u64,
    /// Pause between two requests of one asker, in milliseconds.
    #[arg(long, default_value_t = 2)]
    pause_ms: u64,
}

fn main() -> Result<()> {
    let args = Arc::new(Args::parse());
    let stop = Arc::new(AtomicBool::new(false));
    let report = Arc::new(Mutex::new(Report::default()));
    let mut threads = Vec::new();
    for _ in 0..args.connections {
        let (args, stop, report) = (Arc::clone(&args), Arc::clone(&stop), Arc::clone(&report));
        threads.push(std::thread::spawn(move || ask(&args, &stop, &report)));
    }
    {
        let (stop, report) = (Arc::clone(&stop), Arc::clone(&report));
        threads.push(std::thread::spawn(move || tell(&stop, &report)));
    }
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().ok();
    }
    let mut report = report.lock().clone();
    report.done = true;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn tell(stop: &AtomicBool, report: &Mutex<Report>) {
    while !stop.load(Ordering::Relaxed) {
        let now = report.lock().clone();
        if let Ok(line) = serde_json::to_string(&now) {
            println!("{line}");
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn ask(args: &Args, stop: &AtomicBool, report: &Mutex<Report>) {
    let mut speaker = None;
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let answer = match args.keep {
            true => ask_kept(args, &mut speaker),
            false => ask_once(args),
        };
        report.lock().record(start.elapsed(), answer);
        std::thread::park_timeout(Duration::from_millis(args.pause_ms));
    }
}

fn ask_once(args: &Args) -> Result<()> {
    let limit = Duration::from_millis(args.limit_ms);
    let stream = TcpStream::connect_timeout(&args.target, limit).context(CONNECT)?;
    let reply = http::exchange(stream, &args.target.to_string(), &args.path, &[])?;
    ensure!(reply.status == 200, "status {}", reply.status);
    Ok(())
}

fn ask_kept(args: &Args, kept: &mut Option<Speaker>) -> Result<()> {
    let limit = Duration::from_millis(args.limit_ms);
    let mut speaker = match kept.take() {
        Some(speaker) => speaker,
        None => Speaker::connect(args.target, limit)?,
    };
    let (status, stays) = speaker.ask(&args.path)?;
    if stays {
        *kept = Some(speaker);
    }
    ensure!(status == 200, "status {status}");
    Ok(())
}
