"""Calls on one rank whose result all ranks get, before the run has a process group.

The ranks meet at the store of the launch's rendezvous, which the process group uses afterwards.
"""

import itertools
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from dpdmd.distributed.launch_env import read_launch

Result = TypeVar("Result")
LONGEST_WAIT = timedelta(days=7)  # for a rank that downloads a model

_stores: list[Any] = []  # kept open, since rank 0 may host the store for the others
_next_call = itertools.count(1).__next__


def call_on_rank(leader: int, function: Callable[[], Result]) -> Result:
    """Call `function` on rank `leader` alone; return its result there and on every rank that waits for this leader.

    Every rank makes the same calls in the same order, though not all with the same leader.

    Raises:
        ValueError, OSError: raised by `function`; every rank that waits raises it.
        ConnectionError: the leader is gone.
    """
    launch = read_launch()
    if launch.processes == 1:
        return function()
    name, store = f"dpdmd/{_next_call()}/{leader}", _store()
    if launch.rank == leader:
        error, result = None, None
        try:
            result = function()
        except (ValueError, OSError) as raised:
            error = raised
        store.set(name, pickle.dumps((result, error)))
    else:
        try:
            store.wait([name], LONGEST_WAIT)
            result, error = pickle.loads(store.get(name))
        except RuntimeError:
            raise ConnectionError(f"rank {leader} of this run is gone") from None
    if error is not None:
        raise error
    return result


def _store() -> Any:
    """Return the store of the rendezvous, and open it at the first call."""
    if not _stores:
        import torch.distributed

        _stores.append(next(iter(torch.distributed.rendezvous("env://")))[0])
    return _stores[0]
