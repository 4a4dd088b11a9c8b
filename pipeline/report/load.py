"""Reads the report of a run. Called by `jobs report`.

A run that has ended with a version has its final report in the ledger. Of every other run, also of one whose process was
killed or that an older release made, the figures are measured from the ledger now.
"""

from __future__ import annotations

import json

from actors import storage
from actors.errors import ConfigError, DataError
from pipeline.ledger.ledger import Ledger
from pipeline.report.measure import FORMAT, Report, measure
from pipeline.report.recorder import NAME, read_stored
from pipeline.report.repeat import command_of
from pipeline.table import delta_table
from pipeline.table.quarantine import run_to_show

MINING = "_mining.json"  # what `vectide mine` writes last; readers of a folder of Parquet leave out names with _
_FINAL = ("published", "finished")


def mined_prefix(name: str) -> str:
    """Return what the names of the Parquet files of a mining with this name begin with."""
    return f"negatives-{name}-"


def load_report(table: str, run: str | None = None) -> Report:
    """Return the report of a run.

    Args:
        table: URI of the table, or of the folder of a mining.
        run: Name of the run; that of the current version by default, or the only one if nothing is published.

    Raises:
        ConfigError: there is no such table or run.
        DataError: the stored report cannot be read.
    """
    url = storage.absolute(table)
    if run is None and (mined := _of_mining(url)) is not None:
        return mined
    opened = delta_table.open_table(url)
    ledger = Ledger(url, run_to_show(url, delta_table.state_of(opened), run))
    try:
        stored = read_stored(ledger) or {}
    except ValueError:
        raise DataError(
            f"{storage.join(ledger.url, NAME)!r} is no JSON: another program changed it. Remove it: the report is then "
            f"measured from the ledger again"
        ) from None
    if stored.get("format", FORMAT) != FORMAT:
        raise ConfigError(
            f"the report of run {ledger.run!r} has format {stored['format']!r}, and this release reads {FORMAT}: use the "
            f"release of vectide that wrote it"
        )
    description = ledger.description()
    if stored.get("state") in _FINAL and ("totals" in stored or description is None):
        return stored
    if description is None and not stored:
        raise ConfigError(f"{url!r} has no run {ledger.run!r}; `vectide status` lists its runs")
    known: Report = {
        "format": FORMAT,
        "vectide": None,
        "table": url,
        "run": ledger.run,
        "operation": "unknown",
        "command": "" if description is None else command_of(description.operation, description.job),
        "version": None,
        "state": "unfinished",
        "checks": [],
        "left_out": [],
        "dialects": [],
        "calls": [],
    }
    report = {**known, **stored, **measure(ledger, stored.get("calls", []))}
    if delta_table.is_published(opened, ledger.run):
        report |= {"state": "published", "version": delta_table.published_version(opened, ledger.run)}
    return report


def _of_mining(url: str) -> Report | None:
    """Return the report of a finished mining, which has no run and no ledger; None if the folder has none."""
    try:
        document = json.loads(storage.read(storage.join(url, MINING)))
        known: Report = {"table": url, "run": document["name"], "operation": "mining", "state": "finished"}
        unknown: Report = {
            "vectide": None,
            "version": None,
            "command": "",
            "checks": [],
            "left_out": [],
            "dialects": [],
        }
        return known | unknown | {"format": FORMAT, "calls": [], "mining": document["outcome"]}
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError):
        raise DataError(
            f"{storage.join(url, MINING)!r} is not what `vectide mine` writes; mine into another folder"
        ) from None
