"""What is known of public datasets: where their rows lie in the repository, and how these are read. Data only.

DeepSpeed-Chat's datasets are read as its classes do (`dschat/utils/data/raw_datasets.py`): what these put into a text,
spaces too, is in the formats here, and nothing is put in elsewhere. What is not written here is the shape's default.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]

CONVERTED = "refs/convert/parquet"  # the hub's own tables of a repository that has a loading script, which is never run


@dataclass(frozen=True)
class ReadyMapping:
    """What is known of a public dataset; entries are those of the configuration unless said otherwise.

    Attributes:
        shape: one of `rlhf.data.shapes.SHAPES`.
        row: an example in the repository's own layout, columns that are not read left out.
        revision, name, data_dir, train_split, eval_split: where its rows lie, if not where they are looked for anyway.
        columns: role -> column.
        formats: `prompt_format` and `answer_format`.
        remove: patterns that are deleted from answers, one after the other.
        replace: what is replaced in prompts, and by what.
        max_bad_share: where the data itself has many rows that cannot be used.
        benchmark: its rows are to be trained on by nobody.
        remark: for the manual.
    """

    shape: str = "pairs"
    row: Row = field(default_factory=dict)
    revision: str | None = None
    name: str | None = None
    data_dir: str | None = None
    train_split: str | None = None
    eval_split: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    formats: tuple[str | None, str | None] = (None, None)
    remove: tuple[str, ...] = ()
    replace: tuple[tuple[str, str], ...] = ()
    max_bad_share: float | None = None
    benchmark: bool = False
    remark: str = ""


UNKNOWN = ReadyMapping()

_SPACED = " {answer}"
_DEEPSPEED_CHAT = (" Human: {prompt} Assistant:", _SPACED)
_PLAIN = ("Human: {prompt}\n\nAssistant:", _SPACED)  # as `messages` are written
_TURNS = (("\n<extra_id_1>Assistant\n", "\n\nAssistant: "), ("\n<extra_id_1>User\n", "\n\nHuman: "))
_DIALOGUE = "\n\nHuman: 2 + 2?\n\nAssistant:"
_QUESTION = [{"role": "user", "content": "2 + 2?"}]
_RIGHT, _WRONG = ([*_QUESTION, {"role": "assistant", "content": answer}] for answer in ("4", "5"))
_PASSAGES = {"prompt": "query", "chosen": "positive_passages.0.text", "rejected": "negative_passages.0.text"}
_PASSAGE_ROW = {
    "query": "2 + 2?",
    "positive_passages": [{"docid": "1#0", "title": "Sums", "text": "4"}],
    "negative_passages": [{"docid": "2#0", "title": "Sums", "text": "5"}],
}
_WHOLE = {"messages": ""}  # chosen and rejected hold all turns; `prompt` repeats one of them
_PREFERENCE_ROW = {"prompt": "2 + 2?", "chosen": _RIGHT, "rejected": _WRONG}
_TREE_ROW = {
    "message_id": "b",
    "parent_id": "a",
    "message_tree_id": "a",
    "role": "assistant",
    "text": "4",
    "lang": "en",
    "rank": 0,
}

KNOWN: dict[str, ReadyMapping] = {
    "Dahoas/rm-static": ReadyMapping(
        row={"prompt": _DIALOGUE, "response": " 4", "chosen": " 4", "rejected": " 5"}, eval_split="test"
    ),
    "Dahoas/full-hh-rlhf": ReadyMapping(
        row={"prompt": _DIALOGUE, "response": " 4", "chosen": " 4", "rejected": " 5"}, eval_split="test"
    ),
    "Dahoas/synthetic-instruct-gptj-pairwise": ReadyMapping(
        row={"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, formats=_DEEPSPEED_CHAT
    ),
    "yitingxie/rlhf-reward-datasets": ReadyMapping(
        row={"prompt": "\n\nHuman: 2 + 2?\n\n", "chosen": "Assistant: 4", "rejected": "Assistant: 5"},
        eval_split="test",
        formats=("{prompt}Assistant:", None),
        remove=("(?s)^.*Assistant:",),  # which the prompt has then
    ),
    "openai/webgpt_comparisons": ReadyMapping(
        "comparisons",
        row={
            "question": {"full_text": "2 + 2?"},
            "answer_0": "4 [1].",
            "score_0": 0.5,
            "answer_1": "5 [1, 2].",
            "score_1": -0.5,
        },
        revision=CONVERTED,
        columns={"prompt": "question.full_text"},
        formats=_DEEPSPEED_CHAT,
        remove=(r" [(\[].*?[)\]]", r"[(\[].*?[)\]]"),
        remark="ties are left out, where DeepSpeed-Chat takes the first answer; all that stands in brackets is removed",
    ),
    "stanfordnlp/SHP": ReadyMapping(
        "comparisons",
        row={"history": "2 + 2?", "human_ref_A": "4", "human_ref_B": "5", "labels": 1},
        eval_split="validation",
        columns={
            "prompt": "history",
            "answer_0": "human_ref_B",
            "answer_1": "human_ref_A",
            "score_1": "labels",  # 1 where A is preferred
        },
        formats=_DEEPSPEED_CHAT,
        remark="`data_dir: explainlikeimfive` (or another domain) reads that one alone",
    ),
    "pvduy/sharegpt_alpaca_oa_vicuna_format": ReadyMapping(
        "instructions",
        row={"prompt": "USER: 2 + 2? ASSISTANT:", "label": "4"},
        eval_split="test",
        columns={"instruction": "prompt", "output": "label"},
        formats=("{instruction}", _SPACED),
        replace=(("USER", "Human"), ("ASSISTANT", "Assistant")),
    ),
    "wangrui6/Zhihu-KOL": ReadyMapping(
        row={"INSTRUCTION": "2 + 2?", "RESPONSE": "4"},
        columns={"prompt": "INSTRUCTION", "chosen": "RESPONSE"},
        formats=_DEEPSPEED_CHAT,
    ),
    "Cohere/miracl-zh-queries-22-12": ReadyMapping(
        row=_PASSAGE_ROW, eval_split="dev", columns=_PASSAGES, formats=_DEEPSPEED_CHAT
    ),
    "Cohere/miracl-ja-queries-22-12": ReadyMapping(
        row=_PASSAGE_ROW, eval_split="dev", columns=_PASSAGES, formats=_DEEPSPEED_CHAT
    ),
    "Hello-SimpleAI/HC3-Chinese": ReadyMapping(
        row={"question": "2 + 2?", "human_answers": ["4"], "chatgpt_answers": ["It is 4."]},
        revision=CONVERTED,
        data_dir="all",
        columns={"prompt": "question", "chosen": "human_answers.0"},
        formats=_DEEPSPEED_CHAT,
    ),
    "apple/mkqa": ReadyMapping(
        row={"queries": {"en": "2 + 2?"}, "answers": {"en": [{"text": "4"}]}},
        columns={"prompt": "queries.en", "chosen": "answers.en.0.text"},
        formats=_DEEPSPEED_CHAT,
        max_bad_share=0.5,
        remark="another language: name its columns, such as `queries.zh_cn` and `answers.zh_cn.0.text`; many questions "
        "have no short answer",
    ),
    "lmqg/qg_jaquad": ReadyMapping(
        row={"question": "2 + 2?", "sentence": "2 + 2 = 4"},
        revision=CONVERTED,
        eval_split="validation",
        columns={"prompt": "question", "chosen": "sentence"},
        formats=_DEEPSPEED_CHAT,
    ),
    "lmqg/qag_jaquad": ReadyMapping(
        row={"questions": ["2 + 2?"], "paragraph": "2 + 2 = 4"},
        revision=CONVERTED,
        eval_split="validation",
        columns={"prompt": "questions.0", "chosen": "paragraph"},
        formats=_DEEPSPEED_CHAT,
    ),
    "Anthropic/hh-rlhf": ReadyMapping(
        "dialogues",
        row={"chosen": f"{_DIALOGUE} 4", "rejected": f"{_DIALOGUE} 5"},
        eval_split="test",
        remark="`data_dir: harmless-base` (or another folder) reads that folder alone",
    ),
    "HuggingFaceH4/ultrafeedback_binarized": ReadyMapping(
        "messages",
        row={**_PREFERENCE_ROW, "messages": _RIGHT, "score_chosen": 8.0, "score_rejected": 5.0},
        train_split="train_prefs",
        eval_split="test_prefs",
        columns=_WHOLE,
    ),
    "trl-lib/ultrafeedback_binarized": ReadyMapping(
        "messages", row={"chosen": _RIGHT, "rejected": _WRONG}, eval_split="test"
    ),
    "argilla/ultrafeedback-binarized-preferences-cleaned": ReadyMapping(
        "messages", row=_PREFERENCE_ROW, columns=_WHOLE
    ),
    "argilla/dpo-mix-7k": ReadyMapping(
        "messages",
        row={"dataset": "a", "chosen": _RIGHT, "rejected": _WRONG},
        eval_split="test",
        columns={"subset": "dataset"},
    ),
    "nvidia/HelpSteer": ReadyMapping(
        "ratings",
        row={"prompt": "2 + 2?", "response": "4", "helpfulness": 4},
        eval_split="validation",
        columns={"answer": "response", "rating": "helpfulness"},
        formats=_PLAIN,
        max_bad_share=0.5,
        remark="prompts with a single rated answer are counted, and left out",
    ),
    "nvidia/HelpSteer2": ReadyMapping(
        "ratings",
        row={"prompt": "2 + 2?", "response": "4", "helpfulness": 4},
        eval_split="validation",
        columns={"answer": "response", "rating": "helpfulness"},
        formats=_PLAIN,
        replace=_TURNS,
        remark="`rating: correctness` in `columns` takes another attribute; pairs of equal ratings are ties",
    ),
    "nvidia/HelpSteer3": ReadyMapping(
        "comparisons",
        row={
            "domain": "general",
            "context": _QUESTION,
            "response1": "4",
            "response2": "5",
            "overall_preference": -2,
        },
        name="preference",
        eval_split="validation",
        columns={
            "prompt": "context",
            "answer_0": "response1",
            "answer_1": "response2",
            "preference": "overall_preference",
            "subset": "domain",
        },
    ),
    "trl-lib/hh-rlhf-helpful-base": ReadyMapping(
        "messages", row={"prompt": _QUESTION, "chosen": _RIGHT[1:], "rejected": _WRONG[1:]}, eval_split="test"
    ),
    "trl-lib/tldr": ReadyMapping(row={"prompt": "2 + 2\n\nTL;DR:", "completion": " 4"}, eval_split="test"),
    "trl-lib/Capybara": ReadyMapping("messages", row={"messages": _RIGHT}, eval_split="test"),
    "trl-lib/ultrafeedback-prompt": ReadyMapping("prompts", row={"prompt": _QUESTION}, eval_split="test"),
    "tatsu-lab/alpaca": ReadyMapping(
        "instructions", row={"instruction": "Add the numbers.", "input": "2 2", "output": "4"}
    ),
    "allenai/tulu-v2-sft-mixture": ReadyMapping("messages", row={"dataset": "a", "messages": _RIGHT}),
    "allenai/tulu-3-sft-mixture": ReadyMapping("messages", row={"source": "a", "messages": _RIGHT}),
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": ReadyMapping(
        "messages", row={**_PREFERENCE_ROW, "source": "a"}, columns=_WHOLE
    ),
    "openai/gsm8k": ReadyMapping(
        "instructions",
        row={"question": "2 + 2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"},
        name="main",
        eval_split="test",
        columns={"instruction": "question", "output": "answer"},
        remark="`name: socratic` has the other answers",
    ),
    "OpenAssistant/oasst1": ReadyMapping(
        "trees", row=_TREE_ROW, eval_split="validation", columns={"subset": "lang"}, max_bad_share=0.1
    ),
    "OpenAssistant/oasst2": ReadyMapping(
        "trees", row=_TREE_ROW, eval_split="validation", columns={"subset": "lang"}, max_bad_share=0.1
    ),
    "allenai/reward-bench": ReadyMapping(
        row={"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "subset": "math-prm"},
        train_split="filtered",
        eval_split="filtered",
        formats=_PLAIN,
        benchmark=True,
        remark="needs `evaluation_only: true`, and `data_split: 0,1,0` as it serves reward models alone",
    ),
}

# Parts of a repository, by configuration name or folder, that are laid out otherwise than the rest.
PARTS: dict[tuple[str, str], ReadyMapping] = {
    ("nvidia/HelpSteer2", "preference"): ReadyMapping(
        "comparisons",
        row={"prompt": "2 + 2?", "response_1": "4", "response_2": "5", "preference_strength": -2},
        data_dir="preference",
        columns={"answer_0": "response_1", "answer_1": "response_2", "preference": "preference_strength"},
        formats=_PLAIN,
        replace=_TURNS,
        remark="with `data_dir: preference`",
    ),
}

# Datasets that had no owner on the hub once -> what they are called now.
RENAMED = {"gsm8k": "openai/gsm8k", "mkqa": "apple/mkqa"}

# What people write for a dataset though the hub never had it.
MISNAMED = {"mkqa-chinese": "apple/mkqa", "mkqa-japanese": "apple/mkqa"}
