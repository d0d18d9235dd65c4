"""What a person writes down for the planner, and how it becomes a `Case`: plan files and command-line overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from prfaas.config import Settings, SettingsT, read_yaml, validate
from prfaas.errors import ConfigError
from prfaas.planner.cases import Case, paper_case
from prfaas.planner.lengths import Lengths
from prfaas.planner.named_numbers import read_numbers
from prfaas.planner.profile import Curve, HardwareProfile, ModelProfile
from prfaas.planner.throughput import PdSite, PrefillSite, Workload
from prfaas.planner.traces import parse

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Points = tuple[tuple[NonNegative, NonNegative], ...]


class HardwareInput(Settings):
    """Measured by `prfaas profile`: points of (uncached tokens, seconds) and (batch, seconds)."""

    name: str
    prefill_s: Points
    decode_step_s: Points = ((1, 0.025), (2, 0.025))
    max_batch: Annotated[int, Field(gt=0)] = 20

    def to_profile(self) -> HardwareProfile:
        return HardwareProfile(
            self.name,
            Curve.through(self.prefill_s, f"{self.name} prefill_s"),
            Curve.through(self.decode_step_s, f"{self.name} decode_step_s"),
            self.max_batch,
        )


class SiteInput(Settings):
    """One site of a plan file."""

    name: str
    kind: Literal["prefill", "pd"]
    instances: Annotated[int, Field(ge=0)]
    hardware: str
    link_gbps: NonNegative = 100.0  # prefill sites: to the PD site
    rtt_s: NonNegative = 0.0
    price_per_instance_hour: NonNegative = 0.0
    price_per_gbyte: NonNegative = 0.0


class ModelInput(Settings):
    """KV bytes either as points of (tokens, bytes) or as a state plus bytes per token."""

    name: str
    kv_bytes: Points = ()
    state_bytes: NonNegative = 0.0
    bytes_per_token: NonNegative = 0.0

    def to_profile(self) -> ModelProfile:
        points: Sequence[tuple[float, float]] = self.kv_bytes
        if not points:
            if self.state_bytes == 0 and self.bytes_per_token == 0:
                raise ConfigError(f"model {self.name}: give kv_bytes, or state_bytes and bytes_per_token")
            points = [(0, self.state_bytes), (1024, self.state_bytes + 1024 * self.bytes_per_token)]
        return ModelProfile(self.name, Curve.through(points, f"{self.name} kv_bytes"))


class PlanInput(Settings):
    """A plan file."""

    name: str = "custom"
    hardware: tuple[HardwareInput | str, ...]  # a text is the path of a profile, as `prfaas profile` writes it
    sites: tuple[SiteInput, ...]
    model: ModelInput | str  # likewise
    workload: str  # see `parse_workload`
    mean_output_tokens: Positive | None = None  # None: what the trace says, else 1024
    baseline_pd_instances: Annotated[int, Field(gt=1)] | None = None  # None: all instances of all sites
    ttft_slo_s: Positive = 10.0
    itl_slo_s: Positive = 0.05


def load_case(path: Path) -> Case:
    """Read a plan file. Raises ConfigError naming what is wrong."""
    given = validate(PlanInput, read_yaml(path))
    base = path.parent
    measured = [profiled(base / h, "hardware", HardwareInput) if isinstance(h, str) else h for h in given.hardware]
    hardware = {h.name: h.to_profile() for h in measured}
    model = profiled(base / given.model, "kv", ModelInput) if isinstance(given.model, str) else given.model
    for site in given.sites:
        if site.hardware not in hardware:
            raise ConfigError(f"site {site.name} names hardware {site.hardware!r}; the file defines {sorted(hardware)}")
    pds = [s for s in given.sites if s.kind == "pd"]
    if len(pds) != 1:
        raise ConfigError(f"a plan needs exactly one site of kind pd, found {len(pds)}")
    prefill = tuple(
        PrefillSite(
            s.name, s.instances, hardware[s.hardware], s.link_gbps, s.rtt_s, s.price_per_instance_hour, s.price_per_gbyte
        )
        for s in given.sites
        if s.kind == "prefill"
    )
    pd = PdSite(pds[0].name, pds[0].instances, hardware[pds[0].hardware], pds[0].price_per_instance_hour)
    baseline = given.baseline_pd_instances or pd.instances + sum(s.instances for s in prefill)
    workload = parse_workload(given.workload, base=path.parent)
    if given.mean_output_tokens is not None:
        workload = replace(workload, mean_output_tokens=given.mean_output_tokens)
    return Case(
        given.name, prefill, pd, replace(pd, instances=baseline), model.to_profile(), workload,
        given.ttft_slo_s, given.itl_slo_s,
    )  # fmt: skip


def profiled(path: Path, part: str, kind: type[SettingsT]) -> SettingsT:
    """One part of a profile file: its "hardware" or its "kv". Raises ConfigError."""
    document = read_yaml(path)
    if not isinstance(document.get(part), dict):
        raise ConfigError(f"the profile {path} has no {part!r}")
    return validate(kind, document[part])


def named_case(name: str) -> Case:
    """A built-in case, or a plan file's path. Raises ConfigError for neither."""
    if name == "paper":
        return paper_case()
    path = Path(name)
    if path.exists():
        return load_case(path)
    raise ConfigError(f"there is no case {name!r}: use 'paper' or the path of a plan file")


def parse_workload(text: str, *, base: Path = Path()) -> Workload:
    """`lognormal:mu=9.9,sigma=1,min=128,max=131072,output=1024`, `fixed:tokens=8192,output=256`, or a trace file."""
    kind, _, rest = text.partition(":")
    if kind in ("lognormal", "fixed"):
        given = read_numbers(rest, text)
        output = given.pop("output", 1024.0)
        try:
            if kind == "fixed":
                lengths = Lengths.empirical([given.pop("tokens")])
            else:
                lengths = Lengths.lognormal(
                    given.pop("mu"), given.pop("sigma"), given.pop("min", 128.0), given.pop("max", 131072.0)
                )
        except KeyError as error:
            raise ConfigError(f"workload {text!r} lacks {error.args[0]}") from error
        if given:
            raise ConfigError(f"workload {text!r} has unknown settings {sorted(given)}")
        return Workload(lengths, output)
    path = base / text
    if not path.is_file():
        raise ConfigError(f"workload {text!r} is neither lognormal:..., fixed:... nor a trace file")
    with path.open() as lines:
        records = list(parse(lines))
    if not records:
        raise ConfigError(f"the trace {path} has no usable request")
    output = sum(r.output_tokens for r in records) / len(records)
    return Workload(Lengths.empirical(r.input_tokens for r in records), max(output, 1.0))


def override_sites(case: Case, text: str) -> Case:
    """Change instance counts: `prefill-dc=6,pd-dc=10`. Raises ConfigError for a site the case does not have."""
    counts: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"\s*([\w.-]+)\s*=\s*(\d+)\s*", part)
        if match is None:
            raise ConfigError(f"--sites takes NAME=INSTANCES,...; {part!r} is not of that form")
        counts[match[1]] = int(match[2])
    known = {s.name for s in case.sites} | {case.pd.name}
    if unknown := counts.keys() - known:
        raise ConfigError(f"the case has no site {sorted(unknown)}; its sites are {sorted(known)}")
    sites = tuple(replace(s, instances=counts.get(s.name, s.instances)) for s in case.sites)
    return replace(case, sites=sites, pd=replace(case.pd, instances=counts.get(case.pd.name, case.pd.instances)))
