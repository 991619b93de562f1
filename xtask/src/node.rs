//! The reference server of MCP's authors, for the tests. It comes from npm.

use crate::apt;
use crate::shell::{Run, target_dir};

const SERVER: &str = "@modelcontextprotocol/server-everything";
const VERSION: &str = "2026.8.31";

/// Installs it below the folder where cargo builds, if it is not there.
pub(crate) fn prepare() -> anyhow::Result<()> {
    if !Run::new("node").args(["--version"]).works() || !Run::new("npm").args(["--version"]).works() {
        apt::install(&["nodejs", "npm"])?;
    }
    let folder = target_dir().join("mcp-servers");
    let wanted = format!("\"version\": \"{VERSION}\"");
    let manifest = folder.join("node_modules").join(SERVER).join("package.json");
    if std::fs::read_to_string(manifest).is_ok_and(|manifest| manifest.contains(&wanted)) {
        return Ok(());
    }
    std::fs::create_dir_all(&folder)?;
    Run::new("npm")
        .args(["install", "--no-audit", "--no-fund", "--silent", "--prefix"])
        .args([&folder])
        .args([format!("{SERVER}@{VERSION}")])
        .run()
}
