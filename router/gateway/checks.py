"""What a body must satisfy beyond its shape, in one place: the model exists, limits hold, ids are in the vocabulary, it fits.

Everything here runs before any worker is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prfaas.errors import InvalidRequest, NoWorkerAvailable, PromptTooLong, UnknownModel
from prfaas.text import TextModel
from router.gateway.core import GatewayCore


def check_model(core: GatewayCore, model: str) -> None:
    """Raises UnknownModel."""
    served = core.settings.served_model_name
    if model != served:
        raise UnknownModel(f"the model '{model[:200]}' does not exist here; this service has '{served}'", param="model")


def check_count(name: str, value: int, limit: int) -> None:
    """Raises InvalidRequest if `value` passes a limit of this deployment."""
    if value > limit:
        raise InvalidRequest(f"{name} is {value}, the limit is {limit}", param=name, limit=limit)


def stop_strings(stop: str | Sequence[str] | None, limit: int, *, name: str = "stop") -> tuple[str, ...]:
    """Normalised stop strings. Raises InvalidRequest for too many or an empty one."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    check_count(name, len(stops), limit)
    if not all(stops):
        raise InvalidRequest("stop strings must not be empty", param=name)
    return stops


def logit_bias(biases: Mapping[str, float] | None, text: TextModel) -> tuple[tuple[int, float], ...]:
    """Biases by token id. Raises InvalidRequest for a key that is no token id of the model."""
    result: list[tuple[int, float]] = []
    for key, bias in (biases or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise InvalidRequest(f"the keys of logit_bias are token ids; '{key[:20]}' is none", param="logit_bias")
        token_id = int(key)
        check_token_ids("logit_bias", (token_id,), text)
        result.append((token_id, bias))
    return tuple(result)


def check_token_ids(name: str, tokens: Sequence[int], text: TextModel) -> None:
    """Raises InvalidRequest for an id outside the model's vocabulary."""
    size = len(text.vocabulary)
    for token in tokens:
        if not 0 <= token < size:
            raise InvalidRequest(f"{token} is no token id of this model: ids are 0 to {size - 1}", param=name)


def check_depth(name: str, root: object, limit: int) -> None:
    """Raises InvalidRequest for JSON nested deeper than `limit`. No recursion: the caller chose the depth."""
    todo: list[tuple[object, int]] = [(root, 1)]
    while todo:
        node, level = todo.pop()
        if level > limit:
            raise InvalidRequest(
                f"the JSON schema in {name} is nested deeper than the limit of {limit}", param=name, limit=limit
            )
        inner = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
        todo.extend((child, level + 1) for child in inner)


def output_room(core: GatewayCore, *, prompt_tokens: int, wanted: int | None, default: int, param: str) -> int:
    """How many tokens may be generated: what was asked for, or the default bounded by what is left of the context.

    Raises:
        InvalidRequest: the prompt is empty.
        PromptTooLong: the prompt, or the prompt and the tokens asked for, pass the context; says by how many.
        NoWorkerAvailable: no healthy worker serves the model, so its context is unknown.
    """
    if prompt_tokens < 1:
        raise InvalidRequest("the prompt is empty; send at least one token", param=param)
    model = core.settings.served_model_name
    context = core.fleet.max_context_tokens(model)
    if context is None:
        raise NoWorkerAvailable(f"no worker serves '{model}' at the moment; retry shortly", model=model)
    needed = prompt_tokens + (wanted or 1)
    if needed > context:
        excess = needed - context
        if prompt_tokens + 1 > context:
            what = f"the prompt has {prompt_tokens} tokens and needs room for one more"
        else:
            what = f"the prompt has {prompt_tokens} tokens and {wanted} are to be generated"
        raise PromptTooLong(
            f"{what}, but the context is {context} tokens: that is {excess} too many; shorten the prompt or lower max_tokens",
            param=param,
            prompt_tokens=prompt_tokens,
            max_context_tokens=context,
            excess_tokens=excess,
        )
    return wanted if wanted is not None else min(default, context - prompt_tokens)
