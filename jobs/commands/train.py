"""`vectide train`: from pairs of texts to an adapter, or a model, that the encoder loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.quantities import counted, format_duration
from jobs import output
from jobs.options import AsJson, JobFile, Settings
from jobs.terminal import visible

if TYPE_CHECKING:
    from pipeline.train.trained import Trained


def train(job: JobFile = None, settings: Settings = None, json: AsJson = False) -> None:
    """Train an adapter, or a model, on pairs of texts. The same command resumes what was stopped."""
    from jobs.progress import steps_bar
    from pipeline.job.load import load_training
    from pipeline.train.run import train as run

    loaded = load_training(job, settings=settings or ())
    with steps_bar() as progress:
        trained = run(loaded, progress)
    output.as_json(trained) if json else _print(trained)


def _print(trained: Trained) -> None:
    """Print the result. The last line says the most, because `vectide watch` shows only that one of each round."""
    fitted = trained.fitted
    for source, counts in trained.counts.items():
        print(f"{visible(source)}: {', '.join(f'{count:,} {what}' for what, count in counts.items() if count)}")
    early = "" if fitted.stopped == "finished" else f" of {fitted.planned_steps:,}: no better score"
    rate = f"{fitted.tokens / max(fitted.seconds, 1e-9):,.0f} tokens/s on {fitted.workers} x {fitted.device}"
    print(
        f"trained {counted(fitted.steps, 'step')}{early}, {fitted.tokens:,} tokens in {format_duration(fitted.seconds)}, {rate}"
    )
    if fitted.best_step == 0:
        print("no evaluation was better than before the training, so these are the weights of before")
    elif fitted.best_step is not None:
        print(f"kept the weights of step {fitted.best_step:,}, the best of the evaluations")
    print(f"loaded with the encoder: the same vectors, to {trained.difference:.0e}")
    if trained.checkpoint is not None:
        print(f"model: {trained.checkpoint}, as in encoder.model: {trained.checkpoint}")
    if len(trained.adapters) > 1:
        (asks, query), (name, passage) = trained.adapters.items()
        print(f"adapters: {asks} for queries and {name} for passages, as in", end=" ")
        print(f"encoder.adapters: {{{name}: {{path: {passage}, query_path: {query}}}}}")
    else:
        for name, url in trained.adapters.items():
            print(f"adapter: {url}, as in encoder.adapters: {{{name}: {url}}}")
    if (scores := trained.scores) is not None:
        print(
            f"nDCG@10 before {scores['before']:.4f} after {scores['after']:.4f} [{scores['low']:+.4f}, {scores['high']:+.4f}]"
        )
    if trained.already_done:
        print(f"nothing left to do: {trained.out} already holds the result of this job")
