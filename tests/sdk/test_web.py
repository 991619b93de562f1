"""The web tools: a site and a SearXNG server on this machine, which the server is allowed to reach."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anthropic
import pytest

from conftest import custom_tool, toolset
from support.log import check_log, text
from support.process import Posthouse
from support.recorder import Conversation, confirm, interrupt
from support.scripted import Model, ScriptedServer, answer, call, tool_results
from support.wire import check_error

TOOLSET = "agent_toolset_20260401"


class Site:
    """Serves a few pages and the JSON of a SearXNG server, and remembers what it was asked for."""

    def __init__(self) -> None:
        site = self
        self.paths: list[str] = []
        self.asked = threading.Event()
        self._let_go = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.paths.append(self.path)
                if self.path == "/slow":
                    site.asked.set()
                    site._let_go.wait(60)
                    return
                kind, body = site.page(self.path)
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://{self.address}{path}"

    def page(self, path: str) -> tuple[str, bytes]:
        if path.startswith("/search?"):
            hits = [
                {"url": self.url("/found"), "title": "Found", "content": "What was <b>looked for</b>."},
                {"url": "https://elsewhere.example/", "title": "Elsewhere", "content": ""},
            ]
            return "application/json", json.dumps({"query": "q", "results": hits}).encode()
        if path == "/report.pdf":
            return "application/pdf", b"%PDF-1.4 report %%EOF"
        if path == "/photo.png":
            return "image/png", b"\x89PNG"
        page = f"<title>A page</title><h1>Hello</h1><p>This is {path}, see <a href='/linked'>another</a>."
        return "text/html; charset=utf-8", page.encode()

    def stop(self) -> None:
        self._let_go.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def server(scripted: ScriptedServer, site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Posthouse]:
    made = Posthouse(
        tmp_path_factory.mktemp("web"),
        scripted.url,
        POSTHOUSE_ALLOW_PRIVATE_HOSTS=site.address,
        POSTHOUSE_SEARCH_URL=site.url(""),
    ).start()
    yield made
    made.stop()


@pytest.fixture
def converse(server: Posthouse, model: Model) -> Iterator[Any]:
    """A session whose model gives these replies; its log is checked at the end."""
    client = server.client()
    made: list[Conversation] = []

    def begin(*replies: Any, tools: Any = None) -> Conversation:
        model.script(*replies)
        agent = client.beta.agents.create(name="tester", model=model.name, tools=tools or [toolset()]).id
        environment = client.beta.environments.create(name=f"web {model.name} {len(made)}").id
        session = client.beta.sessions.create(agent=agent, environment_id=environment)
        made.append(Conversation(client, session.id))
        return made[-1]

    yield begin
    for conversation in made:
        conversation.check_stream()
        check_log(client, conversation.id)
        conversation.close()


def fetch(url: str) -> Any:
    return call("web_fetch", url=url)


def search(query: str) -> Any:
    return call("web_search", query=query)


def results(events: list[Any]) -> list[Any]:
    return [e for e in events if e.type == "agent.tool_result"]


def config(name: str, **settings: Any) -> Any:
    return {"type": TOOLSET, "configs": [{"name": name, **settings}]}


def test_an_agent_searches_and_reads_what_it_found(converse: Any, model: Model, site: Site) -> None:
    conversation: Conversation = converse(
        answer(search("posts & horses")), answer(fetch(site.url("/found"))), answer(fetch(site.url("/linked"))), answer("done")
    )
    conversation.say("find something about horses")
    events = conversation.until_idle()
    found, page, linked = results(events)
    assert [(b.type, b.source, b.title) for b in found.content] == [
        ("search_result", site.url("/found"), "Found"),
        ("search_result", "https://elsewhere.example/", "Elsewhere"),
    ]
    assert found.content[0].content[0].text == "What was looked for." and not found.is_error
    (document,) = page.content
    assert (document.type, document.title, document.source.type) == ("document", "A page", "text")
    assert document.source.data == f"# Hello\n\nThis is /found, see [another]({site.url('/linked')})."
    assert not linked.is_error, "a link on a page that was fetched may be followed"
    (usage,) = [e for e in events if e.type == "session.usage"]
    used = usage.usage.server_tool_use
    assert (used.web_search_requests, used.web_fetch_requests) == (1, 0)
    assert conversation.session().usage.server_tool_use.web_search_requests == 1
    offered = [tool["name"] for tool in model.bodies()[0]["tools"]]
    assert offered[-2:] == ["web_fetch", "web_search"]
    given = list(tool_results(model.bodies()[-1]).values())
    assert given[0]["content"][0]["type"] == "search_result" and given[1]["content"][0]["type"] == "document"


def test_an_agent_with_the_web_tools_alone_hears_nothing_of_a_sandbox(converse: Any, model: Model, site: Site) -> None:
    off = {"enabled": False}
    on = [{"name": name, "enabled": True} for name in ("web_fetch", "web_search")]
    conversation: Conversation = converse(
        answer(fetch(site.url("/a"))), answer("done"), tools=[{"type": TOOLSET, "default_config": off, "configs": on}]
    )
    conversation.say(f"read {site.url('/a')}")
    (result,) = results(conversation.until_idle())
    assert not result.is_error
    body = model.bodies()[0]
    assert "sandbox" not in str(body.get("system", "")) and len(body["tools"]) == 2


def test_a_page_that_nobody_named_is_not_fetched(converse: Any, site: Site) -> None:
    secret = site.url("/steal?what=everything")
    conversation: Conversation = converse(answer(fetch(secret)), answer("done"))
    conversation.say(f"read {site.url('/steal')}")
    (result,) = results(conversation.until_idle())
    assert result.is_error and text(result).startswith("web_fetch: url_not_in_prior_context: ")
    assert "/steal?what=everything" not in site.paths


def test_lists_of_domains_hold_for_both_tools(converse: Any, site: Site) -> None:
    tools = [
        {
            "type": TOOLSET,
            "configs": [
                {"name": "web_fetch", "allowed_domains": ["example.com"]},
                {"name": "web_search", "blocked_domains": ["elsewhere.example"]},
            ],
        }
    ]
    conversation: Conversation = converse(answer(search("q"), fetch(site.url("/found"))), answer("done"), tools=tools)
    conversation.say(f"read {site.url('/found')}")
    found, refused = results(conversation.until_idle())
    assert [block.title for block in found.content] == ["Found"]
    assert refused.is_error and text(refused).startswith("web_fetch: url_not_allowed: ")


def test_addresses_of_the_operators_network_are_not_fetched(converse: Any) -> None:
    urls = ["http://127.0.0.1/", "http://localhost/", "http://169.254.169.254/latest/", "http://[::1]/", "http://10.0.0.1/"]
    conversation: Conversation = converse(answer(*map(fetch, urls)), answer("done"))
    conversation.say(" ".join(urls))
    for result in results(conversation.until_idle()):
        assert result.is_error and text(result).startswith("web_fetch: url_not_allowed: "), text(result)


def test_pdfs_are_documents_and_images_are_refused(converse: Any, site: Site) -> None:
    urls = [site.url("/report.pdf"), site.url("/photo.png")]
    conversation: Conversation = converse(answer(*map(fetch, urls)), answer("done"))
    conversation.say(" and ".join(urls))
    pdf, photo = results(conversation.until_idle())
    (document,) = pdf.content
    assert (document.type, document.source.media_type, document.title) == ("document", "application/pdf", "report.pdf")
    assert photo.is_error and text(photo).startswith("web_fetch: unsupported_content_type: ")


def test_a_fetch_may_need_a_confirmation(converse: Any, site: Site) -> None:
    ask = config("web_fetch", permission_policy={"type": "always_ask"})
    conversation: Conversation = converse(answer(fetch(site.url("/asked"))), answer("done"), tools=[ask])
    conversation.say(f"read {site.url('/asked')}")
    use = conversation.wait_for("agent.tool_use")
    conversation.until_idle("requires_action")
    assert "/asked" not in site.paths
    conversation.send(confirm(use.id))
    (result,) = results(conversation.until_idle())
    assert not result.is_error and "/asked" in site.paths


def test_an_interrupt_ends_a_fetch(converse: Any, site: Site) -> None:
    conversation: Conversation = converse(answer(fetch(site.url("/slow"))), answer("done"))
    conversation.say(f"read {site.url('/slow')}")
    assert site.asked.wait(20)
    conversation.send(interrupt())
    (result,) = results(conversation.until_idle())
    assert result.is_error and text(result) == "Tool execution was interrupted before completion. Please retry."


def test_settings_are_shown_in_full(client: anthropic.Anthropic, make_agent: Any) -> None:
    references = [{"type": "tool_reference", "name": "lookup"}]
    tools: Any = [
        {
            "type": TOOLSET,
            "configs": [
                {
                    "name": "web_fetch",
                    "blocked_domains": ["Ads.Example.com"],
                    "max_content_tokens": 5000,
                    "url_sources": {"user_input": "all", "client_tool_results": {"type": "except", "tools": references}},
                },
                {
                    "name": "web_search",
                    "allowed_domains": ["example.com/docs"],
                    "user_location": {"type": "approximate", "city": "Berlin", "country": "DE", "timezone": "Europe/Berlin"},
                },
            ],
        },
        custom_tool(),
    ]
    agent = make_agent(tools=tools)
    fetching, searching = agent.tools[0].configs
    assert (fetching.allowed_domains, fetching.blocked_domains) == (None, ["Ads.Example.com"])
    assert fetching.max_content_tokens == 5000
    assert fetching.url_sources.user_input.type == "all" and fetching.url_sources.server_tool_results is None
    assert fetching.url_sources.client_tool_results.tools[0].name == "lookup"
    assert (searching.allowed_domains, searching.user_location.region) == (["example.com/docs"], None)
    assert searching.user_location.timezone == "Europe/Berlin" and searching.enabled
    shown = [tool.to_dict() for tool in agent.tools]
    assert client.beta.agents.update(agent.id, version=1, tools=shown).version == 1, "what is shown can be sent back"


@pytest.mark.parametrize(
    ("tool", "settings", "message"),
    [
        ("web_fetch", {"allowed_domains": []}, "Empty list of domains is ambiguous. Provide at least one domain or null."),
        (
            "web_fetch",
            {"allowed_domains": ["a.example"], "blocked_domains": ["b.example"]},
            "Only one of allowed_domains or blocked_domains may be set.",
        ),
        ("web_fetch", {"allowed_domains": ["http://a.example"]}, "allowed_domains.0: "),
        ("web_search", {"blocked_domains": ["a.example", "localhost"]}, "blocked_domains.1: "),
        ("web_search", {"user_location": {"type": "approximate", "country": "Germany"}}, "user_location.country: "),
        ("web_search", {"user_location": {"type": "approximate", "timezone": "CEST+1"}}, "user_location.timezone: "),
        ("web_fetch", {"max_content_tokens": 0}, "max_content_tokens: "),
        (
            "web_fetch",
            {"url_sources": {"user_input": "none", "client_tool_results": "none", "server_tool_results": "none"}},
            "url_sources: ",
        ),
    ],
)
def test_wrong_settings_are_refused(make_agent: Any, tool: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as refusal:
        make_agent(tools=[config(tool, **settings)])
    check_error(refusal.value.response, 400, names=message)


def test_without_a_search_provider_the_tool_is_not_offered(start: Any, model: Model) -> None:
    conversation: Conversation = start(answer(search("q")), answer("done"), tools=[config("web_search", enabled=True)])
    conversation.say("search")
    (result,) = results(conversation.until_idle())
    assert result.is_error and text(result) == "Permission to use web_search has been denied."
    offered = [tool["name"] for tool in model.bodies()[0]["tools"]]
    assert "web_fetch" in offered and "web_search" not in offered
