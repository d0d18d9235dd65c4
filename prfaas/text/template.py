"""Chat templates: messages to prompt text, by the Jinja dialect that model publishers write for. No tokenizer here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from prfaas.clock import unix_time_s
from prfaas.errors import InvalidRequest, ModelLoadError


class ChatTemplate:
    """A compiled template. Rendering is sandboxed: a template comes with a downloaded model."""

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        """`variables`: special tokens the template may name, such as bos_token.

        Raises:
            ModelLoadError: the template does not parse.
        """
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        self._variables = dict(variables)
        self.source = source
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelLoadError(f"the model's chat template does not parse: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Prompt text for a conversation; `extra` are further template variables (such as enable_thinking).

        Raises:
            InvalidRequest: the template refuses these messages.
        """
        try:
            return self._template.render(
                {
                    **self._variables,
                    "tools": list(tools) or None,
                    "documents": None,
                    **(extra or {}),
                    "messages": list(messages),
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error.message}", param="messages"
            ) from error
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            # Templates add strings without looking: content null or a list where text is expected ends here.
            raise InvalidRequest(
                "the model's chat template cannot render these messages: it wants plain text content in every message",
                param="messages",
            ) from error


class _GenerationBlocks(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text for training; for serving it is transparent."""

    tags = {"generation"}  # noqa: RUF012  (the base class declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.fromtimestamp(unix_time_s(), UTC).strftime(form)
