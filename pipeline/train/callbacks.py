"""Records the steps of a training, evaluates, saves checkpoints, and says when to stop. Runs in the workers.

`steps.jsonl` is a file of each checkpoint too, so a resume goes on with the records of the steps before it: none is missing, and
none is there twice. All ranks call the same functions at the same steps; the first one writes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from actors import storage
from pipeline.quality.metrics import MAIN
from pipeline.train.checkpoints import STEPS, Checkpoints, place
from pipeline.train.evaluate import EarlyStopping
from pipeline.train.trainer import Trainer

_STATE, _BEST = "callbacks.json", "best.safetensors"
Report = Callable[[int, int, float, str], None]


class Measures(Protocol):
    """What a model is evaluated with while it trains: `evaluate.HeldOut`."""

    def measure(self, model: Any, step: int) -> float:
        """Return how good the model is; more is better."""


class Bookkeeper(TrainerCallback):
    """Keeps the books of one training.

    Args:
        trainer: The trainer, which calls this.
        folder: URL of the `out` folder of the job.
        held_out: Data to evaluate with; None for none.
        report: Called after each step with the number of the step, of all steps, the loss, and the name of the step's source:
            "" where there is only one.
        note: Called with a sentence about each evaluation.

    Attributes:
        records: A record of each step: `trainer.Step`, with `step`, `epoch`, `seconds`, and `evaluation` where there was one.
        stopping: The evaluations.
    """

    def __init__(
        self, trainer: Trainer, folder: str, held_out: Measures | None, report: Report, note: Callable[[str], None]
    ) -> None:
        self._trainer, self._folder, self._held_out = trainer, folder, held_out
        self._report, self._note = report, note
        self._names_sources = len(trainer.parts.data.sources) > 1
        self._checkpoints = Checkpoints(folder)
        self._settings = trainer.settings
        self._first = trainer.args.process_index == 0
        self._best: bytes | None = None
        self._last_s = time.monotonic()
        self.records: list[dict[str, Any]] = []
        evaluate = self._settings.evaluate
        self.stopping = EarlyStopping(evaluate.patience if evaluate else 1)

    def load(self, scratch: Path) -> None:
        """Go on from the checkpoint whose files are in a folder of this machine."""
        state = json.loads((scratch / _STATE).read_bytes())
        self.stopping.load_state_dict(state["stopping"])
        self._trainer.set_budget(min(state["budget_tokens"], self._trainer.budget_tokens))
        self.records = [json.loads(line) for line in (scratch / STEPS).read_text().splitlines()]
        if (scratch / _BEST).exists():
            self._best = (scratch / _BEST).read_bytes()

    def weights(self) -> bytes:
        """Return the best weights, or without evaluations the last ones."""
        return self._trainer.weights() if self._best is None else self._best

    def write_records(self) -> None:
        """Write `steps.jsonl`."""
        if self._first:
            storage.put(place(self._folder, STEPS), self._lines())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Evaluate the model as it is before the first step."""
        if state.global_step == 0:
            self._evaluate(0)
        self._last_s = time.monotonic()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Tell the sampler its epoch; accelerate reaches only some of the samplers that it wraps."""
        self._trainer.sampler.set_epoch(state.global_step // self._trainer.sampler.steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Record the step, and evaluate and save where it is time."""
        step, last = state.global_step, state.global_step >= state.max_steps
        record = {"step": step, "epoch": (step - 1) // self._trainer.sampler.steps, **asdict(self._trainer.step)}
        record["seconds"] = round(time.monotonic() - self._last_s, 6)
        self.records.append(record)
        if self._first:
            source = record["source"] if self._names_sources else ""
            self._report(step, state.max_steps, record["loss"], source)
        evaluate = self._settings.evaluate
        if evaluate and (last or step % evaluate.every_steps == 0):
            control.should_training_stop |= self._evaluate(step)
            record["evaluation"] = self.stopping.scores.get(step)
        # None after the last step, also of an early stop: a resume would train on.
        if step % self._settings.checkpoint_steps == 0 and not control.should_training_stop:
            self._save(step)
        self._last_s = time.monotonic()

    def _evaluate(self, step: int) -> bool:
        """Evaluate, and return on all ranks whether the training shall stop."""
        if self._settings.evaluate is None:
            return False
        stop = False
        if self._held_out is not None:
            score = self._held_out.measure(self._trainer.model, step)
            stop = self.stopping.update(step, score)
            if self.stopping.is_best:
                self._best = self._trainer.weights()
            self._note(self._sentence(step, score))
        return bool(broadcast_object_list([stop])[0])

    def _sentence(self, step: int, score: float) -> str:
        if step == 0:
            return f"step 0, before the training: {MAIN} {score:.4f}"
        if self.stopping.is_best:
            return f"step {step:,}: {MAIN} {score:.4f}, the best so far"
        return f"step {step:,}: {MAIN} {score:.4f}; the best is {self.stopping.best:.4f}, of step {self.stopping.best_step:,}"

    def _save(self, step: int) -> None:
        files = self._trainer.checkpoint()
        if not self._first:
            return
        state = {"stopping": self.stopping.state_dict(), "budget_tokens": self._trainer.budget_tokens}
        files |= {_STATE: json.dumps(state).encode(), STEPS: self._lines()}
        if self._best is not None:
            files[_BEST] = self._best
        self._checkpoints.save(step, files)
        self.write_records()

    def _lines(self) -> bytes:
        return b"".join(json.dumps(record).encode() + b"\n" for record in self.records)
