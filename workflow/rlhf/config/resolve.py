"""From a configuration to the stages of the DAG.

Experiments, seeds and sweep points are expanded into runs; every run names its stages by content-addressed ID, so runs
whose inputs are equal share a stage.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rlhf.config.effects import Written, experiment_without_effect
from rlhf.config.expand import deep_merge, dotted, expand, parse
from rlhf.config.identity import slug, stage_id
from rlhf.config.plan import Plan, Run, Stage, dumped
from rlhf.config.requirements import policy_requirements, require_consistency, require_read, reward_requirements
from rlhf.config.schema import Configuration, ExperimentSettings, MemorySettings
from rlhf.config.section import Section
from rlhf.config.sources import DatasetSection, ModelSection
from rlhf.config.specification import (
    ModelUpstream,
    NoUpstream,
    PpoEvaluationUpstream,
    PpoUpstream,
    ResolvedAnswers,
    ResolvedBaseline,
    ResolvedDataset,
    ResolvedModel,
    ResolvedPpo,
    ResolvedReward,
    ResolvedRewardEvaluation,
    ResolvedSft,
    ResolvedSftEvaluation,
    RewardEvaluationUpstream,
    RewardUpstream,
    SftEvaluationUpstream,
    SftUpstream,
    SplitSettings,
    SplitUpstream,
    TokensSettings,
    TokensUpstream,
)
from rlhf.config.stages import EvaluationSection, JobExecution
from rlhf.config.user_code import function_content
from rlhf.errors import UserError
from rlhf.phases import PHASES, PhaseName

Fingerprint = Callable[[str, str], str]
SectionT = TypeVar("SectionT", bound=Section)


def resolve(config: dict[str, Any], fingerprint: Fingerprint) -> Plan:
    """Expand a configuration into runs and stages.

    Args:
        config: content of the configuration file(s).
        fingerprint: (path, key) -> content hash of a local file or folder.

    Raises:
        UserError: the configuration is wrong; the message names the key and the remedy.
    """
    configuration = parse(config)
    if not configuration.experiments:
        raise UserError("experiments: none is defined; add one, for example `experiments: {demo: {}}`")
    plan = Plan()
    code = functools.cache(function_content)
    written = Written()
    defaults, overrides = config.get("defaults") or {}, config.get("overrides") or {}
    for name, overlay in config["experiments"].items():
        place, phases, own = f"experiments.{name}", set[str](), overlay or {}
        for point, settings in expand(name, deep_merge(deep_merge(defaults, own), overrides)):
            require_read(point, settings.phases, f"{place}.sweep")
            phases |= set(settings.phases)
            resolver = _Resolver(configuration, plan, fingerprint, code, place, written)
            for seed in settings.seeds:
                stages = resolver.run(settings, seed)
                plan.runs.append(Run(name, point, seed, stages, settings.evaluation.samples))
            layers = {f"{place}.sweep": point, place: own, "defaults": defaults}
            written.add(layers, settings, resolver.without_effect(settings))
        require_read(dotted(own), phases, place)
    if not overrides:  # under them, keys can be without effect that have one in the experiments themselves
        written.require_effect()
    return plan


class _Resolver:
    """Adds the stages of one run to the plan, upstream first."""

    def __init__(
        self,
        configuration: Configuration,
        plan: Plan,
        fingerprint: Fingerprint,
        function_content: Callable[[str, str], str | None],
        place: str,
        written: Written,
    ) -> None:
        self._configuration = configuration
        self._plan = plan
        self._fingerprint = fingerprint
        self._function_content = function_content
        self._place = place
        self._written = written
        self._memory = MemorySettings()

    def run(self, settings: ExperimentSettings, seed: int) -> dict[str, str]:
        """Add all stages of a run; returns stage kind -> ID."""
        require_consistency(settings, self._place)
        self._memory = settings.memory
        names = settings.data_path
        datasets = [self._dataset(name, f"{self._place}.data_path") for name in names]
        models = self._models(settings)
        proportions = self._proportions(settings)
        rows = [
            _Rows(name, dataset, self._split(dataset, share, settings.split_seed), _phases(share))
            for name, dataset, share in zip(names, datasets, proportions, strict=True)
        ]
        seen = {phase: [each for each in rows if phase in each.phases] for phase in settings.phases}
        gold = self._gold([each for phase, part in seen.items() if phase != "sft" for each in part])
        self._note_unused_gold(rows, settings.phases)
        ids = {"dataset": datasets[0], **models}
        for phase in settings.phases:
            used = {phase, "sft"} if phase == "ppo" and settings.ppo.ptx_coefficient > 0 else {phase}
            ids[phase] = self._phase(phase, settings, seed, ids, [each for each in rows if used & {*each.phases}], gold)
        data = {phase: self._data(part, self._reader(phase, ids)) for phase, part in seen.items()}
        return ids | self._evaluations(settings, ids, data, gold)

    def without_effect(self, settings: ExperimentSettings) -> dict[str, str]:
        """Keys of the experiment that change nothing, and why."""
        datasets = self._configuration.datasets
        return experiment_without_effect(settings, all(datasets[name].data_split for name in settings.data_path))

    def _models(self, settings: ExperimentSettings) -> dict[str, str]:
        """Role -> ID of the model that the phases start from, with what they ask of it."""
        models: dict[str, str] = {}
        if "sft" in settings.phases:
            models["policy"] = self._model(settings.policy, "policy")
            self._plan.require(models["policy"], policy_requirements(settings, self._place))
        if "reward" in settings.phases:
            models["reward_model"] = self._reward_base(settings, models)
            self._plan.require(models["reward_model"], reward_requirements(settings, self._place))
        return models

    def _reader(self, phase: str, ids: dict[str, str]) -> str:
        """ID of the model whose tokenizer reads the rows of a phase."""
        return ids["reward_model" if phase == "reward" else "policy"]

    def _phase(
        self,
        phase: PhaseName,
        settings: ExperimentSettings,
        seed: int,
        ids: dict[str, str],
        rows: list[_Rows],
        gold: dict[str, Any],
    ) -> str:
        """Add the stage that trains; `ids` has those before it."""
        weights, data = _weights(settings, rows), self._data(rows, self._reader(phase, ids))
        resolved: Section
        upstream: SftUpstream | RewardUpstream | PpoUpstream
        if phase == "sft":
            resolved = _with(ResolvedSft, settings.sft, data_weights=weights)
            upstream = SftUpstream(model=ids["policy"], **data)
        elif phase == "reward":
            resolved = _with(ResolvedReward, settings.reward, data_weights=weights)
            from_sft = settings.reward.start_from == "sft"
            base = {"sft": ids["sft"]} if from_sft else {"model": ids["reward_model"]}
            upstream = RewardUpstream.model_validate({**base, **data})
        else:
            resolved = _with(ResolvedPpo, settings.ppo, **gold, data_weights=weights)
            upstream = PpoUpstream(sft=ids["sft"], reward=ids["reward"], **data)
        start, identifier = upstream.start
        label = f"{_label(identifier)}-s{seed}" if start == "model" else _label(identifier)
        return self._train(phase, label, seed, resolved, upstream, getattr(settings, phase).execution)

    def _reward_base(self, settings: ExperimentSettings, models: dict[str, str]) -> str:
        """The model whose tokenizer the reward model has."""
        if settings.reward.start_from == "pretrained":
            return self._model(settings.reward_model, "reward_model")
        if settings.reward_model not in (None, settings.policy):
            raise UserError(
                f"{self._place}.reward_model: {settings.reward_model!r} is not used where reward.start_from is sft; "
                "leave it out"
            )
        return models["policy"]

    def _evaluations(
        self,
        settings: ExperimentSettings,
        ids: dict[str, str],
        data: dict[PhaseName, dict[str, list[str]]],
        gold: dict[str, Any],
    ) -> dict[str, str]:
        """Add what measures the models of the phases."""
        evaluation, ppo = settings.evaluation, settings.ppo
        out = {}
        if "sft" in settings.phases:
            out["evaluate_sft"] = self._evaluate(
                "evaluate_sft",
                ids["sft"],
                evaluation,
                ResolvedSftEvaluation(
                    max_seq_len=settings.sft.max_seq_len, dtype=evaluation.dtype or settings.sft.dtype
                ),
                SftEvaluationUpstream(sft=ids["sft"], **data["sft"]),
            )
        if "reward" in settings.phases:
            out["evaluate_reward"] = self._evaluate(
                "evaluate_reward",
                ids["reward"],
                evaluation,
                ResolvedRewardEvaluation(
                    max_seq_len=settings.reward.max_seq_len, dtype=evaluation.dtype or settings.reward.dtype, **gold
                ),
                RewardEvaluationUpstream(reward=ids["reward"], **data["reward"]),
            )
        if "ppo" in settings.phases:
            sampling = {
                "max_prompt_seq_len": ppo.max_prompt_seq_len,
                "max_answer_seq_len": ppo.max_answer_seq_len,
                "temperature": ppo.temperature,
                "dtype": evaluation.dtype or ppo.dtype,
                **gold,
            }
            made_from = {"sft": ids["sft"], "reward": ids["reward"], **data["ppo"]}
            out["baseline"] = self._evaluate(
                "baseline",
                ids["sft"],
                evaluation,
                _with(ResolvedBaseline, evaluation, **sampling),
                PpoUpstream.model_validate(made_from),
                evaluation.seed,
            )
            compared = {"ppo": ids["ppo"], "baseline": out["baseline"], **made_from}
            out["evaluate_ppo"] = self._evaluate(
                "evaluate_ppo",
                ids["ppo"],
                evaluation,
                _with(ResolvedAnswers, evaluation, **sampling),
                PpoEvaluationUpstream.model_validate(compared),
                evaluation.seed,
            )
        return out

    def _named(self, table: dict[str, Any], name: str | None, place: str, section: str) -> Any:
        if name is None:
            defined = ", ".join(table) or "none defined"
            raise UserError(f"{place}: not given; name one of `{section}`: {defined}")
        if name not in table:
            near = difflib.get_close_matches(name, table, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"defined: {', '.join(table) or 'none'}"
            raise UserError(f"{place}: {name!r} is not defined under `{section}`; {hint}")
        return table[name]

    def _dataset(self, name: str, place: str) -> str:
        dataset: DatasetSection = self._named(self._configuration.datasets, name, place, "datasets")
        files, key = dataset.source.files, f"datasets.{name}.source.path"
        source = dataset.source
        content = [self._fingerprint(file, key) for file in files]
        content += self._code(f"datasets.{name}.source", "generator", source.generator, "reads", source.reads)
        settings = _with(
            ResolvedDataset,
            dataset,
            turns=None if dataset.chat_template is None else True,
            evaluation_only=True if dataset.evaluation_only else None,
            content=content or None,
        )
        generator = (source.generator or "").split(":")[0].split(".")[-1]
        label = slug(source.hub or generator or _stem(files))
        inputs = (*files, *source.reads)
        return self._add("dataset", label, settings, NoUpstream(), inputs, f"datasets.{name}")

    def _code(self, place: str, key: str, reference: str | None, reads_key: str, reads: list[str]) -> list[str]:
        """Hashes of a user's function, none for one of this library, and of the files that it is said to read."""
        code = None if reference is None else self._function_content(reference, f"{place}.{key}")
        return [*([] if code is None else [code]), *(self._fingerprint(file, f"{place}.{reads_key}") for file in reads)]

    def _model(self, name: str | None, key: str) -> str:
        model: ModelSection = self._named(self._configuration.models, name, f"{self._place}.{key}", "models")
        upstream = ModelUpstream()
        content: list[str] | None = None
        files: list[str] = []
        if model.source == "scratch":
            assert model.tokenizer is not None  # guaranteed by ModelSettings
            dataset = self._dataset(model.tokenizer.dataset, f"models.{name}.tokenizer.dataset")
            upstream = ModelUpstream(dataset=dataset)
            label = f"{model.architecture['model_type']}-scratch"
        else:
            files = [] if model.source.path is None else [model.source.path]
            label = model.source.hub or _stem(files)
            content = [self._fingerprint(file, f"models.{name}.source.path") for file in files]
        settings = _with(ResolvedModel, model, content=content)
        return self._add("model", label, settings, upstream, tuple(files), f"models.{name}")

    def _data(self, rows: list[_Rows], model: str) -> dict[str, list[str]]:
        """IDs of the tokens and the split of each dataset."""
        tokens = [
            self._add(
                "tokens",
                _label(each.dataset, model),
                TokensSettings(chat_template=self._configuration.datasets[each.name].chat_template),
                TokensUpstream(dataset=each.dataset, model=model),
                place=f"datasets.{each.name}",
            )
            for each in rows
        ]
        return {"tokens": tokens, "split": [each.split for each in rows]}

    def _proportions(self, settings: ExperimentSettings) -> list[str]:
        """The `data_split` of each dataset; together they must give every phase that is asked for something."""
        proportions = [
            self._configuration.datasets[name].data_split or settings.data_split for name in settings.data_path
        ]
        trained = [
            split
            for name, split in zip(settings.data_path, proportions, strict=True)
            if not self._configuration.datasets[name].evaluation_only
        ]
        for place, phase in enumerate(PHASES):
            if phase in settings.phases and not any(float(split.split(",")[place]) for split in trained):
                given = " and ".join(trained) or "nothing but datasets for evaluation"
                raise UserError(f"{self._place}.data_split: {given} leaves phase {phase} without data")
        return proportions

    def _split(self, dataset: str, data_split: str, seed: int) -> str:
        settings = SplitSettings(data_split=data_split, split_seed=seed)
        return self._add("split", _label(dataset), settings, SplitUpstream(dataset=dataset))

    def _add(
        self,
        kind: str,
        label: str,
        settings: Section,
        upstream: Section,
        local_files: tuple[str, ...] = (),
        place: str = "",
    ) -> str:
        """Add a stage that draws nothing at random and is no matter of `execution`."""
        identifier = stage_id(label, kind, dumped(settings), dumped(upstream))
        return self._plan.add(Stage(kind, identifier, settings, upstream, local_files=local_files, place=place))

    def _train(
        self, kind: str, label: str, seed: int, settings: Section, upstream: Section, execution: JobExecution
    ) -> str:
        identifier = stage_id(label, kind, {**dumped(settings), "seed": seed}, dumped(upstream))
        return self._plan.add(Stage(kind, identifier, settings, upstream, seed, execution, memory=self._memory))

    def _evaluate(
        self,
        kind: str,
        subject: str,
        evaluation: EvaluationSection,
        settings: Section,
        upstream: Section,
        seed: int | None = None,
    ) -> str:
        """Add an evaluation of the stage `subject`; how many samples are shown is up to the report."""
        identifier = stage_id(_label(subject), kind, {**dumped(settings), "seed": seed}, dumped(upstream))
        return self._plan.add(
            Stage(kind, identifier, settings, upstream, seed, evaluation.execution, memory=self._memory)
        )

    def _note_unused_gold(self, rows: list[_Rows], phases: list[PhaseName]) -> None:
        """An experiment that is narrowed to SFT by its `phases` leaves the datasets as others need them."""
        for each in rows:
            if self._configuration.datasets[each.name].gold_reward is not None:
                alone = each.phases == PHASES[:1] != tuple(phases)
                reason = "its rows are for SFT alone, and nothing of these is judged" if alone else None
                self._written.note(f"datasets.{each.name}.gold_reward", reason)

    def _gold(self, rows: list[_Rows]) -> dict[str, Any]:
        """What judges the answers of datasets, with hashes of its code and of what it reads.

        Only of those whose prompts are answered or scored: SFT does neither.
        """
        judged = {each.name: self._configuration.datasets[each.name] for each in rows}
        found = {section.gold_reward for section in judged.values()}
        if len(found) > 1:
            each = ", ".join(f"{name}: {section.gold_reward or 'none'}" for name, section in judged.items())
            raise UserError(
                f"{self._place}.data_path: give all of these datasets the same gold_reward, or none ({each})"
            )
        content = [
            hashed
            for name, section in judged.items()
            for hashed in self._code(
                f"datasets.{name}", "gold_reward", section.gold_reward, "gold_reward_reads", section.gold_reward_reads
            )
        ]
        return {"gold_reward": next(iter(found), None), "gold_content": list(dict.fromkeys(content)) or None}


@dataclass(frozen=True)
class _Rows:
    """A dataset of an experiment: its name, the IDs of its rows and of their split, and the phases that see some."""

    name: str
    dataset: str
    split: str
    phases: tuple[str, ...]


def _phases(data_split: str) -> tuple[str, ...]:
    """The phases that a split has a share for."""
    return tuple(phase for phase, share in zip(PHASES, data_split.split(","), strict=True) if float(share))


def _weights(settings: ExperimentSettings, rows: list[_Rows]) -> list[float]:
    return [settings.data_weights.get(each.name, 1.0) for each in rows]


def _with(resolved: type[SectionT], section: Section, **added: Any) -> SectionT:
    """A section's settings as a stage has them: what the stage does not depend on is left out, the rest `added`."""
    own = {name: value for name, value in section if name in resolved.model_fields}
    return resolved.model_validate({**own, **added})


def _label(*ids: str) -> str:
    return "-".join(identifier.rsplit("-", 1)[0] for identifier in ids)


def _stem(files: list[str]) -> str:
    return Path(files[0]).name.split(".")[0]
