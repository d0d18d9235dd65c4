"""Whatever JSON is sent, the answer is a document the gateway promises: never a fault of the server's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.gateway import documents
from tests.support.http_server import ServedGateway, served_gateway
from tests.unit.gateway.test_parameters import BASE

PROMISES = {
    "/v1/chat/completions": documents.ChatCompletion,
    "/v1/completions": documents.Completion,
    "/v1/responses": documents.StoredDocument,
    "/v1/messages": documents.AnthropicMessage,
    "/v1/messages/count_tokens": documents.CountedTokens,
    "/tokenize": documents.Tokenized,
    "/detokenize": documents.Detokenized,
}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedGateway]:
    with served_gateway(tmp_path_factory.mktemp("gateway")) as served:
        yield served


def bodies(path: str) -> st.SearchStrategy[Any]:
    """Good bodies with a value of any kind put at some place, and some that are nothing like a good one."""
    _, base, rows = BASE[path]
    values = [value for _, change in rows.values() for value in change.values()]
    odd = st.dictionaries(st.sampled_from(list(rows)), JSON | st.sampled_from(values), max_size=3)
    return odd.map(lambda fields: {"model": "test-model", **base, **fields, "stream": False}) | JSON


@pytest.mark.parametrize("path", PROMISES)
def test_any_json_gets_a_promised_answer(gateway: ServedGateway, path: str) -> None:
    error = documents.AnthropicError if path.startswith("/v1/messages") else documents.OpenAIError
    with httpx.Client(base_url=gateway.url, trust_env=False, timeout=30) as client:

        @settings(max_examples=60, deadline=None)
        @given(body=bodies(path))
        def check(body: Any) -> None:
            text = json.dumps(body)
            response = client.post(path, content=text, headers={"content-type": "application/json"})
            promise = PROMISES[path] if response.status_code == 200 else error
            assert response.status_code == 200 or 400 <= response.status_code < 500, (text, response.text)
            promise.model_validate_json(response.content)

        check()


def test_the_same_holds_in_a_stream(gateway: ServedGateway) -> None:
    """A body that is good but for one field either streams to its end or is refused before it begins."""

    async def ask(client: httpx.AsyncClient, name: str, value: Any) -> None:
        fields = {"model": "test-model", "messages": [{"role": "user", "content": "hi"}], "stream": True, name: value}
        response = await client.post("/v1/chat/completions", json=fields)
        good = response.status_code == 200 and response.text.rstrip().endswith("data: [DONE]")
        assert good or 400 <= response.status_code < 500, (fields, response.text)

    async def ask_all() -> None:
        _, _, rows = BASE["/v1/chat/completions"]
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as client:
            for name in rows.keys() - {"stream"}:
                for value in (None, True, 0, -1, 2**40, "x", [], {}, [None], {"type": "x"}):
                    await ask(client, name, value)

    asyncio.run(ask_all())
