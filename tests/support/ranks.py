"""Groups of real processes that are started once and run one function after another."""

import multiprocessing as mp
import os
import pickle
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from support.fresh import fresh_processes
from support.speed import in_time

PATIENCE = 300.0
"""Seconds that one function may take on all ranks, on an idle machine."""

MOST_THREADS = 60
"""Threads of a process with which it is still used for the next call. Each process group has three, which never rest,
and groups of a device mesh stay, since DTensor remembers meshes: hundreds of threads would take half the machine."""


class Ranks:
    """``world_size`` processes in one process group.

    Args:
        world_size: how many.
        backend: of torch.distributed; with NCCL, each process has a GPU of its own.
    """

    def __init__(self, world_size: int, backend: str = "gloo") -> None:
        self.world_size = world_size
        self.backend = backend
        self._workers: list[tuple[Any, Connection]] = []

    def run(self, function: Callable[..., Any], *args: Any, patience: float = PATIENCE) -> list[Any]:
        """Call a module-level function on every rank.

        A call that ends in any other way than by its results, also by an exception that a time-out or Ctrl-C raises
        here while it waits, ends the processes: no later call gets its answer.

        Args:
            function: pickled by its name.
            *args: pickled.
            patience: seconds that it may take on all ranks, on an idle machine.

        Returns:
            What each rank returned.

        Raises:
            RuntimeError: if a rank raised, died or took too long; the group is started anew for the next call.
        """
        try:
            if not self._workers:
                self._start()
            for _, pipe in self._workers:
                pipe.send_bytes(pickle.dumps((function, args)))
            results = [self._answer(rank, pipe, patience) for rank, (_, pipe) in enumerate(self._workers)]
            if any(pipe.recv() > MOST_THREADS for _, pipe in self._workers):
                self.stop()
            return results
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the processes."""
        workers, self._workers = self._workers, []
        for process, pipe in workers:
            pipe.close()
            process.terminate()
        for process, _ in workers:
            process.join(10)
            process.kill()
            process.join()

    def _answer(self, rank: int, pipe: Connection, patience: float) -> Any:
        try:
            if not in_time(pipe.poll, patience):
                raise EOFError(f"no answer in {patience:.0f} s of an idle machine")
            good, result = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError) as error:  # OSError: the other end was killed.
            good, result = False, repr(error)
        if not good:
            raise RuntimeError(f"rank {rank}: {result}")
        return result

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = mp.get_context("spawn") if "nccl" in self.backend else fresh_processes()
        for rank in range(self.world_size):
            ours, theirs = context.Pipe()
            args = (theirs, rank, self.world_size, port, sys.path, self.backend)
            process = context.Process(target=_serve, args=args, daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))


def _serve(pipe: Connection, rank: int, world_size: int, port: int, path: list[str], backend: str) -> None:
    sys.path[:] = path
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        GROUP_RANK="0",
        TORCHELASTIC_RUN_ID="tests",
    )
    import torch

    import support.environment  # noqa: F401

    if "nccl" in backend:
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(backend, rank=rank, world_size=world_size)
    while True:
        try:
            function, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = (True, function(*args))
        except BaseException:
            answer = (False, traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))
        pipe.send(len(os.listdir("/proc/self/task")) if sys.platform == "linux" else threading.active_count())
