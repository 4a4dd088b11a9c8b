"""The number of encoders on given machines, and the error where they do not fit."""

from __future__ import annotations

import pickle

import pytest

from actors.errors import ConfigError
from pipeline.job.config import parse_job
from pipeline.plan.resources import Machine, labelled, on_cores, size_pool

HEAD = Machine(cpus=0, gpus=0)
READER = Machine(cpus=8, gpus=0)
KIND = "ray.io/accelerator-type"
H100, T4 = (Machine(cpus=8, gpus=2, labels={KIND: kind, "ray.io/node-id": kind}) for kind in ("H100", "T4"))


def wishes(**run):
    return parse_job({"source": {"uri": "a"}, "table": {"uri": "b"}, "encoder": {"model": "c"}, "run": run}).run


@pytest.mark.parametrize(
    ("run", "machines", "expected"),
    [
        ({}, [HEAD, READER, H100], (2, 2, 1.0)),
        ({"gpus_per_replica": 0.5}, [HEAD, READER, H100, T4], (8, 8, 0.5)),
        ({"gpus_per_replica": 0.3}, [READER, H100], (6, 6, 0.3)),
        ({"gpus_per_replica": 2}, [READER, H100, T4], (2, 2, 2.0)),
        ({"replicas": 1}, [READER, H100], (1, 1, 1.0)),
        ({"replicas": {"max": 9}}, [READER, H100], (1, 9, 1.0)),
        ({"replicas": {"min": 2, "max": 9}}, [READER, H100], (2, 9, 1.0)),
        ({"replicas": {"min": 0, "max": 9}, "gpus_per_replica": 1}, [HEAD, READER], (1, 9, 1.0)),
        ({"labels": {KIND: "H100"}}, [READER, H100, T4], (2, 2, 1.0)),
        ({"labels": {KIND: "!T4"}}, [READER, H100, T4], (2, 2, 1.0)),
        ({"labels": {KIND: "A100"}, "replicas": {"min": 0, "max": 3}, "gpus_per_replica": 1}, [H100], (1, 3, 1.0)),
        ({}, [READER], (2, 2, 0.0)),
        ({"gpus_per_replica": 0}, [READER, H100], (4, 4, 0.0)),
        ({"replicas": {"max": 4}}, [READER], (1, 4, 0.0)),
    ],
)
def test_as_many_encoders_as_fit_and_are_requested(run, machines, expected):
    pool = size_pool(wishes(**run), machines)
    assert (pool.least, pool.replicas, pool.gpus) == expected
    assert pool.device == ("cuda" if pool.gpus else "cpu")
    assert pickle.loads(pickle.dumps(pool)) == pool


@pytest.mark.parametrize(
    ("run", "machines", "message"),
    [
        ({}, [HEAD], "has no CPU"),
        ({"replicas": 3}, [READER, H100], "3 replicas of 1 GPUs do not fit.*2 GPUs, room for 2.*min: 1, max: 3"),
        ({"replicas": {"min": 3, "max": 4}}, [READER, H100], "3 replicas of 1 GPUs do not fit"),
        ({"gpus_per_replica": 4}, [READER, H100, T4], "1 replicas of 4 GPUs do not fit.*room for 0"),
        ({"gpus_per_replica": 1}, [READER], "cluster has 0 GPUs.*min: 0, max: 1"),
        ({"labels": {KIND: "A100"}}, [H100, T4], f"no machine .*{KIND}: A100.*there are {KIND}: H100, {KIND}: T4"),
        ({"replicas": 3, "labels": {KIND: "H100"}}, [H100, T4], f"has 2 GPUs with {KIND}: H100, room for 2"),
        ({"replicas": {"min": 9, "max": 9}}, [READER], "run.replicas.min is 9, but there are 8 CPUs"),
    ],
)
def test_an_impossible_request_for_encoders_is_refused(run, machines, message):
    with pytest.raises(ConfigError, match=message):
        size_pool(wishes(**run), machines)


def test_there_are_no_more_encoders_than_units():
    gpus = size_pool(wishes(replicas={"min": 0, "max": 9}, gpus_per_replica=1), [READER, H100])
    assert [gpus.sizes(units) for units in (0, 1, 5, 1000)] == [(1, 1), (1, 1), (5, 5), (9, 9)]  # waiting is asking
    cores = size_pool(wishes(replicas={"min": 2, "max": 9}), [READER])
    assert [cores.sizes(units) for units in (1, 5, 1000)] == [(1, 1), (2, 5), (2, 9)]
    assert size_pool(wishes(replicas=2), [READER]).sizes(1000) == (2, 2)


def test_only_a_pool_with_a_larger_maximum_grows():
    assert size_pool(wishes(replicas={"min": 0, "max": 2}, gpus_per_replica=1), [READER]).grows
    assert not size_pool(wishes(replicas={"min": 2, "max": 2}), [READER, H100]).grows
    assert not size_pool(wishes(), [READER, H100]).grows


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        ([1], (1, 1)),
        ([2], (1, 2)),
        ([3], (1, 3)),
        ([5], (5, 1)),
        ([6], (2, 3)),
        ([64], (16, 4)),
        ([2, 2, 2], (3, 2)),
        ([], (1, 1)),
    ],
)
def test_a_few_threads_for_each_encoder_and_no_core_without(cores, expected):
    assert on_cores(cores, None) == expected
    pool = size_pool(wishes(gpus_per_replica=0), [Machine(cpus=count, gpus=0) for count in cores or [0.5, 0.5]])
    assert (pool.replicas, pool.threads) == expected
    assert pool.cores == pool.threads


@pytest.mark.parametrize(
    ("replicas", "cores", "threads"),
    [(1, [8], 8), (3, [8], 2), (8, [8], 1), (20, [8], 1), (1, [2, 2, 2], 2), (4, [2, 2, 2], 1), (2, [4, 16], 8)],
)
def test_threads_leave_cores_for_the_requested_encoders(replicas, cores, threads):
    pool = size_pool(wishes(replicas=replicas), [Machine(cpus=count, gpus=0) for count in cores])
    assert (pool.replicas, pool.threads) == (replicas, threads)
    # Each fits a machine and leaves cores free.
    assert pool.cpus < max(cores)


@pytest.mark.parametrize(
    ("machines", "cpus", "io_cpus"),
    [
        ([Machine(16, 1)], 1.0, 1.0),
        ([Machine(16, 8), READER], 1.0, 1.0),
        ([Machine(192, 8)] * 4, 1.0, 1.0),
        ([Machine(4, 1)], 1.0, 0.6666),
        ([Machine(2, 1)], 1.0, 0.3333),
        ([Machine(1, 1)], 0.6666, 0.1666),
        ([Machine(8, 8)], 0.6666, 1.0),
        ([Machine(0, 2), READER], 0.0, 1.0),  # Ray counts no CPUs beside these GPUs
    ],
)
@pytest.mark.parametrize("share", [1, 0.5])
def test_an_encoder_on_a_gpu_and_a_reader_get_a_core_each_where_there_are_enough(machines, cpus, io_cpus, share):
    pool = size_pool(wishes(gpus_per_replica=share), machines)
    each = min(cpus, *(machine.cpus * 2 / 3 / (machine.gpus / share) for machine in machines if machine.gpus))
    assert pool.cpus == pytest.approx(each, abs=1e-4)
    assert pool.io_cpus == io_cpus
    # All encoders of a machine fit it, and on all machines together each other stage finds its part.
    assert all(machine.cpus >= pool.cpus * machine.gpus / share for machine in machines)
    total = sum(machine.cpus for machine in machines)
    part = 0.5 * total / 3
    assert part >= pool.io_cpus
    assert total - part - max(part, pool.cpus * pool.replicas) >= part - 1e-9


@pytest.mark.parametrize(("most", "cpus"), [(1, 1.0), (6, 1.0), (9, 0.7407), (100, 0.0666)])
def test_encoders_that_wait_for_a_gpu_leave_cpus_for_readers(most, cpus):
    pool = size_pool(wishes(gpus_per_replica=1, replicas={"min": 0, "max": most}), [READER, Machine(2, 1)])
    assert (pool.cpus, pool.io_cpus) == (cpus, 1.0)


def test_encoders_ask_for_no_cpu_of_machines_that_nothing_is_known_of():
    pool = size_pool(wishes(gpus_per_replica=1, replicas={"min": 0, "max": 3}), [READER])
    assert (pool.cpus, pool.io_cpus) == (0.0, 1.0)


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 7, 8, 16, 64, 192])
@pytest.mark.parametrize("replicas", ["auto", 1, 2])
def test_reads_and_writes_have_cores_beside_all_encoders(cpus, replicas):
    pool = size_pool(wishes(replicas=replicas), [Machine(cpus=cpus, gpus=0)])
    # How Ray Data shares out CPUs: half of them in equal parts to its stages, in their order; encoders have what they need.
    part = 0.5 * cpus / 3
    assert part >= pool.io_cpus
    assert cpus - part - max(part, pool.cpus * min(pool.least, cpus)) >= part


@pytest.mark.parametrize("cores", [[2, 1, 1], [3, 3], [4, 4], [12, 12], [16, 8], [64, 64]])
@pytest.mark.parametrize("replicas", ["auto", 3, {"min": 1, "max": 9}])
def test_encoders_moved_from_a_lost_machine_leave_cores_to_read_and_write(cores, replicas):
    pool = size_pool(wishes(replicas=replicas), [Machine(cpus=count, gpus=0) for count in cores])
    for count in cores:
        fit = int(count / pool.cpus)
        assert fit == 0 or count - fit * pool.cpus >= pool.io_cpus


def test_a_growing_pool_leaves_cores_on_one_machine():
    for cpus in (2, 3, 4, 8, 12):
        pool = size_pool(wishes(replicas={"min": 1, "max": 99}), [Machine(cpus=cpus, gpus=0)])
        assert cpus - int(cpus / pool.cpus) * pool.cpus >= pool.io_cpus


def test_more_encoders_than_cores_share_them():
    shared, growing = (size_pool(wishes(replicas=wanted), [Machine(cpus=2, gpus=0)]) for wanted in (8, {"max": 8}))
    assert (shared.cpus, shared.threads) == (0.165, 1)
    assert (growing.cpus, growing.threads) == (0.75, 1)


@pytest.mark.parametrize(
    ("value", "selector", "expected"),
    [
        ("H100", "H100", True),
        ("H100", "T4", False),
        (None, "T4", False),
        (None, "!T4", True),
        ("T4", "!T4", False),
        ("T4", "in(H100, T4)", True),
        ("T4", "in(H100,A100)", False),
        ("T4", "!in(H100, T4)", False),
        (None, "!in(H100, T4)", True),
    ],
)
def test_labels_are_compared_as_ray_does(value, selector, expected):
    assert labelled({} if value is None else {KIND: value}, {KIND: selector}) is expected
