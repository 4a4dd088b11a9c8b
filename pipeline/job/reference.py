"""Reference of the job file in Markdown, rendered from the models of `pipeline.job.config`.

`make docs` writes it to docs/jobs.md, and a test compares the two.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from pipeline.job.config import Job
from pipeline.job.curation import Curation
from pipeline.job.training import DataSource, Training

# A test parses it.
SHORTEST_JOB = """\
source:
  uri: corpus/*.parquet
table:
  uri: embeddings
encoder:
  model: sentence-transformers/all-MiniLM-L6-v2
"""
_INTRODUCTION = f"""\
# The job file

Written by `make docs` from `pipeline/job/config.py`; do not edit this page by hand.

The shortest job file has three keys. It embeds the column `text` of each file:

```yaml
{SHORTEST_JOB}```

Run it with `vectide backfill job.yaml`. Each key can also be set on the command line, as in
`--set run.unit_rows=2000`, which overrides the file. An unknown key is refused with the most similar one.
"""
_CURATION = """\
## A curation job

A file with the key `steps` is a job of `vectide curate` ([curation](curation.md)). It has `pairs` or `corpus`, `steps`,
`table` with its `uri`, and `run` with the keys above and `memory`: the memory of the local database that decides, such
as `4GiB`, by default a quarter of the machine's. A key of a step is set as in `--set steps.overlap.max_share=0.7`.
"""
_TRAINING = """\
## A training job

A file with the key `train` is a job of `vectide train` ([fine-tuning](fine-tuning.md)). A key of the first source is
set as in `--set data.0.weight=2`.
"""
_TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true`, `false`"}
_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
}


def reference() -> str:
    """Return the Markdown page of all sections and keys: type or values, default and description of each."""
    schema = Job.model_json_schema()
    parts = [_INTRODUCTION]
    for name, field in schema["properties"].items():
        needs = "Required." if name in schema["required"] else "May be left out."
        parts.append(f"## {name}\n\n{_section(_resolve(field, schema), schema, needs)}")
    return "\n".join([*parts, *_curation(), *_training()])


def _curation() -> Iterator[str]:
    """Yield the parts about the other kind of job: its sections, and the steps with their settings."""
    yield _CURATION
    schema = Curation.model_json_schema()
    for name in ("pairs", "corpus"):
        section = _resolve(schema["properties"][name]["anyOf"][0], schema)
        yield f"### {name}\n\n{_section(section, schema, 'One of pairs and corpus is required.')}"
    for name, field in schema["$defs"]["Step"]["properties"].items():
        yield f"### steps: {name}\n\n{_section(_resolve(field['anyOf'][0], schema), schema, '')}"


def _training() -> Iterator[str]:
    """Yield the parts about a training job: its sections, of which `data` is a list."""
    yield _TRAINING
    schema = Training.model_json_schema()
    for name, field in schema["properties"].items():
        needs = "Required." if name in schema["required"] else "May be left out."
        section = schema["$defs"][DataSource.__name__] if name == "data" else _resolve(field, schema)
        needs = f"A list of one or more. {needs}" if name == "data" else needs
        yield f"### {name} of a training\n\n{_section(section, schema, needs)}"


def _section(section: dict[str, Any], schema: dict[str, Any], needs: str) -> str:
    """Return the description of a section and the table of its keys."""
    description = " ".join(f"{section['description']} {needs}".split())
    rows = [" | ".join(["", *row, ""]).strip() for row in _rows("", section, schema)]
    header = ["", "| key | values | default | description |", "|---|---|---|---|"] if rows else []
    return "\n".join([description, *header, *rows, ""])


def _rows(prefix: str, section: dict[str, Any], schema: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield one row a key of a section, each followed by the keys of the section that its value may be or has by name."""
    for name, field in section.get("properties", {}).items():
        required = name in section.get("required", ())
        default = "required" if required else _default(field["default"])
        yield f"`{prefix}{name}`", _values(field), default, field["description"].replace("|", "\\|")
        for form in (field, *field.get("oneOf", ()), *field.get("anyOf", ())):
            if "$ref" in form:
                yield from _rows(f"{prefix}{name}.", _resolve(form, schema), schema)
        if _has_sections(field):
            yield from _rows(f"{prefix}{name}.<name>.", _resolve(field["additionalProperties"], schema), schema)


def _has_sections(field: dict[str, Any]) -> bool:
    """Return whether a field maps names to sections."""
    values = field.get("additionalProperties")
    return isinstance(values, dict) and "$ref" in values


def _resolve(field: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return the definition that a field refers to."""
    definition: dict[str, Any] = schema["$defs"][field["$ref"].rpartition("/")[2]]
    return definition


def _values(field: dict[str, Any]) -> str:
    """Return the type or the values that a key may have."""
    if "$ref" in field:
        return "the keys below"
    forms = [form for form in field.get("oneOf", field.get("anyOf", [field])) if form.get("type") != "null"]
    if len(forms) == 1 and "$ref" in forms[0]:
        return "the keys below"
    return " or ".join(_form(form) for form in forms)


def _form(form: dict[str, Any]) -> str:
    if "$ref" in form:
        return "`{min: ..., max: ...}`"
    if "const" in form:
        return _code(form["const"])
    if "enum" in form:
        return ", ".join(_code(value) for value in form["enum"])
    if form["type"] == "array" and form["items"].get("type") == "integer":
        return "list of whole numbers"
    if form["type"] == "array":
        return "name or list of names"
    if form["type"] == "object":
        if form.get("additionalProperties") is True:
            return "mapping of keys to values"
        return f"mapping of {'names to paths or to the keys below' if _has_sections(form) else 'text to text'}"
    limits = ", ".join(text.format(f"{form[key]:,.12g}") for key, text in _LIMITS.items() if key in form)
    return _TYPES[form["type"]] + (f" ({limits})" if limits else "")


def _default(value: object) -> str:
    return "not set" if value in (None, [], {}, "") else _code(value)


def _code(value: object) -> str:
    """Return a value as YAML in Markdown code."""
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
