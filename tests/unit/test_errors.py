"""An error that crossed a wire is the error that was raised."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from prfaas.errors import (
    CapacityError,
    InvalidRequest,
    OperatorError,
    PrfaasError,
    RequestError,
    TransferError,
    WorkerError,
    error_from_json,
)

BRANCHES = (PrfaasError, RequestError, CapacityError, TransferError, WorkerError, OperatorError)


def classes(root: type[PrfaasError] = PrfaasError) -> Iterator[type[PrfaasError]]:
    if root is not RequestError:  # InvalidRequest stands for the whole branch on the wire
        yield root
    for sub in root.__subclasses__():
        yield from classes(sub)


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_every_error_survives_the_wire(kind: type[PrfaasError]) -> None:
    back = error_from_json(kind("what happened", depth=3, param="tokens", ratio=0.5, ok=None).to_json())
    assert type(back) is kind
    assert back.message == "what happened"
    assert back.detail == {"depth": 3, "param": "tokens", "ratio": 0.5, "ok": None}


def test_a_bad_field_keeps_its_name() -> None:
    back = error_from_json(InvalidRequest("bad", param="n").to_json())
    assert isinstance(back, InvalidRequest)
    assert back.param == "n"


def test_codes_are_unique_among_leaves() -> None:
    leaves = [kind for kind in classes() if kind not in BRANCHES]
    codes = [kind.code for kind in leaves]
    assert len(set(codes)) == len(codes)


def test_an_unknown_code_is_still_an_error() -> None:
    back = error_from_json('{"code": "from_the_future", "message": "?"}')
    assert type(back) is PrfaasError


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"code": "draining", "message": 3}'])
def test_what_is_not_an_error_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        error_from_json(text)
