"""Error messages for a wrong job: pydantic's errors as sentences with the value, the rule and the fix.

Used by `pipeline.job.config` and `pipeline.job.load`.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

_MOST_MISTAKES = 20
_LONGEST_LINE = 500
# Parts of pydantic's error locations that name the form of a value and are no keys of the job file.
_FORMS = {"int", "float", "constrained-int", "constrained-float", "range", "auto", "literal['auto']", "list", "mapping"}
# Replacements for pydantic messages that speak of Python types.
_RULES = {"tuple_type": "must be a name or a list of names"}

# Former keys, with the key that replaced them.
_RENAMED = {"generation.hold": "use generation.publish: false"}


def explain(error: ValidationError, origin: str, model: type[BaseModel], forms: Mapping[str, type[BaseModel]]) -> str:
    """Return all errors, one a line: the key, the value, the rule, and for an unknown key the most similar one.

    Args:
        error: Error that pydantic raised.
        origin: Name of the source of the data.
        model: Class of the whole document.
        forms: Section class of each form that a location may name instead of a key.
    """
    lines = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"] if part not in _FORMS)
        value = item.get("input")
        if item["type"] == "extra_forbidden":
            known = _known(item["loc"][:-1], model, forms)
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known) or 'none'}"
            hint = _RENAMED.get(place, hint)
            lines.append(f"{place}: no such key; {hint}")
        elif item["type"] == "missing":
            lines.append(f"{place}: is required")
        elif item["type"] == "value_error":
            lines.append(f"{place}: {item['ctx']['error']}" if place else str(item["ctx"]["error"]))
        else:
            rule = _RULES.get(item["type"], item["msg"])
            lines.append(f"{place}: {rule[0].lower()}{rule[1:]}, not {shown(value)}")
    lines = [shortened(line) for line in dict.fromkeys(lines)]
    if len(lines) > _MOST_MISTAKES:
        lines[_MOST_MISTAKES:] = [f"and {len(lines) - _MOST_MISTAKES} more"]
    return f"{origin} is invalid:\n  " + "\n  ".join(lines)


def shown(value: object) -> str:
    """Return a value as text for a message.

    Only its first parts are read, because a few lines of YAML can unfold to billions of values.
    """
    try:
        return reprlib.repr(value)
    except ValueError:  # Python refuses to print an integer of thousands of digits
        return "a number of thousands of digits"


def shortened(line: str) -> str:
    """Return a line, cut to at most 500 characters."""
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} ..."


def _known(location: tuple[int | str, ...], model: type[BaseModel], forms: Mapping[str, type[BaseModel]]) -> list[str]:
    """Return the keys of the section at a location."""
    section: Any = model
    for part in location:
        if part in forms:
            section = forms[str(part)]
            continue
        field = section.model_fields.get(str(part))
        if field is None:
            continue  # a name that the user gave, in a mapping of sections by name
        for kind in (field.annotation, *(getattr(each, "__origin__", each) for each in get_args(field.annotation))):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                section = kind  # otherwise the next part names the form of the value
    return sorted(section.model_fields)
