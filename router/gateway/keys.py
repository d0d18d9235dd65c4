"""API keys: who may call, with which models, at what rate. From a file of hashes that is read again when it changes.

keys:
  - name: anna                 # tenant: fair share, budgets and stored responses go by it
    sha256: 9f86d0...          # of the key; make one with: printf %s "$KEY" | sha256sum
    models: [my-model]         # optional; all if left out
    priority: 0                # optional; lower runs first
    admin: false               # optional; may read what the live page shows: the whole fleet, everybody's requests
    requests_per_minute: 60    # optional, as are the next two
    tokens_per_minute: 100000  # prompt and generated tokens
    egress_bytes_per_minute: 1000000000  # KV cache sent between datacenters for this key
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from prfaas.clock import Clock
from prfaas.config import NonNegativeInt, PositiveInt, Settings, read_yaml, validate
from prfaas.errors import ConfigError, PermissionDenied, RateLimited, Unauthenticated
from prfaas.log import logger
from router.gateway.rates import Bucket

CHECK_EVERY_S = 1.0
log = logger(__name__)


class ApiKey(Settings):
    """One entry of the file."""

    name: str = Field(min_length=1, max_length=128)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    models: tuple[str, ...] | None = None
    priority: int = Field(default=0, ge=-1000, le=1000)
    admin: bool = False
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    egress_bytes_per_minute: PositiveInt | None = None


class KeysDocument(Settings):
    """The file."""

    keys: tuple[ApiKey, ...]
    version: NonNegativeInt = 1


class Caller:
    """A key at work: its entry, and what it has used of its rates."""

    def __init__(self, entry: ApiKey, clock: Clock) -> None:
        self.entry = entry
        self._clock = clock
        limits = {
            "requests": entry.requests_per_minute,
            "tokens": entry.tokens_per_minute,
            "egress bytes": entry.egress_bytes_per_minute,
        }
        self._buckets = {what: Bucket(limit, clock.now_s()) for what, limit in limits.items() if limit is not None}

    def admit(self) -> None:
        """Count one request. Raises RateLimited, with the time to wait, when a rate is used up."""
        now_s = self._clock.now_s()
        for what, bucket in self._buckets.items():
            wait_s = bucket.wait_s(1, now_s)
            if wait_s > 0:
                message = f"the key '{self.entry.name}' has used up its {what} per minute; retry in {wait_s:.1f} s"
                raise RateLimited(message, retry_after_s=wait_s)
        self._spend("requests", 1)

    def charge(self, *, tokens: int, egress_bytes: int) -> None:
        """Note what an ended request used."""
        self._spend("tokens", tokens)
        self._spend("egress bytes", egress_bytes)

    def check_model(self, model: str) -> None:
        """Raises PermissionDenied."""
        if self.entry.models is not None and model not in self.entry.models:
            raise PermissionDenied(f"the key '{self.entry.name}' may not use the model '{model}'", param="model")

    def check_admin(self) -> None:
        """Raises PermissionDenied."""
        if not self.entry.admin:
            raise PermissionDenied(f"the key '{self.entry.name}' may use the model, but not look at the service")

    def _spend(self, what: str, amount: float) -> None:
        if what in self._buckets:
            self._buckets[what].spend(amount, self._clock.now_s())


class Keys:
    """All keys of the file. A changed file is read again; a damaged one leaves the old keys in force and is logged."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Raises ConfigError when the file is missing or wrong."""
        self._path = path
        self._clock = clock
        self._checked_s = clock.now_s()
        self._stamp = self._current_stamp()
        self._callers: dict[str, Caller] = {}
        self._load()

    def caller(self, headers: Mapping[bytes, bytes]) -> Caller:
        """Who sends these headers: `Authorization: Bearer KEY` or `x-api-key: KEY`.

        Raises:
            Unauthenticated: no key, or none of ours.
        """
        self._reload_if_changed()
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        key = token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        if not key:
            raise Unauthenticated("no API key given; send the header 'Authorization: Bearer KEY'")
        # Looking up a hash leaks nothing of the key through timing.
        caller = self._callers.get(hashlib.sha256(key).hexdigest())
        if caller is None:
            raise Unauthenticated("this API key is not known here")
        return caller

    def _reload_if_changed(self) -> None:
        now_s = self._clock.now_s()
        if now_s - self._checked_s < CHECK_EVERY_S:
            return
        self._checked_s = now_s
        try:
            stamp = self._current_stamp()
            if stamp != self._stamp:
                self._stamp = stamp
                self._load()
                log.info("read %d API keys from %s", len(self._callers), self._path)
        except ConfigError as error:
            log.error("the old API keys stay in force: %s", error.message)

    def _current_stamp(self) -> tuple[int, int, int]:
        try:
            stat = self._path.stat()
        except OSError as error:
            raise ConfigError(f"cannot read the API keys file {self._path}: {error}") from error
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _load(self) -> None:
        """Entries that did not change keep what they have used of their rates."""
        entries = validate(KeysDocument, read_yaml(self._path)).keys
        if len({entry.sha256 for entry in entries}) < len(entries):
            raise ConfigError(f"the API keys file {self._path} has the same key twice")
        old = self._callers
        kept = {entry.sha256: old.get(entry.sha256) for entry in entries}
        self._callers = {
            entry.sha256: caller if (caller := kept[entry.sha256]) and caller.entry == entry else Caller(entry, self._clock)
            for entry in entries
        }
