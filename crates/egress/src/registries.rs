//! The public package registries that `allow_package_managers` opens.
//!
//! What the managers named in an environment need to fetch from their default registries, and nothing from which they
//! fetch only when told to. Left out on purpose: hosts to which uploads go (`upload.pypi.org`), code forges, and general
//! stores such as `storage.googleapis.com`, where anybody may keep what a sandbox should not send or get. Some of these
//! registries take uploads under the same name from whoever brings an account; an environment that must not send anything
//! out should not open them.

/// Host names, or `*.` and a domain.
pub const PACKAGE_REGISTRIES: &[&str] = &[
    // apt, Debian.
    "deb.debian.org",
    "security.debian.org",
    // apt, Ubuntu: the archive, its mirrors by country, and the architectures that are kept elsewhere.
    "archive.ubuntu.com",
    "*.archive.ubuntu.com",
    "security.ubuntu.com",
    "ports.ubuntu.com",
    // pip: the index and the files.
    "pypi.org",
    "files.pythonhosted.org",
    // npm; yarn's name of the same; the headers without which packages with native parts do not build.
    "registry.npmjs.org",
    "registry.yarnpkg.com",
    "nodejs.org",
    // cargo: the sparse index and the files.
    "index.crates.io",
    "static.crates.io",
    // gem, and bundler's index.
    "rubygems.org",
    "index.rubygems.org",
    // go: modules and toolchains, and the sums that they are checked against.
    "proxy.golang.org",
    "sum.golang.org",
];
