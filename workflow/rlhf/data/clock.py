"""The date that chat templates see: a clock would put the day of tokenisation into the data."""

from __future__ import annotations

import json
from datetime import datetime

# What Llama 3's templates write where they know no date.
TEMPLATE_DATE = datetime(2024, 7, 26)
DIRECTIVES = "aAbBcdefGHIjmMpSuUVwWxXyYzZ"  # of strftime
PERCENT = "\ue002"  # from a private area of Unicode, in the place of a percent sign that is meant


def without_clock(template: str) -> str:
    """The template with a function `strftime_now` of its own, whose date is the same every day.

    That of transformers reads the clock, and no other can be handed over: what a template is given becomes text. So the
    function is a macro that puts the parts of the date into the format.
    """
    if "strftime_now" not in template:
        return template
    directives = [f"%{flag}{letter}" for letter in DIRECTIVES for flag in ("-", "")]
    known = {directive: TEMPLATE_DATE.strftime(directive) for directive in directives}
    steps = {"%%": PERCENT, **known, PERCENT: "%"}
    filters = "".join(f" | replace({json.dumps(part)}, {json.dumps(text)})" for part, text in steps.items())
    macro = "{% macro strftime_now(format) -%}{{ format" + filters + " }}{%- endmacro +%}"
    return macro + template  # `+`: a line break with which the template begins stays
