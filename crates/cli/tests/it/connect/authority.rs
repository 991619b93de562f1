//! A small authorization server and the MCP server behind it, over real HTTP. It verifies what a client must send, and what it
//! gives out is recognized by its first word: planted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use url::form_urlencoded;

/// What a server gives out begins with it, and must not be seen anywhere.
pub(crate) const PLANTED: &str = "planted";
/// The secret of the client that is registered from the start.
pub(crate) const KNOWN_SECRET: &str = "planted secret&of=the+operator";
pub(crate) const KNOWN_CLIENT: &str = "known client";

/// How it behaves. The default means well.
#[derive(Clone)]
pub(crate) struct Manner {
    pub(crate) auth_methods: Vec<&'static str>,
    pub(crate) registers: bool,
    pub(crate) gives_refresh_token: bool,
    /// The status of all answers of the token endpoint to codes.
    pub(crate) token_status: u16,
    /// Said to the browser in the place of a code.
    pub(crate) refusal: Option<&'static str>,
    /// In the place of the state that was sent.
    pub(crate) state: Option<&'static str>,
    /// In the place of its own name in the answer to the browser.
    pub(crate) iss: Option<&'static str>,
    /// The challenge of the MCP server, if it has one; else it asks for nothing.
    pub(crate) is_open: bool,
    pub(crate) names_metadata: bool,
    /// Put over the metadata of the resource; `None` for no metadata.
    pub(crate) resource: Option<Value>,
    /// Put over the metadata of the authorization server; `None` for no metadata.
    pub(crate) authorizer: Option<Value>,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            auth_methods: vec!["none"],
            registers: true,
            gives_refresh_token: true,
            token_status: 200,
            refusal: None,
            state: None,
            iss: None,
            is_open: false,
            names_metadata: true,
            resource: Some(json!({})),
            authorizer: Some(json!({})),
        }
    }
}

struct Client {
    auth_method: String,
    secret: String,
    redirect: Option<String>,
}

/// A code that nobody has exchanged.
struct Asked {
    client: String,
    redirect: String,
    challenge: String,
}

#[derive(Default)]
struct Book {
    manner: Manner,
    clients: HashMap<String, Client>,
    codes: HashMap<String, Asked>,
    /// The refresh tokens that have not been used, each with its client.
    refresh_tokens: HashMap<String, String>,
    access_token: String,
    /// How many of everything it has given out.
    given: u32,
    renewals: Vec<HashMap<String, String>>,
}

pub(crate) struct Authority {
    pub(crate) port: u16,
    pub(crate) base: String,
    book: Arc<Mutex<Book>>,
    _task: JoinSet<()>,
}

impl Authority {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let base = format!("http://127.0.0.1:{port}");
        let mut book = Book::default();
        let known = Client { auth_method: String::new(), secret: KNOWN_SECRET.to_owned(), redirect: None };
        book.clients.insert(KNOWN_CLIENT.to_owned(), known);
        let book = Arc::new(Mutex::new(book));
        let router = Router::new().fallback(answer).with_state((base.clone(), Arc::clone(&book)));
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, router).await.expect("serves") });
        Self { port, base, book, _task: task }
    }

    pub(crate) fn mcp(&self) -> String {
        format!("{}/mcp", self.base)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("not poisoned")
    }

    pub(crate) fn behave(&self, manner: Manner) {
        self.book().manner = manner;
    }

    /// From now on the access token is none.
    pub(crate) fn expire(&self) {
        self.book().access_token = String::new();
    }

    /// What was sent to renew a token, the last time.
    pub(crate) fn last_renewal(&self) -> HashMap<String, String> {
        self.book().renewals.last().expect("somebody has renewed").clone()
    }
}

type Shared = (String, Arc<Mutex<Book>>);

async fn answer(
    State((base, book)): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let mut book = book.lock().expect("not poisoned");
    let body = String::from_utf8_lossy(&body).into_owned();
    match (method.as_str(), uri.path()) {
        ("POST", "/mcp") => book.speak(&base, &headers, &body),
        ("GET", "/.well-known/oauth-protected-resource/mcp") => {
            published(book.manner.resource.as_ref(), || {
                json!({
                    "resource": format!("{base}/mcp"), "authorization_servers": [format!("{base}/as")],
                    "scopes_supported": ["tools"],
                })
            })
        }
        ("GET", "/.well-known/oauth-authorization-server/as") => {
            let manner = &book.manner;
            published(manner.authorizer.as_ref(), || {
                let mut metadata = json!({
                    "issuer": format!("{base}/as"), "authorization_endpoint": format!("{base}/authorize?tenant=1"),
                    "token_endpoint": format!("{base}/token"), "response_types_supported": ["code"],
                    "code_challenge_methods_supported": ["S256"], "scopes_supported": ["tools", "offline_access"],
                    "token_endpoint_auth_methods_supported": manner.auth_methods,
                    "authorization_response_iss_parameter_supported": true,
                });
                if manner.registers {
                    metadata["registration_endpoint"] = json!(format!("{base}/register"));
                }
                metadata
            })
        }
        ("POST", "/register") if book.manner.registers => book.register(&body),
        ("GET", "/authorize") => book.authorize(&base, &pairs(uri.query().unwrap_or_default())),
        ("POST", "/token") => book.token(&base, &headers, &pairs(&body)),
        _ => respond(404, &json!({"error": "not_found"})),
    }
}

fn published(over: Option<&Value>, usual: impl FnOnce() -> Value) -> Response<Body> {
    let Some(over) = over else { return respond(404, &json!({})) };
    let mut metadata = usual();
    let over = over.as_object().expect("an object").clone();
    metadata.as_object_mut().expect("an object").extend(over);
    respond(200, &metadata)
}

impl Book {
    fn speak(&self, base: &str, headers: &HeaderMap, body: &str) -> Response<Body> {
        let token =
            headers.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let is_known = !self.access_token.is_empty() && token == Some(&self.access_token);
        if !is_known && !self.manner.is_open {
            let place = format!("{base}/.well-known/oauth-protected-resource/mcp");
            let challenge = match self.manner.names_metadata {
                true => format!("Bearer error=\"invalid_token\", resource_metadata=\"{place}\""),
                false => "Bearer".to_owned(),
            };
            let mut response = respond(401, &json!({}));
            response.headers_mut().insert("www-authenticate", challenge.parse().expect("a header"));
            return response;
        }
        let message: Value = serde_json::from_str(body).expect("JSON");
        let result = match message["method"].as_str() {
            Some("initialize") => json!({
                "protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                "serverInfo": {"name": "test", "version": "1"},
            }),
            Some("tools/list") => json!({"tools": []}),
            _ => return respond(202, &json!({})),
        };
        respond(200, &json!({"jsonrpc": "2.0", "id": message["id"], "result": result}))
    }

    fn planted(&mut self, what: &str) -> String {
        self.given += 1;
        format!("{PLANTED}-{what}-{}", self.given)
    }

    fn register(&mut self, body: &str) -> Response<Body> {
        let asked: Value = serde_json::from_str(body).expect("JSON");
        let auth_method = asked["token_endpoint_auth_method"].as_str().expect("text").to_owned();
        assert!(self.manner.auth_methods.contains(&auth_method.as_str()), "{auth_method}");
        assert_eq!(asked["grant_types"], json!(["authorization_code", "refresh_token"]));
        let secret = if auth_method == "none" { String::new() } else { self.planted("secret") };
        let id = format!("client {}", self.clients.len());
        let mut answer = json!({"client_id": id, "token_endpoint_auth_method": auth_method});
        if auth_method != "none" {
            answer["client_secret"] = json!(secret);
        }
        let redirect = asked["redirect_uris"][0].as_str().map(str::to_owned);
        self.clients.insert(id, Client { auth_method, secret, redirect });
        respond(201, &answer)
    }

    fn authorize(&mut self, base: &str, query: &HashMap<String, String>) -> Response<Body> {
        let client = self.clients.get(&query["client_id"]).expect("a client that is known");
        let redirect = query["redirect_uri"].clone();
        assert!(client.redirect.as_ref().is_none_or(|registered| *registered == redirect), "{redirect}");
        for (name, value) in [
            ("tenant", "1"),
            ("response_type", "code"),
            ("code_challenge_method", "S256"),
            ("scope", "tools offline_access"),
        ] {
            assert_eq!(query[name], value, "{name}");
        }
        assert_eq!(query["resource"], format!("{base}/mcp"));
        let code = self.planted("code");
        let asked = Asked {
            client: query["client_id"].clone(),
            redirect,
            challenge: query["code_challenge"].clone(),
        };
        let mut target = url::Url::parse(&asked.redirect).expect("an address");
        let state = self.manner.state.unwrap_or(&query["state"]).to_owned();
        let iss = self.manner.iss.map_or_else(|| format!("{base}/as"), str::to_owned);
        target.query_pairs_mut().append_pair("state", &state).append_pair("iss", &iss);
        match self.manner.refusal {
            Some(error) => target.query_pairs_mut().append_pair("error", error),
            None => target.query_pairs_mut().append_pair("code", &code),
        };
        self.codes.insert(code, asked);
        let mut response = respond(302, &json!({}));
        response.headers_mut().insert("location", target.as_str().parse().expect("a header"));
        response
    }

    fn token(&mut self, base: &str, headers: &HeaderMap, form: &HashMap<String, String>) -> Response<Body> {
        let refuse =
            |error: &str| respond(400, &json!({"error": error, "error_description": format!("{form:?}")}));
        let Some(client) = self.proven(headers, form) else { return refuse("invalid_client") };
        // As the servers of MCP's own Python library want it.
        if form.get("client_id") != Some(&client) {
            return refuse("invalid_client");
        }
        if form.get("resource") != Some(&format!("{base}/mcp")) {
            return refuse("invalid_target");
        }
        match form["grant_type"].as_str() {
            "authorization_code" => {
                let Some(asked) = self.codes.remove(&form["code"]) else { return refuse("invalid_grant") };
                let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, form["code_verifier"].as_bytes()));
                let is_same = asked.client == client && asked.redirect == form["redirect_uri"];
                if !is_same || asked.challenge != challenge || form["code_verifier"].len() < 43 {
                    return refuse("invalid_grant");
                }
                if self.manner.token_status != 200 {
                    return refuse("invalid_request");
                }
            }
            "refresh_token" => {
                self.renewals.push(form.clone());
                if self.refresh_tokens.remove(&form["refresh_token"]) != Some(client.clone()) {
                    return refuse("invalid_grant");
                }
            }
            _ => return refuse("unsupported_grant_type"),
        }
        self.access_token = self.planted("access");
        let mut answer = json!({
            "access_token": self.access_token, "token_type": "bearer", "expires_in": 3600, "scope": "tools",
        });
        if self.manner.gives_refresh_token {
            let refresh_token = self.planted("refresh");
            answer["refresh_token"] = json!(refresh_token);
            self.refresh_tokens.insert(refresh_token, client);
        }
        respond(200, &answer)
    }

    /// The client that asks, if it has proven to be it, in the one way that is its own.
    fn proven(&self, headers: &HeaderMap, form: &HashMap<String, String>) -> Option<String> {
        let basic = headers.get("authorization").map(|value| {
            let text = value.to_str().expect("text").strip_prefix("Basic ").expect("HTTP Basic").to_owned();
            let pair = String::from_utf8(STANDARD.decode(text).expect("base64")).expect("text");
            let (id, secret) = pair.split_once(':').expect("a pair");
            let decoded = |text: &str| {
                form_urlencoded::parse(text.as_bytes()).next().expect("not empty").0.into_owned()
            };
            (decoded(id), decoded(secret))
        });
        let id = basic.as_ref().map_or_else(|| form.get("client_id"), |(id, _)| Some(id))?;
        let client = self.clients.get(id)?;
        let in_body = form.get("client_secret");
        let is_proven = match (client.auth_method.as_str(), &basic, in_body) {
            ("none", None, None) => true,
            ("client_secret_basic" | "", Some((_, secret)), None) => *secret == client.secret,
            ("client_secret_post" | "", None, Some(secret)) => *secret == client.secret,
            _ => false,
        };
        is_proven.then(|| id.clone())
    }
}

fn pairs(text: &str) -> HashMap<String, String> {
    form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

fn respond(status: u16, body: &Value) -> Response<Body> {
    let response = Response::builder().status(status).header("content-type", "application/json");
    response.body(Body::from(body.to_string())).expect("a response")
}
