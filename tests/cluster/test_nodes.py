"""Two more nodes join a head. In one run a node loses its raylet, the driver is killed and submitted again, and the other node
goes whole; in another a node is cut off, lives on, and comes back when its work is long done by others."""

from __future__ import annotations

import io
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from deltalake import DeltaTable

from pipeline.cluster.submit import submit
from tests.cluster.places import Place, stand
from tests.integration.conftest import make_job, rows, write_corpus
from tests.integration.test_kill import descendants, kill_tree, receipts
from tests.integration.test_submit import RAY, Head, free_port, started_head, token

__all__ = ["token"]  # a fixture


def wait_until(found: Callable[[], object]) -> None:
    for _ in range(12000):
        if found():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


def commands(pid: int) -> dict[int, str]:
    """What a process and those below it are called."""
    found = {}
    for number in descendants(pid):
        try:
            found[number] = Path(f"/proc/{number}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def raylets(node: subprocess.Popen[bytes]) -> list[int]:
    return [pid for pid, command in commands(node.pid).items() if "/raylet/raylet " in command]


def encodes(node: subprocess.Popen[bytes]) -> bool:
    return any("EncodeStage" in command for command in commands(node.pid).values())


def joined(log: Path) -> bool:
    return "Ray runtime started" in log.read_text()


@pytest.fixture(scope="module")
def places():
    """Where the head stands, and two more."""
    with stand(2) as found:
        yield found


@pytest.fixture(scope="module")
def head(places, tmp_path_factory):
    # What was asked of a node that is cut off is waited for until its connection is given up, by default seven minutes.
    settings = {"grpc_client_keepalive_time_ms": "20000", "grpc_client_keepalive_timeout_ms": "10000"}
    with started_head(tmp_path_factory.mktemp("ray"), places[0].address, **settings) as started:
        yield started


@contextmanager
def node_at(place: Place, head: Head, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One more node."""
    options = [f"--address={head.gcs}", "--block", "--num-cpus=1", "--object-store-memory=100000000"]
    options += [f"--node-ip-address={place.address}", "--disable-usage-stats"]
    log = folder / f"{secrets.token_hex(4)}.log"
    for _ in range(3):  # Ray gives a node 30 s to start, which a busy machine may not keep
        with open(log, "wb") as out:
            command = [*place.inside, RAY, "start", *options, f"--dashboard-agent-listen-port={free_port()}"]
            node = subprocess.Popen(command, env=head.env, stdout=out, stderr=out)
        try:
            wait_until(lambda node=node: node.poll() is not None or joined(log))  # type: ignore[misc]
            if node.poll() is None:
                yield node
                return
        finally:
            kill_tree(node)
    raise AssertionError(f"one more node does not start: {log.read_text()}")


@pytest.fixture
def nodes(places, head, tmp_path):
    """Two more nodes."""
    with node_at(places[1], head, tmp_path) as one, node_at(places[2], head, tmp_path) as other:
        yield [one, other]


def test_nodes_and_the_driver_are_killed_and_every_row_is_there_once(head, nodes, token, tmp_path, tiny_model):
    count, table = 720, tmp_path / "table"
    corpus = write_corpus(tmp_path / "corpus", [rows(count)])
    job = make_job(corpus, table, tiny_model, run__unit_rows=8, run__replicas=3)
    with ThreadPoolExecutor(1) as pool:
        # A raylet first: its workers end by themselves. The run goes on; then its driver goes.
        first = pool.submit(submit, job, head.url, io.StringIO())
        wait_until(lambda: first.done() or (receipts(table) >= 4 and any(map(encodes, nodes))))
        lost, left = sorted(nodes, key=encodes, reverse=True)
        (raylet,) = raylets(lost)
        os.kill(raylet, signal.SIGKILL)
        at_the_loss = receipts(table)
        wait_until(lambda: first.done() or (receipts(table) >= at_the_loss + 12 and not encodes(lost)))
        (driver,) = [
            pid
            for pid, command in commands(head.process.pid).items()
            if "-m jobs backfill" in command and "/bin/sh" not in command
        ]
        os.kill(driver, signal.SIGKILL)
        assert first.result() != 0
        between = receipts(table)
        assert at_the_loss + 12 <= between < count // 8
        assert not DeltaTable.is_deltatable(str(table))
        # The same again; now the other node goes as a whole, as a machine does.
        out = io.StringIO()
        second = pool.submit(submit, job, head.url, out)
        wait_until(lambda: second.done() or (receipts(table) > between and encodes(left)))
        kill_tree(left)
        assert receipts(table) < count // 8
        assert second.result() == 0, out.getvalue()
    assert f"{count} rows from {count} source rows (0 set aside)" in out.getvalue()
    ids = DeltaTable(str(table)).to_pyarrow_table(columns=["id"])["id"].to_pylist()
    assert sorted(ids) == sorted(f"r{number}" for number in range(count))


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("comes_back", [True, False])
def test_a_node_that_is_cut_off_and_lives_on_doubles_and_loses_nothing(
    head, places, nodes, tmp_path, tiny_model, *, comes_back
):
    count, table = 720, tmp_path / "table"
    corpus = write_corpus(tmp_path / "corpus", [rows(count)])
    job = make_job(corpus, table, tiny_model, run__unit_rows=8, run__replicas=3)
    out = io.StringIO()
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(submit, job, head.url, out)
        wait_until(lambda: run.done() or (receipts(table) >= 4 and any(map(encodes, nodes))))
        place, cut = max(zip(places[1:], nodes, strict=True), key=lambda pair: encodes(pair[1]))
        place.cut(cut)
        try:
            at_the_cut = receipts(table)
            assert at_the_cut < count // 8
            assert encodes(cut)  # it lives
            if comes_back:  # with what it did meanwhile, and the cluster has done without it
                wait_until(lambda: run.done() or "marked dead" in out.getvalue())
                place.heal(cut)
            assert run.result() == 0, out.getvalue()
        finally:
            place.heal(cut)
    assert f"{count} rows from {count} source rows (0 set aside)" in out.getvalue()
    ids = DeltaTable(str(table)).to_pyarrow_table(columns=["id"])["id"].to_pylist()
    assert sorted(ids) == sorted(f"r{number}" for number in range(count))
