//! The sandbox crate from outside: real supervisors, real sandboxes, real attacks.
//!
//! Every test has a data directory and a supervisor of its own. As root, all of it runs a second time as an ordinary
//! user (`ordinary_user`), and the attacks and the provider's tests on containers of a real engine (`docker`). What a machine does not allow is never skipped in silence: the test asserts that the doctor's report
//! says so.

mod attacks;
mod docker;
mod door;
mod git;
mod host;
mod images;
mod layers;
mod ordinary_user;
mod packages;
mod provider;
mod room;
mod snapshots;
mod supervisor;

/// The promise of Cargo.toml, where the crate allows `unsafe`.
#[test]
fn unsafe_code_stays_below_namespaces() {
    fn look(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("namespaces") {
                look(&path, found);
            } else if path.is_file() && std::fs::read_to_string(&path).unwrap().contains("unsafe ") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    // An ordinary user's run may not be able to see the sources; root's run has looked.
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    if std::fs::read_dir(&sources).is_ok() {
        look(&sources, &mut found);
    }
    assert_eq!(found, Vec::<std::path::PathBuf>::new());
}
