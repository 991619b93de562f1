//! All of it once more as an ordinary user, and the attacks once more with the rights to install packages, and beside an exit.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::host::{EXITS, INSTALLS, SUPERVISOR};

/// Nobody's id on a machine that was set up in an ordinary way.
const ORDINARY: u32 = 54_321;

#[test]
fn everything_holds_for_an_ordinary_user_too() {
    if !rustix::process::geteuid().is_root() {
        // This very run is the ordinary user's.
        return;
    }
    // Copies where that user can reach them.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let scratch = folder.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    std::os::unix::fs::chown(&scratch, Some(ORDINARY), Some(ORDINARY)).unwrap();
    let (tests, supervisor) = (folder.path().join("tests"), folder.path().join("supervisor"));
    fs::copy(std::env::current_exe().unwrap(), &tests).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_posthouse-supervisor"), &supervisor).unwrap();

    let mut repetition = Command::new(tests);
    repetition.uid(ORDINARY).gid(ORDINARY).current_dir(&scratch);
    passes(repetition.env(SUPERVISOR, supervisor).env("TMPDIR", &scratch));
}

#[test]
fn every_attack_fails_with_the_rights_to_install_packages_too() {
    if is_a_repetition() {
        return;
    }
    repeat_attacks(&[], &[INSTALLS]);
}

#[test]
fn every_attack_but_on_resources_fails_beside_an_exit_too() {
    if is_a_repetition() {
        return;
    }
    for variables in [&[EXITS][..], &[EXITS, INSTALLS]] {
        repeat_attacks(&["--skip", "attacks::resources", "--skip", "attacks::exit"], variables);
    }
}

fn is_a_repetition() -> bool {
    [INSTALLS, EXITS].iter().any(|name| std::env::var_os(name).is_some())
}

fn repeat_attacks(arguments: &[&str], variables: &[&str]) {
    let mut repetition = Command::new(std::env::current_exe().unwrap());
    repetition.arg("attacks::").args(arguments).envs(variables.iter().map(|name| (name, "1")));
    let printed = passes(&mut repetition);
    assert!(printed.contains("attack_26"), "{printed}");
}

/// What a repetition that passed has printed. Of one that failed, what failed is shown, and not what passed before.
fn passes(repetition: &mut Command) -> String {
    let output = loop {
        match repetition.output() {
            // A copy is busy while a child of another test, born as it was written, has not come to its own program yet.
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            output => break output.unwrap(),
        }
    };
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let failures = printed.split_once("\nfailures:").map_or(&*printed, |(_, failures)| failures);
    assert!(
        output.status.success(),
        "{repetition:?} {failures}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}
