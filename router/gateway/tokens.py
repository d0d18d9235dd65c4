"""POST /tokenize and /detokenize: the model's own tokenizer, for callers who count or send token ids."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import JSONResponse

from prfaas.errors import InvalidRequest
from prfaas.types import SamplingParams
from router.gateway.body import Body, BodyRoute, TokenId
from router.gateway.chat import ChatAsk, chat_prompt_tokens
from router.gateway.checks import check_model, check_token_ids
from router.gateway.core import GatewayCore
from router.gateway.documents import Detokenized, Tokenized, answers
from router.gateway.logprobs import token_name
from router.gateway.openai_ask import tool_use
from router.gateway.openai_messages import template_message
from router.gateway.openai_schema import FunctionTool, Message


class TokenizeRequest(Body):
    """Exactly one of `prompt` and `messages`."""

    model: str = Field(min_length=1)
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    tools: list[FunctionTool] | None = None
    chat_template_kwargs: dict[str, object] | None = None
    add_special_tokens: bool = Field(default=True, description="For a prompt; messages bring what their template says")
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    model: str = Field(min_length=1)
    tokens: list[TokenId]
    skip_special_tokens: bool = False


def token_routes(core: GatewayCore) -> APIRouter:
    """The endpoints, bound to their ports."""
    router = APIRouter(route_class=BodyRoute)

    @router.post("/tokenize", response_class=JSONResponse, responses=answers(Tokenized))
    async def tokenize(body: TokenizeRequest) -> JSONResponse:
        tokens = await _tokens(core, body)
        found: dict[str, Any] = {"count": len(tokens), "tokens": list(tokens)}
        found["max_model_len"] = core.fleet.max_context_tokens(core.settings.served_model_name)
        if body.return_token_strs:
            found["token_strs"] = [token_name(core.text.vocabulary, token) for token in tokens]
        return JSONResponse(found)

    @router.post("/detokenize", response_class=JSONResponse, responses=answers(Detokenized))
    async def detokenize(body: DetokenizeRequest) -> JSONResponse:
        check_model(core, body.model)
        check_token_ids("tokens", body.tokens, core.text)
        return JSONResponse({"prompt": core.text.decode(body.tokens, keep_special=not body.skip_special_tokens)})

    return router


async def _tokens(core: GatewayCore, body: TokenizeRequest) -> tuple[int, ...]:
    prompt, messages = body.prompt, body.messages
    if (prompt is None) == (messages is None):
        raise InvalidRequest("give exactly one of prompt and messages", param="prompt")
    if messages is not None:
        ask = ChatAsk(
            model=body.model,
            messages=tuple(template_message(message) for message in messages),
            sampling=SamplingParams(),
            tools=tool_use(body.tools, None, None),
            variables=body.chat_template_kwargs or {},
        )
        return await chat_prompt_tokens(core, ask)
    check_model(core, body.model)
    text = prompt or ""
    return await core.encoder.run(lambda: core.text.encode(text, add_special_tokens=body.add_special_tokens), chars=len(text))
