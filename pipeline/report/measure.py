"""Builds the data of a report from the ledger of a run: the description, the listing, the receipts, the quarantine.

Everything is counted from receipts, so a run that was stopped and resumed adds up, and so does one of several drivers. What
the receipts do not know, such as when a driver started, is in the calls of the recorder.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from actors.unit.figures import BINS, Figures
from actors.unit.receipt import DataFile, Receipt
from pipeline.execute.progress import Outcome
from pipeline.ledger.ledger import Ledger, merge_ledger

FORMAT = 1  # of report.json; docs/report.md has its schema
_TOTALS = (
    *("units", "rows_read", "documents", "rows", "quarantined", "truncated", "encoded", "tokens", "padding"),
    *("animated", "unconverted"),
)
_MOST_BINS = 60
_SAMPLES = 5  # quarantined rows of each reason
_SAMPLED_FILES = 3  # files of quarantined rows that are opened for each reason
_PARTITIONS = 20

Call = dict[str, Any]
Report = dict[str, Any]
Timed = tuple[float, int, int, float]  # of a unit: when it ended (0 if unknown), rows, tokens, seconds over its stages


def time_text(seconds: float) -> str:
    """Return a time in seconds since the epoch as ISO 8601 in UTC."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="milliseconds")


def seconds_of(text: str) -> float:
    """Return the seconds since the epoch of a time that `time_text` wrote."""
    return dt.datetime.fromisoformat(text).timestamp()


def measure(ledger: Ledger, calls: Sequence[Call]) -> Report:
    """Return the parts of a report that the ledger of a run has; none if no plan is frozen.

    Args:
        ledger: The run.
        calls: Its calls, with the times between which units ended.
    """
    description = ledger.description()
    if description is None:
        return {}
    receipts = list(ledger.receipts().values())
    figures, units = Figures(), []
    for receipt in receipts:
        measured = Figures.from_json(receipt.figures)
        figures.add(measured)
        if receipt.replaces is None:
            units.append((measured.finished_s, receipt.documents, receipt.tokens, sum(receipt.seconds.values())))
    outcome = Outcome(ledger.table_url, ledger.run, -1, published=False).plus(receipts)
    job = description.job
    return {
        "operation": description.operation,
        "totals": {
            "units_planned": description.units,
            **{name: getattr(outcome, name) for name in _TOTALS},
            "rows_kept": description.rows_kept,
        },
        "seconds": {stage: round(seconds, 3) for stage, seconds in outcome.seconds.items()},
        "source": _source(ledger, job.get("source") or job.get("pairs") or job.get("corpus") or {}) if job else None,
        "throughput": throughput(units, calls),
        "token_lengths": {
            "bins": list(BINS[: len(figures.lengths)]),
            "counts": figures.lengths,
            "longest": figures.longest,
        }
        if figures.lengths
        else None,
        "norms": {
            name: {"vectors": int(count), "least": least, "mean": total / count, "most": most}
            for name, (count, least, total, most) in figures.norms.items()
        },
        "quarantine": _quarantine(ledger, receipts, figures),
        "files": _files(ledger, receipts),
        "gate": {name: job["generation"].get(name) for name in ("min_agreement", "queries", "max_ndcg_drop")}
        if description.operation == "generation"
        else None,
        "curation": ledger.evidence() if description.operation == "curate" else None,
        "lineage": description.lineage,
        "fingerprint": description.fingerprint,
        "job": job,
    }


def _source(ledger: Ledger, settings: Mapping[str, Any]) -> dict[str, Any]:
    listing = ledger.listing() or {}
    plan = ledger.plan()
    read = plan.filter(pc.invert(plan["rewrite"]))["path"]
    return {
        "uri": settings.get("uri"),
        "format": settings.get("format"),
        "shards": len(listing),
        "size_bytes": sum(size_bytes for size_bytes, _ in listing.values()),
        "shards_read": pc.count_distinct(read).as_py(),
    }


# Throughput ------------------------------------------------------------------------------------------------------------


def throughput(units: Iterable[Timed], calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Return the rows and tokens of each bin of time, one series for each period of work.

    Periods are the times in which a call ran units; calls side by side share one. A unit is known by the time of its end:
    its rows are spread over the time since the unit before it ended, and those of the first over the time that it took.
    Units whose receipt has no time are left out.
    """
    timed = sorted(unit for unit in units if unit[0] > 0)
    if not timed:
        return []
    ends, rows, tokens, spent_s = (np.array(column) for column in zip(*timed, strict=True))
    periods = _periods(calls, ends) or [(float(ends[0] - spent_s[0]), float(ends[-1]))]
    step_s = max(sum(end_s - start_s for start_s, end_s in periods) / min(len(ends), _MOST_BINS), 0.001)
    # A clock of a worker may differ from the driver's, so a unit belongs to the nearest period.
    nearest = [np.maximum(np.maximum(start_s - ends, ends - end_s), 0) for start_s, end_s in periods]
    owner = np.argmin(nearest, axis=0)
    series = []
    for number, (start_s, end_s) in enumerate(periods):
        mine = owner == number
        edges = np.append(np.arange(start_s, end_s - step_s * 1e-3, step_s), end_s)
        times = np.clip(np.append((ends - spent_s)[mine][:1], ends[mine]), start_s, end_s)
        series.append(
            {
                "start": time_text(start_s),
                "seconds": round(end_s - start_s, 3),
                "step_s": round(step_s, 3),
                "rows": _spread(edges, times, rows[mine]),
                "tokens": _spread(edges, times, tokens[mine]),
            }
        )
    return series


def _spread(edges: npt.NDArray[Any], times: npt.NDArray[Any], counts: npt.NDArray[Any]) -> list[int]:
    """Return the count of each bin: whole numbers that add up to the sum of `counts`.

    Args:
        edges: Start of each bin, and the end of the last.
        times: Start of the first count, and the end of each.
        counts: Rows, or tokens.
    """
    if not len(counts):
        return [0] * (len(edges) - 1)
    done = np.interp(edges, times, np.append(0, np.cumsum(counts)))
    done[0], done[-1] = 0, counts.sum()
    bins: list[int] = np.diff(np.rint(done).astype(np.int64)).tolist()
    return bins


def _periods(calls: Sequence[Call], ends: npt.NDArray[Any]) -> list[tuple[float, float]]:
    """Return the times in which calls ran units, without overlaps, in order."""
    worked = sorted((seconds_of(call["units_started"]), call["units_ended"]) for call in calls if call["units_started"])
    periods: list[tuple[float, float]] = []
    for number, (start_s, ended) in enumerate(worked):
        if ended is not None:
            end_s = seconds_of(ended)
        else:  # its process was killed, or runs: it worked until its last unit ended
            next_s = worked[number + 1][0] if number + 1 < len(worked) else np.inf
            mine = ends[(ends >= start_s) & (ends < next_s)]
            end_s = float(mine[-1]) if len(mine) else start_s
        end_s = max(end_s, start_s + 0.001)
        if periods and start_s <= periods[-1][1]:
            periods[-1] = (periods[-1][0], max(periods[-1][1], end_s))
        else:
            periods.append((start_s, end_s))
    return periods


# Quarantine and files ---------------------------------------------------------------------------------------------------


def _quarantine(ledger: Ledger, receipts: Sequence[Receipt], figures: Figures) -> dict[str, Any]:
    """Return the quarantined rows by reason, with samples. Few files are opened, since there may be one for each unit."""
    carried = ledger.previous_quarantine()
    reasons = Counter(figures.reasons) + Counter(carried["reason"].to_pylist())
    chosen, opened = [], Counter[str]()
    for receipt in receipts:
        known = Figures.from_json(receipt.figures).reasons
        if receipt.rows_quarantined and not known:  # an older receipt: its reasons are in its files alone
            chosen.append(receipt)
            reasons.update(ledger.quarantine([receipt]).slice(carried.num_rows)["reason"].to_pylist())
        elif any(opened[reason] < _SAMPLED_FILES for reason in known):
            chosen.append(receipt)
            opened.update(known.keys())
    sampled, taken = [], Counter[str]()
    for row in ledger.quarantine(chosen).select(["reason", "shard", "position", "id", "error"]).to_pylist():
        if taken[row["reason"]] < _SAMPLES:
            sampled.append(row)
            taken[row["reason"]] += 1
    return {"carried": carried.num_rows, "reasons": dict(reasons.most_common()), "samples": sampled}


def _files(ledger: Ledger, receipts: Sequence[Receipt]) -> dict[str, Any]:
    """Return count and sizes of the files of a run, with those into which small ones were merged."""
    merge = merge_ledger(ledger)
    merged = set() if merge.description() is None else set(merge.table("removed")["path"].to_pylist())
    files = [file for receipt in receipts for file in receipt.files if file.path not in merged]
    files += [file for receipt in merge.receipts().values() for file in receipt.files]
    sizes = np.array([file.size_bytes for file in files], dtype=np.int64)
    powers = np.bincount(np.log2(np.maximum(sizes, 1)).astype(np.int64)).tolist() if files else []
    return {
        "files": len(files),
        "rows": sum(file.rows for file in files),
        "size_bytes": int(sizes.sum()),
        "smallest_bytes": int(sizes.min(initial=2**62)) if files else 0,
        "largest_bytes": int(sizes.max(initial=0)),
        "sizes": powers,
        "merged": len(merged),
        "partitions": _partitions(files),
    }


def _partitions(files: Iterable[DataFile]) -> dict[str, Any]:
    """Return the number of partitions, and files, rows and bytes of the largest."""
    totals: dict[tuple[tuple[str, str | None], ...], list[int]] = {}
    for file in files:
        total = totals.setdefault(tuple(file.partition.items()), [0, 0, 0])
        for number, value in enumerate((file.rows, 1, file.size_bytes)):
            total[number] += value
    totals.pop((), None)
    largest = sorted(totals.items(), key=lambda item: -item[1][0])[:_PARTITIONS]
    return {
        "count": len(totals),
        "largest": [
            {"values": dict(values), "rows": rows, "files": count, "size_bytes": size_bytes}
            for values, (rows, count, size_bytes) in largest
        ],
    }
