"""Decoding in child processes: results, and what a picture that kills, hangs or fills its process costs."""

from __future__ import annotations

import io
import os
import select
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from actors.errors import ClusterError, ConfigError
from actors.images import workers
from actors.images.decode import decode_picture
from actors.images.errors import UnfitPicture
from actors.images.pdf import PdfDocument
from actors.images.settings import PictureSettings
from actors.images.workers import DecodeJob, DecodePool, PageJob, PdfFile, decode_pool
from tests.toys.pdfs import RED_CORNER, encryption, pdf_of

SETTINGS = PictureSettings(3136, 10_000)

# A child whose Pillow fails in the ways that libraries in C do.
FRAIL = """
import os, resource, signal, time
from actors.images import child
real = child.decode_picture
def decode_picture(data, settings):
    if data == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if data == b"hang":
        time.sleep(1000)
    if data == b"print":
        os.write(1, b"x" * 1000)
        os.write(2, b"x" * 1000)
    if data == b"memory":
        bytearray(child.MEMORY_BYTES)
    if data == b"number":
        raise child.UnfitPicture("bad_picture", str(os.getpid()))
    return real(data, settings)
child.decode_picture = decode_picture
child.main()
"""


@pytest.fixture
def frail(monkeypatch):
    monkeypatch.setattr(workers, "_PROGRAM", ("-c", FRAIL))


def picture(colour: bytes) -> bytes:
    """A GIF of 28 x 28 pixels in one colour."""
    out = io.BytesIO()
    Image.new("RGB", (28, 28), tuple(colour)).save(out, "GIF")
    return out.getvalue()


@pytest.mark.slow
def test_results_are_those_of_this_process_and_in_order(tmp_path):
    pdf = pdf_of([RED_CORNER] * 6, count=3, page=b"/MediaBox [0 0 %d00 200]")
    (tmp_path / "a.pdf").write_bytes(pdf)
    files = [PdfFile(str(tmp_path / "a.pdf")) for _ in range(2)]
    colours = [picture(bytes([level, 0, 0])) for level in range(10)]
    with DecodePool(2) as pool:
        assert [len(pool.boxes(file)) for file in files] == [6, 6]
        jobs = [PageJob(file, page, SETTINGS, text=True) for page in range(1, 8) for file in files]
        found = list(pool.run(jobs + [DecodeJob(data, SETTINGS) for data in colours]))
        pages, pictures = found[:14], found[14:]
        with PdfDocument(pdf) as opened:
            for page in range(1, 7):
                assert pages[2 * page - 2 : 2 * page] == [opened.render(page, SETTINGS, text=True)] * 2
        assert [(r.reason, r.error) for r in pages[12:] if isinstance(r, UnfitPicture)] == [
            ("bad_page", "page 7 is damaged or missing")
        ] * 2
        assert pictures == [decode_picture(data, SETTINGS) for data in colours]
        (tmp_path / "locked.pdf").write_bytes(pdf_of([b""], trailer=encryption(b"user", b"owner")))
        locked = PdfFile(str(tmp_path / "locked.pdf"))
        for _ in range(4):
            with pytest.raises(UnfitPicture, match="password"):
                pool.boxes(locked)
        with pytest.raises(UnfitPicture, match="FileNotFoundError"):
            pool.boxes(PdfFile(str(tmp_path / "gone.pdf")))


@pytest.mark.slow
@pytest.mark.usefixtures("frail")
def test_a_picture_that_kills_or_hangs_its_process_costs_only_itself():
    good = picture(b"\xff\x00\x00")
    datas = [good, b"crash", good, b"hang", b"print", b"memory", b"crash", good]
    with DecodePool(1, timeout_s=3.0) as pool:
        found = list(pool.run(DecodeJob(data, SETTINGS) for data in datas))
    reasons = [result.reason if isinstance(result, UnfitPicture) else "" for result in found]
    assert reasons == ["", "killed_process", "", "timed_out", "bad_picture", "bad_picture", "killed_process", ""]
    assert "SIGSEGV" in str(found[1])
    assert "longer than 3 s" in str(found[3])
    assert "MemoryError" in str(found[5])


@pytest.mark.slow
@pytest.mark.usefixtures("frail")
def test_a_child_that_died_between_two_pictures_costs_nothing():
    number = DecodeJob(b"number", SETTINGS)
    with DecodePool(1) as pool:
        (first,) = pool.run([number])
        os.kill(int(str(first)), 9)
        (second,) = pool.run([number])
    assert isinstance(second, UnfitPicture)
    assert second.reason == "bad_picture"
    assert str(second) != str(first)


@pytest.mark.slow
def test_only_a_few_jobs_are_taken_ahead():
    taken = 0

    def jobs():
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield DecodeJob(b"text", SETTINGS)

    with DecodePool(1) as pool:
        results = pool.run(jobs())
        next(results)
        assert taken == 3


def test_a_child_that_cannot_start_is_an_error_of_the_machine(monkeypatch):
    monkeypatch.setattr(workers, "_PROGRAM", ("-c", "import sys; sys.exit(3)"))
    with DecodePool(1) as pool, pytest.raises(ClusterError, match="exit code 3"):
        list(pool.run([DecodeJob(b"", SETTINGS)]))


def test_missing_libraries_are_named_with_the_way_to_install_them(monkeypatch):
    monkeypatch.setattr(workers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"Pillow and pypdfium2.*pip install 'vectide\[pages\]'"):
        DecodePool(1)


@pytest.mark.slow
def test_results_are_kept_for_one_more_use_up_to_a_limit(monkeypatch, tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf_of([RED_CORNER]))

    def jobs() -> list[DecodeJob | PageJob]:
        pdf = PdfFile(str(tmp_path / "a.pdf"), "content of a.pdf")
        pictures = [DecodeJob(picture(bytes([level, 0, 0])), SETTINGS) for level in range(3)]
        return [
            PageJob(pdf, 1, SETTINGS),
            DecodeJob(b"text", SETTINGS),
            *pictures,
            PageJob(pdf, 1, SETTINGS, text=True),
        ]

    size_bytes = len(decode_picture(picture(b"\0\0\0"), SETTINGS).pixels)
    monkeypatch.setattr(workers, "KEPT_BYTES", 4 * size_bytes)
    decoded = []
    plain = DecodePool._do

    def recorded(pool, job, key):
        decoded.append(job)
        return plain(pool, job, key)

    monkeypatch.setattr(DecodePool, "_do", recorded)
    with DecodePool(1) as pool:
        with pool.keeping():
            first = list(pool.run(jobs()))
        assert len(decoded) == 6
        for fresh in (2, 6):
            decoded.clear()
            assert [str(result) for result in pool.run(jobs())] == [str(result) for result in first]
            assert len(decoded) == fresh


@pytest.mark.slow
def test_a_process_has_one_pool_that_threads_share():
    with ThreadPoolExecutor(2) as threads:
        job = DecodeJob(picture(b"\x00\x00\xff"), SETTINGS)
        pools = list(threads.map(lambda _: decode_pool(), range(2)))
        found = list(threads.map(lambda pool: list(pool.run([job] * 3)), pools))
    assert decode_pool() is pools[0]
    assert found[0] == found[1] == [decode_picture(job.data, SETTINGS)] * 3
    child = os.fork()
    if child == 0:  # a forked process has none of its threads
        os._exit(0 if decode_pool() is not pools[0] else 1)
    assert os.waitpid(child, 0)[1] == 0
    pools[0].close()
    workers.forget_pool()


@pytest.mark.slow
def test_the_end_of_a_process_does_not_wait_for_a_page_that_hangs():
    script = f"""
from actors.images.workers import *
from actors.images import workers
from actors.threads import unawaited_threads
workers._PROGRAM = ("-c", {FRAIL!r})
limit_children(1)
settings = PictureSettings(3136, 10_000)
results = decode_pool().run([DecodeJob(b"number", settings), DecodeJob(b"hang", settings)])
next(results)
with unawaited_threads(1) as threads:
    threads.submit(next, results)
    raise KeyboardInterrupt
"""
    root = str(Path(workers.__file__).parents[2])
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, cwd=root, text=True) as process:
        assert ends(os.pidfd_open(process.pid))
        assert process.stderr is not None
        assert process.stderr.read().endswith("KeyboardInterrupt\n")


def ends(process: int) -> bool:
    """Whether a process, given as a descriptor, ends within a quarter of the time that a page may take."""
    ended = select.poll()
    ended.register(process, select.POLLIN)
    found = ended.poll(30_000)
    os.close(process)
    return bool(found)


@pytest.mark.slow
def test_children_end_with_a_parent_that_is_killed():
    """The parent has no `__main__` guard, its child renders when it dies, and nothing tells the child."""
    script = f"""
from actors.images.workers import *
from actors.images import workers
workers._PROGRAM = ("-c", {FRAIL!r})
pool = DecodePool(1)
settings = PictureSettings(3136, 10_000)
results = pool.run([DecodeJob(b"number", settings), DecodeJob(b"hang", settings), DecodeJob(b"hang", settings)])
print(next(results), flush=True)
next(results)
"""
    root = str(Path(workers.__file__).parents[2])
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=root, text=True) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    assert ends(child)
