"""Settings of datasets and models: where they come from, and how they are read."""

from __future__ import annotations

import glob
import os
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rlhf.config.section import (
    DataSplit,
    FunctionName,
    HubName,
    PartName,
    Revision,
    Section,
    Seed,
    Share,
    TemplateText,
    Values,
    require_local,
)

OF_TOKENIZER = "tokenizer"  # as chat_template
INAPPLICABLE = {
    "hub": ("arguments", "reads"),
    "path": ("revision", "arguments", "reads"),
    "generator": ("revision", "name", "data_dir", "train_split", "eval_split"),
}


class DatasetSource(Section):
    """Where a dataset comes from: exactly one of `hub`, `path`, `generator`."""

    hub: HubName | None = Field(None, description="Name of a hub dataset, for example `Dahoas/rm-static`.")
    revision: Revision | None = Field(None, description="Commit or tag of the hub dataset; unset takes the newest.")
    name: PartName | None = Field(
        None,
        description="Configuration name of the dataset, on the hub or in a folder from there.",
    )
    data_dir: str | None = Field(
        None, min_length=1, description="Folder inside of the dataset, on the hub or in a folder from there."
    )
    path: str | list[str] | dict[str, str] | None = Field(
        None,
        description="A local file (json, jsonl, csv, tsv, parquet, optionally .gz), a pattern such as "
        "`data/*.parquet`, a folder as a hub has it (splits by file names or its README) or written by `save_to_disk`, "
        "a list of these, or `{train: ..., eval: ...}`. Text is UTF-8 or what its byte order mark says. Fields "
        "of a tsv file are in quotes where it reads as pandas writes it, else quotes are ordinary characters.",
    )
    generator: FunctionName | None = Field(
        None,
        description="`module:function` that yields rows; called with `arguments`. Its module, and what that imports "
        "from your own folders, is part of the dataset's ID: an edit makes it anew.",
    )
    arguments: Values = Field({}, description="Keyword arguments of the generator.")
    reads: list[str] = Field(
        [],
        exclude=True,  # their content is part of the ID, their names are not
        description="Files or folders that the generator reads: an edit of them makes the dataset anew too.",
    )
    train_split: str = Field("train", description="Split used for training.")
    eval_split: str | None = Field(None, description="Split used as unseen data; unset holds out `eval_share`.")
    eval_share: Share = Field(0.1, description="Share of rows held out as unseen data where there is no eval split.")
    first_rows: int | None = Field(
        None,
        ge=1,
        description="Read only so many rows from the beginning, and of a separate eval split too; for trials.",
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        given = [key for key in ("hub", "path", "generator") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of hub, path, generator (given: {', '.join(given) or 'none'})")
        if isinstance(self.path, dict) and ("train" not in self.path or self.path.keys() - {"train", "eval"}):
            raise ValueError(f"path: give `train` and perhaps `eval` (given: {', '.join(self.path) or 'none'})")
        if self.path is not None and not self.files:
            raise ValueError("path: name at least one file")
        for file in [*self.files, *self.reads]:
            require_local(file)
        self._require_effect(given[0])
        return self

    def _require_effect(self, place: str) -> None:
        """Refuse a key that does not apply; one that is written with its default does no harm."""
        for key in INAPPLICABLE[place]:
            if self.sets(key):
                raise ValueError(f"{key} has no effect on a source with `{place}`; leave it out")
        own_eval = self.eval_split is not None or (isinstance(self.path, dict) and "eval" in self.path)
        if own_eval and self.sets("eval_share"):
            raise ValueError(
                "eval_share has no effect where unseen rows are given; leave it out, or eval_split or `eval`"
            )
        if isinstance(self.path, dict) and self.eval_split is not None:
            raise ValueError("eval_split has no effect beside `{train: ...}`; name unseen rows as `eval` of it")

    def sets(self, key: str) -> bool:
        """Whether a key has another value than it has unset."""
        return bool(getattr(self, key) != type(self).model_fields[key].default)

    @property
    def files(self) -> list[str]:
        """The local files or folders, patterns expanded, in an order that does not depend on that of keys."""
        if isinstance(self.path, dict):
            parts = [self.path[key] for key in ("train", "eval") if key in self.path]
        else:
            parts = [self.path] if isinstance(self.path, str) else self.path or []
        return [file for part in parts for file in matching(part)]


def matching(path: str) -> list[str]:
    """The files that a pattern such as `data/*.parquet` fits, in the order of their names; another path as it is."""
    return [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True)) or [path]


class DatasetSettings(Section):
    """A dataset and how its rows become prompt / chosen / rejected: what its cached rows depend on."""

    source: DatasetSource = Field(description="Where the rows come from.")
    shape: (
        Literal[
            "pairs",
            "dialogues",
            "instructions",
            "messages",
            "implicit",
            "trees",
            "ratings",
            "ranked",
            "comparisons",
            "prompts",
        ]
        | None
    ) = Field(
        None,
        description="Shape of a row, see the tables of shapes below; unset uses the ready mapping of a known hub "
        "dataset, else `pairs`. `ranked`, `ratings` and `trees` give one group of answers per prompt.",
    )
    columns: dict[str, str] = Field(
        {},
        description="Role -> column; dots reach into nested fields, and an empty name leaves an optional role out. "
        "The tables of shapes below have the roles of each; every shape has the optional role `group`, see "
        "`keep_together`.",
    )
    assistant_turns: Literal["last", "each"] = Field(
        "last",
        description="Which answers of a conversation (`messages`) are trained: the `last`, those before it being part "
        "of its prompt, or `each` that follows a user's turn, as an example of its own with all that is said before it "
        "as its prompt. All of a conversation stay together, with those of equal opening; a rejected answer belongs to "
        "the last one. PPO gets the prompt of each.",
    )
    keep_together: Literal["prompt", "row"] = Field(
        "prompt",
        description="What stays on one side of a split, of training and unseen rows and of the phases: all rows of a "
        "`prompt`, or only a `row` itself. The role `group` of `columns` names another key, such as a conversation's.",
    )
    prompt_format: str | None = Field(
        None,
        description="Template of the prompt text, for example `Human: {prompt}`. Special tokens that it writes are "
        "special tokens, those in the data are trained as characters. Unset: `{prompt}`; for `instructions` "
        "`Human: {instruction}\\n{input}\\n\\nAssistant:`, or the ready mapping's.",
    )
    answer_format: str | None = Field(
        None,
        description="Template of the answer text. Nothing is put between prompt and answer but what a format or the "
        'data has: for a space, write `" {answer}"`. Unset: `{answer}`; for `instructions`, `messages` and `trees` '
        '`" {answer}"`, or the ready mapping\'s. See docs/texts.md.',
    )
    max_bad_share: Share = Field(
        0.05,
        description="Largest share of unusable rows before the rule fails. Ties, rows whose answers are equally good, "
        "are left out too, but do not count.",
    )

    @model_validator(mode="after")
    def _one_key_of_what_stays_together(self) -> Self:
        if "group" in self.columns and self.keep_together != "prompt":
            raise ValueError("keep_together has no effect beside the role `group` of columns; leave one out")
        return self


class DatasetSection(DatasetSettings):
    """A dataset, and what stages make of its rows."""

    chat_template: TemplateText | None = Field(
        None,
        description="Write prompts and answers as turns of a chat: `tokenizer` uses the template of the model's "
        "tokenizer, any other text is a Jinja template itself. A prompt that is no list of messages becomes a user's "
        "turn; white space around the text of a turn is left to the template. A template that asks for the date gets "
        "26 July 2024, on every day. Unset: plain text. See docs/texts.md.",
    )
    data_split: DataSplit | None = Field(
        None,
        description="Overrides the experiment's `data_split` for this dataset. `1,0,0` is for SFT only, as "
        "DeepSpeed-Chat's `--sft_only_data_path`; its rows need no rejected answer.",
    )
    evaluation_only: bool = Field(
        False,
        description="Train on no row of it: all of its rows, or its `eval_split`, are unseen rows of the phases that "
        "have a share in `data_split`; for benchmarks, such as `allenai/reward-bench` with `data_split: 0,1,0`.",
    )
    gold_reward: FunctionName | None = Field(
        None,
        description="`module:function(prompt, answer, finished) -> float` that judges answers, if one exists. As a "
        "generator's, its code is part of the ID of the stages that report it.",
    )
    gold_reward_reads: list[str] = Field(
        [], description="Files or folders that `gold_reward` reads, as `source.reads`."
    )

    @field_validator("chat_template")
    @classmethod
    def _template_writes_something(cls, template: str | None) -> str | None:
        if template not in (None, OF_TOKENIZER) and "{{" not in str(template):
            raise ValueError(
                f"{template!r} is no template by that name: a text is taken for a Jinja template itself, which writes "
                "messages, for example '{% for message in messages %}{{ message.content }}{% endfor %}'. The only "
                f"name is `{OF_TOKENIZER}`, the template of the model's tokenizer"
            )
        return template

    @model_validator(mode="after")
    def _nothing_held_out_of_a_benchmark(self) -> Self:
        if self.evaluation_only and self.source.sets("eval_share"):
            raise ValueError("source.eval_share has no effect beside evaluation_only; leave it out")
        return self

    @model_validator(mode="after")
    def _reads_for_a_function(self) -> Self:
        if self.gold_reward_reads and self.gold_reward is None:
            raise ValueError("gold_reward_reads: it belongs to gold_reward; leave it out")
        for file in self.gold_reward_reads:
            require_local(file)
        return self


class ModelSource(Section):
    """A hub model or a local Hugging Face folder: exactly one of `hub`, `path`."""

    hub: HubName | None = Field(None, description="Name of a hub model, for example `facebook/opt-1.3b`.")
    revision: Revision | None = Field(None, description="Commit or tag of the hub model; unset takes the newest.")
    path: str | None = Field(None, description="Local model folder with its tokenizer.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.hub is None) == (self.path is None):
            raise ValueError("give exactly one of hub, path")
        if self.path is not None:
            require_local(self.path)
            if self.revision is not None:
                raise ValueError("revision has no effect on a source with `path`; leave it out")
        return self


class TokenizerSettings(Section):
    """A tokenizer made for a model that starts from scratch."""

    kind: Literal["words", "bpe"] = Field("words", description="One token per word, or byte-level BPE.")
    vocab_size: int = Field(4096, ge=16, description="Largest vocabulary, special tokens included.")


class TokenizerSection(TokenizerSettings):
    """A tokenizer, and what it is trained on."""

    dataset: str = Field(description="Dataset whose texts it is trained on.")


class ModelSettings(Section):
    """A model to start from."""

    source: ModelSource | Literal["scratch"] = Field(description="Hub name, local folder, or `scratch`.")
    architecture: Values = Field(
        {}, description="For `scratch`: `model_type` and the keys of that Hugging Face configuration class."
    )
    tokenizer: TokenizerSettings | None = Field(None, description="For `scratch`: the tokenizer to train.")
    seed: Seed = Field(0, description="For `scratch`: seed of the initial weights.")
    eos_token: str | None = Field(None, description="Token that ends an answer, where the tokenizer's own is wrong.")
    pad_token: str | None = Field(None, description="Padding token; unset takes the tokenizer's, or adds one.")
    trust_remote_code: bool = Field(False, description="Allow code from the model repository to run. Unsafe.")


class ModelSection(ModelSettings):
    """A model to start from, with the data of its tokenizer."""

    tokenizer: TokenizerSection | None = Field(None, description="For `scratch`: the tokenizer to train.")

    @model_validator(mode="after")
    def _scratch_is_complete(self) -> Self:
        if self.source == "scratch" and (
            not isinstance(self.architecture.get("model_type"), str) or self.tokenizer is None
        ):
            raise ValueError("source: scratch needs architecture.model_type (text) and tokenizer.dataset")
        if self.source != "scratch" and (self.architecture or self.tokenizer):
            raise ValueError("architecture and tokenizer belong to source: scratch only")
        if self.source != "scratch" and self.seed != type(self).model_fields["seed"].default:
            raise ValueError("seed has no effect on a model that has its weights; leave it out")
        if self.source == "scratch" and self.trust_remote_code:
            raise ValueError(
                "trust_remote_code has no effect on source: scratch, which has no repository; leave it out"
            )
        return self
