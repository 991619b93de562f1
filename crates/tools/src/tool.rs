//! One call of a tool that is not `bash`: from a name and an input to an output.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::confine::Roots;
use crate::files::{edit, glob, grep, read, write};
use crate::wire::Output;

/// The file tools, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileTool {
    /// [`read`].
    Read,
    /// [`write`].
    Write,
    /// [`edit`].
    Edit,
    /// [`glob`].
    Glob,
    /// [`grep`].
    Grep,
}

impl FileTool {
    /// The tool of this name.
    pub fn named(name: &str) -> Option<FileTool> {
        Some(match name {
            "read" => FileTool::Read,
            "write" => FileTool::Write,
            "edit" => FileTool::Edit,
            "glob" => FileTool::Glob,
            "grep" => FileTool::Grep,
            _ => return None,
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            FileTool::Read => "read",
            FileTool::Write => "write",
            FileTool::Edit => "edit",
            FileTool::Glob => "glob",
            FileTool::Grep => "grep",
        }
    }

    /// Runs the tool to its end, or to soon after `stop`.
    pub fn run(self, roots: &Roots, input: Value, stop: &Stop) -> Output {
        let result = match self {
            FileTool::Read => parse(input).and_then(|input| read::run(roots, input, stop)),
            FileTool::Write => parse(input).and_then(|input| write::run(roots, input)),
            FileTool::Edit => parse(input).and_then(|input| edit::run(roots, input)),
            FileTool::Glob => parse(input).and_then(|input| glob::run(roots, input, stop)),
            FileTool::Grep => parse(input).and_then(|input| grep::run(roots, input, stop)),
        };
        result.unwrap_or_else(|message| Output::error(format!("{}: {message}", self.name())))
    }
}

/// A tool's input, or what is wrong with it.
pub fn parse<T: DeserializeOwned>(input: Value) -> Result<T, String> {
    serde_json::from_value(input).map_err(|cause| format!("invalid input: {cause}"))
}

/// Set when nobody waits for a call any more. The call looks at it wherever it may take long.
#[derive(Debug, Default)]
pub struct Stop(AtomicBool);

impl Stop {
    /// Asks the call to end.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// An error once the call should end. Nobody reads its text: the call already has its output.
    pub fn check(&self) -> Result<(), String> {
        if self.0.load(Ordering::Relaxed) { Err("stopped".into()) } else { Ok(()) }
    }
}
