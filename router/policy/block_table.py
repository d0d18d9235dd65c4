"""Numbers block names, in the order in which they are first heard of, and finds a prompt's blocks by walking along them.

Workers tell of blocks in the order of the prompt that filled them, so blocks that follow each other in a prompt mostly
have numbers that follow each other. One name is looked up, and then the prompt's keys are compared with the keys that
stand behind it: a thousand blocks cost a few random reads and one pass over memory that lies in order. Where a chain is
in too many pieces for that, the rest is looked up all at once.

Names are represented by keys of 64 bits, never zero. Among 10 million blocks a 1,500-block prompt meets a false key with
probability 1e-9, and a false promise costs time, never a wrong token. The look-up itself is by buckets of eight slots,
each bucket in one cache line; a slot holds a number and the upper half of its key, which is compared before the key is. A
key whose bucket is full goes to the next one. Knows nothing of holders, groups or prompts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]  # [n]
Places = NDArray[np.int64]  # [n], numbers of blocks; NOWHERE where a block is unknown

NO_KEY = np.uint64(0)  # marks an empty slot, so it names no block
NOWHERE = -1
_BUCKET = 8  # slots of 8 bytes in a cache line of 64
_MIN_BUCKETS = 64
_MAX_LOAD = 0.6
_MAX_PIECES = 12  # of a chain that are walked along; looking up the rest at once costs less than more of them
_TAG = np.uint64(0xFFFFFFFF_00000000)  # of a slot: the upper half of the key, its highest bit set; the rest is the number
_MARK = np.uint64(1 << 63)
_HALF = 32


class BlockTable:
    """Grows by doubling; not bounded by itself, its owner bounds what it numbers, and renumbers it before it is full."""

    def __init__(self) -> None:
        self._keys: Keys = np.empty(0, dtype=np.uint64)
        self._used = 0
        self._allocate(_MIN_BUCKETS)

    def __len__(self) -> int:
        return self._used

    def has_room(self, more: int) -> bool:
        """Whether so many names can be added without renumbering."""
        return self._used + more <= self._slots.size * _MAX_LOAD

    def find(self, keys: Keys) -> Places:
        """Where each block stands."""
        places, walked, _ = self._walk(keys)
        if walked < len(keys):
            places[walked:] = self._look_up(keys[walked:])
        return places

    def find_prefix(self, keys: Keys) -> Places:
        """Where the leading blocks stand, up to the first that is unknown."""
        places, walked, ended = self._walk(keys)
        if ended:
            return places[:walked]
        places[walked:] = self._look_up(keys[walked:])
        unknown = np.flatnonzero(places < 0)
        return places[: unknown[0]] if len(unknown) else places

    def number(self, keys: Keys) -> Places:
        """Where each block stands, after those that were unknown have got the next numbers. Keys may repeat. There must
        be room."""
        places = self.find(keys)
        unknown = np.flatnonzero(places < 0)
        if len(unknown):
            fresh = keys[unknown]
            first = np.unique(fresh, return_index=True)[1]
            if len(first) == len(fresh):
                places[unknown] = self._append(fresh)
            else:
                self._append(fresh[np.sort(first)])
                places[unknown] = self._look_up(fresh)
        return places

    def renumber(self, alive: NDArray[np.bool_], more: int) -> None:
        """Keep the blocks that are `alive`, in their order, so that they have the numbers 0, 1, 2 and so on, and make room
        for `more`."""
        kept = self._keys[: self._used][alive]
        buckets = _MIN_BUCKETS
        while len(kept) + more > buckets * _BUCKET * _MAX_LOAD * 0.75:
            buckets *= 2
        self._used = 0
        self._keys = np.empty(0, dtype=np.uint64)  # freed before what replaces it is taken
        self._allocate(buckets)
        self._append(kept)

    def _allocate(self, buckets: int) -> None:
        self._slots = _cache_aligned(buckets)  # [buckets, 8], filled from the left
        self._fill: NDArray[np.uint8] = np.zeros(buckets, dtype=np.uint8)

    def _walk(self, keys: Keys) -> tuple[Places, int, bool]:
        """Places of leading blocks, found by walking along pieces; how many they are; and whether they end there (they do
        not when there are more pieces than are worth it)."""
        places = np.full(len(keys), NOWHERE, dtype=np.int64)
        at, total = 0, len(keys)
        for _ in range(_MAX_PIECES):
            start = self._find_one(int(keys[at])) if at < total else NOWHERE
            if start == NOWHERE:
                return places, at, True
            size = min(total - at, self._used - start)
            same = self._keys[start : start + size] == keys[at : at + size]
            length = size if same.all() else int(same.argmin())
            places[at : at + length] = np.arange(start, start + length)
            at += length
        return places, at, at == total

    def _find_one(self, key: int) -> int:
        """As `_look_up` for one key, which is not worth an array's overhead."""
        bucket, tag = key & (len(self._slots) - 1), (key >> _HALF) | 1 << (_HALF - 1)
        while True:
            slots: list[int] = self._slots[bucket].tolist()
            for slot in slots:
                if slot >> _HALF == tag and int(self._keys[slot & 0xFFFFFFFF]) == key:
                    return slot & 0xFFFFFFFF
            if not slots[-1]:
                return NOWHERE
            bucket = (bucket + 1) & (len(self._slots) - 1)

    def _look_up(self, keys: Keys) -> Places:
        """Where each of many blocks stands, without regard to order."""
        places = np.full(len(keys), NOWHERE, dtype=np.int64)
        buckets, pending = self._home(keys), np.arange(len(keys))
        while len(pending):
            rows = self._slots.take(buckets, axis=0)
            tags = (keys[pending] & _TAG) | _MARK
            hits = np.flatnonzero((rows & _TAG) == tags[:, None])
            where, found = pending[hits // _BUCKET], (rows.reshape(-1)[hits] & ~_TAG).view(np.int64)
            true = self._keys[found] == keys[where]
            places[where[true]] = found[true]
            further = (rows[:, _BUCKET - 1] != NO_KEY) & (places[pending] < 0)  # past buckets that overflowed
            pending, buckets = pending[further], (buckets[further] + 1) & (len(self._slots) - 1)
        return places

    def _home(self, keys: Keys) -> Places:
        home: Places = (keys & np.uint64(len(self._slots) - 1)).view(np.int64)
        return home

    def _append(self, keys: Keys) -> Places:
        """Give distinct unknown keys the next numbers, and file them."""
        end = self._used + len(keys)
        if end > len(self._keys):
            grown = np.empty(max(end, len(self._keys) * 3 // 2, _MIN_BUCKETS), dtype=np.uint64)
            grown[: self._used] = self._keys[: self._used]
            self._keys = grown
        self._keys[self._used : end] = keys
        places = np.arange(self._used, end)
        self._used = end
        self._file(keys, places)
        return places

    def _file(self, keys: Keys, places: Places) -> None:
        slots = (keys & _TAG) | _MARK | places.view(np.uint64)
        buckets, pending, flat = self._home(keys), np.arange(len(keys)), self._slots.reshape(-1)
        while len(pending):
            order = np.argsort(buckets, kind="stable")
            pending, buckets = pending[order], buckets[order]
            first = np.searchsorted(buckets, buckets)  # where each bucket's run of newcomers starts
            column = self._fill[buckets] + np.arange(len(pending)) - first
            fits = column < _BUCKET
            flat[buckets[fits] * _BUCKET + column[fits]] = slots[pending[fits]]
            self._fill[buckets[fits]] = column[fits] + 1  # of a bucket's newcomers the last counts
            pending, buckets = pending[~fits], (buckets[~fits] + 1) & (len(self._slots) - 1)


def _cache_aligned(buckets: int) -> NDArray[np.uint64]:
    """Empty slots, [buckets, 8], each bucket in one cache line."""
    line = _BUCKET * 8
    raw = np.zeros(buckets * _BUCKET + _BUCKET, dtype=np.uint64)
    skip = (-raw.ctypes.data % line) // 8
    return raw[skip : skip + buckets * _BUCKET].reshape(buckets, _BUCKET)
