//! A model that plays a script: no network, no key, the same every time.
//!
//! For trials without a model, for tests and for benches. Which reply is played follows from the prompt alone (how
//! many answers it holds), so the model remembers nothing and a server that was killed goes on where it was. How
//! long it takes is drawn from a stated distribution, from the script's seed and the prompt: the same session waits
//! the same in every run. Only the failures that a script may ask for come from a count, so that the next try can
//! succeed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream;
use protocol::event::ModelUsage;
use serde::Deserialize;
use serde_json::value::to_raw_value;
use serde_json::{Map, Value, json};

use super::answer::{Answer, Asking, Block, Delta, Stop};
use super::failure::{Failure, FailureKind};
use super::prompt::{Message, Prompt, UserBlock};

/// No scripted pause is longer; a distribution with a heavy tail stays usable.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// What a scripted model says, answer by answer.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// The answers, in order.
    pub replies: Vec<Reply>,
    /// What comes after the last.
    pub on_end: OnEnd,
    /// Varies what the distributions give.
    pub seed: u64,
    /// The time to the first token of each reply that states none itself.
    pub first_token: Latency,
    /// The time between tokens of each reply that states none itself, in milliseconds.
    pub token_ms: f64,
    /// One request in about so many fails, in one of the ways that pass; 0 for none.
    pub fails_one_in: u64,
}

/// What comes after the last reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnEnd {
    /// A line that says that the script is over.
    #[default]
    Say,
    /// The script from its start.
    Repeat,
}

/// One answer.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reply {
    /// What it says.
    pub blocks: Vec<ReplyBlock>,
    /// Why it stops; by default because of a tool, if it asks for one, else because it is done.
    pub stop: Option<ReplyStop>,
    /// What it costs; by default a guess from the lengths.
    pub usage: Option<ReplyUsage>,
    /// The time to its first token.
    pub first_token: Option<Latency>,
    /// The time between its tokens, in milliseconds.
    pub token_ms: Option<f64>,
}

/// What an answer costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplyUsage {
    /// Uncached input.
    pub input_tokens: u64,
    /// Output.
    pub output_tokens: u64,
    /// Input written to the cache.
    pub cache_creation_input_tokens: u64,
    /// Input read from the cache.
    pub cache_read_input_tokens: u64,
}

impl From<ReplyUsage> for ModelUsage {
    fn from(usage: ReplyUsage) -> Self {
        let ReplyUsage { input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens } =
            usage;
        Self { input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens }
    }
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum ReplyBlock {
    /// It thinks.
    Thinking {
        /// As long as this text.
        thinking: String,
    },
    /// It says something.
    Text {
        /// The text.
        text: String,
    },
    /// It asks for a tool.
    Tool {
        /// The tool.
        tool: String,
        /// The input.
        #[serde(default)]
        input: Map<String, Value>,
    },
}

/// Why an answer stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplyStop {
    /// It is done.
    EndTurn,
    /// It waits for a tool.
    ToolUse,
    /// It is too long.
    MaxTokens,
    /// It is paused.
    PauseTurn,
    /// It refuses.
    Refusal,
}

/// How long something takes.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Latency {
    /// Always the same.
    Fixed {
        /// Milliseconds.
        ms: f64,
    },
    /// Lognormal, as the latency of real models is.
    Lognormal {
        /// Half are faster.
        median_ms: f64,
        /// One in twenty is slower.
        p95_ms: f64,
    },
}

impl Default for Latency {
    fn default() -> Self {
        Self::Fixed { ms: 0.0 }
    }
}

impl Latency {
    /// The time for a pair of even random numbers.
    fn draw(self, bits: [u64; 2]) -> Duration {
        let milliseconds = match self {
            Self::Fixed { ms } => ms,
            Self::Lognormal { median_ms, p95_ms } => {
                const Z_95: f64 = 1.644_853_626_951_472_7;
                let sigma = (p95_ms / median_ms).ln() / Z_95;
                median_ms * (sigma * normal(bits)).exp()
            }
        };
        pause(milliseconds)
    }
}

/// A script, and how often it was asked.
pub(super) struct Stage {
    script: Script,
    asked: AtomicU64,
}

impl Stage {
    pub(super) fn new(script: Script) -> Self {
        Self { script, asked: AtomicU64::new(0) }
    }

    /// The answer to a prompt. `model` is the name it goes by.
    pub(super) fn ask(&self, model: &str, prompt: &Prompt) -> Asking {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        self.script.ask(model, prompt, self.script.failure(asked))
    }
}

impl Script {
    /// How the request with this number fails, if it does, and by how much of it in 256 parts it has come by then.
    fn failure(&self, asked: u64) -> Option<(Failure, usize)> {
        let bits = mix(mix(self.seed).wrapping_add(asked));
        if self.fails_one_in == 0 || !bits.is_multiple_of(self.fails_one_in) {
            return None;
        }
        let kinds = [
            FailureKind::Overloaded,
            FailureKind::RateLimited,
            FailureKind::Connection,
            FailureKind::Server,
            FailureKind::Stream,
        ];
        let [kind, come, wait] = [16, 32, 48].map(|shift| usize::from((bits >> shift) as u16));
        let mut failure = Failure::new(kinds[kind % kinds.len()], "as the script has it");
        if failure.kind == FailureKind::RateLimited {
            failure.retry_after = Some(Duration::from_millis(wait as u64 % 8_000));
        }
        let come = if failure.kind == FailureKind::Stream { come % 256 } else { 0 };
        Some((failure, come))
    }

    fn ask(&self, model: &str, prompt: &Prompt, failure: Option<(Failure, usize)>) -> Asking {
        let turn = prompt.answers();
        let over = Reply {
            blocks: vec![ReplyBlock::Text { text: "The scripted model has nothing more to say.".to_owned() }],
            ..Reply::default()
        };
        let reply = match (self.replies.get(turn), self.on_end) {
            (Some(reply), _) => reply,
            (None, OnEnd::Repeat) if !self.replies.is_empty() => &self.replies[turn % self.replies.len()],
            (None, OnEnd::Repeat | OnEnd::Say) => &over,
        };
        let first_token = reply.first_token.unwrap_or(self.first_token).draw(self.bits(prompt));
        let between_tokens = pause(reply.token_ms.unwrap_or(self.token_ms));
        let deltas = deltas(reply, model, turn, prompt);
        let come = failure.as_ref().map_or(deltas.len(), |(_, come)| deltas.len() * come / 256);
        let failure = failure.map(|(failure, _)| Err(failure));
        let played = deltas.into_iter().take(come).map(Ok).chain(failure);
        let timed = played.enumerate().map(move |(index, played)| {
            let wait = match &played {
                _ if index == 0 => first_token,
                Err(_) => between_tokens,
                Ok(Delta::Text(_) | Delta::ToolUseStart { .. }) => between_tokens,
                Ok(
                    Delta::ThinkingStart
                    | Delta::ThinkingEnd
                    | Delta::TextStart { .. }
                    | Delta::TextEnd
                    | Delta::ToolUseEnd
                    | Delta::Done(_),
                ) => Duration::ZERO,
            };
            (wait, played)
        });
        Asking::new(stream::unfold(timed, |mut timed| async move {
            let (wait, played) = timed.next()?;
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            Some((played, timed))
        }))
    }

    /// Random numbers that depend on the seed and on what was said so far, and on nothing else.
    fn bits(&self, prompt: &Prompt) -> [u64; 2] {
        const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
        const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
        let mut hash = FNV_OFFSET ^ mix(self.seed);
        let mut add = |text: &str| {
            for byte in text.bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
            }
        };
        for message in &prompt.messages {
            match message {
                Message::User(blocks) => {
                    for block in blocks {
                        // What tools gave may differ from run to run, a time or a path in it, say.
                        if let UserBlock::Content(protocol::content::Content::Text { text }) = block {
                            add(text);
                        }
                    }
                }
                Message::Assistant(_) => add("\u{0}"),
                Message::System(text) => add(text),
            }
        }
        [mix(hash), mix(hash.wrapping_add(1))]
    }
}

fn deltas(reply: &Reply, model: &str, turn: usize, prompt: &Prompt) -> Vec<Delta> {
    let mut deltas = Vec::new();
    let mut blocks = Vec::new();
    let mut raw = Vec::new();
    let mut said = 0;
    for (index, block) in reply.blocks.iter().enumerate() {
        match block {
            ReplyBlock::Thinking { thinking } => {
                said += thinking.len();
                deltas.extend([Delta::ThinkingStart, Delta::ThinkingEnd]);
                // Not kept in `raw`: a real provider would not accept its signature if the session moved there.
                blocks.push(Block::Thinking);
            }
            ReplyBlock::Text { text } => {
                said += text.len();
                deltas.push(Delta::TextStart { index });
                deltas.extend(
                    text.split_inclusive(char::is_whitespace).map(|word| Delta::Text(word.to_owned())),
                );
                deltas.push(Delta::TextEnd);
                raw.push(json!({"type": "text", "text": text}));
                blocks.push(Block::Text(text.clone()));
            }
            ReplyBlock::Tool { tool, input } => {
                let provider_id = format!("toolu_scripted_{turn}_{index}");
                deltas.extend([Delta::ToolUseStart { index, name: tool.clone() }, Delta::ToolUseEnd]);
                raw.push(json!({"type": "tool_use", "id": provider_id, "name": tool, "input": input}));
                let (name, input) = (tool.clone(), input.clone());
                blocks.push(Block::ToolUse { provider_id, name, input, input_error: None });
            }
        }
    }
    let asks_for_tool = blocks.iter().any(|block| matches!(block, Block::ToolUse { .. }));
    let stop = match reply.stop {
        Some(ReplyStop::EndTurn) => Stop::EndTurn,
        Some(ReplyStop::ToolUse) => Stop::ToolUse,
        Some(ReplyStop::MaxTokens) => Stop::MaxTokens,
        Some(ReplyStop::PauseTurn) => Stop::PauseTurn,
        Some(ReplyStop::Refusal) => Stop::Refusal { category: None, explanation: None },
        None if asks_for_tool => Stop::ToolUse,
        None => Stop::EndTurn,
    };
    let raw = raw.iter().map(|block| to_raw_value(block).expect("JSON values always serialise")).collect();
    let usage = reply.usage.map_or_else(|| guessed_usage(prompt, said), ModelUsage::from);
    deltas.push(Delta::Done(Answer { blocks, raw, stop, usage, model: model.to_owned() }));
    deltas
}

/// About four bytes to a token.
fn guessed_usage(prompt: &Prompt, said_bytes: usize) -> ModelUsage {
    let message_bytes = |message: &Message| match message {
        Message::User(blocks) => blocks
            .iter()
            .map(|block| match block {
                UserBlock::Content(content) => serde_json::to_string(content).map_or(0, |text| text.len()),
                UserBlock::ToolResult(result) => {
                    serde_json::to_string(&result.content).map_or(0, |text| text.len())
                }
            })
            .sum(),
        Message::Assistant(blocks) => blocks.iter().map(|block| block.get().len()).sum(),
        Message::System(text) => text.len(),
    };
    let heard_bytes: usize = prompt.messages.iter().map(message_bytes).sum();
    let tokens = |bytes: usize| u64::try_from(bytes / 4 + 1).unwrap_or(u64::MAX);
    ModelUsage {
        input_tokens: tokens(heard_bytes),
        output_tokens: tokens(said_bytes),
        ..ModelUsage::default()
    }
}

fn pause(milliseconds: f64) -> Duration {
    // Also what is negative or no number: no pause.
    Duration::try_from_secs_f64(milliseconds / 1000.0).unwrap_or_default().min(PAUSE_MAX)
}

/// A normal variate by the method of Box and Muller.
fn normal([first, second]: [u64; 2]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "53 bits are what a float holds")]
    let even = |bits: u64| ((bits >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    (-2.0 * even(first).ln()).sqrt() * (std::f64::consts::TAU * even(second)).cos()
}

/// The finaliser of splitmix64: every bit of the input moves every bit of the output.
fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drawn_latencies_have_the_stated_median_and_95th_percentile() {
        let latency = Latency::Lognormal { median_ms: 800.0, p95_ms: 2400.0 };
        let mut drawn: Vec<f64> = (0..20_000_u64)
            .map(|session| {
                let mut prompt = Prompt::new("m");
                prompt.messages = vec![Message::user(format!("session {session}"))];
                latency.draw(Script::default().bits(&prompt)).as_secs_f64() * 1000.0
            })
            .collect();
        drawn.sort_by(f64::total_cmp);
        let (median, p95) = (drawn[10_000], drawn[19_000]);
        assert!((median - 800.0).abs() < 25.0, "median {median}");
        assert!((p95 - 2400.0).abs() < 120.0, "p95 {p95}");
    }

    #[test]
    fn about_so_many_requests_fail_as_the_script_says() {
        let script = Script { fails_one_in: 5, ..Script::default() };
        let failed = (0..10_000).filter(|asked| script.failure(*asked).is_some()).count();
        assert!((1_800..2_200).contains(&failed), "{failed} of 10,000");
        assert!((0..10_000).all(|asked| Script::default().failure(asked).is_none()));
    }

    #[test]
    fn the_same_seed_and_prompt_draw_the_same_latency_and_another_seed_another() {
        let mut prompt = Prompt::new("m");
        prompt.messages = vec![Message::user("hello")];
        let bits = |seed| Script { seed, ..Script::default() }.bits(&prompt);
        assert_eq!(bits(7), bits(7));
        assert_ne!(bits(7), bits(8));
    }
}
