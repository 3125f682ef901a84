"""Processes of this machine that are the ranks of a torch.distributed group, for benchmarks and tests.

`run` starts one process, which imports torch and the function's module once and forks a rank each: so
four ranks are there after two seconds, and not after eight.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXCHANGE_TIMEOUT_S = 60.0


class RanksError(RuntimeError):
    """Ranks that failed, with what they said."""


def run(
    n: int,
    function: str,
    *arguments: Any,
    timeout_s: float = 120.0,
    exchange_timeout_s: float = EXCHANGE_TIMEOUT_S,
    dying: Sequence[int] = (),
    threads: int = 1,
) -> list[Any]:
    """Call a function on every rank of a new gloo group, and return what each returned.

    Parameters
    ----------
    n : int
        How many ranks.
    function : str
        "module:name"; found by this process's own ``sys.path``.
    *arguments
        Its own, the same on all ranks; pickled, as what it returns is.
    timeout_s : float
        After so long all are killed.
    exchange_timeout_s : float
        The group's own timeout.
    dying : sequence of int
        Ranks that are meant to die; they return None, and nobody waits for them at the end.
    threads : int
        Of torch and the optimizers, on each rank.

    Raises
    ------
    RanksError
        If a rank raised, died or was killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        call = (n, function, arguments, exchange_timeout_s, tuple(dying), threads)
        (Path(folder) / "call").write_bytes(pickle.dumps(call))
        environment = {
            "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": str(threads),
        }
        with subprocess.Popen(
            [sys.executable, __file__, folder],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that all of them can be ended together
        ) as process:
            try:
                said, _ = process.communicate(timeout=timeout_s)
                late = ""
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                said, _ = process.communicate()
                late = f"not done after {timeout_s:g} s\n"
        results, errors = [], [late] if late else []
        for rank in range(n):
            path = Path(folder) / f"result-{rank}"
            if path.exists():
                error, result = pickle.loads(path.read_bytes())
                results.append(result)
                errors += [f"rank {rank}: {error}"] if error else []
            elif rank in dying:
                results.append(None)
            else:
                errors.append(f"rank {rank} left no result\n")
        if errors:
            raise RanksError("".join(errors) + said)
        return results


def _main(folder: Path) -> None:
    n, function, arguments, exchange_timeout_s, dying, threads = pickle.loads(
        (folder / "call").read_bytes()
    )
    import torch.distributed

    module, name = function.split(":")
    called = getattr(importlib.import_module(module), name)
    children = {}
    for rank in range(n):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                torch.set_num_threads(threads)
                os.environ.update(RANK=str(rank), WORLD_SIZE=str(n))
                torch.distributed.init_process_group(
                    "gloo",
                    init_method=f"file://{folder}/store",
                    rank=rank,
                    world_size=n,
                    timeout=datetime.timedelta(seconds=exchange_timeout_s),
                )
                code = _call_and_keep(folder / f"result-{rank}", called, arguments)
                if code == 0 and not dying:
                    torch.distributed.barrier()
                    torch.distributed.destroy_process_group()
            except BaseException:  # noqa: BLE001 (nothing of the parent may run in the child)
                traceback.print_exc()
                code = code or 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children[pid] = rank
    while children:
        pid, status = os.wait()
        rank = children.pop(pid)
        if status != 0 and rank not in dying:
            time.sleep(1)  # others may fail of the same, and say more
            for other in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)


def _call_and_keep(path: Path, called: Any, arguments: Sequence[Any]) -> int:
    error, result = "", None
    try:
        result = called(*arguments)
    except Exception:  # noqa: BLE001 (the parent raises it)
        error = traceback.format_exc()
    part = path.with_suffix(".part")
    part.write_bytes(pickle.dumps((error, result)))
    part.rename(path)
    return 1 if error else 0


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
