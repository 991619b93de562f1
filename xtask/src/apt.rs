//! Installing Debian packages that the tests need.

use anyhow::bail;

use crate::shell::Run;

/// Installs packages; where there is no apt-get, says what is missing.
pub(crate) fn install(packages: &[&str]) -> anyhow::Result<()> {
    if !Run::new("apt-get").args(["--version"]).works() {
        bail!("the tests need what Debian calls {}; install it and try again", packages.join(" "));
    }
    as_root(&["apt-get", "update", "-qq"])?;
    as_root(&[&["apt-get", "install", "-y", "-qq"], packages].concat())
}

/// Runs a command as root, through sudo where that is somebody else.
pub(crate) fn as_root(words: &[&str]) -> anyhow::Result<()> {
    let sudo: &[&str] =
        if Run::new("sh").args(["-c", "test $(id -u) = 0"]).works() { &[] } else { &["sudo"] };
    let words = [sudo, words].concat();
    Run::new(words[0]).args(&words[1..]).env("DEBIAN_FRONTEND", "noninteractive").run()
}
