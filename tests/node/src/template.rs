//! The template: a guest that has booted, saved with its memory and devices.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::Result;
use crate::machine::{Machine, PORTS, ignore_shared, saved_memory};

/// A cold boot on a loaded machine.
const BOOT: Duration = Duration::from_secs(300);

/// How often a boot is tried.
const TRIES: u32 = 3;

/// What tests use, used once, so that no machine has to load it.
const WARM_UP: &str = "
systemctl is-system-running --wait
systemd-run --quiet --wait --collect true
iptables -t nat -S > /dev/null; iptables -w -t filter -S > /dev/null; ip6tables -t nat -S > /dev/null; nft list ruleset > /dev/null
for module in xt_MASQUERADE xt_comment xt_conntrack xt_addrtype xt_mark xt_multiport ip6table_nat vxlan fuse virtiofs; do
  modprobe --quiet $module
done
crun --version > /dev/null; runc --version > /dev/null
swapoff -a; sync; sleep 1";

/// Where the template of a home lies.
pub fn directory(home: &Path) -> PathBuf {
    home.join("template")
}

/// Boots the image of `home`, and saves the running guest. Says how long it took.
///
/// An emulated processor now and then meets a breakpoint that another has already taken back: the kernel patches its own
/// text while it boots, and panics then. So a boot that fails is tried again.
#[expect(clippy::print_stderr, reason = "who waits for the next boot is told why")]
pub fn make(home: &Path) -> Result<String> {
    let mut tried = 1;
    loop {
        match attempt(home) {
            Ok(said) => return Ok(said),
            Err(error) if tried == TRIES => return Err(error),
            Err(error) => eprintln!("node: boot {tried} of {TRIES} failed: {error}"),
        }
        tried += 1;
    }
}

fn attempt(home: &Path) -> Result<String> {
    let to = directory(home);
    let work = home.join("template.new");
    clear(&work)?;
    fs::create_dir_all(&work)?;
    let disk = work.join("root.img");
    let copied = Command::new("cp").arg("--sparse=always").arg(home.join("root.img")).arg(&disk).status()?;
    if !copied.success() {
        return Err(format!("cp of the image: {copied}").into());
    }
    let start = Instant::now();
    let machine = Machine::new(&work);
    let memory = saved_memory(&work.join("memory"));
    let mut process = machine.spawn(&mut machine.command(home, &disk, &memory, true))?;
    let saved = boot(&machine, &mut process, start).and_then(|booted| {
        save(&machine, &work.join("state"))?;
        Ok(booted)
    });
    if saved.is_err() {
        process.kill()?;
    }
    process.wait()?;
    let booted = saved.map_err(|error| {
        let console = fs::read_to_string(work.join("console.log")).unwrap_or_default();
        let panic = console.lines().find(|line| line.contains("Oops") || line.contains("panic"));
        format!("{error}{}", panic.map(|line| format!("; the guest said: {line}")).unwrap_or_default())
    })?;
    // Machines that run keep their files of the old one.
    clear(&to)?;
    fs::rename(&work, &to)?;
    Ok(format!("booted in {:.1} s, saved after {:.1} s", booted.as_secs_f64(), start.elapsed().as_secs_f64()))
}

pub(crate) fn clear(directory: &Path) -> Result {
    if directory.exists() {
        #[expect(clippy::disallowed_methods, reason = "the tool's own directory, which no guest can change")]
        fs::remove_dir_all(directory)?;
    }
    Ok(())
}

fn boot(machine: &Machine, process: &mut std::process::Child, start: Instant) -> Result<Duration> {
    drop(machine.qmp_of(process)?);
    // Each port greets when it is met for the first time.
    for port in 0..PORTS {
        machine.agent(port)?.text("true", BOOT)?;
    }
    let booted = start.elapsed();
    machine.agent(0)?.text(WARM_UP, BOOT)?;
    Ok(booted)
}

fn save(machine: &Machine, state: &Path) -> Result {
    let mut qmp = machine.qmp()?;
    qmp.command("stop", json!({}))?;
    qmp.command("migrate-set-capabilities", ignore_shared())?;
    qmp.command("migrate", json!({ "uri": format!("exec:cat > '{}'", state.display()) }))?;
    let until = Instant::now() + BOOT;
    loop {
        let status = qmp.command("query-migrate", json!({}))?;
        match status["status"].as_str() {
            Some("completed") => break,
            Some("failed" | "cancelled") => return Err(format!("the guest was not saved: {status}").into()),
            _ if Instant::now() > until => {
                return Err(format!("the guest is still not saved: {status}").into());
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    qmp.command("quit", json!({}))?;
    Ok(())
}
