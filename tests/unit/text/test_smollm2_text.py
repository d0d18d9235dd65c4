"""The demo model's tokenizer and template, against ids that `transformers` gives for the same file."""

from __future__ import annotations

import pytest

from prfaas.text import load_text_model
from tests.support.models import demo_model

# fmt: off
PROMPT_IDS = (
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198,
    1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198,
)
# fmt: on


@pytest.mark.demo_model
def test_prompt_ids_equal_the_reference() -> None:
    model = load_text_model(demo_model())
    text = model.render_chat([{"role": "user", "content": "What is the capital of France?"}])
    assert model.encode(text, add_special_tokens=False) == PROMPT_IDS
    assert model.decode(PROMPT_IDS, keep_special=True) == text
