//! The scripted model server as a program, for tests in other languages.
//!
//! `scripted-model --listen 127.0.0.1:0` prints `listening on http://127.0.0.1:PORT` and serves until its standard
//! input closes or it is killed, so that it never outlives the test that started it.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use testkit::model::Server;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let address = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => "127.0.0.1:0",
        ["--listen", address] => address,
        _ => {
            eprintln!("usage: scripted-model [--listen ADDRESS:PORT]");
            return ExitCode::from(2);
        }
    };
    let Ok(address) = address.parse() else {
        eprintln!("scripted-model: {address} is not an address with a port");
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Runtime::new().expect("threads for the runtime");
    let server = match runtime.block_on(Server::listen(address)) {
        Ok(server) => server,
        Err(error) => {
            eprintln!("scripted-model: cannot listen on {address}: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("listening on {}", server.url());
    let _ = std::io::stdout().flush();
    // The runtime's threads serve; this one watches for the end of the test.
    let mut input = std::io::stdin().lock();
    let mut ignored = [0; 1024];
    while !matches!(input.read(&mut ignored), Ok(0) | Err(_)) {}
    ExitCode::SUCCESS
}
