"""Numbers from what a stage leaves: memory beside its plan, and speed.

Jobs of a worker: names and paths in, JSON out.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.gpu import arithmetic
from benchmarks.gpu.arithmetic import Model
from benchmarks.gpu.cases import SCALES, Scale
from transformers import AutoConfig

from rlhf.data.corpus import Corpus
from rlhf.files import read_json, read_jsonl

WARM_UP = {"sft": 3, "reward": 3, "ppo": 1}  # first steps, which are not counted
Numbers, Folders = dict[str, Any], dict[str, list[str]]
PHASES = ("generate", "score", "train")


def memory(output: str) -> Numbers:
    """Planned and measured bytes of a stage, phase by phase and in all.

    What the driver counts (`device`) holds other processes on the card too. On the CPU there are no device numbers:
    resident memory stands beside its prediction.
    """
    plan, report = read_json(Path(output) / "memory_plan.json"), read_json(Path(output) / "memory.json")
    (process,) = report["processes"]
    on_device = report["device"] == "cuda"
    figure, planned = ("peak_allocated", "allocated") if on_device else ("peak_rss", "peak_rss")
    phases = []
    for phase in process["phases"]:
        parts = [part for part in plan["phases"] if part["phase"] == phase["name"]]
        part = max(parts, key=lambda part: part["allocated"]) if parts else None
        phases.append(
            {
                "phase": phase["name"],
                "part": part and part["part"],
                "planned": part and part[planned],
                "measured": phase[figure],
                "seconds": phase["seconds"],
            }
        )
    found = {"figure": figure, "phases": phases, "peak": max(phase["measured"] for phase in phases)}
    if on_device:
        found |= {
            "expected_allocated": plan["expected_allocated"],
            "expected_device": plan["expected_device"],
            "upper_device": plan["upper_device"],
            "peak_reserved": max(phase["peak_reserved"] for phase in process["phases"]),
            "peak_device": max(phase["peak_device"] for phase in process["phases"]),
            "alloc_retries": sum(phase.get("alloc_retries", 0) for phase in process["phases"]),
        }
    return found


def speed(output: str, scale: str, case: str, models: dict[str, str], data: Folders, peak: float | None) -> Numbers:
    """Useful tokens per second, and the share of the card's peak (MFU) where that is known.

    Args:
        output: of the stage.
        scale: name of the scale.
        case: name of the case.
        models: name -> folder.
        data: `tokens` and `splits` that the stage read.
        peak: operations per second of the card.
    """
    size = SCALES[scale]
    (found,) = (one for one in size.cases if one.name == case)
    rows = [row for row in read_jsonl(Path(output) / "metrics.jsonl") if row["phase"] == "train"]
    policy, other = (Model.of(AutoConfig.from_pretrained(models[name])) for name in (found.policy, found.reward_model))
    if found.kind == "ppo":
        return _ppo(rows, size, policy, other, peak)
    skipped = WARM_UP[found.kind]
    # A line is written after its step: the first step that is counted begins where the line before was written.
    seconds, tokens = (rows[-1][key] - rows[skipped - 1][key] for key in ("time", "tokens"))
    steps = len(rows) - skipped
    if found.kind == "reward":
        tokens = round(tokens * _sequence_share(data))
    work = _supervised_work(found.kind, policy if found.kind == "sft" else other, size, steps, tokens)
    return {
        **_rates(steps, seconds, tokens, work, peak),
        "last": {key: rows[-1][key] for key in ("loss", "grad_norm") if key in rows[-1]},
    }


def _supervised_work(kind: str, model: Model, scale: Scale, steps: int, tokens: int) -> int:
    """Operations of so many steps on so many tokens, all sequences being of about one length."""
    sequences = steps * scale.batch
    lengths = [round(tokens / sequences)] * sequences
    if kind == "reward":
        return arithmetic.reward(model, lengths)
    answers = [round(lengths[0] * scale.answer / (scale.prompt + scale.answer))] * sequences
    return arithmetic.sft(model, lengths, answers)


def _sequence_share(data: Folders) -> float:
    """Tokens of all sequences of the pairs, by what the trainer counts: the longer one of each."""
    corpus = _corpus(data, "reward")
    prompts = corpus.lengths("prompt")
    answers = sum(int(corpus.judgements(row)["length"].sum()) for row in range(len(corpus)))
    return (2 * int(prompts.sum()) + answers) / int((prompts + corpus.longest_answers()).sum())


def _corpus(data: Folders, phase: str) -> Corpus:
    return Corpus([Path(name) for name in data["tokens"]], [Path(name) for name in data["splits"]], "train", phase)


def _rates(steps: int, seconds: float, tokens: float, work: int, peak: float | None) -> Numbers:
    return {
        "steps": steps,
        "seconds_per_step": seconds / steps,
        "tokens_per_second": tokens / seconds,
        **_share(work, seconds, peak),
    }


def _ppo(rows: list[Numbers], scale: Scale, policy: Model, value: Model, peak: float | None) -> Numbers:
    counted, before = rows[WARM_UP["ppo"] :], rows[WARM_UP["ppo"] - 1]
    seconds, tokens = (counted[-1][key] - before[key] for key in ("time", "tokens"))
    answer = statistics.mean(row["response_length"] for row in counted)
    prompt = tokens / (len(counted) * scale.samples) - answer
    work = arithmetic.ppo(policy, value, scale.samples, prompt, answer)
    phases = {name: statistics.mean(row[f"time_{name}"] for row in counted) for name in PHASES}
    whole = seconds / len(counted)
    shown = ("kl", "first_ratio_error", "first_ratio_mean_error", "sampling_logprob_error", "eos_share")
    return {
        **_rates(len(counted), seconds, tokens, work.all * len(counted), peak),
        "generated_per_second": scale.samples * answer / phases["generate"],
        "phases": {
            name: {"seconds": phase, "share": phase / whole, **_share(getattr(work, name), phase, peak)}
            for name, phase in phases.items()
        }
        | {"rest": {"seconds": whole - sum(phases.values()), "share": 1 - sum(phases.values()) / whole}},
        "last": {key: counted[-1][key] for key in shown if key in counted[-1]},
    }


def plain_speed(steps: list[Numbers], scale: str, folder: str, peak: float | None) -> Numbers:
    """As `speed`, of the plain training loop.

    Args:
        steps: what the loop measured.
        scale: name of the scale.
        folder: of the model.
        peak: operations per second of the card.
    """
    size, counted = SCALES[scale], steps[WARM_UP["sft"] :]
    seconds, tokens = (sum(step[key] for step in counted) for key in ("seconds", "tokens"))
    work = _supervised_work("sft", Model.of(AutoConfig.from_pretrained(folder)), size, len(counted), tokens)
    found = _rates(len(counted), seconds, tokens, work, peak)
    return found | {key: steps[-1][key] for key in ("peak_allocated",) if key in steps[-1]}


def _share(work: int, seconds: float, peak: float | None) -> Numbers:
    rate = work / seconds
    return {"flops_per_second": rate} | ({} if peak is None else {"mfu": rate / peak})
