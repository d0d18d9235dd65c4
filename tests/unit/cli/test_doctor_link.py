"""What a measured path is said to be, and with whose settings it is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from kv_transport.probe import LaneRate, LinkReport
from prfaas.cli.app import app
from prfaas.cli.doctor_link import LinkQuestion, describe, examine_link, transport_settings
from prfaas.cli.screen import Screen
from prfaas.errors import WorkerUnreachable


def report(**changes: object) -> LinkReport:
    fields: dict[str, object] = {
        "address": "10.0.0.1:7000", "worker_id": "p-0", "site": "far", "tls": True, "connect_s": 0.062,
        "tls_connect_s": 0.021,
        "tls_s_per_gbyte": 0.45, "rtt_s": 0.02,
        "rtt_median_s": 0.021, "clock_skew_s": -0.003, "path_mtu_bytes": 1500, "loss_ratio": 0.0012,
        "rates": (LaneRate(1, 125e6), LaneRate(8, 1.25e9)), "recommended_lanes": 8,
    }  # fmt: skip
    return LinkReport(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_report_reads_as_sentences_with_units() -> None:
    assert describe(report()) == [
        "p-0 at far (10.0.0.1:7000), mutual TLS",
        "connecting takes 62.0 ms, a round trip 20.00 ms (median 21.00 ms)",
        "one lane carries 1.00 Gbit/s, 8 carry 10.00 Gbit/s: 8 are recommended",
        "TLS adds 21.0 ms to a new connection and 0.45 s of processor time to a GB, both ends together",
        "path MTU 1500 bytes, 0.120% of the bytes were sent again",
        "the clock there is 3.0 ms behind",
    ]


def test_what_the_system_does_not_tell_is_left_out_and_bad_clocks_are_pointed_at() -> None:
    lines = describe(report(path_mtu_bytes=0, clock_skew_s=2.0, tls=False))
    assert not any("MTU" in line for line in lines)
    assert lines[0].endswith("plaintext")
    assert lines[-1] == "the clock there is 2000.0 ms ahead; synchronise the clocks (chrony, NTP)"


def test_the_settings_are_those_of_the_site_that_will_use_the_path(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("model: m\nsites: []\ntransport: {max_lanes: 3, tls: {ca_file: /ca}}\n")
    given = transport_settings(LinkQuestion("h:1", file, allow_plaintext=True, probe_bytes=1))
    assert (given.max_lanes, given.tls.ca_file, given.tls.allow_plaintext) == (3, Path("/ca"), True)
    assert not transport_settings(LinkQuestion("h:1", None, allow_plaintext=False, probe_bytes=1)).tls.allow_plaintext


def test_nobody_there_is_an_error_that_says_what_to_look_for() -> None:
    question = LinkQuestion("127.0.0.1:1", None, allow_plaintext=False, probe_bytes=1)
    with pytest.raises(WorkerUnreachable, match="Is a prefill worker listening at 127"):
        examine_link(question, as_json=True, screen=Screen())


def test_doctor_alone_and_doctor_link_are_both_commands() -> None:
    assert "doctor" in [group.name for group in app.registered_groups]
