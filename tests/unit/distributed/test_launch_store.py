"""One rank calls a function before there is a process group, and every rank gets its result or its error."""

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from dpdmd.distributed import launch_store
from dpdmd.distributed.launch_env import Launch
from dpdmd.models.hub_models import check_equal_pins


@pytest.fixture
def on_ranks(monkeypatch) -> Callable[..., list]:
    """Return a function that calls another on ranks, as threads with one store, and returns their results."""
    store, local = HashStore(), threading.local()
    monkeypatch.setattr(launch_store, "_store", lambda: store)
    monkeypatch.setattr(launch_store, "_next_call", lambda: 1)
    monkeypatch.setattr(launch_store, "read_launch", lambda: local.launch)

    def run(count: int, function: Callable[[int], object]) -> list:
        results: list = [None] * count

        def call(rank: int) -> None:
            local.launch = Launch(count, rank, rank, count)
            try:
                results[rank] = function(rank)
            except (ValueError, OSError) as error:
                results[rank] = error

        threads = [threading.Thread(target=call, args=(rank,)) for rank in range(count)]
        for thread in reversed(threads):
            thread.start()
        for thread in threads:
            thread.join(30)
        return results

    return run


def test_every_rank_gets_the_leaders_result(on_ranks):
    calls = []

    def function(rank: int) -> int:
        return launch_store.call_on_rank(0, lambda: calls.append(rank) or 7)

    assert on_ranks(3, function) == [7, 7, 7] and calls == [0]


def test_every_rank_raises_the_leaders_error(on_ranks):
    def refuse() -> None:
        raise ValueError("--teacher_id org/name: is gated")

    found = on_ranks(2, lambda rank: launch_store.call_on_rank(0, refuse))
    assert [(type(error), str(error)) for error in found] == [(ValueError, "--teacher_id org/name: is gated")] * 2


def test_each_machine_has_a_leader(on_ranks):
    """Ranks 0 and 1 on one machine, 2 and 3 on another."""
    found = on_ranks(4, lambda rank: launch_store.call_on_rank(rank // 2 * 2, lambda: rank))
    assert found == [0, 0, 2, 2]


def test_a_leader_that_is_gone_is_an_error(on_ranks, monkeypatch):
    monkeypatch.setattr(launch_store, "LONGEST_WAIT", timedelta(seconds=0.1))
    missing = on_ranks(2, lambda rank: rank == 0 or launch_store.call_on_rank(0, lambda: 1))[1]
    assert isinstance(missing, ConnectionError) and str(missing) == "rank 0 of this run is gone"


def test_ranks_with_different_commits_are_an_error():
    check_equal_pins([{"teacher_id": "org/name@a"}] * 2)
    with pytest.raises(ValueError, match="--teacher_id: org/name@a on rank 0, org/name@b on rank 1; give the commit"):
        check_equal_pins([{"teacher_id": "org/name@a"}, {"teacher_id": "org/name@b"}])
    with pytest.raises(ValueError, match="--clip_path: org/clip@a on rank 0, None on rank 1"):
        check_equal_pins([{"clip_path": "org/clip@a"}, {}])
