"""What a run says of itself while it goes on: counters and gauges in the format of Prometheus, exported by Ray.

`dataflow` counts finished units on the driver, from their receipts: a unit that was done twice, because a worker died,
counts once, and the numbers are those of the outcome. The encode actors add what only they know: their token budget,
their card's memory. Runs without Ray have no metrics and do not come here. Names, tags and meanings are in
docs/metrics.md; `METRICS` is the same list. The trade-off: the numbers of the driver end with it, so a run that is
repeated counts from where it goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from actors.unit.receipt import Receipt

if TYPE_CHECKING:
    from actors.encoders.compute.device import Memory
    from actors.encoders.running import Stats

# Every series has these: the table's URL and the run's name.
COMMON = ("table", "run")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        tags: Beside `COMMON`.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    meaning: str
    tags: tuple[str, ...] = ()


_ALL = (
    Metric("counter", "vectide_rows_read_total", "Rows of the source that finished units had"),
    Metric("counter", "vectide_documents_total", "Documents that were embedded"),
    Metric("counter", "vectide_rows_written_total", "Rows of the table: documents, or with chunking chunks"),
    Metric("counter", "vectide_tokens_total", "Tokens of the documents"),
    Metric("counter", "vectide_encoded_texts_total", "Texts that went through the model"),
    Metric("counter", "vectide_truncated_documents_total", "Documents cut at the model's limit"),
    Metric("counter", "vectide_quarantined_rows_total", "Rows that were set aside", ("reason",)),
    Metric("counter", "vectide_written_bytes_total", "Size of the data files that were written"),
    Metric("counter", "vectide_units_total", "Units that ended", ("state",)),
    Metric("counter", "vectide_process_deaths_total", "Attempts at a unit that ended with their process"),
    Metric("counter", "vectide_stage_seconds_total", "Time of finished units in a stage", ("stage",)),
    Metric("histogram", "vectide_unit_stage_seconds", "Time of one unit in a stage", ("stage",)),
    Metric("counter", "vectide_micro_batches_total", "Micro-batches that went through the model"),
    Metric("counter", "vectide_out_of_memory_total", "Micro-batches that did not fit, and were halved"),
    Metric("gauge", "vectide_budget_tokens", "Token budget of a micro-batch, now"),
    Metric("gauge", "vectide_micro_batch_fill_ratio", "Tokens against tokens and padding, in the last unit"),
    Metric("gauge", "vectide_micro_batch_budget_ratio", "Tokens of a micro-batch against its budget, in the last unit"),
    Metric("gauge", "vectide_gpu_memory_allocated_bytes", "Memory of the card in tensors of this encoder"),
    Metric("gauge", "vectide_gpu_memory_reserved_bytes", "Memory of the card that this encoder holds"),
    Metric("gauge", "vectide_gpu_memory_used_bytes", "Memory of the card in use, by all of its processes"),
    Metric("gauge", "vectide_gpu_memory_total_bytes", "Memory of the card"),
)
METRICS = {metric.name: metric for metric in _ALL}
STAGES = ("read", "tokenize", "encode", "write")
_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]


@cache
def _exported(name: str) -> Any:
    """Ray's object for a metric, one a process."""
    from ray.util import metrics

    metric = METRICS[name]
    tags = (*COMMON, *metric.tags)
    if metric.kind == "histogram":
        return metrics.Histogram(name, metric.meaning, boundaries=_SECONDS, tag_keys=tags)
    return (metrics.Counter if metric.kind == "counter" else metrics.Gauge)(name, metric.meaning, tag_keys=tags)


@dataclass(frozen=True, slots=True)
class Meter:
    """Where one run's numbers go. Picklable."""

    table: str
    run: str

    def _tags(self, tags: Mapping[str, str]) -> dict[str, str]:
        return {"table": self.table, "run": self.run, **tags}

    def add(self, name: str, value: float, **tags: str) -> None:
        """Add to a counter. Ray takes no zero, and a series that was never counted is not there."""
        if value > 0:
            _exported(name).inc(float(value), tags=self._tags(tags))

    def set(self, name: str, value: float, **tags: str) -> None:
        """Set a gauge."""
        _exported(name).set(float(value), tags=self._tags(tags))

    def observe(self, name: str, value: float, **tags: str) -> None:
        """Add to a histogram."""
        _exported(name).observe(float(value), tags=self._tags(tags))


class RunMeter:
    """The driver's numbers: what the finished units came to."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._deaths = 0

    def finished(self, receipt: Receipt, reasons: Mapping[str, int]) -> None:
        """A unit has its receipt; `reasons` are those of its rows that were set aside."""
        add = self._meter.add
        add("vectide_rows_read_total", receipt.rows_read)
        add("vectide_documents_total", receipt.documents)
        add("vectide_rows_written_total", receipt.rows)
        add("vectide_tokens_total", receipt.tokens)
        add("vectide_encoded_texts_total", receipt.encoded)
        add("vectide_truncated_documents_total", receipt.truncated)
        add("vectide_written_bytes_total", sum(file.size_bytes for file in receipt.files))
        for reason, rows in reasons.items():
            add("vectide_quarantined_rows_total", rows, reason=reason)
        for stage, seconds in receipt.seconds.items():
            add("vectide_stage_seconds_total", seconds, stage=stage)
            self._meter.observe("vectide_unit_stage_seconds", seconds, stage=stage)
        add("vectide_units_total", 1, state="done")

    def failed(self) -> None:
        """A unit ended with an error."""
        self._meter.add("vectide_units_total", 1, state="failed")

    def deaths(self, total: int) -> None:
        """How many attempts have died so far."""
        self._meter.add("vectide_process_deaths_total", total - self._deaths)
        self._deaths = total


class EncoderMeter:
    """An encoder's own numbers. Made by the driver, used in an encode actor."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._tokens = self._micro_batches = self._padding = self._out_of_memory = 0

    def record(self, stats: Stats, memory: Memory | None) -> None:
        """After a unit: what changed since the one before, and the card's memory where there is a card."""
        tokens, padding = stats.tokens - self._tokens, stats.padding_tokens - self._padding
        micro_batches = stats.micro_batches - self._micro_batches
        self._meter.add("vectide_micro_batches_total", micro_batches)
        self._meter.add("vectide_out_of_memory_total", stats.out_of_memory - self._out_of_memory)
        self._meter.set("vectide_budget_tokens", stats.budget_tokens)
        if micro_batches:
            self._meter.set("vectide_micro_batch_fill_ratio", tokens / (tokens + padding))
            self._meter.set("vectide_micro_batch_budget_ratio", tokens / (micro_batches * stats.budget_tokens))
        self._tokens, self._padding = stats.tokens, stats.padding_tokens
        self._micro_batches, self._out_of_memory = stats.micro_batches, stats.out_of_memory
        if memory is not None:
            self._meter.set("vectide_gpu_memory_allocated_bytes", memory.allocated_bytes)
            self._meter.set("vectide_gpu_memory_reserved_bytes", memory.reserved_bytes)
            self._meter.set("vectide_gpu_memory_used_bytes", memory.used_bytes)
            self._meter.set("vectide_gpu_memory_total_bytes", memory.total_bytes)
