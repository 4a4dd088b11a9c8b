"""Pool of child processes that decode pictures and render pages.

A malformed file may crash or hang a library in C, or take all memory. In a child this costs one page: the child is ended
and replaced. PDFium is not thread-safe, so that each child has one thread. Children are started as programs, which works
in any parent: a worker of Ray, a test, a notebook, a script without a `__main__` guard.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import blake2b
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from actors.errors import ClusterError, ConfigError
from actors.images.child import read_frame, write_frame
from actors.images.decode import Picture
from actors.images.errors import UnfitPicture
from actors.images.pdf import Box
from actors.images.settings import PictureSettings
from actors.progress_counter import count_progress

TIMEOUT_S = 120.0  # for one picture or page
KEPT_BYTES = 512 << 20  # of results that are kept for a second use

_START_S = 120.0
_PROGRAM = ("-m", "actors.images.child")
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    # Keep the memory of a page for the next page: to get it from the kernel again costs a fifth of the time.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}
_NUMBERS = count()
_pool_children: int | None = None
_pool_lock = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class PdfFile:
    """A PDF whose pages are decoded; a child opens it once for all pages that it gets in a row.

    Attributes:
        path: Local path.
        content: What identifies its content; None: nothing does.
    """

    path: str
    content: Hashable = None
    number: int = field(default_factory=_NUMBERS.__next__, init=False)


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """A picture to decode: the content of its file."""

    data: bytes
    settings: PictureSettings


@dataclass(frozen=True, slots=True)
class PageJob:
    """A page to render, from 1, and its text layer if `text` is set."""

    pdf: PdfFile
    page: int
    settings: PictureSettings
    text: bool = False


@dataclass(frozen=True, slots=True)
class _BoxesJob:
    pdf: PdfFile


_Job = DecodeJob | PageJob | _BoxesJob
_Message = tuple[dict[str, Any], bytes]  # header and body


class DecodePool:
    """Child processes that decode; a context manager. May be used by several threads.

    Args:
        children: Number of processes; by default as many as this process may use cores. They start when there is work.
        timeout_s: A picture or page that takes longer is given up.

    Raises:
        ConfigError: Pillow or pypdfium2 is not installed.
    """

    def __init__(self, children: int | None = None, timeout_s: float = TIMEOUT_S) -> None:
        need_libraries()
        self._size = children or len(os.sched_getaffinity(0))
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(self._size, "decode")
        self._own = threading.local()  # the child of a thread
        self._children: list[_Child] = []
        self._keeps = False
        self._kept: dict[Hashable, Picture | UnfitPicture] = {}
        self._kept_bytes = 0
        self._keeping = threading.Lock()

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep the results of the jobs in this block, up to `KEPT_BYTES`; `run` gives each to the next equal job."""
        self._keeps = True
        try:
            yield
        finally:
            self._keeps = False

    def forget(self) -> None:
        """Drop the kept results."""
        with self._keeping:
            self._kept, self._kept_bytes = {}, 0

    def run(self, jobs: Iterable[DecodeJob | PageJob]) -> Iterator[Picture | UnfitPicture]:
        """Yield the result of each job, in their order; takes only a few jobs ahead.

        A job that fails gives an `UnfitPicture`, and so does one that kills its process or takes too long.
        """
        waiting: deque[Future[Any]] = deque()
        try:
            for job in jobs:
                waiting.append(self._started(job))
                if len(waiting) > 2 * self._size:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _started(self, job: DecodeJob | PageJob) -> Future[Any]:
        """The result of a job to come: a kept one, or that of a thread."""
        key = _key(job) if self._keeps or self._kept else None
        with self._keeping:
            result = None if self._keeps else self._kept.pop(key, None)
            self._kept_bytes -= _bytes(result)
        if result is None:
            return self._threads.submit(self._do, job, key)
        future: Future[Any] = Future()
        future.set_result(result)
        return future

    def boxes(self, pdf: PdfFile) -> list[Box | None]:
        """Return the sizes of the pages of a PDF; see `actors.images.pdf.PdfDocument.boxes`.

        Raises:
            UnfitPicture: it cannot be opened.
        """
        found = self._threads.submit(self._do, _BoxesJob(pdf)).result()
        if isinstance(found, UnfitPicture):
            raise found
        boxes: list[Box | None] = found
        return boxes

    def _do(self, job: _Job, key: Hashable = None) -> Any:
        """The result of a job. Runs in one of the threads."""
        child = getattr(self._own, "child", None)
        if child is None:
            child = self._own.child = _Child()
            self._children.append(child)
        result = child.do(job, self._timeout_s)
        count_progress()
        with self._keeping:
            has_room = self._kept_bytes + _bytes(result) <= KEPT_BYTES
            if self._keeps and has_room and key is not None and key not in self._kept:
                self._kept_bytes += _bytes(result)
                self._kept[key] = result
        return result

    def close(self) -> None:
        """End all children; jobs that run give an `UnfitPicture`."""
        for child in self._children:
            child.kill()
        self._threads.shutdown(cancel_futures=True)
        for child in self._children:
            child.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _key(job: DecodeJob | PageJob) -> Hashable:
    """Return what determines the result of a job; None if it is not known."""
    if isinstance(job, DecodeJob):
        return blake2b(job.data).digest(), job.settings
    return None if job.pdf.content is None else (job.pdf.content, job.page, job.settings, job.text)


def _bytes(result: Picture | UnfitPicture | None) -> int:
    return len(result.pixels) if isinstance(result, Picture) else 0


class _Child:
    """A child process, seen from its parent. Used by one thread; only `kill` may be called by another."""

    def __init__(self) -> None:
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None

    def do(self, job: _Job, timeout_s: float) -> Any:
        """Return the result of a job; start the process if there is none."""
        fresh = self._process is None
        answer, late = self._ask(job, timeout_s)
        if answer is None and not (
            late or fresh or self._closed
        ):  # the memory that earlier jobs left may have killed it
            self.end()
            answer, late = self._ask(job, timeout_s)
        if answer is None:
            cause = self.end()
            if late:
                return UnfitPicture("timed_out", f"decoding took longer than {timeout_s:g} s")
            return UnfitPicture("killed_process", f"the process that decoded it died: {cause}")
        header, body = answer
        if "reason" in header:
            return UnfitPicture(header["reason"], header["error"])
        if isinstance(job, _BoxesJob):
            return [box and (box[0], box[1]) for box in header["boxes"]]
        return Picture(body, header["frames"], tuple(header["notes"]), header["text"])

    def _ask(self, job: _Job, timeout_s: float) -> tuple[_Message | None, bool]:
        """The answer of the process, or None if it died; and if it was ended because it took too long."""
        process = self._started()
        return _exchange(process, self._request(job), timeout_s)

    def _request(self, job: _Job) -> tuple[dict[str, Any], bytes]:
        """Header and body of the message for a job."""
        if isinstance(job, DecodeJob):
            return {"do": "decode", "settings": asdict(job.settings)}, job.data
        header = {"do": "boxes", "pdf": job.pdf.number, "path": os.path.abspath(job.pdf.path)}
        if isinstance(job, PageJob):
            header |= {"do": "page", "page": job.page, "settings": asdict(job.settings), "text": job.text}
        return header, b""

    def _started(self) -> subprocess.Popen[bytes]:
        """The process, after its imports."""
        if self._process is None:
            root = str(Path(__file__).parents[2])
            paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
            self._process = subprocess.Popen(  # noqa: S603  (this package itself)
                [sys.executable, "-P", *_PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)},
            )
            if self._closed:
                self._process.kill()
            if _exchange(self._process, None, _START_S)[0] is None:
                raise ClusterError(f"A process that decodes pictures did not start: {self.end()}")
        return self._process

    def kill(self) -> None:
        """Kill the process for good; a thread that waits for its answer gets none."""
        self._closed = True
        if (process := self._process) is not None:
            process.kill()

    def end(self) -> str:
        """End the process and return its end in words."""
        process, self._process = self._process, None
        if process is None:
            return "it had ended"
        process.kill()
        process.communicate()
        code = process.returncode
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _exchange(
    process: subprocess.Popen[bytes], request: _Message | None, timeout_s: float
) -> tuple[_Message | None, bool]:
    """Send a request, if there is one, and return the answer, or None if the process died; and if time ran out."""
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(timeout_s, give_up)
    timer.daemon = True
    timer.start()
    try:
        if request is not None:
            write_frame(cast("BinaryIO", process.stdin), *request)
        return read_frame(cast("BinaryIO", process.stdout)), late.is_set()
    except OSError:  # the pipe has no other end
        return None, late.is_set()
    finally:
        timer.cancel()


def need_libraries() -> None:
    """Raise `ConfigError` if Pillow or pypdfium2 is not installed."""
    missing = [name for name, module in (("Pillow", "PIL"), ("pypdfium2", "pypdfium2")) if find_spec(module) is None]
    if missing:
        raise ConfigError(f"Pictures need {' and '.join(missing)}. Install it: pip install 'vectide[pages]'")


def decode_pool() -> DecodePool:
    """Return the pool of this process, made on first use and ended with it."""
    with _pool_lock:
        return _own_pool()


@lru_cache(maxsize=1)
def _own_pool() -> DecodePool:
    pool = DecodePool(_pool_children)
    # Called before the threads of executors are awaited at the end of the process; `atexit` calls after that.
    threading._register_atexit(pool.close)  # type: ignore[attr-defined]  # noqa: SLF001  (there is no public one)
    return pool


def forget_pool() -> None:
    """Make a new pool at the next use. A fork has none of its parent's threads, and the children stay with the parent."""
    global _pool_lock  # noqa: PLW0603  (another thread of the parent may hold it)
    _pool_lock = threading.Lock()
    _own_pool.cache_clear()


def limit_children(children: int) -> None:
    """Let the pool of this process have so many children; call it before the pool is made.

    A worker of a cluster has one core, while other workers use the others.
    """
    global _pool_children  # noqa: PLW0603  (one pool a process has one size)
    _pool_children = children


os.register_at_fork(after_in_child=forget_pool)
