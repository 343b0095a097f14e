"""The base of all sections of the configuration, the kinds of text in them, and what is said of mistakes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError, model_validator

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
_GPU_TYPE = r"^[A-Za-z0-9_.]+$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
_SPLIT = r"^[0-9]{1,9}(\.[0-9]{1,9})?(,[0-9]{1,9}(\.[0-9]{1,9})?){2}$"
# No address, which may hold a password, and no way out of a cache folder.
_WORD = r"[A-Za-z0-9_]+"
_REPOSITORY = rf"{_WORD}([.-]+{_WORD})*"
_HUB = rf"^{_REPOSITORY}(/{_REPOSITORY})?$"
_REVISION = rf"^{_WORD}([./-]{_WORD})*$"
_FUNCTION = r"^\w+(\.\w+)*:\w+$"
_PART = r"^[^/\\]+$"
_NO_NULL = r"^[^\x00]*$"
_SIZE = r"^[1-9]\d*(\.\d+)?(KB|MB|GB)$"
_LICENSE = r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$"
Name = Annotated[str, StringConstraints(pattern=_NAME)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
GpuType = Annotated[str, StringConstraints(pattern=_GPU_TYPE)]
Variable = Annotated[str, StringConstraints(pattern=_VARIABLE)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
DataSplit = Annotated[str, StringConstraints(pattern=_SPLIT)]
HubName = Annotated[str, StringConstraints(pattern=_HUB, max_length=200)]
Revision = Annotated[str, StringConstraints(pattern=_REVISION, max_length=200)]
FunctionName = Annotated[str, StringConstraints(pattern=_FUNCTION)]
PartName = Annotated[str, StringConstraints(pattern=_PART)]
TemplateText = Annotated[str, StringConstraints(pattern=_NO_NULL, min_length=1)]
FileSize = Annotated[str, StringConstraints(pattern=_SIZE)]
License = Annotated[str, StringConstraints(pattern=_LICENSE)]
ALLOWED = {  # each pattern of the schema -> what it asks for, in words, with an example
    _NAME: "a name has letters (a-z, A-Z), digits, `_`, `.` and `-`, begins with a letter or digit, and has at most 64 "
    "characters",
    _GPU_TYPE: "write the cluster's name of it, for example a100: letters, digits, `_` and `.`",
    _VARIABLE: "a variable has letters, digits and `_`, and does not begin with a digit, for example NCCL_DEBUG",
    _SPLIT: "write three numbers with commas between them, for example '2,4,4'",
    _HUB: "write NAME or OWNER/NAME of a hub's repository, for example facebook/opt-1.3b, without an address",
    _REVISION: "write a branch, a tag or a commit, for example main",
    _FUNCTION: "write module:function, for example my_data:rows",
    _PART: "write the name of a configuration as the dataset's page lists it, for example main, without slashes",
    _NO_NULL: "a text has no null characters",
    _SIZE: "write a number and KB, MB or GB without a space, for example 5GB",
    _LICENSE: "write the identifier of a licence, for example apache-2.0",
}
# What is kept in a specification and hashed: YAML knows more, such as dates, bytes and references in a circle.
Values = dict[str, JsonValue]

EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")  # a number that YAML takes for text
SHOWN_CHARACTERS = 200
OF_A_KEY = "[key]"  # where pydantic means a key itself
TYPE_NAMES = ("function-", "literal[")  # pydantic puts them among the keys where one of several types may stand


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


def mistakes(error: ValidationError) -> list[tuple[str, str]]:
    """What is wrong: for each mistake the dotted path of its key ("" where it is the whole), and what is said of it."""
    found = []
    for item in _telling(error.errors()):
        keys = [str(key) for key in item["loc"] if not str(key).startswith(TYPE_NAMES)]
        place = ".".join(keys[:-1] if keys[-1:] == [OF_A_KEY] else keys)
        message = _said(item)
        given = "" if isinstance(item["input"], dict) else f" (given: {_shown(item['input'])})"
        number = " (YAML reads 1e-5 as text: write 1.0e-5)" if _looks_like_exponent(item["input"]) else ""
        found.append((place, f"{message}{given}{number}"))
    return found


def _telling(errors: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Mistakes without those that say only that a section is none of the words that could stand in its place."""
    sections = {
        error["loc"][:length]
        for error in errors
        if error["type"] not in ("literal_error", "model_type")
        for length in range(1, len(error["loc"]))
    }
    return [error for error in errors if not (_is_word(error) and error["loc"][:-1] in sections)]


def _is_word(error: Mapping[str, Any]) -> bool:
    """Whether a mistake is that of a word where another type may stand too."""
    return error["type"] == "literal_error" and str(error["loc"][-1]).startswith("literal[")


def _said(item: Mapping[str, Any]) -> str:
    """A mistake in plain words, where pydantic has those of a programmer."""
    kind, given = item["type"], item["input"]
    if kind == "string_type" and item["loc"][-1:] == (OF_A_KEY,):
        return (
            "a name must be text, and YAML reads this one (as no, yes, on, off and numbers) as something else: quote it"
        )
    if kind == "string_pattern_mismatch":
        words = ALLOWED[item["ctx"]["pattern"]]
        return f"{words}{_hub_name(given)}" if item["ctx"]["pattern"] == _HUB else words
    if kind in ("model_type", "dict_type"):
        return "it is empty; write `{}`, or keys below it" if given is None else "it must be keys with values below it"
    return str(item["msg"]).removeprefix("Value error, ")


def _hub_name(given: str) -> str:
    """What to write in the place of an address, or of a name with its revision, where that can be told."""
    address = r"(?:https?://[^/\s@]+/)?(?:datasets/)?"
    name = rf"(?P<name>{_REPOSITORY}(?:/{_REPOSITORY})?)(?:(?:/tree/|@)(?P<revision>[^/@?]+))?/?"
    found = re.fullmatch(address + name, given)
    if found is None:
        return ""
    revision = f", and its revision as `revision: {_masked(found['revision'])}`" if found["revision"] else ""
    return f": {found['name']}{revision}"


def _shown(value: Any) -> str:
    """A wrong value, cut where it is long, without the passwords that addresses and tokens of a hub are."""
    text = _masked(repr(value))
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _masked(text: str) -> str:
    text = re.sub(r"://[^/\s]*@", "://***@", text)
    return re.sub(r"\b(hf|api_org)_[A-Za-z0-9]{16,}", r"\1_***", text)


def _looks_like_exponent(value: Any) -> bool:
    return isinstance(value, str) and EXPONENT.fullmatch(value) is not None


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
