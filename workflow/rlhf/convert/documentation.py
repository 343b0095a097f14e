"""The tables of docs/from-deepspeed-chat.md, generated from the tables of flags. Run by `make docs`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rlhf.convert.flags import CONSTANTS, CORE, LAUNCHER, Flag
from rlhf.convert.programs import PROGRAMS

DOCUMENT = Path(__file__).resolve().parents[3] / "docs/from-deepspeed-chat.md"
FLAG_TABLES = {**PROGRAMS, "core": CORE, "launcher": LAUNCHER}
TABLES: dict[str, tuple[Flag, ...]] = {**FLAG_TABLES, "constants": CONSTANTS}


def table(flags: Sequence[Flag], title: str = "flag", dashes: str = "--") -> str:
    """A Markdown table: name, DeepSpeed-Chat's value, key here, difference; no cell is empty."""
    lines = [f"| {title} | DeepSpeed-Chat | here | difference |", "|---|---|---|---|"]
    for flag in flags:
        keys = ", ".join(f"`{key}`" for key in flag.keys) or "no key"
        name = f"`{dashes}{flag.name}`" if dashes else flag.name
        lines.append(f"| {name} | {_value(flag)} | {keys} | {flag.note} |")
    return "\n".join(lines)


def with_tables(text: str) -> str:
    """The document with its tables made anew: each stands between `<!-- table NAME -->` and `<!-- end -->`."""

    def made(match: re.Match[str]) -> str:
        name = match[1]
        body = table(TABLES[name], "constant", "") if name == "constants" else table(TABLES[name])
        return f"<!-- table {name} -->\n\n{body}\n\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->.*?<!-- end -->", made, text, flags=re.DOTALL)


def main() -> None:
    """Write the tables."""
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


def _value(flag: Flag) -> str:
    """DeepSpeed-Chat's default, or what a constant is."""
    if flag.kind is bool:
        return "on" if flag.default else "off"
    if flag.default in (None, []):
        return "required" if flag.name.endswith("model_name_or_path") else "none"
    words = " ".join(flag.default) if isinstance(flag.default, list) else str(flag.default)
    return f"`{words}`".replace("|", "\\|")


if __name__ == "__main__":
    main()
