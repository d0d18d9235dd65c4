"""Events as bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.gateway.sse import TEXT_HERE, Envelope, data


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(max_size=8))
def test_an_envelope_holds_what_the_whole_document_would(text: str, other: str) -> None:
    def document(content: str) -> dict[str, object]:
        return {"id": "x-1", "choices": [{"index": 0, "text": content, "logprobs": None}], "usage": None, "n": [1.5, True]}

    assert Envelope(document(TEXT_HERE)).data(text) == data(document(text))
