"""What this process has seen of the paths to it, one record for each sending site. Decides nothing."""

from __future__ import annotations

from kv_transport.messages import Manifest, PathStats, Progress
from kv_transport.meter import TransferMeter
from kv_transport.session.lane_tuner import LaneTuner
from kv_transport.session.rate import RateMeter
from prfaas.clock import Clock
from prfaas.types import LinkView, SiteId

RTT_WINDOW_S = 60.0  # the smallest round trip of this long is the path's
CAPACITY_FADE = 0.98  # per transfer: how fast an old peak is forgotten


class Path:
    """One sending site, seen from here."""

    def __init__(self, src: SiteId, dst: SiteId, tuner: LaneTuner, capacity_bytes_per_s: float) -> None:
        self.src = src
        self.dst = dst
        self.tuner = tuner
        self.goodput = RateMeter()
        self.active = 0
        self._queued_bytes = 0
        self._waits = False  # bytes have waited ever since some landed last
        self.sent_bytes = 0
        self.retransmitted_bytes = 0
        self._configured = capacity_bytes_per_s
        self._peak = 0.0
        self._rtt_s = 0.0
        self._rtt_at_s = 0.0
        self._heard_s = 0.0

    @property
    def rtt_s(self) -> float:
        """Smallest recent round trip; 0 when unknown."""
        return self._rtt_s

    @property
    def loss_ratio(self) -> float:
        """Share of the sender's bytes that were sent again; 0 when unknown."""
        return self.retransmitted_bytes / self.sent_bytes if self.sent_bytes else 0.0

    def round_trip(self, rtt_s: float, now_s: float) -> None:
        """Record a measured round trip."""
        if self._rtt_s == 0.0 or rtt_s <= self._rtt_s or now_s - self._rtt_at_s > RTT_WINDOW_S:
            self._rtt_s = rtt_s
            self._rtt_at_s = now_s
        self._heard_s = now_s

    def knows_rtt(self, now_s: float) -> bool:
        """Whether a round trip was measured within the window."""
        return self._rtt_s > 0 and now_s - self._rtt_at_s <= RTT_WINDOW_S

    def queued(self, change_bytes: int) -> None:
        """More or fewer bytes are known to wait for the path."""
        self._queued_bytes += change_bytes
        self._waits = self._waits and self._queued_bytes > 0

    def landed(self, num_bytes: int, now_s: float) -> None:
        self.goodput.add(num_bytes, now_s, waited=self._waits)
        self._waits = self._queued_bytes > 0
        self._heard_s = now_s

    def transfer_ended(self, *, link_bound: bool) -> None:
        """Only a transfer that waited for the path says what the path can carry; others moved as fast as prefill computed."""
        if link_bound:
            self._peak = max(self._peak * CAPACITY_FADE, self.goodput.bytes_per_s)

    def sender_path(self, path: PathStats) -> None:
        self.sent_bytes += path.sent_bytes
        self.retransmitted_bytes += path.retransmitted_bytes

    def view(self, now_s: float) -> LinkView:
        return LinkView(
            src=self.src,
            dst=self.dst,
            capacity_bytes_per_s=self._configured or self._peak,
            goodput_bytes_per_s=self.goodput.bytes_per_s,
            queued_bytes=max(0, self._queued_bytes),
            rtt_s=self._rtt_s,
            loss_ratio=self.loss_ratio,
            retransmitted_bytes=self.retransmitted_bytes,
            active_transfers=self.active,
            age_s=max(0.0, now_s - self._heard_s),
        )


class Paths:
    """Every path to this site."""

    def __init__(self, site: SiteId, clock: Clock, *, max_lanes: int, fixed_lanes: int, capacity_bytes_per_s: float) -> None:
        self._site = site
        self._clock = clock
        self._max_lanes = max_lanes
        self._fixed_lanes = fixed_lanes
        self._capacity = capacity_bytes_per_s
        self._paths: dict[SiteId, Path] = {}

    def to(self, src: SiteId) -> Path:
        """The record of a sending site, made on first use."""
        path = self._paths.get(src)
        if path is None:
            tuner = LaneTuner(max_lanes=self._max_lanes, fixed=self._fixed_lanes)
            path = self._paths[src] = Path(src, self._site, tuner, self._capacity)
        return path

    def views(self) -> tuple[LinkView, ...]:
        now_s = self._clock.now_s()
        return tuple(path.view(now_s) for path in self._paths.values())


class FetchMonitor:
    """Books one fetch: on its path, in the process's counters and in its metrics."""

    def __init__(self, paths: Paths, meter: TransferMeter, clock: Clock, chunk_bytes: int) -> None:
        self._paths = paths
        self._meter = meter
        self._clock = clock
        self._chunk_bytes = chunk_bytes
        self._path: Path | None = None
        self._queued = 0
        self._landed = 0
        self._began_s = 0.0
        self._lanes = 0
        self._most_lanes = 0
        self._alone = True

    @property
    def path(self) -> Path | None:
        """Known once the manifest has named the sender's site."""
        return self._path

    def began(self, manifest: Manifest) -> None:
        self._path = self._paths.to(manifest.sender_site)
        self._alone = self._path.active == 0
        self._path.active += 1
        self._began_s = self._clock.now_s()

    def landed(self, wire_bytes: int, codec: str, now_s: float) -> None:
        self._meter.moved(wire_bytes, codec)
        self._landed += wire_bytes
        if self._path is not None:
            self._path.landed(wire_bytes, now_s)

    def progress(self, progress: Progress, landed_bytes: int) -> None:
        queued = max(0, progress.ready_bytes - landed_bytes)
        if self._path is not None:
            self._path.queued(queued - self._queued)
            self._queued = queued

    def resumed(self) -> None:
        self._meter.resumed()

    def lanes_changed(self, change: int) -> None:
        self._meter.lanes += change
        self._lanes += change
        self._most_lanes = max(self._most_lanes, self._lanes)

    def sender_path(self, path: PathStats) -> None:
        if self._path is not None:
            self._path.sender_path(path)
            self.round_trip(path.rtt_s)

    def round_trip(self, rtt_s: float) -> None:
        if self._path is not None and rtt_s > 0:
            self._path.round_trip(rtt_s, self._clock.now_s())

    @property
    def knows_rtt(self) -> bool:
        return self._path is not None and self._path.knows_rtt(self._clock.now_s())

    def wanted_lanes(self, total_bytes: int) -> int:
        if self._path is None:
            return 1
        path = self._path
        return path.tuner.wanted(total_bytes, self._chunk_bytes, path.rtt_s, path.loss_ratio)

    def one_way_s(self) -> float:
        return self._path.rtt_s / 2 if self._path is not None else 0.0

    def ended(self, *, link_bound: bool) -> None:
        """The fetch is over. `link_bound`: it took as long as it did because of the path, so its speed says something."""
        path = self._path
        if path is None:
            return
        path.active -= 1
        path.queued(-self._queued)
        path.transfer_ended(link_bound=link_bound)
        took_s = self._clock.now_s() - self._began_s
        if link_bound and self._alone and path.active == 0 and took_s > 0:
            path.tuner.observe(self._most_lanes, self._landed / took_s, path.rtt_s)
