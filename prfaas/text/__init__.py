"""Text in and tokens out: tokenizers, chat templates, streaming detokenization and stop strings. No torch."""

from prfaas.text.load import load_text_model
from prfaas.text.model import TextModel

__all__ = ["TextModel", "load_text_model"]
