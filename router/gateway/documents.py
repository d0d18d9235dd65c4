"""The shapes of what the gateway answers, for its OpenAPI document and for tests that hold answers against them.

Answers are built as plain dicts, because a model per token would cost more than the token. These classes are the promise.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """A field that is not promised is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorFields(Answer):
    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(Answer):
    error: ErrorFields


class AnthropicErrorFields(Answer):
    type: str
    message: str


class AnthropicError(Answer):
    type: Literal["error"]
    error: AnthropicErrorFields
    request_id: str


class Report(Answer):
    """How a request was served. Seconds, bytes, tokens; the stages sum to `ttft_s`."""

    route: str | None
    worker: str | None
    decode_worker: str | None
    reasons: list[str]
    uncached_tokens: int | None
    threshold_tokens: int | None
    predicted_ttft_s: dict[str, float]
    ttft_s: float | None
    stages: dict[str, float]
    kv_bytes: int
    attempts: list[str]
    cached_tokens: int
    total_s: float


class PromptDetails(Answer):
    cached_tokens: int


class CompletionDetails(Answer):
    reasoning_tokens: int


class UsageFields(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TokenEntry(Answer):
    token: str
    logprob: float
    bytes: list[int]


class TokenEntryWithTop(TokenEntry):
    top_logprobs: list[TokenEntry]


class ChatLogprobs(Answer):
    content: list[TokenEntryWithTop]
    refusal: None


class CalledFunction(Answer):
    name: str
    arguments: str


class Call(Answer):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(Answer):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None


class ChatChoice(Answer):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    token_ids: list[int] | None = None


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageFields
    service_tier: str | None = None
    metadata: dict[str, str] | None = None
    prompt_token_ids: list[int] | None = None
    prfaas: Report | None = None


class CompletionLists(Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Answer):
    index: int
    text: str
    logprobs: CompletionLists | None
    finish_reason: Literal["stop", "length"]
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class Completion(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageFields
    prfaas: Report | list[Report] | None = None


class AnthropicUsage(Answer):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    service_tier: Literal["standard"]


class AnthropicMessage(Answer):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: AnthropicUsage
    prfaas: Report | None = None


class CountedTokens(Answer):
    input_tokens: int


class StoredDocument(BaseModel):
    """OpenAI's `response` object: the fields every response has; further ones repeat the request."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "in_progress"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    metadata: dict[str, str]


class DeletedDocument(Answer):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ModelObject(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None


class ModelList(Answer):
    object: Literal["list"]
    data: list[ModelObject]


class AnthropicModel(Answer):
    type: Literal["model"]
    id: str
    display_name: str
    created_at: str


class AnthropicModelList(Answer):
    data: list[AnthropicModel]
    has_more: Literal[False]
    first_id: str
    last_id: str


class Health(Answer):
    status: Literal["ok", "starting", "draining"]
    reduced: bool
    model: str
    workers: dict[str, int]
    in_flight: int


class Tokenized(Answer):
    count: int
    tokens: list[int]
    max_model_len: int | None
    token_strs: list[str] | None = None


class Detokenized(Answer):
    prompt: str


class LiveState(BaseModel):
    """For the live page; may grow with it."""

    model_config = ConfigDict(extra="allow", strict=True)

    now_s: float
    model: str
    state: Literal["ready", "reduced", "starting", "draining"]
    in_flight: int
    threshold_tokens: int
    sites: list[dict[str, Any]]
    links: list[dict[str, Any]]
    traces: list[dict[str, Any]]


# One server-sent event, as parsed.
EVENT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
Responses = dict[int | str, dict[str, Any]]


def answers(
    model: type[BaseModel] | UnionType, *, error: type[BaseModel] | UnionType = OpenAIError, streams: bool = False
) -> Responses:
    """An endpoint's `responses`: its document, its event stream if it has one, and its errors."""
    good: dict[str, Any] = {"model": model, "description": "The answer"}
    if streams:
        good["content"] = {"text/event-stream": {"schema": EVENT_SCHEMA}}
        good["description"] = "The answer, or with `stream: true` its events"
    good["headers"] = _headers(
        {
            "x-request-id": "The caller's own, or ours",
            "x-prfaas-route": "Where the prompt was prefilled and why, and what else had been decided, of a generated answer",
            "x-prfaas-not-applied": "What was accepted and changes nothing",
        }
    )
    later = _headers({"retry-after": "Seconds after which to try again, where that can help", "x-request-id": "As above"})
    wrong = {"model": error, "headers": later, "description": "The request must change, or come back later"}
    return {200: good, "4XX": wrong, "5XX": {**wrong, "description": "The service failed or has no room"}}


def _headers(described: Mapping[str, str]) -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in described.items()}
