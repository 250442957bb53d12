//! The command behind `scripts/node`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use node::{Machine, Options, Result, template};

const USAGE: &str = "usage: node HOME template
       node HOME up [--share DIRECTORY] RUN
       node HOME run [--port N] [--limit SECONDS] RUN SCRIPT
       node HOME put RUN DIRECTORY NAME... GUEST-DIRECTORY
       node HOME down RUN";
/// When nothing else is asked for.
const LIMIT: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match command(&words) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("node: {error}");
            ExitCode::from(125)
        }
    }
}

fn command(words: &[String]) -> Result<u8> {
    let [home, verb, rest @ ..] = words else { return Err(USAGE.into()) };
    let home = PathBuf::from(home);
    let (options, words) = options(rest)?;
    let value = |name: &str| options.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    match (verb.as_str(), words.as_slice()) {
        ("template", []) => println!("node: {}", template::make(&home)?),
        ("up", [run]) => {
            let start = Instant::now();
            let share = value("share").map(std::fs::canonicalize).transpose()?;
            Machine::up(&home, run.as_ref(), &Options { share, bound: false })?;
            eprintln!("node: up after {:.1} s", start.elapsed().as_secs_f64());
        }
        ("run", [run, script]) => {
            let limit = value("limit").map(str::parse).transpose()?.map_or(LIMIT, Duration::from_secs);
            let port = value("port").map(str::parse).transpose()?.unwrap_or(0);
            let mut agent = Machine::at(run.as_ref())?.agent(port)?;
            return agent.run(script, limit, &mut std::io::stdout());
        }
        ("put", [run, directory, names @ .., to]) if !names.is_empty() => {
            let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
            Machine::at(run.as_ref())?.agent(0)?.put(directory.as_ref(), &names, to, LIMIT)?;
        }
        ("down", [run]) => Machine::down(run.as_ref())?,
        _ => return Err(USAGE.into()),
    }
    Ok(0)
}

/// An option's name and its value.
type Given = (String, String);

/// Options stand before the words that they don't belong to.
fn options(words: &[String]) -> Result<(Vec<Given>, Vec<&String>)> {
    let mut options = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(name) = words.peek().and_then(|word| word.strip_prefix("--")) {
        words.next();
        let value = words.next().ok_or_else(|| format!("--{name} wants a value"))?;
        options.push((name.to_owned(), value.clone()));
    }
    Ok((options, words.collect()))
}
