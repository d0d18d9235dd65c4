"""What every client asks: a question, a tool, a schema. Plain values, for each client runs in an environment of its own."""

from typing import Any

QUESTION = "What is the capital of France? Answer in one sentence."
MESSAGES = [{"role": "user", "content": QUESTION}]
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
SCHEMA = {"type": "object", "properties": {"big": {"type": "boolean"}}, "required": ["big"], "additionalProperties": False}
