"""The races' own arithmetic: mixes, order, ratios, tables. What runs other people's engines is run by `make bench`."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.gpu.shapes import SHAPES
from benchmarks.race import pipeline, report
from benchmarks.race.engine import Result
from benchmarks.race.figures import Measured, cosines, operations, paired_ratio, rounds
from benchmarks.race.mixes import LONG, SHORT, Mix, cut_mixes, read_texts
from benchmarks.race.peers import BASE, ENVIRONMENTS, PEERS, runnable
from benchmarks.race.session import group, peak_bytes
from benchmarks.race.workers.serve import padded_batches
from benchmarks.scale import measure
from tests.checkpoints.files import letters


def test_each_round_has_every_engine_once_and_another_one_first():
    orders = list(rounds(["a", "b", "c"], 4))
    assert orders[:3] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    assert orders[3] == orders[0]


def test_a_ratio_is_taken_round_by_round():
    # Others halved the machine in the last round: both were hit, so nothing changes.
    assert paired_ratio([30.0, 40.0, 15.0], [10.0, 20.0, 5.0]) == 3.0


def test_rates_count_real_tokens_without_padding():
    found = Measured(tokens=900, seconds=[1.0, 3.0, 2.0], places=1000)
    assert found.rate == 450.0
    assert found.padding == pytest.approx(0.1)
    assert Measured(tokens=900, seconds=[1.0]).padding is None


def test_the_lowest_cosine_is_found_for_vectors_of_any_length():
    base = np.array([[1, 0], [0, 2]], np.float32)
    worst, mean = cosines(np.array([[5, 0], [1, 1]], np.float32), base)
    assert worst == pytest.approx(math.sqrt(0.5))
    assert mean == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_operations_are_those_of_the_products():
    config = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}
    linear = 21_233_664  # of all-MiniLM-L6-v2, for each token
    assert operations(config, [10]) == 10 * linear + 4 * 6 * 384 * 100
    assert SHAPES[0].operations([10]) == operations(config, [10])


def test_mixes_have_the_lengths_that_they_are_named_for():
    words = ["some words of a text", "a much longer text " * 40, "x", "of middling length " * 3]
    mixes, rest = cut_mixes(words * 30, letters(), max_tokens=256, tokens=2000)
    short, long, found = mixes
    assert [mix.name for mix in mixes] == ["short", "long", "as found"]
    assert all(SHORT[0] <= length <= SHORT[1] for length in short.lengths)
    assert all(LONG[0] <= length <= LONG[1] for length in long.lengths)
    assert found.texts[:4] == tuple(words)
    assert max(found.lengths) == 256
    assert all(mix.tokens >= 2000 for mix in mixes)
    assert rest


def test_texts_come_from_every_folder_in_turn_and_in_a_fixed_order(tmp_path: Path):
    for folder, count in (("big", 5), ("small", 2)):
        (tmp_path / folder).mkdir()
        texts = [f"{folder} {number}" for number in range(count)]
        pq.write_table(pa.table({"text": [*texts, " ", None]}), tmp_path / folder / "part.parquet")
    texts = read_texts(tmp_path)
    assert [text.split()[0] for text in texts] == ["big", "small", "big", "small", "big", "big", "big"]
    assert len(set(texts)) == 7
    assert read_texts(tmp_path) == texts


def test_a_folder_without_texts_is_refused(tmp_path: Path):
    with pytest.raises(SystemExit, match="no Parquet file with a column 'text'"):
        read_texts(tmp_path)


def test_padded_batches_hold_every_row_once_and_keep_to_the_budget():
    ids = [[7] * length for length in (3, 9, 1, 30, 4, 4)]
    batches = padded_batches(ids, 12)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(6))
    for batch in batches:
        tokens, mask = batch.feeds["input_ids"], batch.feeds["attention_mask"]
        assert tokens.size <= 12 or len(batch.rows) == 1
        assert mask.sum(1).tolist() == [len(ids[row]) for row in batch.rows]
        assert ((tokens == 7) == (mask == 1)).all()


def test_an_unsupported_precision_is_left_out_with_the_reason():
    everyone, nobody = runnable(has_bfloat16=True)
    assert (tuple(everyone), nobody) == (PEERS, {})
    some, without = runnable(has_bfloat16=False)
    assert all(peer.compute != "bfloat16" for peer in some)
    assert without["vectide bfloat16"] == "this processor has no bfloat16 arithmetic"


def test_every_environment_has_exact_versions():
    names = {peer.environment for peer in PEERS} | {way.environment for way in pipeline.WAYS}
    for name in names - {None}:
        lines = (ENVIRONMENTS / f"{name}.txt").read_text().split()
        assert lines
        assert all("==" in line for line in lines)


def a_result() -> Result:
    mix = Mix("short", ("a", "b"), (20, 30))
    measured = {
        "vectide float32": Measured(50, [0.1, 0.2, 0.1], [0.1] * 3, 50),
        BASE: Measured(50, [0.2, 0.4, 0.2], [0.4] * 3, 100),
    }
    result = Result([mix], {"short": measured}, {"float32": [1e9, 2e9]}, {"short": 50e6})
    result.peers = [peer for peer in PEERS if peer.label in measured]
    for label in measured:
        result.cosine[label] = (0.999991, 1.0)
        result.peak_bytes[label] = 512 << 20
        result.loaded_s[label] = 1.5
        result.versions[label] = {"torch": "2"}
    result.left_out = {"infinity float32": "does not start: it is away"}
    result.facts = {"threads": 2, "max_tokens": 256, "repeats": 3, "load": "0.1", "load after": "0.2"}
    return result


def test_the_table_lists_rates_and_engines_that_did_not_run():
    page = report.markdown(a_result(), plot_name="plot.svg", command="make bench", date="2026-01-02")
    # 500 tokens a second of 1e6 operations each: a quarter of the best product, 2 GFLOP/s.
    assert "| vectide float32 | 500 | 250 to 500 | 2.00 | 500 | 4.00 | 0.0% | 25% |" in page
    assert f"| {BASE} | 250 | 125 to 250 | 1.00 | 125 | 1.00 | 50.0% | 12% |" in page
    assert "- infinity float32: does not start: it is away" in page
    assert page.index("| vectide float32") < page.index(f"| {BASE}")


def test_the_steady_rate_leaves_out_the_first_third():
    assert pipeline.steady([[5.0, 10], [6.0, 50], [7.0, 60], [8.0, 60]]) == 60.0
    assert pipeline.steady([[5.0, 30], [6.0, 30], [7.0, 30]]) == 30.0
    assert math.isnan(pipeline.steady([[5.0, 10]]))
    assert pipeline.first([[6.0, 30], [7.0, 30]]) == 6.0


def test_the_page_compares_the_first_receipt_with_its_lower_bound():
    ours = pipeline.Passed([20.0], [8.0], [10.0], [{"first unit: read, encode, write": 0.5}])
    result = pipeline.Result(100, 5000, {pipeline.OURS: ours}, {}, ("1", "2"), [2.0, 1.0, 1.5], [5.0])
    page = pipeline.markdown(result, command="make bench", date="2026-01-02")
    assert "came after 8.0 s (8.0 to 8.0)" in page
    assert "together 7.0 s" in page


def test_the_pipeline_table_leaves_missing_results_blank():
    slow = pipeline.Passed([20.0, 40.0], [9.0, 9.0], [10.0, 5.0], [{"all": 20.0}, {"all": 40.0}])
    fast = pipeline.Passed([10.0, 10.0], [9.0, 9.0], [float("nan")] * 2, [{"all": 10.0}, {"all": 10.0}])
    result = pipeline.Result(
        100, 5000, {pipeline.BASE: slow, "a loop": fast}, {"Daft": "failed: no"}, ("1", "2"), [3.0]
    )
    page = pipeline.markdown(result, command="make bench", date="2026-01-02")
    assert f"| {pipeline.BASE} | 30.0 | 20.0 to 40.0 | 1.00 | 7.5 | 1.00 |" in page
    assert "| a loop | 10.0 | 10.0 to 10.0 | 3.00 | not reported |  |" in page
    assert "- Daft: failed: no" in page


def test_the_scale_table_has_the_cost_of_ten_times_the_size():
    sizes = {
        10: {"seconds": {"commit": 0.5}, "peak_mib": {"commit": 100}},
        100: {"seconds": {"commit": 5.0}, "peak_mib": {"commit": 110}},
    }
    page = measure.markdown({"publish": sizes}, command="make scale", date="2026-01-02")
    assert "| commit | 0.5 s | 5 s | 10.0 |" in page
    assert "| peak memory after: commit | 100 MiB | 110 MiB | 1.1 |" in page


def test_the_peak_memory_of_a_process_is_read():
    assert os.getpid() in group(os.getpgrp())
    assert peak_bytes(os.getpid()) > 10 << 20
    assert peak_bytes(2**22 + 1) == 0


@pytest.mark.slow
def test_a_worker_answers_requests_and_prints_elsewhere(tmp_path: Path):
    script = tmp_path / "worker.py"
    script.write_text(
        "import numpy as np\n"
        "from benchmarks.race.workers.serve import serve\n"
        "class Engine:\n"
        "    places = 3\n"
        "    def encode(self, texts):\n"
        "        print('a library says something')\n"
        "        return np.ones((len(texts), 2), np.float32)\n"
        "serve(lambda settings: Engine(), ('numpy',))\n"
    )
    (tmp_path / "texts.json").write_text('["a", "b"]')
    settings = {"model": "m", "exported": "e", "threads": 1, "max_tokens": 8}
    request = {"texts": str(tmp_path / "texts.json"), "vectors": str(tmp_path / "vectors.npy")}
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(settings)],
        input=json.dumps(request) + "\n", capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    ready, answer = map(json.loads, done.stdout.splitlines())
    assert ready["versions"]["numpy"] == np.__version__
    assert answer["places"] == 3
    assert np.load(request["vectors"]).shape == (2, 2)
    assert "a library says something" in done.stderr


def test_the_output_folder_is_made_before_the_measurement(tmp_path):
    ask = CliRunner().invoke
    place = tmp_path / "new" / "pages"
    assert ask(app, ["pipeline", "--corpora", str(tmp_path), "--out", str(place)]).exit_code == 1  # no text there
    assert place.is_dir()
    (tmp_path / "file").touch()
    refused = ask(app, ["pipeline", "--corpora", str(tmp_path), "--out", str(tmp_path / "file" / "pages")])
    assert refused.exit_code == 2
    assert "cannot be made (Not a directory); name another place" in " ".join(refused.output.split())
