"""Models: list, in pages both ways, and retrieve. What they are depends on the configured providers."""

from __future__ import annotations

import anthropic
import httpx2
import pytest

MODEL_KEYS = {
    "id", "type", "display_name", "created_at", "lifecycle", "deprecated_at", "retires_at", "line", "max_input_tokens",
    "max_tokens", "capabilities",
}  # fmt: skip


def test_models_are_listed_and_each_is_retrieved(client: anthropic.Anthropic) -> None:
    models = list(client.models.list())
    assert len({m.id for m in models}) == len(models)
    for model in models:
        assert client.models.retrieve(model.id) == model
        assert model.type == "model" and model.display_name


def test_the_list_has_the_older_envelope(http: httpx2.Client) -> None:
    body = http.get("/v1/models").json()
    assert set(body) == {"data", "has_more", "first_id", "last_id"}
    ids = [model["id"] for model in body["data"]]
    assert (body["first_id"], body["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
    for model in body["data"]:
        assert set(model) >= MODEL_KEYS


def test_models_are_paged_forward_and_back(client: anthropic.Anthropic) -> None:
    every = [m.id for m in client.models.list(limit=1000)]
    assert [m.id for m in client.models.list(limit=1)] == every
    if len(every) > 1:
        back = client.models.list(limit=1, before_id=every[-1])
        assert [m.id for m in back.data] == [every[-2]]
        assert [m.id for m in client.models.list(limit=1, after_id=every[0]).data] == [every[1]]


def test_models_are_filtered_by_lifecycle(client: anthropic.Anthropic) -> None:
    every = [m.id for m in client.models.list(limit=1000)]
    assert [m.id for m in client.models.list(lifecycle=["active", "deprecated"], limit=1000)] == every
    assert not {m.id for m in client.models.list(lifecycle=["retired"])} & set(every)


def test_the_beta_spelling_is_the_same_list(client: anthropic.Anthropic) -> None:
    assert [m.id for m in client.beta.models.list()] == [m.id for m in client.models.list()]


def test_models_need_no_beta_header(http: httpx2.Client) -> None:
    assert http.get("/v1/models", headers={"anthropic-beta": ""}).status_code == 200


def test_a_model_of_no_provider_is_not_found(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("no-provider-has-this-model")


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=1001", "limit=x", "lifecycle[]=unborn"])
def test_bad_queries_are_refused(http: httpx2.Client, query: str) -> None:
    assert http.get(f"/v1/models?{query}").status_code == 400
