"""Datasets in the layouts of the public ones; rows are invented."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

from tests.hub.repository import REVISION, Files
from tests.hub.texts import pairs

TRAIN, TEST = 96, 24  # rows


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    stream = io.BytesIO()
    Dataset.from_list(rows).to_parquet(stream)
    return stream.getvalue()


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def tables(splits: dict[str, list[dict[str, Any]]], folder: str = "data") -> Files:
    """Parquet files as `push_to_hub` writes them, with the card that names splits."""
    files = {f"{folder}/{split}-00000-of-00001.parquet": _parquet(rows) for split, rows in splits.items()}
    listed = "\n".join(f"  - split: {split}\n    path: {folder}/{split}-*" for split in splits)
    card = f"---\nlicense: apache-2.0\nconfigs:\n- config_name: default\n  data_files:\n{listed}\n---\n# A stand-in\n"
    return files | {"README.md": card.encode(), ".gitattributes": b"*.parquet filter=lfs\n"}


def _both(row: Callable[[str, str, str], dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {
        split: [row(*one) for one in pairs(count, seed)]
        for split, count, seed in (("train", TRAIN, 1), ("test", TEST, 2))
    }


def _hh(question: str, good: str, bad: str) -> dict[str, str]:
    start = f"\n\nHuman: {question}\n\nAssistant:"
    return {"chosen": f"{start} {good}", "rejected": f"{start} {bad}"}


def rm_static() -> Files:
    """Dahoas/rm-static, full-hh-rlhf: the prompt ends with the mark of the answer, which begins with a space."""
    return tables(
        _both(
            lambda question, good, bad: {
                "prompt": f"\n\nHuman: {question}\n\nAssistant:",
                "response": f" {good}",
                "chosen": f" {good}",
                "rejected": f" {bad}",
            }
        )
    )


def synthetic_instruct() -> Files:
    """Dahoas/synthetic-instruct-gptj-pairwise: bare questions and answers, no test split."""
    rows = _both(lambda question, good, bad: {"prompt": question, "chosen": good, "rejected": bad})
    return tables({"train": rows["train"]})


def rlhf_reward() -> Files:
    """yitingxie/rlhf-reward-datasets: the mark `Assistant:` begins the answers."""
    return tables(
        _both(
            lambda question, good, bad: {
                "prompt": f"Human: {question}\n\n",
                "chosen": f"Assistant: {good}",
                "rejected": f"Assistant: {bad}",
            }
        )
    )


def hh_rlhf() -> Files:
    """Anthropic/hh-rlhf: zipped lines in a folder per subset, one of them of other columns and without splits."""
    files: Files = {"README.md": b"---\nlicense: mit\n---\n# A stand-in\n"}
    folders = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
    for place, folder in enumerate(folders):
        for split, count in (("train", TRAIN // 4), ("test", TEST // 4)):
            rows = [_hh(*one) for one in pairs(count, 10 + place + (split == "test") * 100)]
            files[f"{folder}/{split}.jsonl.gz"] = gzip.compress(_lines(rows), mtime=0)
    attempts = [
        {
            "min_harmlessness_score_transcript": 0.5,
            "num_params": "52B",
            "model_type": "plain",
            "rating": 4.0,
            "task_description": "a task",
            "transcript": f"\n\nHuman: {question}\n\nAssistant: {good}\n",
            "task_description_harmlessness_score": 0.1,
            "red_team_member_id": 1,
            "is_upworker": False,
            "tags": None,
        }
        for question, good, _ in pairs(20, 30)
    ]
    files["red-team-attempts/red_team_attempts.jsonl.gz"] = gzip.compress(_lines(attempts), mtime=0)
    return files


def webgpt() -> dict[str, Files]:
    """openai/webgpt_comparisons: a script on main, which datasets >= 4 refuses; tables in the converter's revision.

    Scores add up to zero, and a quarter are ties.
    """
    rows = []
    for number, (question, good, bad) in enumerate(pairs(TRAIN, 1)):
        score = (0.0, 0.5, -0.5, 1.0)[number % 4]
        answers = (good, bad) if score >= 0 else (bad, good)
        quotes = {"title": ["a page"], "extract": ["a quote"]}
        tokens = {"prefix": [1, 2], "completion": [3, 4]}
        rows.append(
            {
                "question": {"dataset": "eli5", "id": str(number), "full_text": question},
                "quotes_0": quotes,
                "answer_0": f"{answers[0][:-1]} [1].",
                "tokens_0": tokens,
                "score_0": score,
                "quotes_1": quotes,
                "answer_1": f"{answers[1][:-1]} [1, 2].",
                "tokens_1": tokens,
                "score_1": -score,
            }
        )
    main = {
        "README.md": b"---\npretty_name: a stand-in\n---\n",
        "comparisons.jsonl": _lines(rows),
        "webgpt_comparisons.py": b"raise RuntimeError('code of the repository was run')\n",
    }
    return {REVISION: main, "refs/convert/parquet": {"default/train/0000.parquet": _parquet(rows)}}


def shp() -> Files:
    """stanfordnlp/SHP: lines in a folder per domain, three splits, no card that names them."""
    files: Files = {"README.md": b"---\nlanguage: en\n---\n# A stand-in\n"}
    for place, domain in enumerate(("askacademia", "explainlikeimfive", "legaladvice")):
        for split, count in (("train", TRAIN // 3), ("validation", TEST // 3), ("test", TEST // 3)):
            rows = [
                {
                    "post_id": f"p{number}",
                    "domain": f"{domain}_{split}",
                    "upvote_ratio": 0.99,
                    "history": question,
                    "c_root_id_A": "a",
                    "c_root_id_B": "b",
                    "created_at_utc_A": 1,
                    "created_at_utc_B": 2,
                    "score_A": 5 if number % 2 else 2,
                    "score_B": 2 if number % 2 else 5,
                    "human_ref_A": good if number % 2 else bad,
                    "human_ref_B": bad if number % 2 else good,
                    "labels": number % 2,
                    "seconds_difference": 10.0,
                    "score_ratio": 2.5,
                }
                for number, (question, good, bad) in enumerate(pairs(count, 40 + place + len(split)))
            ]
            files[f"{domain}/{split}.json"] = _lines(rows)
    return files


def sharegpt() -> Files:
    """pvduy/sharegpt_alpaca_oa_vicuna_format: whole dialogues in the marks of Vicuna; no rejected answers."""
    return tables(_both(lambda question, good, _: {"prompt": f"USER: {question} ASSISTANT:", "label": good}))


def _dialogue(question: str, answer: str) -> list[dict[str, str]]:
    return [{"content": question, "role": "user"}, {"content": answer, "role": "assistant"}]


def ultrafeedback() -> Files:
    """HuggingFaceH4/ultrafeedback_binarized: dialogues as lists of messages, six splits and none called train."""
    rows = _both(
        lambda question, good, bad: {
            "prompt": question,
            "prompt_id": hashlib.sha256(question.encode()).hexdigest(),
            "chosen": _dialogue(question, good),
            "rejected": _dialogue(question, bad),
            "messages": _dialogue(question, good),
            "score_chosen": 8.0,
            "score_rejected": 5.0,
        }
    )
    return tables({f"{split}_{use}": rows[split] for use in ("prefs", "sft", "gen") for split in ("train", "test")})


def trl_ultrafeedback() -> Files:
    """trl-lib/ultrafeedback_binarized: TRL's conversational preference with an implicit prompt."""
    return tables(
        _both(
            lambda question, good, bad: {
                "chosen": _dialogue(question, good),
                "rejected": _dialogue(question, bad),
                "score_chosen": 8.0,
                "score_rejected": 5.0,
            }
        )
    )


def trl_helpful() -> Files:
    """trl-lib/hh-rlhf-helpful-base: TRL's conversational preference with an explicit prompt, a list of messages."""
    return tables(
        _both(
            lambda question, good, bad: {
                "prompt": _dialogue(question, "")[:1],
                "chosen": _dialogue("", good)[1:],
                "rejected": _dialogue("", bad)[1:],
            }
        )
    )


def trl_tldr() -> Files:
    """trl-lib/tldr: plain prompt and completion."""
    return tables(_both(lambda question, good, _: {"prompt": f"{question}\n\nTL;DR:", "completion": f" {good}"}))


def trl_capybara() -> Files:
    """trl-lib/Capybara: messages of several turns."""
    return tables(
        _both(
            lambda question, good, _: {
                "source": "a stand-in",
                "num_turns": 2,
                "messages": [*_dialogue(question, good), *_dialogue("And why?", good)],
            }
        )
    )


def alpaca() -> Files:
    """tatsu-lab/alpaca: one split; `input` is mostly empty; `text` is the whole written out."""
    rows = [
        {
            "instruction": question,
            "input": "" if number % 3 else "for a child",
            "output": good,
            "text": f"### Instruction:\n{question}\n\n### Response:\n{good}",
        }
        for number, (question, good, _) in enumerate(pairs(TRAIN, 1))
    ]
    return tables({"train": rows})


def oasst1() -> Files:
    """OpenAssistant/oasst1: one message per row, trees by parent; copies of all rows in other files beside."""
    rows = []
    for number, (question, good, bad) in enumerate(pairs(TRAIN // 3, 1)):
        for place, (text, role, rank) in enumerate(
            ((question, "prompter", None), (good, "assistant", 0), (bad, "assistant", 1))
        ):
            rows.append(
                {
                    "message_id": f"{number}-{place}",
                    "parent_id": f"{number}-0" if place else None,
                    "user_id": "u",
                    "created_date": "2023-02-05",
                    "text": text,
                    "role": role,
                    "lang": "en",
                    "review_count": 3,
                    "deleted": False,
                    "rank": rank,
                    "synthetic": False,
                    "message_tree_id": f"{number}-0",
                    "tree_state": "ready_for_export",
                }
            )
    files = tables({"train": rows, "validation": rows[:15]})
    return files | {"2023-04-12_oasst_all.messages.jsonl.gz": gzip.compress(_lines(rows), mtime=0)}


def helpsteer2() -> Files:
    """nvidia/HelpSteer2: two rated answers to each prompt in rows of their own; other tables in folders beside."""
    files: Files = {"README.md": b"---\nlicense: cc-by-4.0\n---\n# A stand-in\n"}
    for split, count, seed in (("train", TRAIN // 2, 1), ("validation", TEST // 2, 2)):
        rows = [
            {
                "prompt": question,
                "response": answer,
                "helpfulness": grade,
                "correctness": grade,
                "coherence": 4,
                "complexity": 1,
                "verbosity": 1,
            }
            for question, good, bad in pairs(count, seed)
            for answer, grade in ((good, 4), (bad, 1))
        ]
        files[f"{split}.jsonl.gz"] = gzip.compress(_lines(rows), mtime=0)
    preference = [
        {
            "split": "train",
            "prompt": question,
            "response_1": bad,
            "response_2": good,
            "preference_strength": 2,
            "preference_statement": "@Response 2 is better.",
            "preference_elaboration": None,
            "three_most_similar_preferences": [{"statement": "x", "elaboration": "y", "strength": 2}],
            "all_preferences_unprocessed": [{"statement": "x", "elaboration": "y", "strength": 2}],
        }
        for question, good, bad in pairs(20, 3)
    ]
    files["preference/preference.jsonl.gz"] = gzip.compress(_lines(preference), mtime=0)
    files["disagreements/disagreements.jsonl.gz"] = gzip.compress(
        _lines([{"prompt": "a", "response": "b", "helpfulness": [1, 4]}]), mtime=0
    )
    return files


def helpsteer3() -> Files:
    """nvidia/HelpSteer3: named configurations; a dialogue as context, and one number from -3 (first) to 3 (second)."""
    files: Files = {}
    for split, count, seed in (("train", TRAIN, 1), ("validation", TEST, 2)):
        rows = []
        for number, (question, good, bad) in enumerate(pairs(count, seed)):
            strength = (-2, 2, 0, -1)[number % 4]
            first, second = (good, bad) if strength <= 0 else (bad, good)
            rows.append(
                {
                    "domain": "general",
                    "language": "english",
                    "context": _dialogue(question, "")[:1],
                    "response1": first,
                    "response2": second,
                    "overall_preference": strength,
                    "individual_preference": [
                        {"score": strength, "reasoning": "r", "feedback1": "f", "feedback2": "f"}
                    ],
                }
            )
        files[f"preference/{split}.jsonl.gz"] = gzip.compress(_lines(rows), mtime=0)
        files[f"feedback/{split}.jsonl.gz"] = gzip.compress(_lines([{"context": [], "response1": "a"}]), mtime=0)
    named = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {name}/{split}.jsonl.gz\n" for split in ("train", "validation"))
        for name in ("preference", "feedback")
    )
    return files | {"README.md": f"---\nconfigs:\n{named}---\n# A stand-in\n".encode()}


def argilla_cleaned() -> Files:
    """argilla/ultrafeedback-binarized-preferences-cleaned: names of columns with a hyphen."""
    rows = _both(
        lambda question, good, bad: {
            "source": "a stand-in",
            "prompt": question,
            "chosen": _dialogue(question, good),
            "chosen-rating": 5.0,
            "chosen-model": "m",
            "rejected": _dialogue(question, bad),
            "rejected-rating": 3.0,
            "rejected-model": "n",
        }
    )
    return tables({"train": rows["train"]})


def argilla_mix() -> Files:
    """argilla/dpo-mix-7k: some dialogues begin with a system turn."""

    def row(question: str, good: str, bad: str) -> dict[str, Any]:
        first = [{"content": "Be brief.", "role": "system"}] if "explain" in question else []
        return {
            "dataset": "a stand-in",
            "chosen": first + _dialogue(question, good),
            "rejected": first + _dialogue(question, bad),
            "chosen_rating": 5.0,
            "rejected_rating": 2.0,
        }

    return tables(_both(row))


def gsm8k() -> Files:
    """openai/gsm8k: two named configurations, none of them the default."""
    files: Files = {}
    rows = _both(lambda question, good, _: {"question": question, "answer": f"{good}\n#### 4"})
    for name in ("main", "socratic"):
        files |= {f"{name}/{split}-00000-of-00001.parquet": _parquet(part) for split, part in rows.items()}
    named = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {name}/{split}-*\n" for split in rows)
        for name in ("main", "socratic")
    )
    return files | {"README.md": f"---\nconfigs:\n{named}---\n# A stand-in\n".encode()}


def tulu() -> Files:
    """allenai/tulu-3-sft-mixture: messages in several files of one split."""
    rows = [
        {"id": str(number), "messages": _dialogue(question, good), "source": "a stand-in"}
        for number, (question, good, _) in enumerate(pairs(TRAIN, 1))
    ]
    files = tables({"train": rows})
    del files["data/train-00000-of-00001.parquet"]
    return files | {f"data/train-{part:05d}-of-00006.parquet": _parquet(rows[part::6]) for part in range(6)}


DATASETS: dict[str, Callable[[], Any]] = {
    "Dahoas/rm-static": rm_static,
    "Dahoas/full-hh-rlhf": rm_static,
    "Dahoas/synthetic-instruct-gptj-pairwise": synthetic_instruct,
    "yitingxie/rlhf-reward-datasets": rlhf_reward,
    "Anthropic/hh-rlhf": hh_rlhf,
    "openai/webgpt_comparisons": webgpt,
    "stanfordnlp/SHP": shp,
    "pvduy/sharegpt_alpaca_oa_vicuna_format": sharegpt,
    "HuggingFaceH4/ultrafeedback_binarized": ultrafeedback,
    "trl-lib/ultrafeedback_binarized": trl_ultrafeedback,
    "trl-lib/hh-rlhf-helpful-base": trl_helpful,
    "trl-lib/tldr": trl_tldr,
    "trl-lib/Capybara": trl_capybara,
    "tatsu-lab/alpaca": alpaca,
    "OpenAssistant/oasst1": oasst1,
    "nvidia/HelpSteer2": helpsteer2,
    "nvidia/HelpSteer3": helpsteer3,
    "argilla/ultrafeedback-binarized-preferences-cleaned": argilla_cleaned,
    "argilla/dpo-mix-7k": argilla_mix,
    "openai/gsm8k": gsm8k,
    "gsm8k": lambda: {"moved_to": "openai/gsm8k"},
    "allenai/tulu-3-sft-mixture": tulu,
}
