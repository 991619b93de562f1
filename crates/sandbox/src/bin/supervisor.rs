//! The supervisor as a program of its own. The product has it as a hidden subcommand of its one binary.

fn main() -> std::process::ExitCode {
    sandbox::supervisor::main(std::env::args_os().skip(1))
}
