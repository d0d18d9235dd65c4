"""One model's text side: tokenizer, vocabulary and chat template behind one object. No weights, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from prfaas.errors import UnsupportedParameter
from prfaas.text.detokenizer import Detokenizer, decode_all
from prfaas.text.template import ChatTemplate
from prfaas.text.vocabulary import Vocabulary, vocabulary_of


class TextModel:
    """Immutable after construction; every method may be called from any thread."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        """Raises ModelLoadError for a tokenizer whose tokens have no byte representation."""
        self._tokenizer = tokenizer
        self._template = template
        self.vocabulary: Vocabulary = vocabulary_of(tokenizer)

    @property
    def template_source(self) -> str:
        """The chat template as its publisher wrote it; empty if the model has none."""
        return self._template.source if self._template is not None else ""

    def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Token ids of a text. Special tokens written out in the text are recognised.

        The batch call is used for one text because it releases the interpreter lock while it works.
        """
        return tuple(self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)

    def decode(self, tokens: Iterable[int], *, keep_special: bool = False) -> str:
        """Text of a whole sequence; special tokens are left out unless `keep_special`."""
        return decode_all(self.vocabulary, tokens, keep_special=keep_special)

    def detokenizer(self, *, keep: frozenset[int] = frozenset()) -> Detokenizer:
        """A streaming detokenizer for one sample; `keep` are special tokens to be shown."""
        return Detokenizer(self.vocabulary, keep=keep)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Prompt text of a conversation, special tokens included.

        Raises:
            UnsupportedParameter: the model has no chat template.
            InvalidRequest: the template refuses these messages.
        """
        if self._template is None:
            raise UnsupportedParameter(
                "this model has no chat template; send a plain prompt to /v1/completions instead", param="messages"
            )
        return self._template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, extra=extra)
