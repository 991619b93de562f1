//! What is installed in a base, and how: pure, from the lists of an environment to the commands of a builder.
//!
//! Managers run in the alphabetical order of their names, each once for all of its packages, so that it can agree on versions
//! between them. A package is a name and perhaps a version in the manager's own way of writing (`x=1` for apt, `x==1` for
//! pip, `x:1` for gem, `x@1` for the others), from the manager's registry. Addresses, paths and options are refused: what is
//! listed cannot become another command, nor another argument.

use std::fmt;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

/// A package manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of the managers")]
pub enum Manager {
    Apt,
    Cargo,
    Gem,
    Go,
    Npm,
    Pip,
}

/// In this order.
const MANAGERS: [Manager; 6] =
    [Manager::Apt, Manager::Cargo, Manager::Gem, Manager::Go, Manager::Npm, Manager::Pip];

/// What to install, by manager.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are the names of the package managers")]
pub struct Packages {
    pub apt: Vec<String>,
    pub cargo: Vec<String>,
    pub gem: Vec<String>,
    pub go: Vec<String>,
    pub npm: Vec<String>,
    pub pip: Vec<String>,
}

/// One command of a builder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) manager: Manager,
    /// For a shell.
    pub(crate) command: String,
}

/// A package that no manager is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Odd {
    pub(crate) manager: Manager,
    pub(crate) package: String,
    pub(crate) rule: &'static str,
}

/// Changes when the same list would be installed in another way.
const RECIPE: &str = "1";
const PACKAGE_BYTES_MAX: usize = 256;

impl fmt::Display for Manager {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.program())
    }
}

impl Manager {
    fn program(self) -> &'static str {
        match self {
            Self::Apt => "apt",
            Self::Cargo => "cargo",
            Self::Gem => "gem",
            Self::Go => "go",
            Self::Npm => "npm",
            Self::Pip => "pip",
        }
    }

    /// What a package's name and version are written with, besides letters and digits.
    fn punctuation(self) -> &'static str {
        match self {
            Self::Apt => "+.-:=~_",
            Self::Cargo => "_-@.+^~=*<>,",
            Self::Gem => "_.-:~><=",
            Self::Go => "./_~@+-",
            Self::Npm => "@/._-~^><=*",
            Self::Pip => "._-[],=<>!~*+",
        }
    }

    /// The command that installs these, which have been looked at. Everything goes below `/usr`, where every user of the
    /// sandbox finds it; what is only needed meanwhile goes to `/tmp`, which is not kept.
    fn install(self, packages: &[String]) -> String {
        let list: Vec<String> = packages.iter().map(|package| format!("'{package}'")).collect();
        let list = list.join(" ");
        match self {
            Self::Apt => format!(
                "export DEBIAN_FRONTEND=noninteractive; apt-get update && \
                 apt-get install --yes --no-install-recommends -- {list} && \
                 apt-get clean && rm -rf /var/lib/apt/lists/* && mkdir -p /var/lib/apt/lists/partial"
            ),
            Self::Cargo => format!("CARGO_HOME=/tmp/cargo cargo install --root /usr/local -- {list}"),
            Self::Gem => format!("gem install --no-document --bindir /usr/local/bin {list}"),
            Self::Go => {
                let latest = |package: &String| match package.contains('@') {
                    true => format!("'{package}'"),
                    false => format!("'{package}@latest'"),
                };
                let each: Vec<String> =
                    packages.iter().map(|package| format!("go install {}", latest(package))).collect();
                format!(
                    "export GOBIN=/usr/local/bin GOPATH=/tmp/go GOCACHE=/tmp/go-build GOFLAGS=-modcacherw; {}",
                    each.join(" && ")
                )
            }
            Self::Npm => format!(
                "npm install --global --prefix /usr/local --cache /tmp/npm --no-fund --no-audit -- {list}"
            ),
            Self::Pip => format!(
                "PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore python3 -m pip install \
                 --no-cache-dir --no-input --progress-bar off -- {list}"
            ),
        }
    }
}

impl Packages {
    /// Whether nothing is to be installed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        MANAGERS.iter().all(|manager| self.of(*manager).is_empty())
    }

    /// Those of one manager.
    #[must_use]
    pub fn of(&self, manager: Manager) -> &[String] {
        match manager {
            Manager::Apt => &self.apt,
            Manager::Cargo => &self.cargo,
            Manager::Gem => &self.gem,
            Manager::Go => &self.go,
            Manager::Npm => &self.npm,
            Manager::Pip => &self.pip,
        }
    }

    /// What a builder runs, in order.
    pub(crate) fn steps(&self) -> Result<Vec<Step>, Odd> {
        let mut steps = Vec::new();
        for manager in MANAGERS {
            let packages = self.of(manager);
            if packages.is_empty() {
                continue;
            }
            if let Some((package, rule)) =
                packages.iter().find_map(|package| Some((package, odd(manager, package)?)))
            {
                return Err(Odd { manager, package: package.clone(), rule });
            }
            steps.push(Step { manager, command: manager.install(packages) });
        }
        Ok(steps)
    }

    /// Names what installing these over `root` gives; the same for the same, whatever the order within a manager.
    pub(crate) fn key(&self, root: &str) -> String {
        let mut text = format!("posthouse layer {RECIPE}\nroot {root}\n");
        for manager in MANAGERS {
            let mut packages: Vec<&String> = self.of(manager).iter().collect();
            packages.sort_unstable();
            packages.dedup();
            text.extend(packages.iter().map(|package| format!("{manager} {package}\n")));
        }
        hex(digest(&SHA256, text.as_bytes()).as_ref())
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The rule that a package breaks.
fn odd(manager: Manager, package: &str) -> Option<&'static str> {
    let plain = |char: char| char.is_ascii_alphanumeric() || manager.punctuation().contains(char);
    let first = package.chars().next();
    let begins_well = first.is_some_and(|char| char.is_ascii_alphanumeric() || char == '_')
        || (manager == Manager::Npm && first == Some('@'));
    let scoped = package.starts_with('@');
    match () {
        () if package.is_empty() || package.len() > PACKAGE_BYTES_MAX => {
            Some("a package is 1 to 256 characters")
        }
        () if !begins_well => Some("a package begins with a letter or a digit"),
        () if !package.chars().all(plain) => {
            Some("a package is a name, and perhaps a version, of the registry")
        }
        // `a/b` would be a repository somewhere else.
        () if manager == Manager::Npm && package.matches('/').count() != usize::from(scoped) => {
            Some("a package is a name, and perhaps a version, of the registry")
        }
        // It would be taken for a wish to remove it.
        () if manager == Manager::Apt && package.ends_with('-') => {
            Some("a package to install ends in no `-`")
        }
        () if package.contains("..") => Some("a package holds no `..`"),
        () => None,
    }
}

/// Which of the packages the manager's last words are about, if that can be told.
pub(crate) fn blamed<'a>(packages: &'a [String], lines: &[String]) -> Option<&'a str> {
    if let [only] = packages {
        return Some(only);
    }
    let name = |package: &'a str| {
        let end = package.char_indices().skip(1).find(|(_, char)| "=@:<>!~[".contains(*char));
        end.map_or(package, |(at, _)| &package[..at])
    };
    let of_name = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_');
    let says = |line: &str, package: &'a str| {
        line.match_indices(name(package)).any(|(at, found)| {
            !line[..at].ends_with(of_name) && !line[at + found.len()..].starts_with(of_name)
        })
    };
    let complains = |line: &&String| {
        let line = line.to_ascii_lowercase();
        ["error", "e:", "unable", "not found", "no match", "could not"].iter().any(|word| line.contains(word))
    };
    let mut named = lines.iter().filter(complains);
    named.find_map(|line| packages.iter().find(|package| says(line, package))).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(packages: &[&str]) -> Vec<String> {
        packages.iter().map(|package| (*package).to_owned()).collect()
    }

    #[test]
    fn managers_run_in_alphabetical_order_once_each() {
        let packages = Packages {
            pip: list(&["requests==2.32.0", "six"]),
            apt: list(&["jq=1.6-2.1"]),
            npm: list(&["@scope/name@^1.2"]),
            go: list(&["example.com/tool"]),
            ..Packages::default()
        };
        let steps = packages.steps().unwrap();
        let managers: Vec<Manager> = steps.iter().map(|step| step.manager).collect();
        assert_eq!(managers, [Manager::Apt, Manager::Go, Manager::Npm, Manager::Pip]);
        assert!(steps[0].command.contains(" -- 'jq=1.6-2.1' "), "{}", steps[0].command);
        assert!(steps[1].command.ends_with("go install 'example.com/tool@latest'"), "{}", steps[1].command);
        assert!(steps[3].command.ends_with(" -- 'requests==2.32.0' 'six'"), "{}", steps[3].command);
    }

    #[test]
    fn nothing_listed_becomes_an_option_a_path_or_a_command() {
        let refused = |manager, package: &str| odd(manager, package).is_some();
        for manager in MANAGERS {
            for package in [
                "", "-x", "--help", "a b", "a;b", "a'b", "$(x)", "`x`", "a\nb", "./x", "/x", "../x", "a|b",
                "a&b", "é",
            ] {
                assert!(refused(manager, package), "{manager} {package:?}");
            }
        }
        for (manager, package) in [
            (Manager::Npm, "user/repository"),
            (Manager::Npm, "git+https://x/y"),
            (Manager::Pip, "git+https://x/y"),
            (Manager::Pip, "x@https://x"),
            (Manager::Apt, "dpkg-"),
            (Manager::Apt, "a/stable"),
            (Manager::Cargo, "a/b"),
        ] {
            assert!(refused(manager, package), "{manager} {package}");
        }
        for (manager, package) in [
            (Manager::Apt, "g++"),
            (Manager::Apt, "libc6:amd64=2.36-9+deb12u4"),
            (Manager::Cargo, "ripgrep@14.1.0"),
            (Manager::Gem, "rails:7.1.0"),
            (Manager::Go, "golang.org/x/tools/cmd/stringer@v0.28.0"),
            (Manager::Npm, "@types/node@20"),
            (Manager::Pip, "requests[socks]>=2,<3"),
        ] {
            assert!(!refused(manager, package), "{manager} {package}");
        }
    }

    #[test]
    fn the_key_tells_lists_roots_and_managers_apart_and_no_order() {
        let pip = |packages: &[&str]| Packages { pip: list(packages), ..Packages::default() };
        assert_eq!(pip(&["a", "b"]).key("host"), pip(&["b", "a", "a"]).key("host"));
        assert_ne!(pip(&["a", "b"]).key("host"), pip(&["a"]).key("host"));
        assert_ne!(pip(&["a"]).key("host"), pip(&["a"]).key("image"));
        let npm = Packages { npm: list(&["a"]), ..Packages::default() };
        assert_ne!(pip(&["a"]).key("host"), npm.key("host"));
    }

    #[test]
    fn the_package_that_a_manager_complains_about_is_named() {
        let packages = list(&["jq", "no-such-package=1", "jq-tools"]);
        let lines = list(&["Reading package lists...", "E: Unable to locate package no-such-package"]);
        assert_eq!(blamed(&packages, &lines), Some("no-such-package=1"));
        assert_eq!(blamed(&packages, &list(&["E: something else"])), None);
        assert_eq!(blamed(&packages, &list(&["E: Version for 'jq-tools' was not found"])), Some("jq-tools"));
        assert_eq!(blamed(&list(&["x"]), &[]), Some("x"));
    }
}
