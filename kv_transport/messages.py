"""Control messages of a transfer as plain values, and their protobuf form. Knows no framing and no sockets.

What arrives comes from another machine: every count that later sizes something is bounded here. A message that cannot be
a value is a ProtocolViolation, or an InvalidRequest where `prfaas.convert` says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from kv_transport.api import FirstTokens, GroupPlan, Offer, PrefillOrder
from kv_transport.session.coverage import offer_bytes
from prfaas.convert import (
    from_pb_fingerprint,
    from_pb_generation_request,
    from_pb_token_output,
    to_pb_fingerprint,
    to_pb_generation_request,
    to_pb_token_output,
    word,
)
from prfaas.errors import ProtocolViolation
from prfaas.modelspec import CacheGroup, DType, GroupKind, TensorSpec
from prfaas.pb import transfer_pb2
from prfaas.types import SiteId, TransferId, WorkerId

MAX_GROUPS = 64
MAX_LAYERS = 4096
MAX_TENSORS = 16
MAX_DIMENSIONS = 8
MAX_STATES = 4096
MAX_TOKENS = 2**31
MAX_ENTRY_BYTES = 2**30
MAX_SEQ_RANGES = 1 << 20
MAX_LANES = 4096
MIN_ID_CHARS = 16
MAX_ID_CHARS = 64


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a transfer will carry: the sender's offer with the transfer's identity."""

    transfer_id: TransferId
    sender: WorkerId
    sender_site: SiteId
    offer: Offer
    codec: str
    suggested_lanes: int


@dataclass(frozen=True, slots=True)
class Progress:
    """A sign of life. Raw bytes computed, and raw bytes handed to lanes, so far."""

    ready_bytes: int
    sent_bytes: int


@dataclass(frozen=True, slots=True)
class First:
    """The first tokens. `since_manifest_s` is the sender's time from manifest to the end of compute."""

    tokens: FirstTokens
    since_manifest_s: float


@dataclass(frozen=True, slots=True)
class PathStats:
    """What the sender's TCP saw on this transfer's lanes. Zero means unknown."""

    rtt_s: float = 0.0
    sent_bytes: int = 0
    retransmitted_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Digest:
    """The end of a transfer: how many chunks there are and the hash over everything (see `session.digest`)."""

    num_chunks: int
    wire_bytes: int
    sha256: bytes
    path: PathStats = PathStats()


@dataclass(frozen=True, slots=True)
class Attach:
    """A request for one more lane, or (resume) for a lane that replaces a broken one. `received` are seq ranges;
    `given_up` are lanes that will not come back, for whose chunks this lane asks as well."""

    transfer_id: TransferId
    lane: int
    resume: bool
    received: tuple[tuple[int, int], ...] = ()
    given_up: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    transfer_id: TransferId
    committed: bool
    reason: str = ""


def violation(message: str) -> ProtocolViolation:
    """A ProtocolViolation of a control message."""
    return ProtocolViolation(message, frame="control", state="decoding")


def bounded(value: int, limit: int, what: str) -> int:
    """`value`, or ProtocolViolation when it is above `limit`."""
    if value > limit:
        raise violation(f"{what} is {value}; at most {limit} is accepted")
    return value


def to_pb_order(order: PrefillOrder, transfer_id: TransferId) -> transfer_pb2.PrefillOrder:
    return transfer_pb2.PrefillOrder(
        transfer_id=transfer_id,
        request_id=order.request.request_id,
        fingerprint=to_pb_fingerprint(order.fingerprint),
        request=to_pb_generation_request(order.request),
        held_tokens=order.held_tokens,
        codecs=order.codecs,
        max_lanes=order.max_lanes,
        receiver=order.receiver,
        receiver_site=order.receiver_site,
    )


def from_pb_order(message: transfer_pb2.PrefillOrder) -> PrefillOrder:
    return PrefillOrder(
        request=from_pb_generation_request(message.request),
        fingerprint=from_pb_fingerprint(message.fingerprint),
        held_tokens=message.held_tokens,
        codecs=tuple(message.codecs),
        receiver=WorkerId(message.receiver),
        receiver_site=SiteId(message.receiver_site),
        max_lanes=max(1, message.max_lanes),
    )


def transfer_id_of(message: transfer_pb2.PrefillOrder) -> TransferId:
    """The id that the receiver chose. Raises ProtocolViolation for one that nobody would draw at random."""
    if not MIN_ID_CHARS <= len(message.transfer_id) <= MAX_ID_CHARS:
        raise violation(f"a transfer id has {MIN_ID_CHARS} to {MAX_ID_CHARS} characters, not {len(message.transfer_id)}")
    return TransferId(message.transfer_id)


def to_pb_plan(plan: GroupPlan) -> transfer_pb2.GroupPlan:
    group = plan.group
    tensors = [
        transfer_pb2.TensorLayout(name=t.name, shape=t.shape, wire_dtype=wire.value, dtype=t.dtype.value)
        for t, wire in zip(group.tensors, plan.wire_dtypes, strict=True)
    ]
    return transfer_pb2.GroupPlan(
        name=group.name,
        kind=group.kind.value,
        layers=group.layers,
        tensors=tensors,
        token_start=plan.token_start,
        token_stop=plan.token_stop,
        state_positions=plan.state_positions,
        window_tokens=group.window_tokens,
    )


def from_pb_plan(message: transfer_pb2.GroupPlan) -> GroupPlan:
    bounded(len(message.layers), MAX_LAYERS, "layers")
    bounded(len(message.tensors), MAX_TENSORS, "tensors")
    bounded(len(message.state_positions), MAX_STATES, "state_positions")
    bounded(message.token_stop, MAX_TOKENS, "token_stop")
    tensors = []
    for tensor in message.tensors:
        bounded(len(tensor.shape), MAX_DIMENSIONS, "dimensions of a tensor")
        spec = TensorSpec(tensor.name, tuple(tensor.shape), word(DType, tensor.dtype, "dtype"))
        bounded(spec.num_bytes, MAX_ENTRY_BYTES, "bytes of an entry")
        tensors.append(spec)
    group = CacheGroup(
        name=message.name,
        kind=word(GroupKind, message.kind, "group kind"),
        layers=tuple(message.layers),
        tensors=tuple(tensors),
        window_tokens=message.window_tokens if message.HasField("window_tokens") else None,
    )
    return GroupPlan(
        group=group,
        token_start=message.token_start,
        token_stop=message.token_stop,
        state_positions=tuple(message.state_positions),
        wire_dtypes=tuple(word(DType, t.wire_dtype, "wire_dtype") for t in message.tensors),
    )


def to_pb_manifest(manifest: Manifest) -> transfer_pb2.Manifest:
    return transfer_pb2.Manifest(
        transfer_id=manifest.transfer_id,
        sender=manifest.sender,
        sender_site=manifest.sender_site,
        num_tokens=manifest.offer.num_tokens,
        cached_tokens=manifest.offer.cached_tokens,
        codec=manifest.codec,
        groups=[to_pb_plan(plan) for plan in manifest.offer.groups],
        total_bytes=offer_bytes(manifest.offer),
        suggested_lanes=manifest.suggested_lanes,
    )


def from_pb_manifest(message: transfer_pb2.Manifest) -> Manifest:
    """Raises ProtocolViolation also when the stated total is not the sum of the groups or a group's name repeats."""
    bounded(len(message.groups), MAX_GROUPS, "groups")
    groups = tuple(from_pb_plan(plan) for plan in message.groups)
    if len({plan.group.name for plan in groups}) != len(groups):
        raise violation("two groups of the manifest have the same name")
    offer = Offer(num_tokens=message.num_tokens, cached_tokens=message.cached_tokens, groups=groups)
    if offer_bytes(offer) != message.total_bytes:
        raise violation(f"the manifest says {message.total_bytes} bytes, its groups are {offer_bytes(offer)}")
    return Manifest(
        transfer_id=TransferId(message.transfer_id),
        sender=WorkerId(message.sender),
        sender_site=SiteId(message.sender_site),
        offer=offer,
        codec=message.codec,
        suggested_lanes=message.suggested_lanes,
    )


def to_pb_first(first: First) -> transfer_pb2.FirstToken:
    return transfer_pb2.FirstToken(
        outputs=[to_pb_token_output(output) for output in first.tokens.outputs],
        queue_s=first.tokens.queue_s,
        prefill_s=first.tokens.prefill_s,
        since_manifest_s=first.since_manifest_s,
    )


def from_pb_first(message: transfer_pb2.FirstToken) -> First:
    outputs = tuple(from_pb_token_output(output) for output in message.outputs)
    return First(FirstTokens(outputs, message.queue_s, message.prefill_s), message.since_manifest_s)


def to_pb_digest(digest: Digest) -> transfer_pb2.Digest:
    path = transfer_pb2.PathStats(
        rtt_s=digest.path.rtt_s,
        sent_bytes=digest.path.sent_bytes,
        retransmitted_bytes=digest.path.retransmitted_bytes,
    )
    return transfer_pb2.Digest(num_chunks=digest.num_chunks, wire_bytes=digest.wire_bytes, sha256=digest.sha256, path=path)


def from_pb_digest(message: transfer_pb2.Digest) -> Digest:
    path = PathStats(message.path.rtt_s, message.path.sent_bytes, message.path.retransmitted_bytes)
    return Digest(message.num_chunks, message.wire_bytes, message.sha256, path)


def to_pb_attach(attach: Attach) -> transfer_pb2.AttachRequest:
    return transfer_pb2.AttachRequest(
        transfer_id=attach.transfer_id,
        lane=attach.lane,
        resume=attach.resume,
        received=[transfer_pb2.SeqRange(start=start, stop=stop) for start, stop in attach.received],
        given_up=attach.given_up,
    )


def from_pb_attach(message: transfer_pb2.AttachRequest) -> Attach:
    bounded(len(message.received), MAX_SEQ_RANGES, "received ranges")
    received = tuple((r.start, r.stop) for r in message.received)
    if any(stop <= start for start, stop in received):
        raise violation("a received range is empty")
    bounded(len(message.given_up), MAX_LANES, "lanes given up")
    return Attach(TransferId(message.transfer_id), message.lane, message.resume, received, tuple(message.given_up))
