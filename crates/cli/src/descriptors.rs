//! How many files and connections this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as it may be raised without privileges, and gives it; `None` if there is none.
///
/// Most systems start programs with 1,024, for the sake of programs that use `select`. Each connection takes one, so
/// a server would refuse the thousandth stream with most of the machine idle.
pub(crate) fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // If the system refuses, the old limit stays: nothing is worse than before.
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(_) => current,
    }
}
