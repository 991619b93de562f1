//! Showing a session to a person, event by event, or as JSON lines to a program.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use owo_colors::{OwoColorize as _, Stream, Style};
use protocol::content::Content;
use protocol::event::{Body, Event, Preview, PreviewDelta, PreviewText, RetryStatus, StopReason};
use serde_json::Value;

use crate::out;

/// How many lines of a tool's output are shown.
const OUTPUT_LINES_MAX: usize = 12;

/// Shows one session.
pub(crate) struct Renderer {
    form: Form,
    spinner: ProgressBar,
    /// Whether a text is being streamed, so that the next thing begins on a new line.
    is_in_text: bool,
    /// Whether the message that comes whole has been shown piece by piece already.
    was_streamed: bool,
    /// Why standard output takes nothing more.
    failed: Option<anyhow::Error>,
}

/// For whom it is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A person.
    Text,
    /// A program: one event a line, as on the wire.
    Json,
}

impl Renderer {
    pub(crate) fn new(form: Form) -> Self {
        let spinner = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner:.cyan} {msg:.dim} {elapsed:.dim}");
        spinner.set_style(style.expect("the template is valid"));
        if form == Form::Json || !std::io::stderr().is_terminal() {
            spinner.set_draw_target(ProgressDrawTarget::hidden());
        }
        spinner.enable_steady_tick(Duration::from_millis(100));
        Self { form, spinner, is_in_text: false, was_streamed: false, failed: None }
    }

    /// A remark of the program's own.
    pub(crate) fn note(&mut self, text: &str) {
        match self.form {
            Form::Text => self.line(&styled(text, Style::new().dimmed())),
            Form::Json => {}
        }
    }

    /// Something that the reader should not miss.
    pub(crate) fn announce(&mut self, text: &str) {
        match self.form {
            Form::Text => self.line(&styled(text, Style::new().bold().yellow())),
            Form::Json => {}
        }
    }

    /// A piece of a message that is being made.
    pub(crate) fn preview(&mut self, preview: &Preview) {
        let Preview::EventDelta { event_id: _, delta } = preview else { return };
        if self.form == Form::Json {
            return;
        }
        let PreviewDelta::ContentDelta { index: _, content: PreviewText::Text { text } } = delta;
        self.was_streamed = true;
        let is_in_text = std::mem::replace(&mut self.is_in_text, true);
        self.print(&if is_in_text { text.clone() } else { format!("\n{text}") });
        self.spinner.set_draw_target(ProgressDrawTarget::hidden());
    }

    /// An event of the log.
    pub(crate) fn event(&mut self, event: &Event) {
        match self.form {
            Form::Json => {
                self.print(&format!("{}\n", serde_json::to_string(event).expect("an event is JSON")));
            }
            Form::Text => self.show(&event.body),
        }
    }

    fn show(&mut self, body: &Body) {
        match body {
            Body::AgentMessage { content } => {
                if !std::mem::take(&mut self.was_streamed) {
                    self.line(&format!("\n{}", text_of(content)));
                }
                self.end_text();
            }
            Body::AgentThinking {} => self.wait("thinking"),
            Body::AgentToolUse { name, input, .. } => {
                let call = format!("{} {}", styled(name, Style::new().bold().cyan()), told(name, input));
                self.line(&format!("\n{} {call}", styled("▸", Style::new().cyan())));
                self.wait(&format!("{name} is running"));
            }
            Body::AgentMcpToolUse { mcp_server_name, name, input, .. } => {
                let name = format!("{mcp_server_name}/{name}");
                let call = format!("{} {}", styled(&name, Style::new().bold().cyan()), told(&name, input));
                self.line(&format!("\n{} {call}", styled("▸", Style::new().cyan())));
                self.wait(&format!("{name} is running"));
            }
            Body::AgentCustomToolUse { name, .. } => {
                self.line(&format!("\n{} {name} waits for its client", styled("▸", Style::new().cyan())));
            }
            Body::AgentToolResult { content, is_error, .. }
            | Body::AgentMcpToolResult { content, is_error, .. } => self.output(&text_of(content), *is_error),
            Body::ModelRequestStart {} => self.wait("asking the model"),
            Body::StatusRescheduled {} => self.wait("waiting before the next try"),
            Body::Error { error } => {
                let what = match error.retry_status {
                    RetryStatus::Retrying => "will try again",
                    RetryStatus::Exhausted => "gave up",
                    RetryStatus::Terminal => "the session is over",
                };
                self.line(&styled(&format!("✗ {} ({what})", error.message), Style::new().red()));
            }
            Body::StatusIdle { stop_reason, .. } => match stop_reason {
                StopReason::EndTurn {} => {}
                StopReason::RequiresAction { .. } => self.announce("the session waits for its client"),
                StopReason::RetriesExhausted {} => self.announce("the turn was given up"),
                StopReason::Refusal {} => self.announce("the model refused"),
            },
            _ => {}
        }
    }

    fn output(&mut self, text: &str, is_error: bool) {
        let style = if is_error { Style::new().red() } else { Style::new().dimmed() };
        let lines: Vec<&str> = text.lines().collect();
        for line in lines.iter().take(OUTPUT_LINES_MAX) {
            self.line(&styled(&format!("  │ {}", printable(line)), style));
        }
        if lines.len() > OUTPUT_LINES_MAX {
            self.line(&styled(&format!("  │ … {} more lines", lines.len() - OUTPUT_LINES_MAX), style));
        }
    }

    fn wait(&mut self, what: &str) {
        self.end_text();
        if self.form == Form::Text && std::io::stderr().is_terminal() {
            self.spinner.set_draw_target(ProgressDrawTarget::stderr());
            self.spinner.set_message(what.to_owned());
            self.spinner.reset_elapsed();
        }
    }

    fn line(&mut self, text: &str) {
        self.end_text();
        self.print(&format!("{text}\n"));
    }

    fn print(&mut self, text: &str) {
        if self.failed.is_none() {
            self.failed = self.spinner.suspend(|| out::print(text)).err();
        }
    }

    /// An error once standard output takes nothing more: nobody watches.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    fn end_text(&mut self) {
        if std::mem::take(&mut self.is_in_text) {
            self.print("\n");
        }
    }

    /// Stops the spinner.
    pub(crate) fn finish(&mut self) {
        self.end_text();
        self.spinner.finish_and_clear();
    }
}

/// Text with colours where standard output shows them.
pub(crate) fn styled(text: &str, style: Style) -> String {
    text.if_supports_color(Stream::Stdout, |text| text.style(style)).to_string()
}

/// What a call does, in one line.
fn told(name: &str, input: &serde_json::Map<String, Value>) -> String {
    let field = match name {
        "bash" => "command",
        "glob" | "grep" => "pattern",
        _ => "file_path",
    };
    let text = input.get(field).and_then(Value::as_str).unwrap_or_default();
    let mut lines = text.lines();
    let first = printable(lines.next().unwrap_or_default());
    if lines.next().is_some() { format!("{first} …") } else { first }
}

/// Without control characters: what a tool prints must not move the reader's cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c == '\t' { ' ' } else { c }).filter(|c| !c.is_control()).collect()
}

fn text_of(content: &[Content]) -> String {
    let texts = content.iter().map(|block| match block {
        Content::Text { text } => text.as_str(),
        Content::Image { .. } => "(image)",
        Content::Document { .. } => "(document)",
        Content::SearchResult { title, .. } => title.as_str(),
        Content::Redacted {} => "(redacted)",
    });
    texts.collect::<Vec<_>>().join("\n")
}
