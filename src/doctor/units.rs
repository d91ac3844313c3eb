//! What the systemd unit of a daemon says: the template, and the drop-ins over it, as systemd reads them.
//!
//! Enough of the format for the settings that the doctor asks for; no more of systemd than that.

use super::daemons::Configured;
use super::host::Host;

/// Where systemd looks for units, the strongest first.
const UNIT_DIRS: [&str; 4] = [
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// The lines of a unit, the weakest first.
pub struct Settings(Vec<String>);

impl Settings {
    /// All values of a setting, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl DoubleEndedIterator<Item = &'a str> {
        let value = move |line: &'a String| Some(line.strip_prefix(name)?.strip_prefix('=')?.trim());
        self.0.iter().filter_map(value)
    }
    /// Its last value.
    pub fn last<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).next_back()
    }
}

/// Those of a daemon with a file; `None` where no unit is installed for it.
pub fn settings(host: &Host, daemon: &Configured) -> Option<Settings> {
    let instance = daemon.file.as_deref()?.file_stem()?.to_str()?;
    let template = format!("trefoil-{}@", daemon.role());
    let mut text = UNIT_DIRS.iter().find_map(|dir| host.text(format!("{dir}/{template}.service")))?;
    for unit in [format!("{template}.service.d"), format!("{template}{instance}.service.d")] {
        for dir in UNIT_DIRS.iter().rev() {
            let names = host.names(format!("{dir}/{unit}"));
            for drop_in in names.iter().filter_map(|name| host.text(format!("{dir}/{unit}/{name}"))) {
                text += "\n";
                text += &drop_in;
            }
        }
    }
    Some(Settings(text.lines().map(|line| line.trim().to_owned()).collect()))
}

#[cfg(test)]
mod tests {
    use super::super::testing::Fake;
    use super::*;

    #[test]
    fn drop_ins_come_after_the_unit_and_the_instances_last() {
        let fake = Fake::new();
        fake.config("nbd/0.toml", "monitors = [\"127.0.0.1:1\"]\nsocket = \"/x\"\n");
        let daemons = fake.daemons();
        assert!(settings(&fake.host(), &daemons.all[0]).is_none());
        fake.file("/usr/lib/systemd/system/trefoil-nbd@.service", "[Service]\n A=1\nAB=9");
        fake.file("/etc/systemd/system/trefoil-nbd@0.service.d/b.conf", "A=4");
        fake.file("/etc/systemd/system/trefoil-nbd@0.service.d/a.conf", "A=3\n#A=0");
        fake.file("/etc/systemd/system/trefoil-nbd@.service.d/z.conf", "A=2");
        fake.file("/etc/systemd/system/trefoil-nbd@1.service.d/z.conf", "A=5");
        let settings = settings(&fake.host(), &daemons.all[0]).unwrap();
        assert_eq!(settings.all("A").collect::<Vec<_>>(), ["1", "2", "3", "4"]);
        assert_eq!((settings.last("A"), settings.last("B")), (Some("4"), None));
    }
}
