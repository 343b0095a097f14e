"""The base of all sections of the configuration, and the kinds of text that several of them use."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
GpuType = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]+$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
DataSplit = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?(,[0-9]{1,9}(\.[0-9]{1,9})?){2}$")]
# No address, which may hold a password, and no way out of a cache folder.
_WORD = r"[A-Za-z0-9_]+"
_REPOSITORY = rf"{_WORD}([.-]+{_WORD})*"
HubName = Annotated[str, StringConstraints(pattern=rf"^{_REPOSITORY}(/{_REPOSITORY})?$", max_length=200)]
Revision = Annotated[str, StringConstraints(pattern=rf"^{_WORD}([./-]{_WORD})*$", max_length=200)]
FunctionName = Annotated[str, StringConstraints(pattern=r"^\w+(\.\w+)*:\w+$")]
# What is kept in a specification and hashed: YAML knows more, such as dates, bytes and references in a circle.
Values = dict[str, JsonValue]


class Section(BaseModel):
    """A section: unknown keys are refused with the nearest valid name, text is no number, numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for key in values:
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(sorted(cls.model_fields))}"
                raise ValueError(f"unknown key {key!r}; {hint}")
        return values


def require_local(path: str) -> None:
    """Refuse what is no plain name of a local file or folder.

    Raises:
        ValueError: it is empty, an address (the message does not repeat it, as it may hold a password), has control
            characters, which would break lines of logs and messages, or braces, which are wildcards to Snakemake.
    """
    if not path.strip():
        raise ValueError("path: an empty name")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", path):
        raise ValueError("path: an address is no local file; download it, and name the file")
    if re.search(r"[\x00-\x1f\x7f{}]", path):
        raise ValueError(f"path: {path!r} has control characters or braces; rename the file")
