"""`vectide negation`: formats, rows that are left out, and an endpoint that misbehaves."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from actors.errors import ConfigError, DataError, StorageError
from pipeline.curate.negation import endpoint as asked
from pipeline.curate.negation.build import Outcome, Settings, build_negations

PAIRS = {
    "anchor": [
        "A man strums on stage",
        "Kids nap",
        "Kids nap",
        "x",
        "",
        "Same  text",
        "No one sat",
        "q",
        "A teen",
        "x y",
    ],
    "entailment": [
        "A man is playing a guitar.",
        "The children are sleeping",
        "the children are  SLEEPING",
        " ",
        "She was happy.",
        "same text",
        "The room was empty",
        "It isn't here",
        "A young man on a bench",
        "Is he here?",
    ],
}
LEFT_OUT = {
    "a copy of another pair": 1,
    "the entailment is blank": 1,
    "the anchor is blank": 1,
    "anchor and entailment are the same": 1,
    "the anchor is negated already": 1,
    "the entailment is negated already": 1,
    "no rule fits": 1,
    "a question": 1,
}
TWO = [("A man is playing a guitar.", "A man is not playing a guitar."), ("The children are sleeping", "The children are not sleeping")]  # fmt: skip
RULES = Settings(ways=("rules",))


def write_pairs(folder: Path, form: str) -> str:
    table, path = pa.table(PAIRS), folder / f"pairs.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif form == "csv":
        pa.csv.write_csv(table, path)
    elif form == "delta":
        dropped = pa.table({"anchor": ["a b"], "entailment": ["It is dropped"], "id": ["z"], "kept": [False]})
        ids = [str(number) for number in range(table.num_rows)]
        kept = table.append_column("id", pa.array(ids)).append_column("kept", pa.array([True] * len(ids)))
        write_deltalake(path, pa.concat_tables([kept, dropped.select(kept.column_names)]))
    elif form == "delta without ids":
        write_deltalake(path, table)
    else:
        pq.write_table(table, path)
    return str(path)


def triplets(outcome: Outcome) -> list[tuple[str, str]]:
    rows = pq.read_table(outcome.out).to_pylist()
    return [(row["entailment"], row["negative"]) for row in rows]


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl", "delta", "delta without ids"])
def test_every_row_is_used_or_counted(tmp_path: Path, form: str):
    pairs = write_pairs(tmp_path, form)
    outcome = build_negations(pairs, str(tmp_path / "n.parquet"), RULES)
    assert (outcome.rows_read, outcome.rows, outcome.by_rule) == (10, 2, {"auxiliary": 2})
    assert outcome.left_out == LEFT_OUT
    assert triplets(outcome) == TWO
    first = Path(outcome.out).read_bytes()
    build_negations(pairs, outcome.out, RULES)
    assert Path(outcome.out).read_bytes() == first


@pytest.mark.parametrize(
    ("settings", "out", "message"),
    [
        (Settings(anchor="premise"), "n.parquet", "--anchor names the column 'premise'.*the columns are"),
        (Settings(entailment="hypothesis"), "n.parquet", "--entailment names the column 'hypothesis'"),
        (Settings(anchor="entailment"), "n.parquet", "both name 'entailment'"),
        (Settings(wordnet="nowhere"), "n.parquet", "--wordnet 'nowhere' has no file"),
        (RULES, "n.csv", "does not end in .parquet"),
        (RULES, "pairs.parquet", "is the file that is read"),
        (Settings(endpoint=("ftp://here", "m")), "n.parquet", "no http or https URL"),
        (Settings(endpoint=("https://me:secret@here/v1", "m")), "n.parquet", "has a user, password or query"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, settings: Settings, out: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        build_negations(write_pairs(tmp_path, "parquet"), str(tmp_path / out), settings)
    assert "secret" not in str(caught.value)


def test_pairs_without_a_negative_are_an_error(tmp_path: Path):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"anchor": ["a b", "c d"], "entailment": ["It is not so", "a table"]}), path)
    with pytest.raises(DataError, match=r"none of the 2 pairs .*already: 1; no rule fits: 1.*--endpoint"):
        build_negations(str(path), str(tmp_path / "n.parquet"), RULES)
    pq.write_table(pq.read_table(path)[:0], path)
    with pytest.raises(DataError, match="has no pair"):
        build_negations(str(path), str(tmp_path / "n.parquet"), RULES)
    assert not (tmp_path / "n.parquet").exists()


class Endpoint:
    """A server that answers each sentence with the given answers, in order; then with a good negation.

    Attributes:
        script: Answers to give, by sentence: a status, a body, or a text.
        asked: Requests by sentence.
    """

    def __init__(self) -> None:
        self.script: dict[str, list[int | bytes | str]] = {}
        self.asked: Counter[str] = Counter()
        self.keys: set[str | None] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                sentence = body["messages"][-1]["content"]
                outer.asked[sentence] += 1
                outer.keys.add(self.headers.get("Authorization"))
                script = outer.script.get(sentence, [])
                answer = script.pop(0) if script else sentence.replace(" is ", " is not ").replace(" are ", " are not ")
                status = answer if isinstance(answer, int) else 200
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "0")
                self.end_headers()
                if isinstance(answer, str):
                    answer = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
                self.wfile.write(answer if isinstance(answer, bytes) else b"{}")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=[0.02], daemon=True)
        self.thread.start()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(asked, "_FIRST_PAUSE_S", 0.001)
    served = Endpoint()
    yield served
    served.server.shutdown()
    served.server.server_close()


def ask(tmp_path: Path, endpoint: Endpoint) -> Outcome:
    settings = Settings(ways=("endpoint",), endpoint=(endpoint.url, "m"))
    return build_negations(write_pairs(tmp_path, "parquet"), str(tmp_path / "n.parquet"), settings)


def test_wrong_answers_are_asked_for_again_and_counted(tmp_path, endpoint, monkeypatch):
    guitar, children, bench, here = (PAIRS["entailment"][number] for number in (0, 1, 8, 9))
    endpoint.script = {
        guitar: [429, b"<html>busy</html>", guitar.upper(), '"A man is not playing a guitar."'],
        children: [500, b"[]"],
        bench: ["An old lady on a bench"] * 9,
        here: [bench] * 9,
    }
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    outcome = ask(tmp_path, endpoint)
    assert triplets(outcome) == TWO
    assert outcome.by_rule == {"endpoint": 2}
    assert outcome.left_out["endpoint: the answer changes more than the negation"] == 2
    assert outcome.rows_read == outcome.rows + sum(outcome.left_out.values())
    assert endpoint.asked == {guitar: 4, children: 3, bench: 4, here: 4}
    assert endpoint.keys == {"Bearer sk-very-secret"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n.parquet", "pairs.parquet"]


@pytest.mark.parametrize(
    ("status", "message"), [(401, "answered 401.*set OPENAI_API_KEY"), (404, "check the URL"), (302, "302")]
)
def test_an_endpoint_that_refuses_ends_the_run_at_once(tmp_path, endpoint, monkeypatch, status, message):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    endpoint.script = {text: [status] * 9 for text in PAIRS["entailment"]}
    with pytest.raises(ConfigError, match=message):
        ask(tmp_path, endpoint)
    assert max(endpoint.asked.values()) == 1


def test_an_endpoint_that_answers_nothing_is_an_error(tmp_path, endpoint):
    endpoint.script = {text: [503] * 9 for text in PAIRS["entailment"]}
    with pytest.raises(StorageError, match="gave no negation of 4 sentences: status 503"):
        ask(tmp_path, endpoint)


def test_a_key_is_not_sent_unencrypted(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    settings = Settings(ways=("endpoint",), endpoint=("http://models.example/v1", "m"))
    with pytest.raises(ConfigError, match="in the clear") as caught:
        build_negations(write_pairs(tmp_path, "parquet"), str(tmp_path / "n.parquet"), settings)
    assert "sk-very" not in str(caught.value)


def test_a_run_that_ended_early_asks_for_no_finished_batch_again(tmp_path: Path, endpoint: Endpoint):
    texts = [f"Cat {number} is here" for number in range(200)]
    pq.write_table(pa.table({"anchor": [f"a {text}" for text in texts], "entailment": texts}), tmp_path / "p.parquet")
    out, settings = tmp_path / "n.parquet", Settings(ways=("endpoint",), endpoint=(endpoint.url, "m"))
    endpoint.script = {texts[150]: [404]}
    with pytest.raises(ConfigError, match="answered 404"):
        build_negations(str(tmp_path / "p.parquet"), str(out), settings)
    assert not out.exists()
    before = endpoint.asked.copy()
    outcome = build_negations(str(tmp_path / "p.parquet"), str(out), settings)
    assert outcome.rows == 200
    assert triplets(outcome)[7] == ("Cat 7 is here", "Cat 7 is not here")
    assert [endpoint.asked[text] - before[text] for text in texts[:128]] == [0] * 128
    assert not out.with_name("n.parquet.answers").exists()
