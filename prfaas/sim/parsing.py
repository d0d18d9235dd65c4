"""What people write for a simulation, and what it means: policies, workloads and link events."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prfaas.errors import ConfigError
from prfaas.planner.named_numbers import read_numbers
from prfaas.planner.traces import parse
from prfaas.sim.scenario import LinkEvent, SimPolicy, Workload, WorkloadKind

_ALIASES = {"homogeneous": SimPolicy.LOCAL_ONLY, "naive": SimPolicy.ALL_REMOTE}
_ARRIVALS = (WorkloadKind.PAPER, WorkloadKind.BURSTY, WorkloadKind.DIURNAL)


def parse_policy(text: str) -> SimPolicy:
    """A policy by its name or alias. Raises ConfigError."""
    if text in _ALIASES:
        return _ALIASES[text]
    try:
        return SimPolicy(text)
    except ValueError as error:
        known = ", ".join([*(p.value for p in SimPolicy), *_ALIASES])
        raise ConfigError(f"there is no policy {text!r}; use one of {known}") from error


def parse_link_events(text: str) -> tuple[LinkEvent, ...]:
    """`300=5,400=0,460=100`: from 300 s on 5 Gbit/s, and so on. Raises ConfigError."""
    events = []
    for part in filter(None, text.split(",")):
        at, _, gbps = part.partition("=")
        try:
            event = LinkEvent(float(at), float(gbps))
        except ValueError as error:
            raise ConfigError(f"link events take SECONDS=GBPS,...; {part!r} is not of that form") from error
        if event.at_s < 0 or event.gbps < 0:
            raise ConfigError(f"a link event has no negative time or capacity: {part!r}")
        events.append(event)
    return tuple(sorted(events, key=lambda e: e.at_s))


def parse_workload(text: str, *, speed: float = 1.0) -> Workload:
    """`KIND[:NAME=NUMBER,...]`, or the path of a trace. Raises ConfigError naming what is not understood."""
    name, _, rest = text.partition(":")
    if name not in {k.value for k in WorkloadKind} - {WorkloadKind.TRACE.value}:
        return _trace(Path(text), speed)
    kind, given = WorkloadKind(name), read_numbers(rest, text)
    made = Workload(kind)
    if kind in _ARRIVALS:
        made = replace(made, prefix_share=given.pop("share", 0.0))
    if kind is WorkloadKind.BURSTY:
        made = replace(made, cv=given.pop("cv", made.cv))
    if kind is WorkloadKind.DIURNAL:
        made = replace(made, swing=given.pop("swing", made.swing), period_s=given.pop("period", made.period_s))
    if kind is WorkloadKind.SWARM:
        made = replace(
            made,
            sub_agents=int(given.pop("agents", made.sub_agents)),
            shared_tokens=int(given.pop("shared", made.shared_tokens)),
            step_tokens=int(given.pop("step", made.step_tokens)),
        )
    if kind is WorkloadKind.AGENTS:
        shape = made.agent
        shape = replace(
            shape,
            turns=int(given.pop("turns", shape.turns)),
            system_tokens=int(given.pop("system", shape.system_tokens)),
            input_tokens=int(given.pop("input", shape.input_tokens)),
            output_tokens=int(given.pop("output", shape.output_tokens)),
            think_s=given.pop("think", shape.think_s),
        )
        made = replace(made, agent=shape)
    if given:
        raise ConfigError(f"workload {text!r} has unknown settings {sorted(given)}")
    return _checked(made, text)


def _checked(made: Workload, text: str) -> Workload:
    positive = (made.cv, made.period_s, made.sub_agents, made.shared_tokens, made.step_tokens, made.agent.turns)
    if min(positive) <= 0 or not (0 <= made.swing <= 1 and 0 <= made.prefix_share < 1):
        raise ConfigError(f"workload {text!r} has a setting out of range")
    return made


def _trace(path: Path, speed: float) -> Workload:
    if not path.is_file():
        kinds = ", ".join(k.value for k in WorkloadKind if k is not WorkloadKind.TRACE)
        raise ConfigError(f"workload {str(path)!r} is neither a trace file nor one of {kinds}")
    with path.open() as lines:
        records = tuple(parse(lines))
    if not records:
        raise ConfigError(f"the trace {path} has no usable request")
    return Workload(WorkloadKind.TRACE, records=records, speed=speed)
