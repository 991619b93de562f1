//! What a root is made of: which writable layer lies over which folders.
//!
//! Three kinds of folder lie at the bottom: the host's, those of an image, and those of a package layer, which is what a
//! builder's sandbox wrote (`u/` its upper folders, `r/` its plain ones). A stack is one overlay of them. Pure but for
//! looking into a layer; it refuses to mount anything.
//!
//! Where it can, the supervisor shows a sandbox the owners of such folders as the sandbox's own (`Owners::Mapped`): what
//! root owns there, root owns in here. That goes for images and layers, and, for a sandbox that may install packages, for
//! the folders of the host that package managers change. Of these, what not everybody on the host may read is left out
//! (`masks`), because root in here would be its owner.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::root::{ETC, Layout};

/// The overlays of one sandbox, in the order in which they are mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) stacks: Vec<Stack>,
    /// Folders that are taken hold of before the host's tree is out of reach: [`Lower::Held`] counts them.
    pub(crate) held: Vec<PathBuf>,
    /// A folder, the last of them, that is the stage instead of one in memory.
    pub(crate) stage: Option<usize>,
    /// Whether root inside may do what package managers need.
    pub(crate) installs: bool,
    /// Whether a package layer lies below: whoever made the packages may have put links where the root is about to be built.
    pub(crate) has_layer: bool,
    pub(crate) kind: Kind,
}

/// What lies at the bottom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The host's tools, and plain folders beside them.
    #[default]
    Host,
    /// One image for everything.
    Image,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stack {
    /// Where it appears, below the root; empty for the root itself.
    pub(crate) target: String,
    /// From the top down.
    pub(crate) lowers: Vec<Lower>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lower {
    /// A path that `mountinfo` may show.
    Named(String),
    Held(usize),
}

/// Where a sandbox starts from, found on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// What it is, an image by its content: a snapshot fits on nothing else.
    pub(crate) base: String,
    /// The root of an image; the host's tools if `None`.
    pub(crate) image: Option<PathBuf>,
    /// The package layer.
    pub(crate) layer: Option<PathBuf>,
}

/// Where the masks lie, below the working folder.
pub(crate) const MASKS: &str = "masks";
/// The folders of the host, besides `/etc`, that a package manager changes.
const USR: &str = "usr";
const LOCAL: &str = "usr/local";
const DPKG: &str = "var/lib/dpkg";
/// Of a layer's plain folders, those that every sandbox makes anew.
const OWN: &[&str] = &["dev", "proc", "sys", "tmp", "run", "workspace"];

impl Stack {
    /// The name of its upper and work folders. A stable part of the form of layers and snapshots.
    pub(crate) fn name(&self) -> String {
        match self.target.as_str() {
            "" => "image".to_owned(),
            target => target.replace('/', "."),
        }
    }
}

impl Plan {
    /// For a sandbox over the host's tools. `masked` says whether there are masks.
    pub(crate) fn over_host(
        layout: &Layout,
        found: &Found,
        installs: bool,
        masked: bool,
    ) -> io::Result<Self> {
        let has_layer = found.layer.is_some();
        let mut plan = Self { installs, has_layer, kind: Kind::Host, ..Self::default() };
        if let Some(layer) = &found.layer {
            plan.add_plain_folders(layer)?;
        }
        for folder in layout.layered() {
            let mut bottom = Vec::new();
            if folder == USR && installs {
                if masked {
                    bottom.push(plan.hold(MASKS.into()));
                }
                bottom.push(plan.hold(Path::new("/").join(USR)));
            } else {
                bottom.push(Lower::Named(format!("/{folder}")));
            }
            plan.add(folder, found, bottom);
        }
        if layout.has_etc_layer() {
            let etc = if installs { plan.hold(ETC.into()) } else { Lower::Named(ETC.to_owned()) };
            plan.add(ETC, found, vec![etc]);
        }
        if installs {
            // What the host's people put there is theirs: seen as anybody sees it.
            if Path::new("/").join(LOCAL).is_dir() {
                plan.add(LOCAL, found, vec![Lower::Named(format!("/{LOCAL}"))]);
            }
            if Path::new("/").join(DPKG).is_dir() {
                let database = plan.hold(Path::new("/").join(DPKG));
                plan.add(DPKG, found, vec![database]);
            }
        }
        Ok(plan)
    }

    /// For a sandbox from an image.
    pub(crate) fn over_image(image: &Path, found: &Found, installs: bool) -> Self {
        let has_layer = found.layer.is_some();
        let mut plan = Self { installs, has_layer, kind: Kind::Image, ..Self::default() };
        let bottom = plan.hold(image.to_owned());
        plan.add("", found, vec![bottom]);
        plan
    }

    /// What this sandbox writes is written to this folder, with the owners that it has inside.
    pub(crate) fn stage_on_disk(&mut self, folder: PathBuf) {
        self.held.push(folder);
        self.stage = Some(self.held.len() - 1);
    }

    /// A layer's folders that are plain in other sandboxes are overlays in this one.
    fn add_plain_folders(&mut self, layer: &Path) -> io::Result<()> {
        let mut names: Vec<String> = Vec::new();
        for entry in fs::read_dir(layer.join("r"))? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string()
                && entry.file_type()?.is_dir()
                && !OWN.contains(&name.as_str())
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        for name in names {
            let lower = self.hold(layer.join("r").join(&name));
            self.stacks.push(Stack { target: name, lowers: vec![lower] });
        }
        Ok(())
    }

    fn add(&mut self, target: &str, found: &Found, bottom: Vec<Lower>) {
        let mut stack = Stack { target: target.to_owned(), lowers: Vec::new() };
        if let Some(layer) = &found.layer {
            let upper = layer.join("u").join(stack.name());
            if upper.is_dir() {
                stack.lowers.push(self.hold(upper));
            }
        }
        stack.lowers.extend(bottom);
        // The host's own root has a folder of this name, which the layer's would hide.
        self.stacks.retain(|other| other.target != stack.target);
        self.stacks.push(stack);
    }

    fn hold(&mut self, folder: PathBuf) -> Lower {
        self.held.push(folder);
        Lower::Held(self.held.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(plan: &Plan) -> Vec<(String, usize)> {
        plan.stacks.iter().map(|stack| (stack.target.clone(), stack.lowers.len())).collect()
    }

    #[test]
    fn a_sandbox_that_installs_nothing_holds_nothing_of_the_host() {
        let layout = Layout::of_host(|_| true);
        let plan = Plan::over_host(&layout, &Found::default(), false, true).unwrap();
        assert_eq!(plan.held, Vec::<PathBuf>::new());
        assert!(plan.stacks.iter().all(|stack| matches!(stack.lowers.as_slice(), [Lower::Named(_)])));
    }

    #[test]
    fn of_the_host_only_what_packages_change_is_shown_as_the_sandboxs_own() {
        let layout = Layout::of_host(|_| true);
        let plan = Plan::over_host(&layout, &Found::default(), true, true).unwrap();
        let allowed = ["/usr", "/var/lib/dpkg", ETC, MASKS].map(PathBuf::from);
        assert!(plan.held.iter().all(|held| allowed.contains(held)), "{:?}", plan.held);
        let usr = plan.stacks.iter().find(|stack| stack.target == "usr").unwrap();
        assert_eq!(plan.held[0], Path::new(MASKS), "the masks lie on top");
        assert_eq!(usr.lowers, [Lower::Held(0), Lower::Held(1)]);
    }

    #[test]
    fn a_layer_lies_above_the_host_and_its_plain_folders_are_overlays() {
        let layer = tempfile::tempdir().unwrap();
        for folder in ["u/usr/bin", "u/etc", "r/var/lib", "r/root", "r/proc", "r/tmp"] {
            fs::create_dir_all(layer.path().join(folder)).unwrap();
        }
        let layout = Layout::of_host(|_| true);
        let found = Found { layer: Some(layer.path().to_owned()), ..Found::default() };
        let plan = Plan::over_host(&layout, &found, false, false).unwrap();
        let targets = targets(&plan);
        assert_eq!(targets[..2], [("root".to_owned(), 1), ("var".to_owned(), 1)]);
        assert!(targets.contains(&("usr".to_owned(), 2)) && targets.contains(&("etc".to_owned(), 2)));
        assert!(!targets.iter().any(|(target, _)| target == "tmp" || target == "proc"));
    }

    #[test]
    fn an_image_is_one_stack() {
        let plan = Plan::over_image(Path::new("/images/x"), &Found::default(), true);
        assert_eq!(targets(&plan), [(String::new(), 1)]);
        assert_eq!(plan.stacks[0].name(), "image");
    }
}
