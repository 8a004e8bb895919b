"""What is left of workers that are gone."""

from __future__ import annotations

import msgspec

from octoserve.patterns.online.supervisor.admin_metrics import fold
from octoserve.telemetry.metrics import Registry
from octoserve.telemetry.prometheus import render


def snapshot(count):
    registry = Registry()
    registry.counter("shed_total", "", ("reason",)).counter("queue").add(count)
    registry.gauge("connections", "", (), lambda: {(): 9.0})
    return registry.snapshot()


def test_counts_of_the_dead_add_up_and_their_gauges_go():
    folded = fold([fold([snapshot(1), snapshot(2)]), snapshot(4)])
    assert isinstance(msgspec.msgpack.decode(folded), list)
    page = render([folded, snapshot(8)]).decode()
    assert 'shed_total{reason="queue"} 15' in page
    assert "connections 9" in page
