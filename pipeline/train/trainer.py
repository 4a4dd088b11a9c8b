"""The trainer of sentence-transformers with our batches, checkpoints and checks. Runs in the workers; imports torch.

Ours where theirs ends: every step is of one source on all ranks (`sampler`), a checkpoint holds what is trained and resumes
bit for bit on a CPU, a loss that is not finite stops before the weights change, and a mini-batch that does not fit into memory
is cut in two.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_callback import PrinterCallback, TrainerState

from actors.errors import ClusterError, ConfigError, Diverged
from actors.storage.errors import redact
from pipeline.job.validation import shown
from pipeline.train.checkpoints import fill
from pipeline.train.collate import Rows
from pipeline.train.data import QUERY
from pipeline.train.sampler import SourceBatchSampler

if TYPE_CHECKING:
    from pipeline.job.training import Train
    from pipeline.train.data import TrainingData

WEIGHTS, OPTIMIZER, RANDOM, STATE = "weights.safetensors", "optimizer.pt", "random.pt", "trainer_state.json"
_SHOWN = 8  # row numbers in a message
# Of the allocator of CPUs, cuBLAS and oneDNN, which says nothing else when it gets no memory.
_ALLOCATION_FAILED = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "could not create a primitive")


class OutOfMemory(ClusterError):
    """A mini-batch does not fit into the memory of one of several ranks; the training can go on with a smaller one."""


@dataclass
class Parts:
    """The parts of a training that the job chooses.

    Attributes:
        losses: Loss by name of a source.
        collate: Makes a batch of rows; see `collate.Collator`.
    """

    model: SentenceTransformer
    losses: dict[str, nn.Module]
    data: TrainingData
    collate: Callable[[Any], dict[str, Any]]


@dataclass
class Step:
    """What is known of the step that is running, of all ranks together once `Trainer` has reduced it.

    Attributes:
        terms: Terms of the loss by name.
        tokens: Tokens of the texts, without padding.
    """

    source: str = ""
    loss: float = math.nan
    terms: dict[str, float] = field(default_factory=dict)
    gradient_norm: float = math.nan
    learning_rate: float = 0.0
    tokens: int = 0


class Trainer(SentenceTransformerTrainer):
    """Trains the parts of a job.

    Args:
        parts: Model, losses, data and collator.
        settings: Section `train` of the job, with no default left open.
        scratch: Folder of this machine. With the files of a checkpoint in it, `resume` begins there.
        budget_tokens: Tokens that go through the model at once.
        note: Called with a sentence about something that the user should know.
    """

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self, parts: Parts, settings: Train, scratch: Path, budget_tokens: int, note: Callable[[str], None]
    ) -> None:
        self.parts, self.settings = parts, settings
        self.step = Step()
        self.budget_tokens = budget_tokens
        self._note = note
        self._scratch = scratch
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        self.sampler = SourceBatchSampler(
            parts.data.sources, settings.batch_rows // ranks, ranks=ranks, seed=settings.seed
        )
        planned = settings.epochs * self.sampler.steps
        self.trained = trained_parameters(parts.model, parts.losses)
        decayed = [each for each in self.trained.values() if each.ndim > 1]
        others = [each for each in self.trained.values() if each.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW([each for each in groups if each["params"]], settings.learning_rate)
        collate: Any = parts.collate
        optimizers: Any = (optimizer, None)
        gpu = parts.model.device.type == "cuda"
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(scratch),
            per_device_train_batch_size=self.sampler.batch_size,
            num_train_epochs=settings.epochs,
            max_steps=min(settings.max_steps or planned, planned),
            lr_scheduler_type="linear",
            warmup_steps=settings.warmup,
            max_grad_norm=settings.max_grad_norm,
            bf16=gpu and torch.cuda.is_bf16_supported(),
            use_cpu=not gpu,
            # The last mini-batch is one of passages, which do not use the adapter of queries.
            ddp_find_unused_parameters=len(settings.tasks) > 1,
            seed=settings.seed,
            remove_unused_columns=False,
            disable_tqdm=True,
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            logging_nan_inf_filter=False,
        )
        _ = arguments.device
        arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001  (one process has one GPU, also where it sees more)
        super().__init__(
            model=parts.model,
            args=arguments,
            loss=parts.losses,
            data_collator=collate,
            optimizers=optimizers,
        )
        self.remove_callback(PrinterCallback)
        self.set_budget(budget_tokens)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Add none: the model card is `pipeline.train.card`'s."""

    # ------------------------------------------------------------------------------------------------------------ batches

    def get_train_dataloader(self) -> Any:
        """Return the batches of this rank."""
        rows: Any = Rows(self.parts.data.sources)
        sampler: Any = self.sampler
        loader = DataLoader(
            rows, batch_sampler=sampler, collate_fn=self.data_collator, pin_memory=self.args.device.type == "cuda"
        )
        self.accelerator.even_batches = False
        return self.accelerator.prepare(loader)

    def rows_of_step(self, number: int) -> str:
        """Return the rows of this rank in a step that is counted from 0, as words."""
        epoch, step = divmod(number, self.sampler.steps)
        self.sampler.set_epoch(epoch, step)
        numbers = next(islice(self.sampler, self.args.process_index, None))
        for source in self.parts.data.sources:
            if numbers[0] < source.rows:
                break
            numbers = [each - source.rows for each in numbers]
        more = f" and {len(numbers) - _SHOWN:,} more" if len(numbers) > _SHOWN else ""
        text = shown(source.take(numbers[:1])[QUERY][0].as_py())
        return f"rows {', '.join(map(str, numbers[:_SHOWN]))}{more} of {source.name!r}, the first with the query {text}"

    # -------------------------------------------------------------------------------------------------------------- steps

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Return the loss of a step, whose gradients are then in the parameters.

        A step that does not fit into memory is repeated with half the budget; the random numbers are the same again.

        Raises:
            OutOfMemory: it does not fit, and this is one of several ranks.
            ConfigError: it does not fit, and smaller mini-batches do not help.
        """
        masks = [value for name, value in inputs.items() if name.endswith("_attention_mask")]
        self.step = Step(inputs["dataset_name"], tokens=sum(int(mask.sum()) for mask in masks))
        random = _random_state()
        while True:
            try:
                loss: Tensor = super().training_step(model, dict(inputs), num_items_in_batch)
            except (RuntimeError, MemoryError) as error:
                if not _lacks_memory(error):
                    raise
                reason = redact(error) or type(error).__name__
            else:
                self.step.loss = float(loss)
                return loss
            self.optimizer.zero_grad()
            self._halve(max(int(mask.sum(1).max()) for mask in masks), reason)
            _set_random_state(random)

    def track_loss_components(self, loss: Mapping[str, Tensor]) -> None:
        """Keep the terms of the loss."""
        self.step.terms = {name: float(value.detach()) for name, value in loss.items()}

    def _prepare_for_training(self, *args: Any) -> Any:
        prepared = super()._prepare_for_training(*args)  # type: ignore[no-untyped-call]
        # Into every loss, also one inside another: theirs looks at those with a `model` of their own.
        wrapped: Any = self.model_wrapped
        for name, loss in self.loss.items():
            self.loss[name] = self.override_model_in_loss(loss, wrapped)
        return prepared

    def _clip_grad_norm(self, _: nn.Module) -> Tensor:
        # Not of the model alone: a loss may have parameters too.
        norm: Tensor = self.accelerator.clip_grad_norm_(self.trained.values(), self.args.max_grad_norm)
        return norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        """Return the norm of the gradient, after the check that it and the loss are finite on all ranks."""
        norm = float(super()._get_grad_norm(model, grad_norm=grad_norm))  # type: ignore[no-untyped-call]
        own = self.step.loss
        self._reduce()
        self.step.gradient_norm, self.step.learning_rate = norm, float(self._get_learning_rate())
        if not (math.isfinite(self.step.loss) and math.isfinite(norm)):
            self._stop(own)
        return norm

    def _reduce(self) -> None:
        """Make the numbers of the step those of all ranks: the means of the loss and its terms, and the sum of the tokens."""
        if self.args.world_size == 1:
            return
        names = [*self.step.terms]
        values = [self.step.loss, *self.step.terms.values(), self.step.tokens]
        reduced = torch.tensor(values, dtype=torch.float64, device=self.args.device)
        dist.all_reduce(reduced)
        loss, *terms, tokens = reduced.tolist()
        ranks = self.args.world_size
        self.step.loss, self.step.tokens = loss / ranks, round(tokens)
        self.step.terms = {name: value / ranks for name, value in zip(names, terms, strict=True)}

    def _stop(self, own_loss: float) -> None:
        """Raise the error of a step whose loss or gradient is not finite; all ranks are here."""
        number = self.state.global_step
        rows: list[Any] = [None if math.isfinite(own_loss) else self.rows_of_step(number)]
        if self.args.world_size > 1:
            gathered: list[Any] = [None] * self.args.world_size
            dist.all_gather_object(gathered, rows[0])
            rows = gathered
        found = [each for each in rows if each is not None]
        what = "loss" if found else "gradient"
        kept = number - number % self.settings.checkpoint_steps
        terms = ", ".join(f"{name} {value:g}" for name, value in self.step.terms.items() if not math.isfinite(value))
        raise Diverged(
            f"step {number + 1}: the {what} is not finite{f' ({terms})' if terms else ''}, in "
            f"{'; '.join(found) or self.rows_of_step(number)}.{f' The checkpoint of step {kept} is kept.' if kept else ''} Lower "
            f"train.learning_rate ({self.settings.learning_rate:g}) and name another out.uri, or look at these rows"
        )

    def _halve(self, longest: int, reason: str) -> None:
        budget = self.budget_tokens
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if budget <= longest:
            raise ConfigError(
                f"step {self.state.global_step + 1}: out of memory with one text at a time, of up to {longest:,} tokens. Lower "
                f"train.max_tokens or train.batch_rows, or use machines with more memory ({reason})"
            )
        if self.args.world_size > 1:
            raise OutOfMemory(f"step {self.state.global_step + 1}: out of memory with train.budget_tokens {budget:,}")
        self.set_budget(budget // 2)
        self._note(
            f"step {self.state.global_step + 1}: out of memory with {budget:,} tokens at once; repeated and continued with "
            f"{self.budget_tokens:,}"
        )

    def set_budget(self, budget_tokens: int) -> None:
        """Set how many tokens go through the model at once."""
        self.budget_tokens = budget_tokens
        for loss in self.loss.values():
            cached: Any
            for cached in loss.modules():
                if getattr(cached, "mini_batch_num_tokens", None) is not None:
                    cached.mini_batch_num_tokens = budget_tokens

    # -------------------------------------------------------------------------------------------------------- checkpoints

    def weights(self) -> bytes:
        """Return the trained parameters of the model, as a safetensors file.

        Raises:
            Diverged: one is not finite.
        """
        return self._weights({name: each for name, each in self.trained.items() if not name.startswith(_OF_LOSS)})

    def _weights(self, parameters: Mapping[str, nn.Parameter]) -> bytes:
        values = {name: each.detach().cpu().contiguous() for name, each in parameters.items()}
        if bad := next((name for name, value in values.items() if not value.isfinite().all()), None):
            raise Diverged(
                f"step {self.state.global_step}: the weight {bad} is not finite. Lower train.learning_rate "
                f"({self.settings.learning_rate:g}) and name another out.uri"
            )
        return to_bytes(values)

    def checkpoint(self) -> dict[str, bytes]:
        """Return the files of a checkpoint after the last step. All ranks call this.

        Raises:
            Diverged: a weight is not finite.
        """
        random = _random_state()
        of_ranks: list[Any] = [random]
        if self.args.world_size > 1:
            of_ranks = [None] * self.args.world_size
            dist.all_gather_object(of_ranks, random)
        state = {"optimizer": self.optimizer.state_dict(), "schedule": self.lr_scheduler.state_dict()}
        return {WEIGHTS: self._weights(self.trained), OPTIMIZER: _saved(state), RANDOM: _saved(of_ranks)}

    def resume(self, step: int) -> None:
        """Train from the checkpoint of a step, whose files are in the scratch folder."""
        TrainerState(global_step=step, train_batch_size=self.args.train_batch_size).save_to_json(
            str(self._scratch / STATE)
        )
        self.train(resume_from_checkpoint=str(self._scratch))

    def _load_from_checkpoint(self, checkpoint_path: str, *_: Any) -> None:
        fill(self.trained, load_file(Path(checkpoint_path) / WEIGHTS), checkpoint_path)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state = torch.load(Path(checkpoint) / OPTIMIZER, map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(state["optimizer"])
            self.lr_scheduler.load_state_dict(state["schedule"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            of_ranks = torch.load(Path(checkpoint) / RANDOM, weights_only=True)
            if len(of_ranks) == self.args.world_size:  # with another number of ranks, each keeps its own
                _set_random_state(of_ranks[self.args.process_index])


_OF_LOSS = "loss:"


def trained_parameters(model: nn.Module, losses: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return all parameters that are trained, by name: those of the model, and those that losses have of their own."""
    found = {name: each for name, each in model.named_parameters() if each.requires_grad}
    known = {id(each) for each in model.parameters()}
    for source, loss in losses.items():
        for name, each in loss.named_parameters():
            if each.requires_grad and id(each) not in known:
                known.add(id(each))
                found[f"{_OF_LOSS}{source}:{name}"] = each
    return found


def _lacks_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in str(error) for words in _ALLOCATION_FAILED
    )


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def _set_random_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
