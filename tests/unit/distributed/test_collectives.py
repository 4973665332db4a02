"""Shares of ranks, and which errors mean that another process has ended. `tests/processes` runs real groups."""

import pytest
import torch

from dpdmd.distributed.collectives import lost_peer_message, share


@pytest.mark.parametrize(("items", "processes"), [(8, 4), (7, 3), (2, 5), (1, 1)])
def test_shares_are_of_equal_length_and_cover_all_items(items, processes):
    """A rank with fewer items would leave the others waiting in a sharded network."""
    shares = [share(range(items), rank, processes) for rank in range(processes)]
    assert {len(one) for one in shares} == {-(-items // processes)}
    assert {item for one in shares for item in one} == set(range(items))
    if items % processes == 0:
        assert sum(map(len, shares)) == items  # nothing twice


def test_the_message_of_a_lost_process_is_one_line():
    gloo = RuntimeError(
        "[/pytorch/third_party/gloo/tcp/pair.cc:525] Read error [127.0.0.1]:4:\n reset by peer. Aborting"
    )
    assert lost_peer_message(gloo) == "Read error [127.0.0.1]:4: reset by peer"
    nccl = torch.distributed.DistBackendError("NCCL error: remote process exited. " + "x" * 500)
    assert lost_peer_message(nccl) == "NCCL error: remote process exited"


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), torch.OutOfMemoryError("CUDA out of memory")])
def test_other_errors_are_not_a_lost_process(error):
    assert lost_peer_message(error) is None
