"""Runs a function in several gloo processes on this machine and returns what each rank returned."""

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.patience import HANG_S

_PRELOADED = ["torch._dynamo", "cibhash.loop"]
"""What takes seconds to import, once for all processes of a test session instead of once for each; starts no thread."""


def run_gloo(world_size: int, function: Callable[..., Any], *args: Any, timeout_s: float = HANG_S) -> list[Any]:
    """Calls `function(*args)` on every rank of a fresh group.

    Args:
        world_size: Number of processes.
        function: Defined at the top of a module; it may use the default process group.
        args: Its arguments; they and the result must pickle.
        timeout_s: For the whole call, and for each collective in it.

    Returns:
        The results in rank order.

    Raises:
        RuntimeError: a rank raised (with its traceback) or died without an answer.
        TimeoutError: a rank did not answer in time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    deadline = time.monotonic() + timeout_s
    with tempfile.TemporaryDirectory() as folder:
        init_method = (Path(folder) / "rendezvous").as_uri()
        pending: dict[Connection, int] = {}
        processes = []
        try:
            for rank in range(world_size):
                receiver, sender = context.Pipe(duplex=False)
                arguments = (sender, init_method, rank, world_size, timeout_s, function, args)
                process = context.Process(target=_run_rank, args=arguments, daemon=True)
                process.start()
                sender.close()
                processes.append(process)
                pending[receiver] = rank
            return _collect(pending, world_size, deadline)
        finally:
            for process in processes:
                process.join(timeout=5 if not pending else 0)
                if process.is_alive():
                    process.kill()
                    process.join()


def _collect(pending: dict[Connection, int], world_size: int, deadline: float) -> list[Any]:
    results: list[Any] = [None] * world_size
    while pending:
        ready = wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"no answer in time from ranks {sorted(pending.values())}")
        for receiver in ready:
            assert isinstance(receiver, Connection)
            try:
                succeeded, value = pickle.loads(receiver.recv_bytes())
            except EOFError:
                raise RuntimeError(f"rank {pending[receiver]} of {world_size} died without an answer") from None
            if not succeeded:
                raise RuntimeError(f"rank {pending[receiver]} of {world_size} raised\n{value}")
            results[pending.pop(receiver)] = value
    return results


def _run_rank(
    sender: Connection,
    init_method: str,
    rank: int,
    world_size: int,
    timeout_s: float,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    # The host name of a container need not resolve; all ranks are on this machine.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=init_method,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
        value = function(*args)
        # Pickled here: tensors sent through a pipe as they are would live in memory that ends with this process.
        sender.send_bytes(pickle.dumps((True, value)))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        sender.send_bytes(pickle.dumps((False, traceback.format_exc())))
        raise
