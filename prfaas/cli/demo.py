"""`prfaas demo`: a real model, two sites on this machine, one question, and how its answer came about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prfaas.cli.router_api import Health, Piece, Summary
from prfaas.cli.screen import Screen
from prfaas.cli.serve import ServeRequest, serve_until_stopped
from prfaas.cli.system import System

QUESTION = "What is the capital of France? Answer in one sentence."
INLINE_TOKENS = 8
THRESHOLD_TOKENS = 16
MAX_TOKENS = 64


def run_demo(*, pool: str | None, port: int | None, screen: Screen) -> None:
    """Serve the demo model until Ctrl-C, after one request whose course is shown."""
    screen.plain(
        "prfaas demo: two datacenters on this machine. prefill-dc has one prefill worker; pd-dc has one prefill and one\n"
        "decode worker. Only the router's address and gRPC join them, as they would across a wide-area network.\n"
        f"So that a short question takes the long way, the remote threshold is {THRESHOLD_TOKENS} tokens here; "
        "in production it is thousands.\n"
    )
    policy = {"threshold_tokens": THRESHOLD_TOKENS, "inline_tokens": INLINE_TOKENS}
    flags = {"model": "smollm2", "pool": pool, "router": {"port": port, "policy": policy}}
    request = ServeRequest(file=None, counts=None, flags=flags)
    serve_until_stopped(request, screen, when_ready=lambda system, health: _converse(system, health, screen))


def _converse(system: System, health: Health, screen: Screen) -> None:
    screen.plain(f"\nyou> {QUESTION}")
    screen.console.print(f"{health.model}> ", end="", markup=False)
    first_s: float | None = None
    messages = [{"role": "user", "content": QUESTION}]
    for event in system.api.chat(health.model, messages, max_tokens=MAX_TOKENS, temperature=0):
        if isinstance(event, Piece):
            first_s = event.at_s if first_s is None else first_s
            screen.console.print(event.text, end="", markup=False)
        else:
            screen.plain("\n")
            for line in facts(event, first_s):
                screen.done(line)
    screen.plain(snippets(system.endpoints.http, health.model))
    screen.step("serving until Ctrl-C; another terminal can run 'prfaas chat' and 'prfaas status'")


def facts(summary: Summary, first_s: float | None) -> list[str]:
    """What the router reported of one request, one fact a line. `first_s` is the client's own TTFT in seconds."""
    report, lines = summary.report, []
    if first_s is not None:
        stages = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in report.get("stages", {}).items())
        lines.append(f"time to first token {first_s * 1e3:.0f} ms" + (f" ({stages})" if stages else ""))
    if report.get("route"):
        lines.append(f"{report['route']} prefill by {report['worker']}, because {'; '.join(report['reasons'])}")
        lines.append(f"{report['kv_bytes'] / 1e6:.2f} MB of KV cache moved to {report['decode_worker']}")
    if report.get("attempts"):
        lines.append(f"failed attempts before that: {', '.join(report['attempts'])}")
    lines += speed(summary.usage, summary.total_s, first_s)
    return lines


def speed(usage: Mapping[str, Any], total_s: float, first_s: float | None) -> list[str]:
    """Tokens and their rate, in no words or one line."""
    tokens = int(usage.get("completion_tokens", 0))
    if first_s is None or tokens < 2 or total_s <= first_s:
        return []
    rate = (tokens - 1) / (total_s - first_s)
    return [f"{tokens} tokens, {rate:.1f} tokens/s after the first ({usage.get('prompt_tokens', 0)} prompt tokens)"]


def snippets(base_url: str, model: str) -> str:
    """What to try next, ready to paste."""
    return f"""
Try it:

  curl {base_url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Name three rivers."}}]}}'

  from openai import OpenAI  # pip install openai
  client = OpenAI(base_url="{base_url}/v1", api_key="none")
  stream = client.chat.completions.create(
      model="{model}", messages=[{{"role": "user", "content": "Name three rivers."}}], stream=True)
  for chunk in stream:
      print(chunk.choices[0].delta.content or "", end="", flush=True)
"""
