"""Tokenise a cached dataset with a model's tokenizer."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf.data.tokens import tokenize
from rlhf.errors import UserError
from rlhf.runtime.logging import run_script


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="resources/datasets/ID")
    parser.add_argument("--place", default="", help="where the configuration defines the dataset, for messages")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder with the tokenizer")
    parser.add_argument("--chat-template", default="", help="`tokenizer`, or a Jinja template; empty: plain text")
    parser.add_argument("--output", type=Path, required=True, help="results/tokens/ID, where the ids go")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Tokenise."""
    try:
        tokenize(args.dataset, args.model, args.output, args.workers, args.chat_template or None)
    except UserError as error:
        raise UserError(f"{args.place}: {error}" if args.place else str(error)) from None


if __name__ == "__main__":
    run_script(lambda: main(parse_args()))
