"""Metrics of a run on Ray: counters, gauges and histograms in Prometheus format, exported by Ray.

The driver (`ray_data`) counts finished units from their receipts. A unit that ran twice because a worker died counts
once, so the totals equal those of the outcome. The encode actors add their own numbers: token budget and GPU memory.
Inline runs have no metrics. Names, tags and meanings are in docs/metrics.md; `METRICS` is the same list. The trade-off:
the driver's counters end with its process, so a resumed run counts only the units that it runs itself.
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

# Tags of every series: the table's URL and the run's name.
COMMON = ("table", "run")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        tags: Tags besides `COMMON`.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    meaning: str
    tags: tuple[str, ...] = ()


_ALL = (
    Metric("counter", "vectide_rows_read_total", "Source rows of finished units"),
    Metric("counter", "vectide_documents_total", "Documents that were embedded"),
    Metric("counter", "vectide_rows_written_total", "Rows of the table: documents, or chunks with chunking"),
    Metric("counter", "vectide_tokens_total", "Tokens of the documents"),
    Metric("counter", "vectide_encoded_texts_total", "Texts and pages that went through the model"),
    Metric("counter", "vectide_truncated_documents_total", "Documents truncated at the model's limit"),
    Metric("counter", "vectide_quarantined_rows_total", "Rows that were quarantined", ("reason",)),
    Metric("counter", "vectide_written_bytes_total", "Size of the written data files"),
    Metric("counter", "vectide_units_total", "Units that ended", ("state",)),
    Metric("counter", "vectide_process_deaths_total", "Attempts at a unit that died with their process"),
    Metric("counter", "vectide_stage_seconds_total", "Time of finished units in a stage", ("stage",)),
    Metric("histogram", "vectide_unit_stage_seconds", "Time of one unit in a stage", ("stage",)),
    Metric("counter", "vectide_micro_batches_total", "Micro-batches that went through the model"),
    Metric("counter", "vectide_out_of_memory_total", "Micro-batches that did not fit into memory and were halved"),
    Metric("gauge", "vectide_budget_tokens", "Current token budget of a micro-batch"),
    Metric("gauge", "vectide_micro_batch_fill_ratio", "Tokens divided by tokens and padding, in the last unit"),
    Metric(
        "gauge", "vectide_micro_batch_budget_ratio", "Tokens of a micro-batch divided by its budget, in the last unit"
    ),
    Metric("gauge", "vectide_gpu_memory_allocated_bytes", "GPU memory in tensors of this encoder"),
    Metric("gauge", "vectide_gpu_memory_reserved_bytes", "GPU memory reserved by this encoder"),
    Metric("gauge", "vectide_gpu_memory_used_bytes", "GPU memory used by all processes"),
    Metric("gauge", "vectide_gpu_memory_total_bytes", "Total GPU memory"),
)
METRICS = {metric.name: metric for metric in _ALL}
STAGES = ("read", "tokenize", "encode", "write")
_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]


@cache
def _exported(name: str) -> Any:
    """Return Ray's object of a metric; one per process."""
    from ray.util import metrics

    metric = METRICS[name]
    tags = (*COMMON, *metric.tags)
    if metric.kind == "histogram":
        return metrics.Histogram(name, metric.meaning, boundaries=_SECONDS, tag_keys=tags)
    return (metrics.Counter if metric.kind == "counter" else metrics.Gauge)(name, metric.meaning, tag_keys=tags)


@dataclass(frozen=True, slots=True)
class Meter:
    """Records numbers of one run. Picklable."""

    table: str
    run: str

    def _tags(self, tags: Mapping[str, str]) -> dict[str, str]:
        return {"table": self.table, "run": self.run, **tags}

    def add(self, name: str, value: float, **tags: str) -> None:
        """Add to a counter. Does nothing for 0, which Ray refuses: a series begins with its first count."""
        if value > 0:
            _exported(name).inc(float(value), tags=self._tags(tags))

    def set(self, name: str, value: float, **tags: str) -> None:
        """Set a gauge."""
        _exported(name).set(float(value), tags=self._tags(tags))

    def observe(self, name: str, value: float, **tags: str) -> None:
        """Add to a histogram."""
        _exported(name).observe(float(value), tags=self._tags(tags))


class RunMeter:
    """Metrics of the driver: totals of the finished units."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._deaths = 0

    def finished(self, receipt: Receipt, reasons: Mapping[str, int]) -> None:
        """Count a unit that has its receipt; `reasons` are the numbers of quarantined rows by reason."""
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
        """Count a unit that ended with an error."""
        self._meter.add("vectide_units_total", 1, state="failed")

    def deaths(self, total: int) -> None:
        """Set the number of attempts that have died so far."""
        self._meter.add("vectide_process_deaths_total", total - self._deaths)
        self._deaths = total


class EncoderMeter:
    """Metrics of one encoder. The driver creates it, an encode actor uses it."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._tokens = self._micro_batches = self._padding = self._out_of_memory = 0

    def record(self, stats: Stats, memory: Memory | None) -> None:
        """Record the changes since the previous unit, and the GPU memory if there is a GPU."""
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
