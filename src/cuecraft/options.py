"""Options of methods and of their parts, as Python or a command line gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.fields import FieldInfo


def _from_word(value: Any, option: FieldInfo | None) -> Any:
    if option is None or not isinstance(value, str):
        return value
    kinds = (option.annotation, *get_args(option.annotation))
    if value == "none" and type(None) in kinds:
        return None
    return value.split(",") if any(get_origin(kind) is tuple for kind in kinds) else value


class Options(BaseModel):
    """Options of a method or of a part of one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _from_words(cls, values: Any) -> Any:
        """Read what a command line writes: `none`, and several values with commas between."""
        if not isinstance(values, Mapping):
            return values
        return {name: _from_word(value, cls.model_fields.get(name)) for name, value in values.items()}

    def longest_prompt(self) -> int:
        """Return the greatest prompt length that the options ask for, in tokens; 0 where they ask for none."""
        values = [getattr(self, name) for name in type(self).model_fields]
        parts = [value.longest_prompt() for value in values if isinstance(value, Options)]
        return max(getattr(self, "prompt_length", None) or 0, *parts, 0)
