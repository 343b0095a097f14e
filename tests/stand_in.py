"""The workflow without its work: a program `python` that answers for the scripts of the rules in milliseconds.

What it writes is what Snakemake and later rules look for: the outputs, a manifest of a model, a memory plan. Named in
`STAND_IN_KILLS`, a script kills the Snakemake that started it, after its outputs are written, as long as the file
`kill` is in the working directory.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

SUMMARY = (
    *("index.md", "stages.json", "reward_model.svg", "reward_vs_kl.svg", "learning_curves.svg", "memory.svg"),
    *("quality.html", "runs.html", "samples.html", "reward_parts.html", "checks.html", "memory.html"),
    *("resources.html", "efficiency.html", "data.html", "lengths.svg"),
)
TRAINED = ("model/", "metrics.jsonl", "memory.json", "manifest.json")
EVALUATED = ("evaluation.json", "memory.json", "samples.jsonl")
MADE = {
    "cache_dataset": ("arrow/", "report.json"),
    "cache_model": ("model/", "manifest.json"),
    "tokenize_dataset": ("ids",),
    "split_dataset": ("rows",),
    **dict.fromkeys(("train_sft", "train_reward", "train_ppo"), TRAINED),
    **dict.fromkeys(("evaluate_sft", "evaluate_reward", "sample_baseline", "evaluate_ppo"), EVALUATED),
    "summarise": SUMMARY,
}
MODEL = {"linear_modules": ["transformer.h.0.attn"], "max_positions": 64}
PLAN = {"after_out_of_memory": [], "adaptations": [], "execution": {}, "resources": {"mem_mb": 100}}


def main() -> None:
    scripts = [Path(word).stem for word in sys.argv[1:] if word.endswith(".py") and not word.endswith("launch.py")]
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_known_args()[0].output
    script = scripts[0]
    if script in MADE:
        for name in MADE[script]:
            place = output / name
            (place if name.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                place.write_text(json.dumps(MODEL if script == "cache_model" else {}))
    else:
        output.write_text(json.dumps(PLAN if script == "plan_memory" else {}))
    if os.environ.get("STAND_IN_KILLS") == script and Path("kill").exists():
        os.kill(os.getppid(), signal.SIGKILL)


def install(folder: Path) -> str:
    """Make `python` of the rules the stand-in; returns the folder to be put in front of PATH."""
    folder.mkdir(parents=True)
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -S {Path(__file__).resolve()} "$@"\n')
    (folder / "python").chmod(0o755)
    return str(folder)


if __name__ == "__main__":
    main()
