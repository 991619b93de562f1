//! `posthouse images`: root file systems for sandboxes, and what was installed over them.
//!
//! Works on the data directory, whether or not a server runs on it. Nothing is fetched: an image comes from this machine,
//! or from a file that another tool has fetched.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use sandbox::images::{ImageCard, Images, Kept, Kind, Way};
use sandbox::{Provider as _, Supervised};
use serde_json::json;

use crate::out;
use crate::settings::{PlaceOptions, Settings};

/// Make, list and remove images for sandboxes.
#[derive(Args, Debug)]
pub(crate) struct ImagesOptions {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make an image on this machine: a small Debian by `mmdebstrap` or `debootstrap` where one of them is installed, a copy
    /// of this machine's own tools otherwise.
    Build {
        /// The image's name.
        name: String,
        /// By which of these, instead of the first that is installed.
        #[arg(long, value_enum)]
        by: Option<By>,
        /// Debian's release.
        #[arg(long, default_value = "stable")]
        suite: String,
        /// Debian packages to put in, with commas between them.
        #[arg(long, value_delimiter = ',')]
        packages: Vec<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Make an image from a folder, or from an archive: of a root file system, or of an image as `docker save` and other tools
    /// write it; plain, or compressed by gzip or zstd.
    Import {
        /// The image's name.
        name: String,
        /// The folder or the archive.
        source: PathBuf,
        #[command(flatten)]
        common: Common,
    },
    /// List images, and the packages that were installed for environments.
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Remove what has not been used for a while: installed packages, which are installed again when they are needed, and
    /// images that are named; and what was left half installed. Best when no sandbox runs.
    Prune {
        /// How long it must not have been used, in days.
        #[arg(long, default_value_t = 30.0, value_name = "DAYS")]
        unused: f64,
        /// Remove what was longest unused, however short that is, until no more than this is left of packages.
        #[arg(long, value_name = "BYTES")]
        keep_bytes: Option<u64>,
        /// Also this image, whatever its age. May be given more than once.
        #[arg(long = "image", value_name = "NAME")]
        images: Vec<String>,
        /// Also every image that has not been used for so long, but for the one that the configuration names.
        #[arg(long)]
        all_images: bool,
        /// Only say what would be removed.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        common: Common,
    },
}

/// [`Way`] as it is written.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum By {
    Mmdebstrap,
    Debootstrap,
    /// A copy of this machine's own tools.
    Copy,
}

impl From<By> for Way {
    fn from(by: By) -> Self {
        match by {
            By::Mmdebstrap => Self::Mmdebstrap,
            By::Debootstrap => Self::Debootstrap,
            By::Copy => Self::Copy,
        }
    }
}

#[derive(Args, Debug)]
struct Common {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: PlaceOptions,
}

pub(crate) async fn images(options: ImagesOptions) -> anyhow::Result<()> {
    if let Command::Prune { dry_run: false, common, .. } = &options.command {
        let settings = common.place.clone().settle()?;
        let tidied = Supervised::new(sandbox::Settings::new(settings.data_dir)).tidy().await;
        tidied.context("what is left of installs cannot be removed")?;
    }
    tokio::task::spawn_blocking(|| run(options)).await?
}

fn run(ImagesOptions { command }: ImagesOptions) -> anyhow::Result<()> {
    match command {
        Command::Build { name, by, suite, packages, common } => {
            let made = shelf(&common)?.1.build(&name, by.map(Way::from), &suite, &packages);
            made_image(&name, &made.with_context(|| format!("the image {name} was not made"))?, common.json)
        }
        Command::Import { name, source, common } => {
            let made = shelf(&common)?.1.import(&name, &source);
            made_image(&name, &made.with_context(|| format!("the image {name} was not made"))?, common.json)
        }
        Command::List { common } => {
            let kept = shelf(&common)?.1.list()?;
            show(&kept, common.json)
        }
        Command::Prune { unused, keep_bytes, images, all_images, dry_run, common } => {
            let unused = Duration::try_from_secs_f64(unused * 86_400.0)
                .context("--unused must be a number of days")?;
            let (settings, shelf) = shelf(&common)?;
            let kept = shelf.list()?;
            for name in &images {
                let is_there = kept.iter().any(|kept| kept.kind == Kind::Image && kept.name == *name);
                ensure!(is_there, "there is no image {name}; `posthouse images list` shows those that are");
            }
            let removed = chosen(kept, unused, keep_bytes, |image: &Kept| {
                let is_default = settings.image.as_ref() == Some(&image.name);
                images.contains(&image.name) || (all_images && !is_default && image.unused >= unused)
            });
            if !dry_run {
                shelf.sweep()?;
                for kept in &removed {
                    shelf.remove(kept).with_context(|| format!("{} cannot be removed", kept.name))?;
                }
            }
            show(&removed, common.json)?;
            if !common.json {
                let bytes: u64 = removed.iter().map(|kept| kept.size_bytes).sum();
                let done = if dry_run { "would be removed" } else { "removed" };
                out::remark(&format!("{} {done}, {} MiB", removed.len(), bytes >> 20));
            }
            Ok(())
        }
    }
}

fn shelf(common: &Common) -> anyhow::Result<(Settings, Images)> {
    let settings = common.place.clone().settle()?;
    let images = Images::new(&settings.data_dir);
    Ok((settings, images))
}

/// What goes: layers that are old, or the oldest ones over the allowance, and the images that `image` says.
fn chosen(
    kept: Vec<Kept>,
    unused: Duration,
    keep_bytes: Option<u64>,
    image: impl Fn(&Kept) -> bool,
) -> Vec<Kept> {
    let (images, mut layers): (Vec<Kept>, Vec<Kept>) =
        kept.into_iter().partition(|kept| kept.kind == Kind::Image);
    // Those used last first: they are the ones to keep.
    layers.sort_by_key(|layer| layer.unused);
    let mut total = 0_u64;
    let goes = |layer: &Kept| {
        total = total.saturating_add(layer.size_bytes);
        layer.unused >= unused || keep_bytes.is_some_and(|bytes| total > bytes)
    };
    let layers: Vec<Kept> = layers.into_iter().filter(goes).collect();
    images.into_iter().filter(|kept| image(kept)).chain(layers).collect()
}

fn made_image(name: &str, card: &ImageCard, as_json: bool) -> anyhow::Result<()> {
    let ImageCard { digest, source, size_bytes } = card;
    if as_json {
        let made = json!({"name": name, "digest": digest, "source": source, "size_bytes": size_bytes});
        return out::line(&made.to_string());
    }
    out::line(&format!("{name}  {digest}  {} MiB from {source}", size_bytes >> 20))
}

fn show(kept: &[Kept], as_json: bool) -> anyhow::Result<()> {
    let word = |kind| match kind {
        Kind::Image => "image",
        Kind::Layer => "packages",
    };
    if as_json {
        for Kept { name, kind, about, size_bytes, unused, .. } in kept {
            let line = json!({
                "name": name,
                "kind": word(*kind),
                "about": about,
                "size_bytes": size_bytes,
                "unused_seconds": unused.as_secs(),
            });
            out::line(&line.to_string())?;
        }
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["name", "kind", "MiB", "unused for", "about"]);
    for Kept { name, kind, about, size_bytes, unused, .. } in kept {
        let name: String = if *kind == Kind::Layer { name.chars().take(12).collect() } else { name.clone() };
        let days = format!("{:.1} days", unused.as_secs_f64() / 86_400.0);
        table.add_row([name, word(*kind).to_owned(), (size_bytes >> 20).to_string(), days, about.clone()]);
    }
    out::line(&table.to_string())
}
