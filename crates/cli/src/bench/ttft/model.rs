//! The scripted models, and asking one with nothing in between.

use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use harness::model::scripted::{Latency, Reply, ReplyBlock};
use harness::model::{Delta, Kind, Message, Prompt, ProviderConfig, Providers, Script};
use serde_json::json;

/// How long the model takes to its first token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::bench) enum ModelLatency {
    /// No time at all: what is left is our own.
    Zero,
    /// Lognormal, in milliseconds.
    Lognormal { median: f64, p95: f64 },
}

impl FromStr for ModelLatency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "zero" {
            return Ok(Self::Zero);
        }
        let parsed =
            text.split_once(',').and_then(|(median, p95)| Some((median.parse().ok()?, p95.parse().ok()?)));
        match parsed {
            Some((median, p95)) if 0.0 < median && median < p95 && p95 < 600_000.0 => {
                Ok(Self::Lognormal { median, p95 })
            }
            _ => {
                Err("say `zero`, or median and 95th percentile in milliseconds, such as `600,1800`"
                    .to_owned())
            }
        }
    }
}

impl std::fmt::Display for ModelLatency {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Zero => formatter.write_str("zero"),
            Self::Lognormal { median, p95 } => {
                write!(formatter, "lognormal, median {median} ms, p95 {p95} ms")
            }
        }
    }
}

/// Time between the tokens of an answer, in milliseconds: about what fast models give.
const TOKEN_MS: f64 = 8.0;

/// What a session's model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bench) enum Plan {
    /// Answers.
    Talk,
    /// Says something, runs one small command, answers.
    SmallTool,
    /// Says something, sets up its task (see `task`), answers.
    TaskTool,
    /// Answers at once.
    TalkAtOnce,
}

impl Plan {
    pub(in crate::bench) const ALL: [Self; 4] =
        [Self::Talk, Self::SmallTool, Self::TaskTool, Self::TalkAtOnce];

    /// The name of its model.
    pub(in crate::bench) fn model(self) -> &'static str {
        match self {
            Self::Talk => "bench-talk",
            Self::SmallTool => "bench-small-tool",
            Self::TaskTool => "bench-task-tool",
            Self::TalkAtOnce => "bench-talk-at-once",
        }
    }

    fn command(self) -> Option<&'static str> {
        match self {
            Self::Talk | Self::TalkAtOnce => None,
            Self::SmallTool => Some("echo hello > hello.txt && cat hello.txt"),
            Self::TaskTool => Some(super::task::SET_UP),
        }
    }

    fn script(self, latency: ModelLatency, seed: u64) -> Script {
        let text = |text: &str| ReplyBlock::Text { text: text.to_owned() };
        let answer = Reply {
            blocks: vec![text("That is done; there is nothing more to say about it.")],
            ..Reply::default()
        };
        let replies = match self.command() {
            None => vec![answer],
            Some(command) => {
                let input = json!({"command": command, "timeout_ms": 600_000});
                let input = input.as_object().expect("an object").clone();
                let call = ReplyBlock::Tool { tool: "bash".to_owned(), input };
                vec![
                    Reply {
                        blocks: vec![text("I will look at it in the sandbox."), call],
                        ..Reply::default()
                    },
                    answer,
                ]
            }
        };
        let is_at_once = self == Self::TalkAtOnce;
        let first_token = match latency {
            ModelLatency::Lognormal { median, p95 } if !is_at_once => {
                Latency::Lognormal { median_ms: median, p95_ms: p95 }
            }
            ModelLatency::Lognormal { .. } | ModelLatency::Zero => Latency::default(),
        };
        let token_ms = if is_at_once { 0.0 } else { TOKEN_MS };
        Script { replies, seed, first_token, token_ms, ..Script::default() }
    }
}

/// The models of all plans. How long each takes for a session depends on the seed and on what the session says, so
/// that the same session waits the same for its model in every case.
pub(in crate::bench) fn models(latency: ModelLatency, seed: u64) -> anyhow::Result<Providers> {
    let providers = Plan::ALL.map(|plan| {
        let mut config = ProviderConfig::new(plan.model(), Kind::Scripted, [plan.model()]);
        config.script = Some(plan.script(latency, seed));
        config
    });
    Ok(Providers::build(providers.into(), |_| None)?)
}

/// Asks the model itself: from the question to the first token.
pub(in crate::bench) async fn ask_bare(
    models: &Providers,
    plan: Plan,
    text: &str,
) -> anyhow::Result<Duration> {
    let mut prompt = Prompt::new(plan.model());
    prompt.messages = vec![Message::user(text)];
    let asked = Instant::now();
    let mut asking = models.ask(&prompt);
    loop {
        match asking.next().await.context("the scripted model says something")? {
            Ok(Delta::Text(_)) => return Ok(asked.elapsed()),
            Ok(Delta::Done(_)) => bail!("the scripted model said nothing"),
            Ok(_) => {}
            Err(failure) => bail!("the scripted model failed: {}", failure.message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_zero_or_two_figures() {
        assert_eq!("zero".parse(), Ok(ModelLatency::Zero));
        assert_eq!("600,1800".parse(), Ok(ModelLatency::Lognormal { median: 600.0, p95: 1800.0 }));
        for wrong in ["", "600", "1800,600", "0,1", "a,b"] {
            assert!(wrong.parse::<ModelLatency>().is_err(), "{wrong}");
        }
    }
}
