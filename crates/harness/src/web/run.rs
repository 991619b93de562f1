//! One call of a web tool, from its input to the event that is its result.

use protocol::agent::{AgentSpec, BuiltinTool};
use protocol::content::Content;
use protocol::event::Body;
use protocol::id::{EventId, SessionId};
use protocol::position::Position;
use protocol::web::UrlSources;
use reqwest::Url;
use serde_json::{Map, Value};
use store::{Order, Slice, Store};

use super::failure::{Code, Failure};
use super::fetch;
use super::hand::{Web, domains};
use super::seen::{self, Trail};

/// How many events are read at once when an address is looked for. It is mostly near the end of the log.
const LOOK_BACK_EVENTS: usize = 64;

/// Where a call stands: in which session, and how long its log was.
pub(crate) struct Place<'a> {
    pub(crate) store: &'a Store,
    pub(crate) session: &'a SessionId,
    pub(crate) head: Position,
}

/// Runs a call. It may be dropped at any time, and run again: nothing depends on whether it ran before. `Err` is for us;
/// what the model is to know is in the result.
pub(crate) async fn run(
    web: Option<&Web>,
    place: Place<'_>,
    spec: &AgentSpec,
    tool: BuiltinTool,
    call: &EventId,
    input: &Map<String, Value>,
) -> Result<Body, store::Error> {
    let given = match web {
        // It was offered by another process, whose settings are others.
        None => Err(Failure::new(Code::Unavailable, "this server does not reach the web")),
        Some(web) if tool == BuiltinTool::WebSearch => match text(input, "query") {
            Ok(query) => web.search(query, &spec.search_settings()).await,
            Err(failure) => Err(failure),
        },
        Some(web) => fetch(web, place, spec, input).await?,
    };
    Ok(match given {
        Ok(content) => Body::AgentToolResult { tool_use_id: call.clone(), content, is_error: false },
        Err(failure) => {
            let content = vec![Content::text(format!("{}: {failure}", tool.name()))];
            Body::AgentToolResult { tool_use_id: call.clone(), content, is_error: true }
        }
    })
}

async fn fetch(
    web: &Web,
    place: Place<'_>,
    spec: &AgentSpec,
    input: &Map<String, Value>,
) -> Result<Result<Vec<Content>, Failure>, store::Error> {
    let settings = spec.fetch_settings();
    let checked = text(input, "url").and_then(fetch::address).and_then(|url| {
        fetch::check_domain(&url, domains(&settings))?;
        Ok(url)
    });
    let url = match checked {
        Ok(url) => url,
        Err(failure) => return Ok(Err(failure)),
    };
    let sources = settings.url_sources.clone().unwrap_or_default();
    if !was_seen(place, &url, &sources).await? {
        let detail = "only URLs can be fetched that stand in a user's message, in a custom tool's result or in an \
                      earlier web_search or web_fetch result, as far as the agent's settings let them count";
        return Ok(Err(Failure::new(Code::UrlNotInPriorContext, detail)));
    }
    Ok(web.fetch(url, &settings).await)
}

/// Looks for the address in the session's log, from its end to its beginning.
async fn was_seen(place: Place<'_>, url: &Url, sources: &UrlSources) -> Result<bool, store::Error> {
    let mut trail = Trail::new(url, sources);
    let mut until = place.head;
    while until > Position::START {
        let slice = Slice {
            until: Some(until),
            order: Order::Desc,
            limit: LOOK_BACK_EVENTS,
            kinds: Some(seen::KINDS.map(str::to_owned).to_vec()),
            ..Slice::default()
        };
        let entries = place.store.get_events(place.session, slice).await?;
        let Some(oldest) = entries.last().and_then(|entry| entry.position) else { return Ok(false) };
        for entry in &entries {
            match trail.look(&entry.kind, &entry.json) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                // What cannot be read shows nothing.
                Err(error) => {
                    tracing::warn!(%error, "an event could not be read while an address was looked for")
                }
            }
        }
        until = Position(oldest.0 - 1);
    }
    Ok(false)
}

fn text<'a>(input: &'a Map<String, Value>, name: &str) -> Result<&'a str, Failure> {
    match input.get(name) {
        Some(Value::String(text)) => Ok(text),
        None | Some(_) => {
            Err(Failure::new(Code::InvalidToolInput, format!("`{name}` is required and must be a string")))
        }
    }
}
