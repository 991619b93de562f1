//! The model: asks for calls that can be counted, and reads back what they left.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use testkit::model::{Reply, Server};

/// How a client begins what it says to have the file read back.
pub(super) const READ_BACK: &str = "Read it all back";
/// The command that does.
pub(super) const READ_BACK_COMMAND: &str = "cat /workspace/calls 2>/dev/null; true";
/// The name that agents ask for.
pub(super) const MODEL: &str = "chaos";

/// Starts it, and writes the configuration that leads servers to it.
pub(super) async fn start(data_dir: &Path, seed: u64) -> Server {
    let server = Server::start().await;
    let count = AtomicU64::new(0);
    server.improvise(move |body| {
        let count = count.fetch_add(1, Ordering::Relaxed);
        let random = SmallRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(count));
        answer(&body["messages"], count, random)
    });
    let key_file = data_dir.join("model.key");
    std::fs::write(&key_file, "a key of no account").expect("writes");
    let config = format!(
        "[[provider]]\nname = \"chaos\"\nkind = \"anthropic\"\nbase_url = \"{}\"\napi_key_file = {key_file:?}\n\
         models = [\"{MODEL}\"]\n",
        server.url()
    );
    std::fs::write(data_dir.join("posthouse.toml"), config).expect("writes");
    server
}

/// The answer to these messages. Every answer asks for calls of its own: one that was lost and asked for again does not
/// ask for the same.
fn answer(messages: &Value, count: u64, mut random: SmallRng) -> Reply {
    let messages = messages.as_array().map(Vec::as_slice).unwrap_or_default();
    let said = messages.iter().rev().filter(|message| message["role"] == "user").flat_map(blocks);
    let said: Vec<&Value> = said.collect();
    let is_asked_anew = messages.last().into_iter().flat_map(blocks).any(|block| block["type"] == "text");
    let last = said.iter().find_map(|block| block["text"].as_str());
    let reads_back = last.is_some_and(|text| text.starts_with(READ_BACK));
    let reply = Reply::default().pace(random.random_range(5..60), random.random_range(0..8));
    match (is_asked_anew, reads_back) {
        (true, true) => reply.and_tool("bash", json!({"command": READ_BACK_COMMAND})),
        (false, true) => reply.and_text("That is all there is."),
        (false, false) if random.random_bool(0.5) => {
            reply.and_text("All of it is done, as far as I can tell from what came back.")
        }
        (_, false) => {
            let mut reply = reply.and_text("I will do that now, and then look.");
            for part in 0..if random.random_bool(0.2) { 2 } else { 1 } {
                reply = reply
                    .and_tool("bash", json!({"command": command(&format!("c{count}x{part}"), &mut random)}));
            }
            reply
        }
    }
}

/// The blocks of a message, latest first.
fn blocks(message: &Value) -> impl Iterator<Item = &Value> {
    message["content"].as_array().into_iter().flatten().rev()
}

/// Does something once, takes its time before or after, and says how often it has been done.
fn command(mark: &str, random: &mut SmallRng) -> String {
    let pause = if random.random_bool(0.1) { 1.5 } else { random.random_range(0.0..0.2) };
    let act = format!("echo {mark} >> /workspace/calls");
    let (first, second) = match random.random_bool(0.5) {
        true => (act, format!("sleep {pause:.2}")),
        false => (format!("sleep {pause:.2}"), act),
    };
    format!("{first}; {second}; grep -cx {mark} /workspace/calls")
}
