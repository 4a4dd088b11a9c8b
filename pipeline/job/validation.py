"""What is wrong with a job, in words: pydantic's findings as sentences that a person can act on. Used by `config` and `job_file`."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

_MOST_MISTAKES = 20
_LONGEST_LINE = 500
# What pydantic puts into a place to say which of several forms a value has: no key of ours.
_FORMS = {"int", "float", "constrained-float", "range", "auto", "literal['auto']"}
# pydantic's words that say more of Python than of a job file.
_RULES = {"tuple_type": "must be a name or a list of names"}

# Keys of before the first release, and what to write today.
_RENAMED = {"generation.hold": "it is generation.publish: false today"}


def explain(error: ValidationError, origin: str, model: type[BaseModel], forms: Mapping[str, type[BaseModel]]) -> str:
    """All of them, a line each: the place, the value, the rule, and for an unknown key the nearest right one.

    Args:
        error: What pydantic found.
        origin: Where the data came from.
        model: Of the whole.
        forms: Those parts of a place that are no key but say which of several sections a value is.
    """
    lines = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"] if part not in _FORMS)
        value = item.get("input")
        if item["type"] == "extra_forbidden":
            known = _known(item["loc"][:-1], model, forms)
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            hint = _RENAMED.get(place, hint)
            lines.append(f"{place}: no such key; {hint}")
        elif item["type"] == "missing":
            lines.append(f"{place}: is needed")
        elif item["type"] == "value_error":
            lines.append(f"{place}: {item['ctx']['error']}" if place else str(item["ctx"]["error"]))
        else:
            rule = _RULES.get(item["type"], item["msg"])
            lines.append(f"{place}: {rule[0].lower()}{rule[1:]}, not {shown(value)}")
    lines = [shortened(line) for line in dict.fromkeys(lines)]
    if len(lines) > _MOST_MISTAKES:
        lines[_MOST_MISTAKES:] = [f"and {len(lines) - _MOST_MISTAKES} more"]
    return f"{origin} is not right:\n  " + "\n  ".join(lines)


def shown(value: object) -> str:
    """A value for a message. A few lines of YAML can unfold to billions of values: only the first ones are looked at."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python's own limit
        return "a number of thousands of digits"


def shortened(line: str) -> str:
    """A line, cut where it would fill the screen."""
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} ..."


def _known(location: tuple[int | str, ...], model: type[BaseModel], forms: Mapping[str, type[BaseModel]]) -> list[str]:
    """The keys that a section has."""
    here: Any = model
    for part in location:
        if part in forms:
            here = forms[str(part)]
            continue
        field = here.model_fields.get(str(part))
        if field is None:
            return []
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            here = field.annotation  # else it may be several things, and the part that follows says which
    return sorted(here.model_fields)
