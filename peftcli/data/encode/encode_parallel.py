"""Encode chunks of rows here, or in several processes when there are many."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from peftcli.data.encode.encode_worker import ChunkResult, Worker
from peftcli.data.encode.encoded import FlatRows
from peftcli.data.read.records import Record
from peftcli.data.recognition.row_format import RecognisedFormat
from peftcli.distributed.usable_cores import usable_cores
from peftcli.errors import Problem, UserError
from peftcli.process_state import become_encoder

LARGE = 48_000_000  # bytes of input from which the seconds that worker processes take to start are won back
MOST = 16  # processes that are started without being asked for: one reader cannot feed more


def encode_chunks(
    arguments: tuple[Any, Any, str | None],
    found: RecognisedFormat,
    chunks: Iterable[list[Record]],
    size: int,
    processes: int | None,
    statistics: Counter[str],
) -> Iterator[ChunkResult]:
    """Yield the result of every chunk in order; `statistics` receives the encoders' counts at the end.

    Args:
        arguments: of `Worker`.
        size: bytes of the input, which decide about processes when `processes` is None.
    """
    wanted = processes or (min(usable_cores(), MOST) if size >= LARGE else 1)
    if wanted > 1:
        yield from _in_processes(arguments, found, chunks, wanted, statistics)
        return
    worker = Worker(*arguments)
    for chunk in chunks:
        yield worker(found, chunk)
    statistics.update(worker.statistics())


_worker: Worker | None = None  # of a worker process: set once by its initialiser


def _start(arguments: tuple[Any, Any, str | None]) -> None:
    global _worker
    become_encoder()
    _worker = Worker(*arguments)


def _encode(found: RecognisedFormat, chunk: Sequence[Record]) -> tuple[ChunkResult, FlatRows, dict[str, int]]:
    assert _worker is not None  # the pool's initialiser ran
    before = Counter(_worker.statistics())
    result = _worker(found, chunk)
    flat = FlatRows.of(result.rows)
    result.rows = []
    return result, flat, dict(Counter(_worker.statistics()) - before)


def _in_processes(
    arguments: tuple[Any, Any, str | None],
    found: RecognisedFormat,
    chunks: Iterable[list[Record]],
    processes: int,
    statistics: Counter[str],
) -> Iterator[ChunkResult]:
    """Encode with a bounded number of chunks under way, so that memory stays flat."""
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    waiting: deque[Future[tuple[ChunkResult, FlatRows, dict[str, int]]]] = deque()

    def first() -> ChunkResult:
        result, flat, counts = waiting.popleft().result()
        result.rows = flat.rows()
        statistics.update(counts)
        return result

    try:
        # spawn: a forked child would inherit the tokenizer's and torch's threads in whatever state they are
        with ProcessPoolExecutor(processes, get_context("spawn"), _start, (arguments,)) as pool:
            try:
                for chunk in chunks:
                    waiting.append(pool.submit(_encode, found, chunk))
                    if len(waiting) > 2 * processes:
                        yield first()
                while waiting:
                    yield first()
            except BaseException:  # Ctrl-C or a broken row: what was not begun is not done
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool as error:
        text = "a process that prepared rows was killed, perhaps because memory ran out"
        raise UserError(Problem(text, key="data.num_proc", suggestion="set data.num_proc: 1")) from error
