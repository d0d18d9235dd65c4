"""Responses kept for `previous_response_id` and for looking up, in this process, oldest forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from prfaas.errors import RequestError


class UnknownResponse(RequestError):
    """No such response is kept here: never stored, deleted, forgotten, or stored by another router."""

    code = "response_not_found"
    http_status = 404
    grpc_status = "NOT_FOUND"


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """`messages`: the conversation up to and with this response, as chat templates take it. `tenant` owns it."""

    document: dict[str, Any]
    messages: tuple[dict[str, Any], ...]
    tenant: str


class ResponseStore:
    """Bounded by count and by the characters of the conversations kept."""

    def __init__(self, max_responses: int = 4096, max_chars: int = 64 * 1024**2) -> None:
        self._max_responses = max_responses
        self._max_chars = max_chars
        self._chars = 0
        self._kept: OrderedDict[str, tuple[StoredResponse, int]] = OrderedDict()

    def put(self, response_id: str, response: StoredResponse) -> None:
        """Keep a response; the oldest go when there is no room. One that is larger than all room is not kept."""
        size = sum(len(str(message)) for message in response.messages)
        if size > self._max_chars:
            return
        self._kept[response_id] = (response, size)
        self._chars += size
        while len(self._kept) > self._max_responses or self._chars > self._max_chars:
            self._chars -= self._kept.popitem(last=False)[1][1]

    def get(self, response_id: str, tenant: str) -> StoredResponse:
        """Raises UnknownResponse; another tenant's response is as unknown as none."""
        found = self._kept.get(response_id)
        if found is None or found[0].tenant != tenant:
            raise UnknownResponse(
                f"no response '{response_id[:100]}' is kept by this router; send the whole conversation as input",
                param="previous_response_id",
            )
        return found[0]

    def delete(self, response_id: str, tenant: str) -> None:
        """Raises UnknownResponse."""
        self.get(response_id, tenant)
        self._chars -= self._kept.pop(response_id)[1]
