"""Two more nodes join a head; one loses its raylet, the driver is killed and submitted again, the other node goes whole."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from deltalake import DeltaTable

from pipeline.submit import submit
from tests.integration.conftest import make_job, rows, write_corpus
from tests.integration.test_kill import descendants, kill_tree, receipts
from tests.integration.test_submit import RAY, free_port, head, token

__all__ = ["head", "token"]  # fixtures


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


@pytest.fixture
def nodes(head, tmp_path):
    """Two more nodes."""
    options = [f"--address={head.gcs}", "--block", "--num-cpus=1", "--object-store-memory=100000000"]
    options += ["--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(6):  # Ray gives a node 30 s to start, which a busy machine may not keep
            log = tmp_path / f"node-{number}.log"
            with open(log, "wb") as out:
                command = [RAY, "start", *options, f"--dashboard-agent-listen-port={free_port()}"]
                node = subprocess.Popen(command, env=head.env, stdout=out, stderr=out)
            started.append(node)
            wait_until(lambda node=node, log=log: node.poll() is not None or joined(log))  # type: ignore[misc]
            if node.poll() is not None:
                started.remove(node)
            if len(started) == 2:
                break
        assert len(started) == 2, "two more nodes do not start"
        yield started
    finally:
        for node in started:
            kill_tree(node)


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
