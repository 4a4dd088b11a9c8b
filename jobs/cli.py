"""Registers the commands and turns errors into exit codes.

Exit codes: 0 done, 1 the run failed, 2 the arguments or the job file are wrong, 130 stopped by Ctrl-C. Each command
imports its pipeline when it is called, so that `vectide --help` does not load Ray or torch.
"""

from __future__ import annotations

import sys
from typing import Any

import typer
import typer.core

from actors.errors import VectideError
from jobs import output
from jobs.commands.backfill import backfill
from jobs.commands.changes import changes
from jobs.commands.compact import compact
from jobs.commands.curate import curate
from jobs.commands.diff import diff
from jobs.commands.doctor import doctor
from jobs.commands.evaluate import evaluate
from jobs.commands.mine import mine
from jobs.commands.negation import negation
from jobs.commands.plan import plan
from jobs.commands.quarantine import quarantine
from jobs.commands.refresh import refresh
from jobs.commands.report import report
from jobs.commands.rollback import rollback
from jobs.commands.schedule import schedule
from jobs.commands.search import search
from jobs.commands.soup import soup
from jobs.commands.status import status
from jobs.commands.submit import submit
from jobs.commands.train import train
from jobs.commands.vacuum import vacuum
from jobs.commands.versions import versions
from jobs.commands.watch import watch


class _Commands(typer.core.TyperGroup):
    """Group of all commands. It prints a message on Ctrl-C, which typer would end without one."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            output.error("stopped; run the same command again to resume")
            raise typer.Exit(130) from None


app = typer.Typer(
    name="vectide",
    cls=_Commands,
    help="Embed a corpus of any size into a Delta Lake table, and keep the table up to date.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# In the order of `vectide --help`.
for _command in (
    *(plan, backfill, refresh, search, evaluate, curate, status, quarantine, report),
    *(versions, rollback, diff, changes, compact, vacuum),
    *(mine, train, soup, negation),
    *(submit, schedule, watch, doctor),
):
    app.command()(_command)


def main() -> None:
    """Run a command. An error of the user's ends in one message, without a traceback."""
    try:
        app()
    except VectideError as error:
        output.error(str(error))
        sys.exit(error.exit_code)
