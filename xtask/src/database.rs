//! PostgreSQL and pgbouncer, of which the tests start private ones.

use crate::apt;
use crate::shell::Run;

/// Debian's package makes and starts a cluster of its own, unless it is told not to.
const NO_MAIN_CLUSTER: &str = "mkdir -p /etc/postgresql-common/createcluster.d && \
    echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.d/posthouse.conf";

/// Installs what is missing.
pub(crate) fn prepare() -> anyhow::Result<()> {
    if !has("initdb") && !Run::new("sh").args(["-c", "ls /usr/lib/postgresql/*/bin/initdb"]).works() {
        apt::install(&["postgresql-common"])?;
        apt::as_root(&["sh", "-c", NO_MAIN_CLUSTER])?;
        apt::install(&["postgresql"])?;
    }
    if !has("pgbouncer") {
        apt::install(&["pgbouncer"])?;
    }
    Ok(())
}

fn has(program: &str) -> bool {
    Run::new("sh").args(["-c", "PATH=$PATH:/usr/sbin; command -v \"$0\"", program]).works()
}
