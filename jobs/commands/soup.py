"""`vectide soup`: one adapter or model from several trained ones."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from actors.errors import ConfigError
from jobs import output
from jobs.options import AsJson


class Mix(StrEnum):
    """Ways to combine results."""

    linear = "linear"
    slerp = "slerp"


def soup(  # noqa: PLR0917  (typer's arguments are options by name)
    results: Annotated[
        list[str], typer.Argument(metavar="RESULT...", help="Folders of adapters, or of whole models, of one base.")
    ],
    out: Annotated[str, typer.Option(metavar="URI", help="A folder for the result.")],
    weights: Annotated[
        str | None, typer.Option(metavar="W,W", help="Share of each, as in 2,1; default: equal shares.")
    ] = None,
    method: Annotated[
        Mix, typer.Option(help="linear: the weighted mean. slerp: along an arc, so that lengths stay.")
    ] = Mix.linear,
    model: Annotated[
        str | None, typer.Option(metavar="NAME_OR_DIR", help="Base of adapters; default: the one that they name.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Combine several trained adapters, or several trained models, into one."""
    from pipeline.train.soups import soup as run

    try:
        shares = None if weights is None else [float(each) for each in weights.split(",")]
    except ValueError:
        raise ConfigError(f"--weights {weights!r} must be numbers with commas between them, as in 2,1") from None
    made = run(results, out, weights=shares, method=method.value, model=model)
    if json:
        output.as_json(made)
        return
    parts = " + ".join(f"{share:.3g} x {place}" for share, place in zip(made.weights, results, strict=True))
    print(f"{made.out}: {parts}, {method.value}, {made.layers:,} layers")
    if made.kind == "adapter":
        print(f"rank {made.rank}, an adapter for {made.base}; it was loaded and makes finite vectors")
    else:
        print("a whole model; it was loaded and makes finite vectors")
