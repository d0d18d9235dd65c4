"""Whether and how much the model is to think: from each dialect's switches to the variables of its chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prfaas.errors import UnsupportedParameter
from router.gateway.parsers.reasoning import CLOSE, OPEN

# The names under which publishers' templates take the switch; those a template does not mention are not set.
_SWITCHES = ("enable_thinking", "thinking")


@dataclass(frozen=True, slots=True)
class Thinking:
    """None means that the caller leaves it to the model."""

    enabled: bool | None = None
    effort: str | None = None
    preserve: bool | None = None  # keep the thinking of earlier turns in the prompt

    def variables(self, template: str) -> dict[str, Any]:
        """Template variables.

        Raises:
            UnsupportedParameter: the model's template has no such switch.
        """
        wanted: dict[str, Any] = {}
        enabled = self.enabled if self.enabled is not None else None if self.effort is None else self.effort != "none"
        if self.effort is not None and "reasoning_effort" in template:
            wanted["reasoning_effort"] = self.effort
        elif enabled is not None:
            switches = [name for name in _SWITCHES if name in template]
            if not switches and (enabled or thinks(template)):
                param = "thinking" if self.effort is None else "reasoning_effort"
                raise UnsupportedParameter(f"this model's thinking cannot be switched; leave {param} out", param=param)
            wanted.update(dict.fromkeys(switches, enabled))
        if self.preserve is not None:
            if "preserve_thinking" not in template:
                raise UnsupportedParameter("this model cannot preserve its thinking", param="preserve_thinking")
            wanted["preserve_thinking"] = self.preserve
        return wanted


def thinks(template: str) -> bool:
    """Whether a chat template is of a model that thinks between tags."""
    return CLOSE in template or OPEN in template


def prompt_opens_thinking(prompt: str) -> bool:
    """Whether the rendered prompt ends inside an opened tag, as templates of always-thinking models leave it."""
    return prompt.rstrip().endswith(OPEN)
