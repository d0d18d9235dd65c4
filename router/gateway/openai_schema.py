"""Request bodies of OpenAI's chat completions and completions, with the extra sampling fields that open servers share.

Shapes and ranges only. What depends on the deployment (limits, vocabulary, context) is checked in `checks.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from router.gateway.body import Body, Finite, Seed, TokenId

Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, lt=2**31)]


class StreamOptions(Body):
    include_usage: bool = Field(default=False, description="Send usage in a last chunk of its own")


class SamplingFields(Body):
    """Fields that chat completions and completions have in common."""

    model: str = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    n: Count | None = None
    stop: str | list[str] | None = None
    seed: Seed | None = Field(default=None, description="Chosen at random when absent")
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[Finite, Field(ge=-100, le=100)]] | None = Field(
        default=None, description="Token id, as a string, to a value added to its logit"
    )
    max_tokens: Count | None = None
    user: str | None = Field(default=None, description="Names the tenant whose prefix cache and fair share are used")
    # Beyond OpenAI, under the names that vLLM and SGLang use.
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = Field(default=None, description="0 or -1: off")
    min_p: Unit | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256)] | None = None
    ignore_eos: bool | None = None
    cache_salt: str | None = Field(default=None, max_length=256, description="Prefixes are shared only under equal salts")
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = Field(default=None, description="Lower runs first")
    prfaas_report: bool | None = Field(default=None, description="Add an object saying how the request was served")


class TextPart(Body):
    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1)]


class SystemMessage(Body):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Body):
    role: Literal["user"]
    content: Content
    name: str | None = None


class FunctionCall(Body):
    name: str
    arguments: str = Field(description="JSON text, as the model wrote it")


class ToolCall(Body):
    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(Body):
    """Also takes the fields that SDKs add when a response's message is sent back, as long as they are empty."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: Annotated[list[object], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class ToolMessage(Body):
    role: Literal["tool"]
    content: Content
    tool_call_id: str


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = Field(default=None, description="Replaces max_tokens; wins if both are given")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, object] | None = Field(default=None, description="Further variables of the chat template")


class CompletionRequest(SamplingFields):
    """POST /v1/completions."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(description="Text or token ids, one or several")
    best_of: Count | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
