//! `trefoil init`: a cluster's configuration, for all hosts at once or for one.
//!
//! Writes files and nothing else: no device is touched, no daemon is asked, nothing that exists is
//! overwritten. Everything is checked, also by the daemons' own rules, before the first file is made. The
//! cluster's id is drawn by its first monitor when it first starts.

mod files;

use crate::failure::{Failure, Outcome};
use crate::output;
use crate::size::Size;
use crate::up::plan::{NODE_SIZE_MAX, NODE_SIZE_MIN, NODES_MIN};
use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use serde::Serialize;
use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use trefoil_core::BLOCK_SIZE;
use trefoil_core::map::is_name;

/// Hosts of one call; later ones are made from the files of another host (docs/deploy.md).
const HOSTS_MAX: usize = 1000;
/// Devices of one host.
const DEVICES_MAX: usize = 128;
/// Monitors where there are hosts enough, and nobody says otherwise.
const MONITORS_DEFAULT: usize = 3;
/// Where the monitor listens.
const MONITOR_PORT: u16 = 10800;
/// Where NBD clients find the front end on their own host.
const NBD_PORT: u16 = 10809;
/// Where the first storage node of a host listens; the others follow.
const NODE_PORT: u16 = 10810;

const EXAMPLES: &str = "\
Examples:
  trefoil init ./prod --cluster-name prod --allow-plaintext \\
      --host a=192.0.2.1 --host b=192.0.2.2 --host c=192.0.2.3 --device /dev/nvme1n1
  trefoil init ./prod --monitors b,c,d,e,f --host a=192.0.2.1 ... --device /dev/nvme1n1
  trefoil init ./prod --host a=192.0.2.1 ... --device a:/dev/sdb --device b:/dev/sdc ...
  trefoil init --config-dir /etc/trefoil --for b --host a=192.0.2.1 ... # this host's part alone
  trefoil init --config-dir /etc/trefoil --size 20G \\
      --device /srv/trefoil/0 --device /srv/trefoil/1 --device /srv/trefoil/2   # a trial on one host

What is made, for each host: monitor/0.toml (where there is one), storage-node/N.toml for each device, and
nbd/0.toml. DIR gets a directory for each host; copy what is in it to /etc/trefoil there. Each key is
explained in the files. docs/deploy.md goes on from here.

Three hosts or more get three monitors, on the first three of them: the cluster goes on without any one of
these. There is no encryption yet: that is what --allow-plaintext means, without which only loopback addresses
are taken.";

/// Make the configuration of a cluster, host by host
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct InitArgs {
    /// A directory to make, with one for each host in it
    #[arg(required_unless_present = "config_dir", conflicts_with = "config_dir")]
    dir: Option<PathBuf>,
    /// Write one host's files here, such as /etc/trefoil
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// The host of --config-dir [default: the only one]
    #[arg(long = "for", value_name = "HOST", requires = "config_dir")]
    only: Option<String>,
    /// The cluster's name, for people; stays what it is for ever
    #[arg(long, value_name = "NAME", default_value = "trefoil")]
    cluster_name: String,
    /// A host and its address in the storage network; may be given several times [default: this one, 127.0.0.1]
    #[arg(long, value_name = "NAME=IP")]
    host: Vec<HostArg>,
    /// The hosts of the monitors, with commas: 1, 3 or 5 [default: the first three, or with fewer the first]
    #[arg(long, value_name = "HOST,...", value_delimiter = ',', alias = "monitor-on")]
    monitors: Vec<String>,
    /// A device of each host, or with HOST: before it, of one; may be given several times
    #[arg(long, value_name = "[HOST:]PATH", required = true)]
    device: Vec<String>,
    /// The devices are files, which storage nodes make that large at their first start
    #[arg(long, value_name = "SIZE")]
    size: Option<Size>,
    /// Memory that each storage node may take
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    memory: Size,
    /// Listen beyond loopback although connections are not encrypted yet: whoever reaches them can read and
    /// change everything
    #[arg(long)]
    allow_plaintext: bool,
    /// Show what was made as JSON
    #[arg(long)]
    json: bool,
}

/// A `--host NAME=IP`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct HostArg {
    name: String,
    address: IpAddr,
}

impl FromStr for HostArg {
    type Err = String;

    fn from_str(text: &str) -> Result<HostArg, String> {
        let (name, address) = text.split_once('=').ok_or("give NAME=IP, such as a=192.0.2.1")?;
        let address = address
            .parse()
            .map_err(|_| format!("{address:?} is no IP address; daemons do not look up names"))?;
        if !is_name(name) {
            return Err(format!("{name:?} is no name for a host: use letters, digits, '.', '_' and '-'"));
        }
        Ok(HostArg { name: name.to_owned(), address })
    }
}

/// A file that will be made.
#[derive(Debug)]
struct Planned {
    host: String,
    role: &'static str,
    /// Below the host's directory.
    path: PathBuf,
    text: String,
}

/// What `--json` shows.
#[derive(Serialize)]
struct View<'a> {
    cluster_name: &'a str,
    monitors: Vec<SocketAddr>,
    hosts: &'a [HostArg],
    files: Vec<FileView>,
}

#[derive(Serialize)]
struct FileView {
    host: String,
    role: &'static str,
    path: PathBuf,
}

/// Runs the command.
pub fn run(args: &InitArgs, out: &mut dyn Write) -> Outcome {
    let hosts = hosts(args).map_err(Failure::usage)?;
    let monitors = monitors(args, &hosts).map_err(Failure::usage)?;
    let mut planned = plan(args, &hosts, &monitors).map_err(Failure::usage)?;
    if args.config_dir.is_some() {
        let only = match (&args.only, hosts.as_slice()) {
            (Some(name), _) if hosts.iter().any(|host| host.name == *name) => name.clone(),
            (Some(name), _) => return Err(Failure::usage(anyhow!("--for {name}: no --host has that name"))),
            (None, [one]) => one.name.clone(),
            (None, _) => return Err(Failure::usage(anyhow!("say with --for HOST whose files to write"))),
        };
        planned.retain(|file| file.host == only);
    }
    let place = |file: &Planned| match (&args.config_dir, &args.dir) {
        (Some(dir), _) => dir.join(&file.path),
        (None, Some(dir)) => dir.join(&file.host).join(&file.path),
        (None, None) => file.path.clone(),
    };
    let files: Vec<(PathBuf, &Planned)> = planned.iter().map(|file| (place(file), file)).collect();
    make(&files)?;
    let view = |(path, file): &(PathBuf, &Planned)| FileView {
        host: file.host.clone(),
        role: file.role,
        path: path.clone(),
    };
    if args.json {
        let files = files.iter().map(view).collect();
        let monitors = addresses(&monitors);
        let view = View { cluster_name: &args.cluster_name, monitors, hosts: &hosts, files };
        return output::json(out, &view);
    }
    for (path, _) in &files {
        writeln!(out, "made {}", path.display())?;
    }
    write!(out, "{}", next_steps(args, &hosts, &monitors))?;
    Ok(())
}

fn hosts(args: &InitArgs) -> anyhow::Result<Vec<HostArg>> {
    ensure!(
        is_name(&args.cluster_name),
        "--cluster-name {:?} is no name: use letters, digits, '.', '_' and '-'",
        args.cluster_name
    );
    let mut hosts = args.host.clone();
    if hosts.is_empty() {
        let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = if is_name(name.trim()) { name.trim().to_owned() } else { "localhost".to_owned() };
        hosts.push(HostArg { name, address: IpAddr::from([127, 0, 0, 1]) });
    }
    ensure!(hosts.len() <= HOSTS_MAX, "at most {HOSTS_MAX} hosts at once");
    for (i, host) in hosts.iter().enumerate() {
        let twice = hosts[..i].iter().find(|other| other.name == host.name || other.address == host.address);
        ensure!(twice.is_none(), "--host {}={}: name or address is given twice", host.name, host.address);
        ensure!(
            !host.address.is_unspecified(),
            "--host {}: {} is no address to connect to",
            host.name,
            host.address
        );
        ensure!(
            host.address.is_loopback() || args.allow_plaintext,
            "--host {}={} is reachable from other hosts, and there is no encryption yet: whoever reaches it can read \
             and change every volume. Say --allow-plaintext if that network is yours alone",
            host.name,
            host.address
        );
    }
    Ok(hosts)
}

/// A monitor's host, and where it listens.
type MonitorAt<'a> = (&'a str, SocketAddr);

/// The monitors' hosts, in the order of their numbers.
fn monitors<'a>(args: &InitArgs, hosts: &'a [HostArg]) -> anyhow::Result<Vec<MonitorAt<'a>>> {
    let chosen: Vec<&HostArg> = match args.monitors.as_slice() {
        [] if hosts.len() >= MONITORS_DEFAULT => hosts.iter().take(MONITORS_DEFAULT).collect(),
        [] => hosts.iter().take(1).collect(),
        names => {
            let find = |name: &String| {
                let found = hosts.iter().find(|host| host.name == *name);
                found.with_context(|| format!("--monitors {name}: no --host has that name"))
            };
            names.iter().map(find).collect::<anyhow::Result<_>>()?
        }
    };
    for (i, host) in chosen.iter().enumerate() {
        let twice = chosen[..i].iter().any(|other| other.name == host.name);
        ensure!(!twice, "--monitors: {} is named twice; each monitor has a host of its own", host.name);
    }
    ensure!(
        matches!(chosen.len(), 1 | 3 | 5),
        "--monitors names {} hosts: 3 go on without one of them, 5 without two; any other number is worse",
        chosen.len()
    );
    let at = |host: &'a HostArg| (host.name.as_str(), SocketAddr::new(host.address, MONITOR_PORT));
    Ok(chosen.into_iter().map(at).collect())
}

fn addresses(monitors: &[MonitorAt<'_>]) -> Vec<SocketAddr> {
    monitors.iter().map(|(_, address)| *address).collect()
}

/// The devices of a host, in order.
fn devices<'a>(args: &'a InitArgs, hosts: &[HostArg], host: &HostArg) -> anyhow::Result<Vec<&'a Path>> {
    let mut devices = Vec::new();
    for text in &args.device {
        let path = match text.split_once(':') {
            // A path may have a colon in it; a name has no slash.
            Some((name, path)) if !name.contains('/') => {
                ensure!(
                    hosts.iter().any(|host| host.name == name),
                    "--device {text}: no --host is called {name}"
                );
                if name != host.name {
                    continue;
                }
                path
            }
            _ => text,
        };
        let path = Path::new(path);
        ensure!(path.is_absolute(), "--device {text}: give the whole path, from /");
        ensure!(!devices.contains(&path), "--device {text}: given twice for host {}", host.name);
        devices.push(path);
    }
    ensure!(devices.len() <= DEVICES_MAX, "host {}: at most {DEVICES_MAX} devices", host.name);
    Ok(devices)
}

/// Every file of every host.
fn plan(args: &InitArgs, hosts: &[HostArg], monitors: &[MonitorAt<'_>]) -> anyhow::Result<Vec<Planned>> {
    if let Some(size) = args.size {
        let block = BLOCK_SIZE as u64;
        ensure!(
            (NODE_SIZE_MIN..=NODE_SIZE_MAX).contains(&size) && size.0.is_multiple_of(block),
            "--size {size} is outside {NODE_SIZE_MIN} to {NODE_SIZE_MAX}, or not a multiple of {block}"
        );
    }
    let mut of_hosts = Vec::new();
    for host in hosts {
        of_hosts.push((host, devices(args, hosts, host)?));
    }
    let nodes: usize = of_hosts.iter().map(|(_, devices)| devices.len()).sum();
    let with_devices = of_hosts.iter().filter(|(_, devices)| !devices.is_empty()).count();
    ensure!(
        nodes >= NODES_MIN,
        "{nodes} devices in all: three copies need at least {NODES_MIN} storage nodes, each with its own device"
    );
    let all = addresses(monitors);
    let mut planned = Vec::new();
    for (host, devices) in of_hosts {
        let mut add = |role: &'static str, number: usize, text: String| {
            let path = Path::new(role).join(format!("{number}.toml"));
            planned.push(Planned { host: host.name.clone(), role, path, text });
        };
        let plaintext = !host.address.is_loopback();
        if let Some(at) = monitors.iter().position(|(name, _)| *name == host.name) {
            let many_hosts = with_devices >= NODES_MIN;
            let (cluster_name, id) = (args.cluster_name.as_str(), at + 1);
            let monitor = files::Monitor { cluster_name, id, all: &all, nodes, many_hosts, plaintext };
            add("monitor", 0, files::monitor(&monitor)?);
        }
        for (number, device) in devices.into_iter().enumerate() {
            let port = NODE_PORT + u16::try_from(number)?;
            let node = files::Node {
                number,
                device,
                size: args.size,
                listen: SocketAddr::new(host.address, port),
                monitors: &all,
                host: &host.name,
                memory: args.memory,
                plaintext,
            };
            add("storage-node", number, files::storage_node(&node)?);
        }
        let listen = SocketAddr::from(([127, 0, 0, 1], NBD_PORT));
        add("nbd", 0, files::nbd(listen, &all)?);
    }
    Ok(planned)
}

/// All of the files, or none.
fn make(files: &[(PathBuf, &Planned)]) -> Outcome {
    let there: Vec<String> = files
        .iter()
        .filter(|(path, _)| path.symlink_metadata().is_ok())
        .map(|(path, _)| path.display().to_string())
        .collect();
    if !there.is_empty() {
        return Err(anyhow!(
            "nothing was written, for there is a configuration already: {}. Move it away, or choose another directory",
            there.join(", ")
        )
        .into());
    }
    let mut made: Vec<&Path> = Vec::new();
    for (path, file) in files {
        if let Err(error) = make_one(path, &file.text) {
            // Half a cluster would be taken for a whole one.
            for path in made {
                let _ = fs::remove_file(path);
            }
            return Err(error.context("nothing was made").into());
        }
        made.push(path);
    }
    Ok(())
}

fn make_one(path: &Path, text: &str) -> anyhow::Result<()> {
    let Some(directory) = path.parent() else { bail!("{} is no file", path.display()) };
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    let write = || -> std::io::Result<()> {
        let mut file = File::create_new(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        File::open(directory)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn next_steps(args: &InitArgs, hosts: &[HostArg], monitors: &[MonitorAt<'_>]) -> String {
    let names: Vec<&str> = monitors.iter().map(|(name, _)| *name).collect();
    let texts: Vec<String> = addresses(monitors).iter().map(SocketAddr::to_string).collect();
    let monitor = texts.join(",");
    let mut text = String::from("\nnext:\n");
    let mut step = |line: String| text += &format!("  {line}\n");
    if let Some(dir) = &args.dir {
        for host in hosts {
            step(format!("copy {}/{}/ to {}:/etc/trefoil/", dir.display(), host.name, host.name));
        }
    }
    step("on each host: scripts/install, then trefoil doctor".to_owned());
    match names.as_slice() {
        [one] => step(format!("on {one}: systemctl enable --now trefoil-monitor@0")),
        // Each is ready when all are there.
        _ => step(format!(
            "on each of {}: systemctl enable --now --no-block trefoil-monitor@0 (they wait for each other)",
            names.join(", ")
        )),
    }
    if args.size.is_none() {
        step(format!("on each host, each device: trefoil --monitor {monitor} storage-node format DEVICE"));
    }
    step("on each host: systemctl enable --now trefoil-storage-node@N trefoil-nbd@0".to_owned());
    step(format!("anywhere: trefoil --monitor {monitor} status"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_with_addresses() {
        let host: HostArg = "a=192.0.2.1".parse().unwrap();
        assert_eq!((host.name.as_str(), host.address), ("a", IpAddr::from([192, 0, 2, 1])));
        for (text, told) in [("a", "NAME=IP"), ("a=b.example", "is no IP address"), ("a/b=::1", "is no name")]
        {
            assert!(text.parse::<HostArg>().unwrap_err().contains(told), "{text}");
        }
    }

    #[test]
    fn either_all_files_are_made_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let planned =
            |name: &str| Planned { host: "a".into(), role: "nbd", path: name.into(), text: "x".into() };
        let (first, second) = (planned("1"), planned("2"));
        let blocked = dir.path().join("file");
        fs::write(&blocked, "").unwrap();
        let files = [(dir.path().join("1"), &first), (blocked.join("2"), &second)];
        assert!(make(&files).is_err());
        assert!(!files[0].0.exists(), "half of it is taken away again");
        let files = [(dir.path().join("1"), &first), (blocked.clone(), &second)];
        let told = make(&files).unwrap_err().line().unwrap();
        assert!(told.contains("nothing was written") && told.contains("file"), "{told}");
        assert!(!files[0].0.exists());
    }
}
