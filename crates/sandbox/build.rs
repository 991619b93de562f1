//! Builds the `tools` program that every sandbox runs as its process 1, so that a plain `cargo build` gives one
//! binary that carries it.
//!
//! It must run in any root file system, so it is linked statically, which means flags of its own and therefore a
//! second cargo run with a target folder of its own. `POSTHOUSE_TOOLS_BINARY` names a ready-made static program
//! instead, for packagers and for quick checks.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=POSTHOUSE_TOOLS_BINARY");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let built = match env::var_os("POSTHOUSE_TOOLS_BINARY") {
        Some(ready) => {
            println!("cargo::rerun-if-changed={}", Path::new(&ready).display());
            PathBuf::from(ready)
        }
        None => build(&out),
    };
    // Copied to a fixed name, so that the source can include it without knowing the target.
    fs::copy(&built, out.join("tools"))
        .unwrap_or_else(|error| panic!("cannot copy {}: {error}", built.display()));
}

fn build(out: &Path) -> PathBuf {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let workspace =
        here.join("../..").canonicalize().expect("this crate lies two folders below the workspace");
    for watched in ["crates/tools/src", "crates/tools/Cargo.toml", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(watched).display());
    }

    let target = env::var("TARGET").expect("cargo sets TARGET");
    let target_dir = out.join("tools-target");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os().filter(|(name, _)| confuses_a_nested_build(name)) {
        cargo.env_remove(name);
    }
    // The encoded form beats every other source of flags, a user's configuration included. A program at a fixed address has
    // nothing to relocate: a quarter of a megabyte in every sandbox stays shared between all of them.
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\u{1f}-Crelocation-model=static")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "4")
        .args(["build", "--release", "--locked", "--package", "tools", "--bin", "tools", "--target", &target])
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(&workspace);
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "building the tools program failed");
    target_dir.join(&target).join("release/tools")
}

/// Variables of the outer build that would change the inner one: wrappers (clippy's among them), flags, profiles and
/// what cargo tells a build script about this crate. The registry, network and linker settings stay.
fn confuses_a_nested_build(name: &OsString) -> bool {
    let Some(name) = name.to_str() else { return false };
    let exact = [
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_LINKER",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "TARGET",
        "HOST",
        "OPT_LEVEL",
        "DEBUG",
        "PROFILE",
        "OUT_DIR",
        "CARGO_MANIFEST_DIR",
        "CARGO_MANIFEST_PATH",
        "CARGO_PRIMARY_PACKAGE",
        "CLIPPY_ARGS",
        "CLIPPY_CONF_DIR",
    ];
    let prefixes = ["CARGO_PKG_", "CARGO_CFG_", "CARGO_FEATURE_", "CARGO_PROFILE_", "CARGO_BUILD_", "DEP_"];
    exact.contains(&name) || prefixes.iter().any(|prefix| name.starts_with(prefix))
}
