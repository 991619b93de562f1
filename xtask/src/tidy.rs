//! The rules between crates, and what no source file may hold.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::shell::root;

/// Which of our crates each crate may use. What is not listed is forbidden; see ARCHITECTURE.md.
const MAY_USE: &[(&str, &[&str])] = &[
    ("protocol", &[]),
    ("session", &["protocol"]),
    ("store", &["protocol", "session"]),
    ("tools", &[]),
    ("sandbox", &["protocol", "tools"]),
    ("egress", &["protocol"]),
    ("mcp", &["protocol", "egress"]),
    ("blobs", &[]),
    ("vault", &["protocol", "session", "store", "egress"]),
    ("repositories", &["protocol", "session", "store", "vault", "egress", "tools"]),
    ("broker", &["protocol", "session", "store", "vault", "egress", "repositories"]),
    (
        "harness",
        &[
            "protocol",
            "session",
            "store",
            "vault",
            "broker",
            "egress",
            "mcp",
            "repositories",
            "blobs",
            "sandbox",
            "tools",
        ],
    ),
    ("background", &["protocol", "session", "store", "vault", "blobs", "sandbox"]),
    ("api", &["protocol", "session", "store", "vault"]),
    ("client", &["protocol"]),
    ("testkit", &["protocol", "sandbox", "tools"]),
    (
        "cli",
        &[
            "protocol",
            "session",
            "store",
            "vault",
            "egress",
            "broker",
            "mcp",
            "repositories",
            "blobs",
            "sandbox",
            "tools",
            "harness",
            "background",
            "api",
            "client",
        ],
    ),
    ("xtask", &[]),
];

/// Crates that must not be below these of ours, directly or through others.
const MUST_NOT_REACH: &[(&str, &[&str])] = &[
    ("protocol", &["tokio", "rusqlite", "reqwest", "rand"]),
    ("session", &["tokio", "rusqlite", "reqwest", "rand"]),
    ("tools", &["tokio", "rusqlite", "rustls", "axum"]),
    ("egress", &["rusqlite", "axum"]),
    ("mcp", &["rusqlite", "axum"]),
];

/// Checks the arrows between crates.
pub(crate) fn dependencies() -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root())
        .output()
        .context("cargo metadata cannot be started")?;
    ensure!(output.status.success(), "cargo metadata failed");
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists packages")?;
    let ours: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    for package in packages {
        let name = package["name"].as_str().context("a package has a name")?;
        let Some((_, allowed)) = MAY_USE.iter().find(|(known, _)| *known == name) else {
            bail!("crate {name} is not in the list of arrows in xtask/src/tidy.rs");
        };
        let forbidden =
            MUST_NOT_REACH.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, names)| names);
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            // What only tests use may point anywhere.
            if dependency["kind"].as_str() == Some("dev") {
                continue;
            }
            let target = dependency["name"].as_str().unwrap_or_default();
            ensure!(
                !ours.contains(target) || allowed.contains(&target),
                "{name} must not depend on {target}"
            );
            ensure!(!forbidden.contains(&target), "{name} must not depend on {target}");
        }
    }
    Ok(())
}

/// Checks every source file.
pub(crate) fn sources() -> anyhow::Result<()> {
    let mut files = Vec::new();
    find(&root().join("crates"), &mut files)?;
    for path in files {
        let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let shown = path.strip_prefix(root()).unwrap_or(&path).display();
        let is_test =
            path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs");
        ensure!(
            is_test || text.trim_start().starts_with("//!"),
            "{shown} does not open with what it is for (`//!`)"
        );
        let is_store = path.starts_with(root().join("crates/store"));
        let is_vault = path.starts_with(root().join("crates/vault"));
        ensure!(
            is_vault || is_test || !text.contains(".reveal("),
            "{shown} opens a secret, which only crates/vault may do"
        );
        let has_sql =
            ["SELECT ", "INSERT INTO ", "UPDATE ", "DELETE FROM "].iter().any(|word| text.contains(word));
        ensure!(is_store || is_test || !has_sql, "{shown} holds SQL, which belongs in crates/store");
    }
    Ok(())
}

fn find(dir: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                find(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}
