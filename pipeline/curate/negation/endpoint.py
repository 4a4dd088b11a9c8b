"""Asks a model behind an OpenAI-compatible endpoint for the negation of sentences.

The key is read from the environment (OPENAI_API_KEY), is sent over https or to this machine alone, and is in no message.
What comes back is checked by the caller: a wrong answer is asked for again, as are a busy server, a page in place of JSON and
an answer that takes too long. Answers are kept by batch, so that a run that was stopped asks for no sentence twice.
"""

from __future__ import annotations

import ipaddress
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from actors import storage
from actors.errors import ConfigError, StorageError
from actors.storage.errors import redact

KEY = "OPENAI_API_KEY"
BATCH = 64  # sentences whose answers are kept together
THREADS = 8
_TRIES = 4
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_LARGEST_BYTES = 1 << 20  # of an answer
_FINAL = (401, 403, 404, 405)  # no later request gets another answer
PROMPT = (
    "Negate the sentence. Change as few words as possible: add a word such as not, no or never, and change nothing else but "
    "what grammar needs. Answer with the negated sentence alone."
)


class Answer(NamedTuple):
    """Answer of the endpoint.

    Attributes:
        text: The negation; empty if there is none.
        problem: Why there is none.
    """

    text: str
    problem: str = ""


class _Refused(Exception):
    """The endpoint gave no usable answer.

    Attributes:
        pause_s: Least time that the server asks for before another try.
    """

    def __init__(self, problem: str, pause_s: float = 0.0) -> None:
        super().__init__(problem)
        self.pause_s = pause_s


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could send the key elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Endpoint:
    """OpenAI-compatible endpoint.

    Args:
        url: Its base, as in http://localhost:8000/v1.
        model: Name of the model.
        parts: URL of the folder for answers of finished batches.
        timeout_s: Longest time for one answer.

    Raises:
        ConfigError: the URL is no http or https URL, or a key would be sent unencrypted.
    """

    def __init__(self, url: str, model: str, parts: str, *, timeout_s: float = 60.0) -> None:
        place = urlsplit(url)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise ConfigError(f"--endpoint {redact(url)!r} is no http or https URL, as in http://localhost:8000/v1")
        if place.username or place.password or place.query:
            raise ConfigError(
                f"--endpoint has a user, password or query in it; give a key in the environment, as {KEY}"
            )
        self._key = os.environ.get(KEY, "")
        if self._key and place.scheme == "http" and not _is_here(place.hostname):
            raise ConfigError(
                f"--endpoint {url!r} is not encrypted, and {KEY} is set: it would be sent in the clear. Use https, or unset it"
            )
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._model, self._parts, self._timeout_s = model, parts, timeout_s
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._kept: list[str] = []

    def negate(self, sentences: Sequence[str], check: Callable[[str, str], str]) -> Iterator[Answer]:
        """Yield an answer for each sentence, in order.

        Args:
            sentences: Any number.
            check: Returns why a text is no negation of a sentence, or an empty text.

        Raises:
            ConfigError: the endpoint refuses the key, the path or the model.
            StorageError: it answered no sentence of a batch.
        """
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(sentences), BATCH):
                yield from self._batch(sentences[start : start + BATCH], check, pool)

    def forget(self) -> None:
        """Delete the answers that were kept."""
        for url in self._kept:
            storage.delete(url)
        storage.prune(self._parts)

    def _batch(self, batch: Sequence[str], check: Callable[[str, str], str], pool: ThreadPoolExecutor) -> list[Answer]:
        name = blake2b(json.dumps([self._url, self._model, PROMPT, [*batch]]).encode(), digest_size=16).hexdigest()
        url = storage.join(self._parts, f"{name}.json")
        self._kept.append(url)
        try:
            return [Answer(*each) for each in json.loads(storage.read(url))]
        except (FileNotFoundError, NotADirectoryError):
            pass
        answers = list(pool.map(lambda sentence: self._answer(sentence, check), batch))
        if not any(answer.text for answer in answers):
            raise StorageError(
                f"the endpoint {self._url} gave no negation of {len(batch)} sentences: {answers[0].problem}. Finished "
                f"batches are kept; the same command asks for the others"
            )
        storage.put(url, json.dumps(answers).encode())
        return answers

    def _answer(self, sentence: str, check: Callable[[str, str], str]) -> Answer:
        pause_s, problem = _FIRST_PAUSE_S, ""
        for attempt in range(_TRIES):
            try:
                text = _text_of(self._ask(sentence, seed=attempt))
                problem = check(sentence, text)
                if not problem:
                    return Answer(text)
                wait_s = 0.0
            except _Refused as error:
                problem, wait_s = str(error), min(_LONGEST_PAUSE_S, max(pause_s, error.pause_s))
                pause_s *= 2
            if attempt < _TRIES - 1:
                time.sleep(wait_s)
        return Answer("", problem)

    def _ask(self, sentence: str, seed: int) -> Any:
        """Return the parsed answer to one request; another seed may give another answer."""
        messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": sentence}]
        body = {"model": self._model, "messages": messages, "temperature": 0 if seed == 0 else 0.7, "seed": seed}
        headers = {"Content-Type": "application/json", "User-Agent": "vectide"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)  # noqa: S310  (http or https)
        deadline, data = time.monotonic() + self._timeout_s, bytearray()
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                while chunk := response.read1(1 << 16):
                    data += chunk
                    if len(data) > _LARGEST_BYTES or time.monotonic() > deadline:
                        raise _Refused("the answer is too long" if len(data) > _LARGEST_BYTES else "too slow")
        except urllib.error.HTTPError as error:
            if error.code in _FINAL or 300 <= error.code < 400:
                hint = (
                    f"; set {KEY}" if error.code == 401 and not self._key else "; check the URL, the key and the model"
                )
                raise ConfigError(f"the endpoint {self._url} answered {error.code} {error.reason}{hint}") from None
            after = error.headers.get("Retry-After", "")
            raise _Refused(f"status {error.code}", float(after) if after.isdecimal() else 0.0) from None
        except (OSError, HTTPException) as error:
            raise _Refused("no connection" if isinstance(error, ConnectionError) else _named(error)) from None
        try:
            return json.loads(data)
        except ValueError:
            raise _Refused("the answer is not JSON") from None


def _named(error: BaseException) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return "too slow"
    return f"no connection: {redact(getattr(reason, 'strerror', None) or type(reason).__name__)}"


def _text_of(answer: Any) -> str:
    try:
        text = answer["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise TypeError
    except (KeyError, IndexError, TypeError):
        raise _Refused("the answer has no text") from None
    stripped = text.strip()
    quoted = len(stripped) > 1 and stripped[0] == stripped[-1] == '"'
    return stripped[1:-1] if quoted else stripped


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
