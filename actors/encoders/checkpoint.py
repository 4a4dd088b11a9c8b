"""Reads a checkpoint on disk without torch: its location, JSON files, tensor names and hashes.

Called by `spec.describe` on the driver and by the loader on workers. Only safetensors are read: a pickled weight file can
run code, so it is refused. Hashes are cached per (path, size, mtime) within the process and not on disk, where they could
become stale; each process computes them again (about a second per GB).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from actors.errors import ModelError
from actors.storage.errors import redact

_DOWNLOAD = ["*.safetensors", "*.json", "*.txt", "*.model"]
_SKIP = ["onnx/*", "openvino/*", "coreml/*", "*.onnx_data"]
_MAX_HEADER_BYTES = 100_000_000
# Tokenizer files that only code of transformers can read.
_OLD_TOKENIZERS = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Header entry of one tensor of a checkpoint.

    Attributes:
        file: Path relative to the checkpoint's folder.
        dtype: The header's name of the type, such as "F32" or "BF16".
        name: The tensor's name in the file, if it is not its key in our index.
    """

    file: str
    shape: tuple[int, ...]
    dtype: str
    name: str | None = None


@contextmanager
def understanding(folder: Path) -> Iterator[None]:
    """Converts errors raised while interpreting a checkpoint's files into ModelError.

    Files come from anyone, so their content may be missing, misplaced or of the wrong type.

    Raises:
        ModelError: The files do not have the content of a checkpoint.
    """
    try:
        yield
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        SafetensorError,
    ) as error:
        raise ModelError(
            f"{folder} does not hold what a checkpoint of its kind holds ({type(error).__name__}: {redact(error)}). "
            "Fetch the checkpoint again, or take another one."
        ) from error


def within(folder: Path, name: str) -> Path:
    """Returns the path of a file or folder that another file of the checkpoint names.

    Raises:
        ModelError: It is not inside the checkpoint.
    """
    if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ModelError(f"{folder} names the file {name!r}, which is not inside it. Take another checkpoint.")
    return folder / name


def resolve(model: str, revision: str | None = None, *, what: str = "model") -> tuple[Path, str | None]:
    """Returns the local directory of a hub id or of a local directory; downloads the hub id's files if needed.

    Args:
        model: The hub id or directory.
        revision: Branch, tag or commit of a hub id.
        what: Name of `model` in messages.

    Returns:
        The directory, and the commit it was downloaded at (None for a local directory).

    Raises:
        ModelError: It is neither, or cannot be downloaded.
    """
    local = Path(model).expanduser()
    if local.is_dir():
        return local.resolve(), None
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ModelError(
            f"{what} {model!r} is neither a directory on this machine nor a hub id of the form 'owner/name'. "
            "Check the path, or copy the directory to every machine first."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(model, revision=revision, allow_patterns=_DOWNLOAD, ignore_patterns=_SKIP)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ModelError(
            f"{what} {model!r}{at} is no directory on this machine, and could not be fetched from the hub ({type(error).__name__}: {error}). "
            "Check the name and the network, fill the local hub cache, or give the path of a local copy."
        ) from error
    path = Path(folder)
    return path, path.name if path.parent.name == "snapshots" else revision


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file, or None if there is no such file.

    Raises:
        ModelError: The file is not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8-sig"))  # some editors begin a file with a byte order mark
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, OSError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({redact(error)}). Fetch the checkpoint again.") from error


def check_tokenizer(folder: Path) -> None:
    """Raises `ModelError` unless a checkpoint has a tokenizer.json."""
    if (folder / "tokenizer.json").is_file():
        return
    there = [name for name in _OLD_TOKENIZERS if (folder / name).is_file()]
    beside = f", only {', '.join(there)}" if there else ""
    raise ModelError(
        f"{folder} has no tokenizer.json{beside}. Save a fast tokenizer beside the model: "
        "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
    )


def token_ids(path: Path) -> dict[str, int]:
    """Returns the ids of the tokens of a SentencePiece Unigram tokenizer, by the tokens."""
    tokenizer = read_json(path)
    ids = {token: number for number, (token, _) in enumerate(tokenizer["model"]["vocab"])}
    return ids | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


def tensor_index(folder: Path, files: Iterable[str]) -> dict[str, TensorInfo]:
    """Returns names, shapes and types of all tensors in `files`; reads only headers.

    Raises:
        ModelError: A file is cut short or is not safetensors.
    """
    tensors: dict[str, TensorInfo] = {}
    for name in files:
        for tensor, entry in _header(folder / name).items():
            if tensor != "__metadata__":
                tensors[tensor] = TensorInfo(name, tuple(entry["shape"]), entry["dtype"])
    return tensors


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            if size > _MAX_HEADER_BYTES:
                raise ValueError(f"header of {size} bytes")
            header: dict[str, Any] = json.loads(file.read(size))
        end = 0
        for key, entry in header.items():
            if key != "__metadata__":
                end = max(end, int(entry["data_offsets"][1]))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError, struct.error) as error:
        raise ModelError(
            f"{path} is not a safetensors file ({_what_it_is(path) or redact(error)}). Fetch the checkpoint again."
        ) from error
    if path.stat().st_size != 8 + size + end:
        raise ModelError(
            f"{path} has {path.stat().st_size} bytes where its header promises {8 + size + end}. "
            "Fetch the checkpoint again."
        )
    return header


def _what_it_is(path: Path) -> str | None:
    """Describes common wrong content of a weight file: a Git LFS pointer or nothing. None for other content."""
    try:
        with path.open("rb") as file:
            first = file.read(len(_LFS_POINTER))
    except OSError:
        return None
    if first == _LFS_POINTER:
        return "it is a Git LFS pointer, which `git lfs pull` replaces with the file"
    return None if first else "it has 0 bytes"


def sha256_files(folder: Path, files: Iterable[str]) -> str:
    """Returns one hash over the content of several files, in the order of their names; the names are not hashed."""
    digest = hashlib.sha256()
    for name in sorted(files):
        path = (folder / name).resolve()
        stat = path.stat()
        digest.update(_sha256(str(path), stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _sha256(path: str, _size_bytes: int, _mtime_ns: int) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


# Keys about the origin or the training of a model, which change no vector.
_IDLE_CONFIG = frozenset(
    {
        "_name_or_path",
        "architectures",
        "auto_map",
        "attention_probs_dropout_prob",
        "classifier_dropout",
        "dtype",
        "gradient_checkpointing",
        "hidden_dropout_prob",
        "initializer_factor",
        "initializer_range",
        "lora_dropout_p",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "use_flash_attn",
        "dropout_rate",
    }
)


def sha256_config(config: Mapping[str, Any]) -> str:
    """Returns a hash of a model's config without the keys that change no vector."""
    kept = {key: value for key, value in config.items() if key not in _IDLE_CONFIG}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
