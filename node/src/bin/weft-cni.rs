//! CNI plugin of Weft, run by container runtimes; see `weft_node::cni::plugin`.

use std::{
    env,
    io::{self, Write as _},
    process::ExitCode,
};

use weft_node::cni::plugin::{Invocation, run};

fn main() -> ExitCode {
    let environment = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .collect();
    let outcome = run(&mut Invocation {
        environment,
        config: &mut io::stdin().lock(),
    });
    let written = writeln!(io::stdout(), "{}", outcome.stdout);
    if outcome.success && (written.is_ok() || outcome.stdout.is_empty()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
