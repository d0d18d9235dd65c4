"""A chat request free of dialect, and its run: what chat completions, responses and messages all are underneath."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from prfaas.errors import InvalidRequest, UnsupportedParameter
from prfaas.types import SamplingParams, TokenOutput
from router.gateway.checks import check_count, check_depth, check_model, output_room
from router.gateway.core import GatewayCore
from router.gateway.generation import Generation, Routed
from router.gateway.parsers.api import CallArguments, CallStart, Parser, Piece, TextPiece
from router.gateway.parsers.reasoning import MARKERS as THINKING_MARKERS
from router.gateway.parsers.reasoning import ThinkingParser
from router.gateway.prompt import generation_request
from router.gateway.sample import Delta, Ending
from router.gateway.thinking import Thinking, prompt_opens_thinking, thinks
from router.gateway.timing import Stopwatch
from router.gateway.tools import ToolUse, check_tools, forcing_grammar, in_words, tool_format, tool_parser
from router.gateway.visit import Visit

# The gateway sets these variables of a template itself.
RESERVED_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt"})


@dataclass(frozen=True, slots=True)
class ChatAsk:
    """A conversation to be continued. `messages` are as chat templates take them; `sampling.max_tokens` is a placeholder
    until the prompt's length is known, `max_tokens` is what the caller asked for."""

    model: str
    messages: tuple[dict[str, Any], ...]
    sampling: SamplingParams
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    tools: ToolUse = field(default_factory=ToolUse)
    thinking: Thinking = field(default_factory=Thinking)
    variables: Mapping[str, object] = field(default_factory=dict)
    tenant: str = ""
    cache_salt: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """New pieces of sample `index`, the tokens they were made of, and the ending with the last delta."""

    index: int
    pieces: tuple[Piece, ...]
    tokens: tuple[TokenOutput, ...]
    ending: Ending | None


ChatDeltas = tuple[ChatDelta, ...]  # of tokens that came together


class ChatRun:
    """One accepted chat request."""

    def __init__(self, generation: Generation, parsers: list[Parser], tools: ToolUse) -> None:
        self.generation = generation
        self.tools = tools
        self._parsers = parsers
        self._calls = [0] * len(parsers)
        self.reasoning_tokens = 0

    def called(self, index: int) -> bool:
        """Whether a sample has called a tool so far."""
        return self._calls[index] > 0

    async def run(self) -> AsyncGenerator[Routed | ChatDeltas, None]:
        """As `Generation.run`, with the text parsed."""
        async with aclosing(self.generation.run()) as events:
            async for event in events:
                if isinstance(event, Routed):
                    yield event
                    continue
                parsed = tuple(delta for each in event if (delta := self._parsed(each)) is not None)
                if parsed:
                    yield parsed

    def _parsed(self, delta: Delta) -> ChatDelta | None:
        """None if it shows nothing yet."""
        parser = self._parsers[delta.index]
        pieces = parser.feed(delta.text)
        if isinstance(parser, ThinkingParser) and parser.thinking:
            self.reasoning_tokens += len(delta.tokens)
        if delta.ending is not None:
            pieces += parser.finish()
        allowed = tuple(piece for piece in _joined(pieces) if self._allows(delta.index, piece))
        if allowed or delta.tokens or delta.ending is not None:
            return ChatDelta(delta.index, allowed, delta.tokens, delta.ending)
        return None

    def _allows(self, index: int, piece: Piece) -> bool:
        """Counts calls; those past the first are dropped where the caller wants no parallel ones."""
        if isinstance(piece, CallStart):
            self._calls[index] = piece.call + 1
        if self.tools.parallel or not isinstance(piece, CallStart | CallArguments):
            return True
        return piece.call == 0


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbouring texts as one."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, TextPiece) and isinstance(last, TextPiece):
            joined[-1] = TextPiece(last.text + piece.text)
        else:
            joined.append(piece)
    return joined


async def start_chat(core: GatewayCore, ask: ChatAsk, visit: Visit, request_id: str) -> ChatRun:
    """Check, render, tokenize. Everything that can be refused is refused here, before the pipeline sees the request.

    Raises:
        UnknownModel, InvalidRequest, UnsupportedParameter, PromptTooLong, NoWorkerAvailable.
    """
    limits, template = core.settings.limits, core.text.template_source
    check_model(core, ask.model)
    check_count("messages", len(ask.messages), limits.max_messages)
    check_count("n", ask.sampling.n, limits.max_n)
    check_tools(ask.tools)
    for tool in ask.tools.tools:
        check_depth("tools", tool.parameters, limits.max_schema_depth)
    forced = forcing_grammar(ask.tools)
    if ask.sampling.grammar is not None and ask.tools.offered:
        raise UnsupportedParameter("a response format cannot be combined with tools; set tool_choice to none", param="tools")
    grammar = forced or ask.sampling.grammar
    watch = Stopwatch(core.clock, visit.arrived_s)
    prompt, tokens = await _encode(core, ask)
    room = output_room(
        core,
        prompt_tokens=len(tokens),
        wanted=ask.max_tokens,
        default=core.settings.default_max_tokens,
        param="messages",
    )
    if ask.sampling.min_tokens > room:
        raise InvalidRequest(f"min_tokens is {ask.sampling.min_tokens}, more than the {room} allowed", param="min_tokens")
    watch.tokenized()
    request = generation_request(
        core,
        visit,
        tokens,
        replace(ask.sampling, max_tokens=room, grammar=grammar),
        request_id=request_id,
        tenant=ask.tenant,
        cache_salt=ask.cache_salt,
        priority=ask.priority,
    )
    form = tool_format(template)
    markers = (form.markers if ask.tools.offered else ()) + (THINKING_MARKERS if thinks(template) else ())
    names, specials = core.text.vocabulary.names, core.text.vocabulary.specials
    keep = specials.intersection(names[marker] for marker in markers if marker in names)
    parsers = [tool_parser(ask.tools, form) for _ in range(ask.sampling.n)]
    if thinks(template) and grammar is None:  # a grammar leaves no room for thinking
        thinking = prompt_opens_thinking(prompt)
        parsers = [ThinkingParser(parser, thinking=thinking) for parser in parsers]
    generation = Generation(core, request, stops=ask.stops, watch=watch, keep=keep)
    visit.meters.append(generation)
    return ChatRun(generation, parsers, ask.tools)


async def chat_prompt_tokens(core: GatewayCore, ask: ChatAsk) -> tuple[int, ...]:
    """The prompt that this request would have. Raises as `start_chat`, apart from lengths."""
    check_model(core, ask.model)
    check_count("messages", len(ask.messages), core.settings.limits.max_messages)
    return (await _encode(core, ask))[1]


async def _encode(core: GatewayCore, ask: ChatAsk) -> tuple[str, tuple[int, ...]]:
    """The rendered prompt and its tokens, off the event loop when long."""
    template = core.text.template_source
    reserved = RESERVED_VARIABLES.intersection(ask.variables)
    if reserved:
        raise InvalidRequest(f"chat_template_kwargs must not set {sorted(reserved)}", param="chat_template_kwargs")
    extra = {**ask.variables, **ask.thinking.variables(template)}
    native = tool_format(template).native
    messages = list(ask.messages) if native else in_words(ask.messages, ask.tools.offered)
    tools = [tool.template_object for tool in ask.tools.offered] if native else []

    def work() -> tuple[str, tuple[int, ...]]:
        text = core.text.render_chat(messages, tools=tools, extra=extra)
        return text, core.text.encode(text, add_special_tokens=False)

    return await core.encoder.run(work, chars=sum(map(_chars, messages)) + sum(len(str(tool)) for tool in tools))


def _chars(message: Mapping[str, Any]) -> int:
    """About how much of the prompt a message is."""
    return sum(len(value if isinstance(value, str) else str(value)) for value in message.values())
