//! Process 1 of every sandbox: takes the control socket as descriptor 3, or dials it where its first argument says so, and
//! serves it to its end.

use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use rustix::fs::{Mode, OFlags};
use rustix::io::FdFlags;
use tools::config::Config;
use tools::dial::{Line, Summons};
use tools::{server, sys};

const CONTROL: i32 = 3;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("tools: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    sys::keep_the_heap_small();
    // Commands run as the same user. Undumpable, this process's memory, environment and descriptors are
    // closed to them.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|cause| format!("cannot become undumpable: {cause}"))?;
    sys::ignore_polite_signals();
    let (summons, arguments) = Summons::parse(std::env::args_os().skip(1))?;
    match summons {
        Some(summons) => {
            sys::close_from(CONTROL as u32);
            fill_the_standard_descriptors()?;
            rustix::process::umask(Mode::from_raw_mode(0o022));
            let (line, luggage) = Line::dial(&summons)?;
            let prepared = line.prepare(&summons);
            if prepared.is_ok()
                && summons.restore
                && let Err(complaint) = luggage.unpack()
            {
                line.complain_of_snapshot(&complaint);
                return Err(complaint);
            }
            let prepared = prepared.and_then(|()| {
                let config = Config::parse(arguments, std::env::vars_os())?;
                config.make_folders()?;
                Ok(config)
            });
            match prepared {
                Ok(config) => {
                    server::serve(line.ready()?, config, Some(luggage)).map_err(|cause| cause.to_string())
                }
                Err(complaint) => {
                    line.complain(&complaint);
                    Err(complaint)
                }
            }
        }
        None => {
            let control = sys::inherited(CONTROL).ok_or("no control socket on descriptor 3")?;
            sys::close_from(CONTROL as u32 + 1);
            rustix::io::fcntl_setfd(&control, FdFlags::CLOEXEC).map_err(|cause| cause.to_string())?;
            fill_the_standard_descriptors()?;
            rustix::process::umask(Mode::from_raw_mode(0o022));
            let config = Config::parse(arguments, std::env::vars_os())?;
            server::serve(UnixStream::from(control), config, None).map_err(|cause| cause.to_string())
        }
    }
}

/// Makes sure that 0, 1 and 2 are something, so that no pipe of ours becomes one of them.
fn fill_the_standard_descriptors() -> Result<(), String> {
    loop {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let null = null.map_err(|cause| format!("cannot open /dev/null: {cause}"))?;
        if std::os::fd::AsRawFd::as_raw_fd(&null) >= CONTROL {
            return Ok(());
        }
        std::mem::forget(null);
    }
}
