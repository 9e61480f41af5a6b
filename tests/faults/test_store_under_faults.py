"""A part of what `scripts/chaos` does, small enough for every test run."""

import pytest

from tests.faults.exercise import Exercise, audit
from tests.faults.proxy import KINDS, FaultProxy

FAULTS = 40


@pytest.mark.slow
def test_nothing_is_lost_or_damaged_on_a_bad_network(s3_server, tmp_path, monkeypatch):
    monkeypatch.setenv("KDSCALE_CACHE", str(tmp_path / "cache"))
    uri = f"s3://{s3_server.bucket}/faults"
    with FaultProxy(s3_server.endpoint, rate=0.25, seed=3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        exercise, rounds = Exercise(uri, tmp_path, seed=3), 0
        while proxy.injected < FAULTS or set(proxy.counts) < set(KINDS):
            exercise.round()
            rounds += 1
        print(dict(proxy.counts), dict(exercise.outcome.stopped))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    count, damaged = audit(uri, tmp_path)
    assert exercise.outcome.wrong + damaged == []
    assert count == rounds
