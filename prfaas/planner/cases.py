"""Published cases with their figures and where each figure comes from."""

from __future__ import annotations

from dataclasses import dataclass

from prfaas.planner.lengths import Lengths
from prfaas.planner.profile import MIB, Curve, HardwareProfile, ModelProfile
from prfaas.planner.throughput import PdSite, PrefillSite, Workload

K = 1024


@dataclass(frozen=True, slots=True)
class Case:
    """Everything the planner needs: prefill sites, the PD site, the baseline's PD site, model and workload."""

    name: str
    sites: tuple[PrefillSite, ...]
    pd: PdSite
    baseline_pd: PdSite
    model: ModelProfile
    workload: Workload
    ttft_slo_s: float
    itl_slo_s: float


def paper_case() -> Case:
    """The case study of arXiv:2604.15039 (sec. 4, tables 5 and 6): 32 H200 for prefill, 64 H20 for PD, 100 Gbps.

    From the paper: S_kv and H200 T_prefill at 1K, 8K, 32K and 128K, T_decode 25 ms, output 1024, the length distribution.
    Implied by table 6: H200 T(27,486) = 1.633 s, T(45,046) = 2.484 s, T(62,410) = 3.51 s; BS_max = 20 (reproduces every
    Theta_pd_d); the H20 profile (fits every row). Lengths of the profile are multiples of 1024.
    """
    decode = Curve.through([(1, 0.025), (20, 0.025)], "decode step")
    h200 = HardwareProfile(
        "8xH200",
        Curve.through(
            [(K, 0.44), (8 * K, 0.72), (27_486, 1.633), (32 * K, 1.84), (45_046, 2.484), (62_410, 3.51), (128 * K, 7.40)],
            "H200 prefill",
        ),
        decode,
        max_batch=20,
    )
    h20 = HardwareProfile(
        "8xH20",
        Curve.through([(K, 0.84), (8 * K, 1.543), (32 * K, 5.011), (128 * K, 20.66)], "H20 prefill"),
        decode,
        max_batch=20,
    )
    kv = Curve.through([(K, 190.8 * MIB), (8 * K, 308.9 * MIB), (32 * K, 701.3 * MIB), (128 * K, 2316.3 * MIB)], "KV bytes")
    return Case(
        name="paper",
        sites=(PrefillSite("prefill-dc", 4, h200, link_gbps=100.0, rtt_s=0.02),),
        pd=PdSite("pd-dc", 8, h20),
        baseline_pd=PdSite("pd-dc", 12, h20),
        model=ModelProfile("1T hybrid, KDA:MLA 3:1", kv),
        workload=Workload(Lengths.lognormal(9.90, 1.00, 128, 128 * K), mean_output_tokens=1024),
        ttft_slo_s=10.0,
        itl_slo_s=0.025,
    )
