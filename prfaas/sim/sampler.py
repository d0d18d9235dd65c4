"""Looks at a running deployment now and then, for the curves of a report. Changes nothing."""

from __future__ import annotations

from prfaas.sim.deployment import BYTES_PER_GBIT, Deployment
from prfaas.sim.records import Sample
from prfaas.types import Role


class Sampler:
    """Turns cumulative counters into means since the last look."""

    def __init__(self, made: Deployment) -> None:
        self._made = made
        self._at_s = 0.0
        self._busy: dict[Role, float] = {}
        self._carried = 0.0

    def take(self) -> None:
        """Write one sample into the journal, until the last request has arrived."""
        made, now_s = self._made, self._made.kernel.now_s()
        if now_s > made.scenario.duration_s:
            return
        elapsed_s, self._at_s = now_s - self._at_s, now_s
        for link in made.links:
            link.settle()
        carried = sum(link.use.carried_bytes for link in made.links)
        sample = Sample(
            at_s=now_s,
            threshold_tokens=made.world.door.threshold_tokens,
            remote_busy=self._share(Role.PREFILL, elapsed_s),
            local_busy=self._share(Role.PD_PREFILL, elapsed_s),
            decode_slots=self._share(Role.DECODE, elapsed_s),
            link_gbps=(carried - self._carried) / elapsed_s / BYTES_PER_GBIT,
            link_capacity_gbps=sum(link.capacity_bytes_per_s for link in made.links) / BYTES_PER_GBIT,
            waiting=made.world.door.num_waiting + sum(w.waiting_for_room for w in made.world.workers.values()),
        )
        self._carried = carried
        made.journal.samples.append(sample)

    def _share(self, role: Role, elapsed_s: float) -> float:
        workers = self._made.of_role(role)
        total = sum(w.decode_slot_s() if role is Role.DECODE else w.busy_s() for w in workers)
        before, self._busy[role] = self._busy.get(role, 0.0), total
        return (total - before) / elapsed_s / len(workers) if workers else 0.0
