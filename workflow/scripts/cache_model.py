"""Fetch or make the model that training starts from, as a plain Hugging Face folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rlhf.config import Requirement
from rlhf.config.specfile import read_spec
from rlhf.config.specification import ModelSpecification
from rlhf.data.dataset import cached_texts
from rlhf.models.cache import cache_model
from rlhf.runtime.logging import run_script


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="spec.yaml of the model")
    parser.add_argument("--place", required=True, help="where the configuration defines it, for messages")
    parser.add_argument("--requirements", type=json.loads, default=[], help="what experiments ask of it, as JSON")
    parser.add_argument("--dataset", type=Path, nargs="?", help="cached dataset that a new tokenizer is trained on")
    parser.add_argument("--output", type=Path, required=True, help="resources/models/ID, where the model goes")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Cache the model."""
    spec = read_spec(ModelSpecification, args.spec)
    texts = cached_texts(args.dataset) if args.dataset else None
    requirements = [Requirement(**requirement) for requirement in args.requirements]
    cache_model(spec.settings, args.output, args.place, requirements, texts)


if __name__ == "__main__":
    run_script(lambda: main(parse_args()))
