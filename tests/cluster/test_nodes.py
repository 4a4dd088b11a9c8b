"""Runs on a head and two more nodes that fail.

In one run a raylet is killed, then the driver is killed and submitted again, then all of the other node is killed. In
another a running node is disconnected, and connected again after others have done its work.
"""

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


def wait_until(condition: Callable[[], object]) -> None:
    for _ in range(12000):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("the condition was not met in time")


def commands(pid: int) -> dict[int, str]:
    """Return the command lines of a process and its descendants by pid."""
    lines = {}
    for number in descendants(pid):
        try:
            lines[number] = Path(f"/proc/{number}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return lines


def raylets(node: subprocess.Popen[bytes]) -> list[int]:
    return [pid for pid, command in commands(node.pid).items() if "/raylet/raylet " in command]


def encodes(node: subprocess.Popen[bytes]) -> bool:
    return any("EncodeStage" in command for command in commands(node.pid).values())


def joined(log: Path) -> bool:
    return "Ray runtime started" in log.read_text()


@pytest.fixture(scope="module")
def places():
    """Places of the head and of two more nodes."""
    with stand(2) as all_places:
        yield all_places


@pytest.fixture(scope="module")
def head(places, tmp_path_factory):
    # A request to a disconnected node waits until the connection times out, which takes seven minutes by default.
    settings = {"grpc_client_keepalive_time_ms": "20000", "grpc_client_keepalive_timeout_ms": "10000"}
    with started_head(tmp_path_factory.mktemp("ray"), places[0].address, **settings) as started:
        yield started


@contextmanager
def node_at(place: Place, head: Head, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start one more node."""
    options = [f"--address={head.gcs}", "--block", "--num-cpus=1", "--object-store-memory=100000000"]
    options += [f"--node-ip-address={place.address}", "--disable-usage-stats"]
    log = folder / f"{secrets.token_hex(4)}.log"
    for _ in range(3):  # a busy machine may exceed the 30 s that Ray allows a node to start
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
    raise AssertionError(f"the node does not start: {log.read_text()}")


@pytest.fixture
def nodes(places, head, tmp_path):
    """Two more nodes."""
    with node_at(places[1], head, tmp_path) as one, node_at(places[2], head, tmp_path) as other:
        yield [one, other]


def test_every_row_is_stored_once_after_nodes_and_the_driver_are_killed(head, nodes, token, tmp_path, tiny_model):
    count, table = 720, tmp_path / "table"
    corpus = write_corpus(tmp_path / "corpus", [rows(count)])
    job = make_job(corpus, table, tiny_model, run__unit_rows=8, run__replicas=3)
    with ThreadPoolExecutor(1) as pool:
        # Kill a raylet: its workers end by themselves and the run continues. Then kill the driver.
        first = pool.submit(submit, job, head.url, io.StringIO())
        wait_until(lambda: first.done() or (receipts(table) >= 4 and any(map(encodes, nodes))))
        lost, remaining = sorted(nodes, key=encodes, reverse=True)
        (raylet,) = raylets(lost)
        os.kill(raylet, signal.SIGKILL)
        receipts_at_loss = receipts(table)
        wait_until(lambda: first.done() or (receipts(table) >= receipts_at_loss + 12 and not encodes(lost)))
        (driver,) = [
            pid
            for pid, command in commands(head.process.pid).items()
            if "-m jobs backfill" in command and "/bin/sh" not in command
        ]
        os.kill(driver, signal.SIGKILL)
        assert first.result() != 0
        receipts_after_first = receipts(table)
        assert receipts_at_loss + 12 <= receipts_after_first < count // 8
        assert not DeltaTable.is_deltatable(str(table))
        # Submit it again, and kill all processes of the other node.
        out = io.StringIO()
        second = pool.submit(submit, job, head.url, out)
        wait_until(lambda: second.done() or (receipts(table) > receipts_after_first and encodes(remaining)))
        kill_tree(remaining)
        assert receipts(table) < count // 8
        assert second.result() == 0, out.getvalue()
    assert f"{count} rows from {count} source rows (0 quarantined, " in out.getvalue()
    ids = DeltaTable(str(table)).to_pyarrow_table(columns=["id"])["id"].to_pylist()
    assert sorted(ids) == sorted(f"r{number}" for number in range(count))


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("comes_back", [True, False])
def test_a_disconnected_node_neither_duplicates_nor_loses_rows(
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
            receipts_at_cut = receipts(table)
            assert receipts_at_cut < count // 8
            assert encodes(cut)  # its processes still run
            if comes_back:  # after the cluster has marked it dead
                wait_until(lambda: run.done() or "marked dead" in out.getvalue())
                place.heal(cut)
            assert run.result() == 0, out.getvalue()
        finally:
            place.heal(cut)
    assert f"{count} rows from {count} source rows (0 quarantined, " in out.getvalue()
    ids = DeltaTable(str(table)).to_pyarrow_table(columns=["id"])["id"].to_pylist()
    assert sorted(ids) == sorted(f"r{number}" for number in range(count))
