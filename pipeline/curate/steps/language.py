"""The step `language`: rows with a text in another language than the allowed ones are dropped.

Each text is identified once. A text is `other`, and its row is dropped, only where another language is found with enough
confidence; where it is not sure, the text is `uncertain` and kept.

- A model is sure of languages where there are none: in code, paths and names. So a text needs letters outside of these.
- Close languages have words in common. So the confidence of another language is its lead over the best allowed one.
- In translations only the languages of the job count, if one of them is found: a side of `[[en, fr]]` is French or was not
  translated, and need not be distinguished from 174 other languages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.errors import ConfigError
from pipeline.curate import fasttext_model as fasttext
from pipeline.curate.database import literal
from pipeline.curate.steps.base import Decision, Seen, Step, chosen
from pipeline.job.curation import TEXT
from pipeline.job.curation import Language as Settings

OK, TOO_SHORT, UNCERTAIN, OTHER = "ok", "too_short", "uncertain", "other"
_SURE = 0.7  # least confidence in the language of the first side of a translation that decides about the second
_BINS = 10
_LANGUAGES = 30  # that the evidence names
# Code, as RE2 reads it: visible ASCII with a sign that prose has not, a capital within a word, a dotted name, a call.
_CODE = r"[!-~]*(?:[\\/_<>={}\[\]|$#@%^*+~`0-9&]|[a-z][A-Z]|[A-Za-z][.:(][A-Za-z]|\(\))[!-~]*"


class Language(Step):
    """See the module."""

    name = "language"

    def __init__(self, settings: Settings, sides: Sequence[str]) -> None:
        super().__init__(settings, sides)
        # Workers have another working directory, and may have the package at another place.
        self._other_model = None if settings.model is None else Path(settings.model).absolute()
        self._sides = chosen(sides, settings.side)

    def schema(self) -> pa.Schema:
        """See `Step`."""
        kinds = {"": pa.string(), "_confidence": pa.float32(), "_verdict": pa.string()}
        return pa.schema([(f"{_column(side)}{end}", kind) for side in self._sides for end, kind in kinds.items()])

    def raw(self) -> pa.Schema:
        """See `Step`. The most probable languages, best first, so that other settings predict nothing again."""
        kinds = {"languages": pa.list_(pa.string()), "probabilities": pa.list_(pa.float32())}
        return pa.schema([(f"{side}_{name}", kind) for side in self._sides for name, kind in kinds.items()])

    def raw_settings(self) -> dict[str, Any]:
        """See `Step`."""
        return {"sides": self._sides, **self.lineage()}

    def lineage(self) -> dict[str, Any]:
        """See `Step`."""
        return {"sha256": fasttext.hash_of(self._model)}

    @property
    def _model(self) -> Path:
        return self._other_model or fasttext.packaged()

    def check(self) -> None:
        """See `Step`."""
        fasttext.check_package()
        known = fasttext.languages_of(self._model)
        for code in self._codes:
            if not fasttext.labels_of(code, known):
                raise ConfigError(
                    f"steps.language.allow names {code!r}, which {str(self._model)!r} does not know; write a language as that "
                    f"model does, such as {', '.join(sorted(known)[:: max(1, len(known) // 4)])}"
                )

    @property
    def _least(self) -> str:
        """SQL of the least confidence. Confidences are 32 bits wide, and 0.7 is less than that in 64."""
        return f"{self.settings.min_confidence!r}::float"

    @property
    def _codes(self) -> tuple[str, ...]:
        """The languages that the job names."""
        allow = self.settings.allow
        return tuple(dict.fromkeys(code for each in allow for code in ((each,) if isinstance(each, str) else each)))

    def measure(self, sides: Sequence[pa.StringArray]) -> pa.RecordBatch:
        """See `Step`."""
        columns: list[pa.ListArray] = []
        for side, texts in zip(self.sides, sides, strict=True):
            if side in self._sides:
                columns += fasttext.predict_languages(self._model, texts)
        return pa.record_batch(columns, schema=self.raw())

    def decide(self, seen: Seen) -> Decision:
        """See `Step`."""
        run = seen.connection.execute
        named = self._labels(*self._codes)
        rows, allowed = seen.rows, _sql(named)
        for side in self._sides:
            rows = f"({self._with_verdict(rows, side, allowed, _sql(named))})"
            # The first side of a translation may have any language of the job, the second one that goes with it.
            allowed = self._partners(_column(side), named) if self.settings.of_translations else allowed
        run(
            f"create or replace table language as select n, {', '.join(self.schema().names)}, "
            f"coalesce({self._condition()}, false) as dropped from {rows}"
        )
        evidence = {_column(side): self._evidence(seen, _column(side)) for side in self._sides}
        is_ok = " or ".join(f"{_column(side)}_verdict = '{OK}'" for side in self._sides)
        count, dropped, right = run(
            f"select count(*), count(*) filter (dropped), count(*) filter (not dropped and ({is_ok})) from language"
        ).fetchall()[0]
        if dropped and not right:
            these = "is a pair of" if self.settings.of_translations else "is in"
            raise ConfigError(
                f"steps.language.allow is {self.settings.model_dump(mode='json')['allow']}, and none of the {count:,} rows {these} these languages: "
                f"{self._found(evidence)}. Allow the languages of the texts"
            )
        note = {} if dropped else {"note": "no text is surely in another language, so the step drops nothing"}
        return Decision("language", {"min_confidence": self.settings.min_confidence, **note, **evidence})

    def view(self, before: Mapping[str, Any]) -> str:
        """See `Step`."""
        key = "min_confidence"
        if not self.differs_only_in(key, before) or self.settings.min_confidence > before[key]:
            raise ConfigError(
                f"steps.language has {dict(before)} in the table; a view can have a smaller min_confidence and nothing else. "
                f"Run without --view"
            )
        return self._condition()

    def _condition(self) -> str:
        found = f"in ('{OTHER}', '{UNCERTAIN}')"
        return " or ".join(
            f"({column}_verdict {found} and {column}_confidence >= {self._least})"
            for column in map(_column, self._sides)
        )

    def _labels(self, *codes: str) -> list[str]:
        known = fasttext.languages_of(self._model)
        return [label for code in codes for label in fasttext.labels_of(code, known)]

    def _partners(self, column: str, named: list[str]) -> str:
        """Return the SQL of the languages that go with that of a side, or of all if that is not sure."""
        pairs = [(one, other) for one, other in map(tuple, self.settings.allow)]
        partners: dict[str, list[str]] = {}
        for one, other in [*pairs, *((other, one) for one, other in pairs)]:
            for label in self._labels(one):
                partners.setdefault(label, []).extend(self._labels(other))
        cases = " ".join(f"when {literal(label)} then {_sql(others)}" for label, others in partners.items())
        is_sure = f"{column}_verdict = '{OK}' and {column}_confidence >= {_SURE}"
        return f"case when {is_sure} then case {column} {cases} end else {_sql(named)} end"

    def _with_verdict(self, rows: str, side: str, allowed: str, named: str) -> str:
        """Return the SQL of rows with the three columns of a side."""
        settings, column = self.settings, _column(side)

        def among(languages: str) -> str:
            guesses = f"list_zip({side}_languages, {side}_probabilities)"
            return f"[guess[2] for guess in {guesses} if list_contains({languages}, guess[1])]"

        whole = f"case when list_contains({named}, {column}) then list_sum({among(named)}) else 1 end"
        lead = f"probability - case when is_allowed then 0 else coalesce(list_max({among(allowed)}), 0) end"
        letters = rf"length(regexp_replace(regexp_replace({side}, '{_CODE}', ' ', 'g'), '[^\pL]+', '', 'g'))"
        return f"""
            select * exclude (probability, is_allowed), case
                when coalesce(length({side}), 0) < {settings.min_characters} then '{TOO_SHORT}'
                when is_allowed then '{OK}'
                when {letters} < {settings.min_characters / 2} then '{TOO_SHORT}'
                when {column}_confidence >= {self._least} then '{OTHER}'
                else '{UNCERTAIN}' end as {column}_verdict
            from (select *, (({lead}) / {whole if settings.of_translations else 1})::float as {column}_confidence
            from (select *, list_contains({allowed}, {column}) as is_allowed
            from (select *, {side}_languages[1] as {column}, {side}_probabilities[1] as probability from {rows})))"""

    def _evidence(self, seen: Seen, column: str) -> dict[str, Any]:
        """Return the texts of a side by language and verdict, and a histogram of the confidence by verdict."""
        run = seen.connection.execute
        counted = run(
            f"select {column}, {column}_verdict, count(*) from language group by all order by count(*) desc, 1, 2"
        ).fetchall()
        languages: dict[str, dict[str, int]] = {}
        for language, verdict, count in counted:
            languages.setdefault(language, {})[verdict] = count
        binned = run(
            f"select {column}_verdict, least(floor({column}_confidence * {_BINS}), {_BINS - 1})::int, count(*) from language "
            f"group by all order by all"
        ).fetchall()
        histogram: dict[str, list[int]] = {}
        for verdict, number, count in binned:
            histogram.setdefault(verdict, [0] * _BINS)[number] = count
        return {"languages": dict(list(languages.items())[:_LANGUAGES]), "confidence": histogram}

    def _found(self, evidence: dict[str, Any]) -> str:
        """Return the most common languages of each side with their counts, in words."""
        most = 5
        return "; ".join(
            f"{side} has "
            + ", ".join(f"{code} {sum(rows.values()):,}" for code, rows in list(counts["languages"].items())[:most])
            for side, counts in evidence.items()
        )


def _column(side: str) -> str:
    return "language" if side == TEXT else f"{side}_language"


def _sql(values: Sequence[str]) -> str:
    """Return the SQL of a list of texts; labels are from a file that a user may choose."""
    return f"[{', '.join(map(literal, values))}]"
