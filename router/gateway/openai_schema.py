"""Request bodies of OpenAI's chat completions and completions, with the extra sampling fields that open servers share.

Shapes and ranges only. What depends on the deployment (limits, vocabulary, context) is checked in `checks.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from router.gateway.body import Body, Empty, Finite, Off, Seed, TokenId

Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, lt=2**31)]


class StreamOptions(Body):
    include_usage: bool = Field(default=False, description="Send usage in a last chunk of its own")
    continuous_usage_stats: bool = Field(default=False, description="Say in every chunk what has been used so far")
    include_obfuscation: Off | None = Field(default=None, description="Chunks are never padded")


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
    return_token_ids: bool | None = Field(default=None, description="Add prompt_token_ids, and token_ids to every choice")
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
    annotations: Empty | None = None
    audio: None = None
    function_call: None = None


class ToolMessage(Body):
    role: Literal["tool"]
    content: Content
    tool_call_id: str


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


Schema = dict[str, object]


class JsonSchema(Body):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    json_schema: Schema = Field(alias="schema")
    description: str | None = None
    strict: bool | None = Field(default=None, description="Output always follows the schema, so both values mean the same")


class TextFormat(Body):
    type: Literal["text"]


class JsonObjectFormat(Body):
    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Body):
    """Further grammars; exactly one field."""

    json_: Schema | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: str | None = Field(default=None, description="A context-free grammar in Lark's notation")


class Function(Body):
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = Field(
        default=None, description="Arguments follow the schema whenever tool_choice demands a call; nothing else is promised"
    )


class FunctionTool(Body):
    type: Literal["function"]
    function: Function


class FunctionName(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: FunctionName


class ThinkingSwitch(Body):
    type: Literal["enabled", "disabled"]


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = Field(default=None, description="Replaces max_tokens; wins if both are given")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    thinking: ThinkingSwitch | None = Field(default=None, description="Switches thinking, where the model can")
    preserve_thinking: bool | None = Field(default=None, description="Keep the thinking of earlier turns in the prompt")
    chat_template_kwargs: dict[str, object] | None = Field(default=None, description="Further variables of the chat template")
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = Field(default=None, description="Returned as it is")
    service_tier: Literal["auto", "default", "flex", "priority"] | None = Field(
        default=None, description="flex runs after, priority before everybody else"
    )
    # Hints about OpenAI's own service. Accepted, and named in the header x-prfaas-not-applied: the router finds shared
    # prefixes by itself, and no abuse tracking exists.
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    prompt_cache_options: dict[str, object] | None = None
    safety_identifier: str | None = None
    # Known to OpenAI, refused here unless they ask for what happens anyway.
    store: bool | None = None
    modalities: list[str] | None = None
    verbosity: str | None = None
    audio: object = None
    prediction: object = None
    web_search_options: object = None
    functions: object = None
    function_call: object = None


class CompletionRequest(SamplingFields):
    """POST /v1/completions."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(description="Text or token ids, one or several")
    best_of: Count | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
