"""A router's HTTP surface as the command line uses it: health and one streamed chat request."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from prfaas.clock import Clock, MonotonicClock
from prfaas.errors import InvalidRequest, WorkerUnreachable

CONNECT_S = 3.0
SILENCE_S = 300.0  # the router sends keep-alives far more often than this


@dataclass(frozen=True, slots=True)
class Health:
    """What `/health` says. `workers` counts by "role:state"."""

    ready: bool
    status: str
    reduced: bool = False
    model: str = ""
    workers: Mapping[str, int] = field(default_factory=dict)
    in_flight: int = 0

    def healthy(self, role: str) -> int:
        """Healthy workers of a role."""
        return self.workers.get(f"{role}:healthy", 0)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of the answer, or of the `thinking` before it, `at_s` seconds after the request was sent."""

    text: str
    at_s: float
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class Summary:
    """The end of an answer: token counts, and the router's report on how it was served (empty if it gave none)."""

    usage: Mapping[str, Any]
    report: Mapping[str, Any]
    total_s: float


class RouterApi:
    """A client of one router. Translates every HTTP failure to the error tree."""

    def __init__(self, base_url: str, *, api_key: str | None = None, clock: Clock | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self._clock = clock or MonotonicClock()
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # The user's proxy is for the internet, not for a router in the next rack or on this machine.
        self._http = httpx.Client(
            base_url=self.base_url, headers=headers, timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S), trust_env=False
        )

    def close(self) -> None:
        self._http.close()

    def health(self) -> Health | None:
        """The router's health, or None while nothing answers there."""
        try:
            answer = self._http.get("/health", timeout=CONNECT_S)
            body = answer.json()
        except (httpx.HTTPError, ValueError):
            return None
        if not isinstance(body, dict) or "status" not in body:
            return None
        return Health(
            ready=answer.status_code == httpx.codes.OK,
            status=str(body["status"]),
            reduced=bool(body.get("reduced", False)),
            model=str(body.get("model", "")),
            workers={str(k): int(v) for k, v in body.get("workers", {}).items()},
            in_flight=int(body.get("in_flight", 0)),
        )

    def sites(self) -> tuple[Mapping[str, Any], ...]:
        """Sites with their workers, as `/live/state` lists them; none where the router may not be asked."""
        try:
            answer = self._http.get("/live/state", timeout=CONNECT_S)
            answer.raise_for_status()
            return tuple(answer.json()["sites"])
        except (httpx.HTTPError, ValueError, KeyError):
            return ()

    def model(self) -> str:
        """The name of the served model. Raises WorkerUnreachable when there is no router."""
        try:
            answer = self._http.get("/v1/models")
            answer.raise_for_status()
            return str(answer.json()["data"][0]["id"])
        except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
            raise WorkerUnreachable(f"no prfaas router answers at {self.base_url}: {error}") from error

    def chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Iterator[Piece | Summary]:
        """Stream one chat completion: pieces as they arrive, then a summary.

        Raises WorkerUnreachable when the connection fails, InvalidRequest with the server's message otherwise.
        """
        body: dict[str, Any] = {
            "model": model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body |= {"max_tokens": max_tokens} if max_tokens is not None else {}
        body |= {"temperature": temperature} if temperature is not None else {}
        started_s = self._clock.now_s()
        usage: Mapping[str, Any] = {}
        report: Mapping[str, Any] = {}
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body, headers={"x-prfaas-report": "1"}) as answer:
                if answer.status_code != httpx.codes.OK:
                    raise _refusal(answer.status_code, answer.read())
                for event in _events(answer.iter_lines()):
                    if "error" in event:
                        raise InvalidRequest(str(event["error"].get("message", event["error"])))
                    for choice in event.get("choices", ()):
                        for name, thinking in (("reasoning_content", True), ("content", False)):
                            if text := choice["delta"].get(name):
                                yield Piece(text, self._clock.now_s() - started_s, thinking)
                    usage = event.get("usage") or usage
                    report = event.get("prfaas") or report
        except httpx.HTTPError as error:
            raise WorkerUnreachable(f"the connection to {self.base_url} failed: {error!r}") from error
        yield Summary(usage, report, self._clock.now_s() - started_s)


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data:") and line[5:].strip() != "[DONE]":
            event = json.loads(line[5:])
            if isinstance(event, dict):
                yield event


def _refusal(status: int, body: bytes) -> InvalidRequest:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = body.decode(errors="replace")[:500]
    return InvalidRequest(f"the router answered {status}: {message}", status=status)
