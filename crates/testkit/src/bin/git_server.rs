//! The git server as a program, for tests in other languages.
//!
//! `git-server FOLDER` writes the authority to trust to `FOLDER/authority.pem`, prints `listening on http://ADDRESS` (it
//! speaks TLS) and does what the lines of its standard input say, each answered by a line:
//!
//! ```text
//! commit REPOSITORY BRANCH PATH TEXT     → the commit's hash
//! allow TOKEN REPOSITORY read|write      → ok
//! revoke TOKEN                           → ok
//! log REPOSITORY BRANCH                  → how many commits the branch has
//! ```
//!
//! It ends with its input.

use std::io::{BufRead as _, Write as _};
use std::process::ExitCode;

use testkit::git::{Right, Server};

fn main() -> ExitCode {
    let Some(folder) = std::env::args().nth(1) else {
        eprintln!("usage: git-server FOLDER");
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Runtime::new().expect("threads for the runtime");
    let server = runtime.block_on(Server::start());
    if let Err(error) = std::fs::write(format!("{folder}/authority.pem"), server.authority()) {
        eprintln!("git-server: {folder} cannot be written: {error}");
        return ExitCode::FAILURE;
    }
    say(&format!("listening on http://{}", server.host()));
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[..] {
            ["commit", repository, branch, path, text] => {
                server.commit(repository, branch, &[(path, text.as_bytes())])
            }
            ["allow", token, repository, right] => {
                server.allow(token, repository, if right == "write" { Right::Write } else { Right::Read });
                "ok".to_owned()
            }
            ["revoke", token] => {
                server.revoke(token);
                "ok".to_owned()
            }
            ["log", repository, branch] => {
                server.git(repository, &["rev-list", "--count", branch]).trim().to_owned()
            }
            _ => "what?".to_owned(),
        };
        say(&answer);
    }
    ExitCode::SUCCESS
}

fn say(line: &str) {
    println!("{line}");
    let _ = std::io::stdout().flush();
}
