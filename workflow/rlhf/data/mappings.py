"""Ready mappings for public datasets: what the configuration leaves unset comes from here.

Formats and splits follow DeepSpeed-Chat's dataset classes (`dschat/utils/data/raw_datasets.py`).
"""

from __future__ import annotations

from typing import Any

_HUMAN = " Human: {prompt} Assistant:"
_SPACED = " {answer}"

KNOWN: dict[str, dict[str, Any]] = {
    "Dahoas/rm-static": {"shape": "pairs", "eval_split": "test"},
    "Dahoas/full-hh-rlhf": {"shape": "pairs", "eval_split": "test"},
    "Dahoas/synthetic-instruct-gptj-pairwise": {"shape": "pairs", "prompt_format": _HUMAN, "answer_format": _SPACED},
    "yitingxie/rlhf-reward-datasets": {
        "shape": "pairs",
        "eval_split": "test",
        "prompt_format": "{prompt}Assistant:",
        "columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    },
    "Anthropic/hh-rlhf": {"shape": "dialogues", "eval_split": "test"},
    "openai/webgpt_comparisons": {
        "shape": "comparisons",
        "columns": {
            "prompt": "question.full_text",
            "answer_0": "answer_0",
            "answer_1": "answer_1",
            "score_0": "score_0",
            "score_1": "score_1",
        },
        "prompt_format": _HUMAN,
        "answer_format": _SPACED,
        "remove": r"\[\d+(?:, ?\d+)*\]",
    },
    "stanfordnlp/SHP": {
        "shape": "comparisons",
        "eval_split": "validation",
        "columns": {
            "prompt": "history",
            "answer_0": "human_ref_B",
            "answer_1": "human_ref_A",
            # labels is 1 where A is preferred
            "score_1": "labels",
        },
        "prompt_format": _HUMAN,
        "answer_format": _SPACED,
    },
    "pvduy/sharegpt_alpaca_oa_vicuna_format": {
        "shape": "instructions",
        "eval_split": "test",
        "columns": {"instruction": "prompt", "output": "label"},
        "prompt_format": "{instruction}",
        "answer_format": _SPACED,
    },
}


def with_mapping(settings: dict[str, Any]) -> dict[str, Any]:
    """Dataset settings with the ready mapping of a known hub dataset in the place of what is unset.

    Args:
        settings: `DatasetSettings` as a dictionary; not changed.

    Returns:
        The same keys, `shape` set, `remove`: a pattern deleted from answers, or None, and `turns`: whether prompts are
        kept as the turns of a chat, which need no `Human:` and `Assistant:`.
    """
    known = KNOWN.get(settings["source"]["hub"] or "", {})
    turns = settings.get("turns", False)
    formats = {} if turns else known
    source = dict(settings["source"])
    source["eval_split"] = source["eval_split"] or known.get("eval_split")
    return {
        **settings,
        "source": source,
        "shape": settings["shape"] or known.get("shape", "pairs"),
        "columns": known.get("columns", {}) | settings["columns"],
        "prompt_format": settings["prompt_format"] or formats.get("prompt_format"),
        "answer_format": settings["answer_format"] or formats.get("answer_format"),
        "remove": known.get("remove"),
        "turns": turns,
    }
