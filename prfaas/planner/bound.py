"""The most that any routing can carry through two kinds of prefill workers: a bound to hold policies against.

By weak duality of the assignment problem: let a second of far prefill be worth r seconds of near prefill. A prompt of
uncached length L uses at least min(r * T_far(L), T_near(L)) of such worth wherever it goes, and the fleet has
r * N_far + N_near of it each second. Hence, for every r > 0,

    rate <= (r * N_far + N_near) / E[min(r * T_far(L), T_near(L))],

whatever decides, whatever it knows and however long prompts wait. Decode adds its own limit; links are left out, which
only loosens the bound. Far sites with different chips count as one whose prompts all get the fastest of them.
"""

from __future__ import annotations

import numpy as np

from prfaas.planner.throughput import PdSite, PrefillSite, Workload, decode_rate

PRICES = np.geomspace(0.05, 20.0, 200)


def rate_bound(sites: tuple[PrefillSite, ...], pd: PdSite, workload: Workload, *, num_prefill: int, num_decode: int) -> float:
    """Requests/s that no policy exceeds with this split of the PD site's instances; 0 when nobody prefills."""
    lengths, num_far = workload.lengths, sum(s.instances for s in sites)
    decode = decode_rate(pd, num_decode, workload)
    near_s = pd.hardware.prefill_s.values(lengths.values)
    if num_far == 0:
        return min(decode, num_prefill / float((near_s * lengths.weights).sum()))
    far_s = np.min([s.hardware.prefill_s.values(lengths.values) for s in sites if s.instances], axis=0)
    if num_prefill == 0:
        return min(decode, num_far / float((far_s * lengths.weights).sum()))
    rates = [
        (r * num_far + num_prefill) / float((np.minimum(r * far_s, near_s) * lengths.weights).sum()) for r in PRICES.tolist()
    ]
    return float(min(decode, *rates))
