"""manifest.json: what a stage made, from what, by which code and where.

It is written last, with the hashes of all other files, so that a stage with a manifest is finished.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

from rlhf.errors import UserError
from rlhf.files import JsonObject, peek, read_object, sha256_file, write_json

MANIFEST = "manifest.json"


class Code(TypedDict):
    """The code that made a stage: hash of the library and the scripts, and the commit, where there is a checkout."""

    hash: str
    commit: str | None


class BaseModel(TypedDict):
    """The model that training started from.

    Attributes:
        stage, id: kind and ID of the stage it is of.
        path: its folder, relative to the project.
        hub: name on a hub of the pretrained model that it comes from.
        revision: commit of that model, or what the configuration names; None where neither is known.
        license: of the pretrained model, as its card states it; absent where it states none.
        precision: types in which its weights are stored, the most frequent first; absent where they are not known.
    """

    stage: str
    id: str
    path: str
    hub: str | None
    revision: str | None
    license: NotRequired[str]
    precision: NotRequired[list[str]]


class DataSource(TypedDict, total=False):
    """The data of one split; all but the split's ID are known only where the project's specifications lie."""

    split: str
    dataset: str
    hub: str | None
    commit: str
    license: str
    data_split: str
    split_seed: int


class Lineage(TypedDict):
    """Where a trained model comes from."""

    base_model: BaseModel
    datasets: list[DataSource]


class Placement(TypedDict, total=False):
    """Where a stage was made.

    Attributes:
        slurm_job_id: absent outside of Slurm.
        gpus: as the launcher, or Slurm, has named them in CUDA_VISIBLE_DEVICES; absent on the CPU.
    """

    slurm_job_id: str
    gpus: str


class EngineFacts(TypedDict, total=False):
    """What is to be said of the training of one model."""

    gradient_checkpointing_effective: bool  # only where it was asked for


class Steps(TypedDict, total=False):
    """Optimizer steps, or iterations of PPO; what only training with evaluations knows may be absent."""

    planned: int
    done: int
    skipped_steps: int
    stopped_early: bool
    best_step: int
    best_loss: float | None


class CheckpointFacts(TypedDict, total=False):
    """What checkpoints cost the last attempt, and from which step it went on; empty where none was made."""

    resumed_from_step: int | None
    written: int
    skipped: int
    seconds: float
    share_of_time: float


class Sampling(TypedDict):
    """How PPO drew answers."""

    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int


class Merge(TypedDict):
    """What a model folder with merged adapters would lose to a loader that rounds it to half precision.

    Attributes:
        dtype: of the training.
        error: norm of the rounding over the norm of the adapters' change; None where there is no change.
        limit: above which it is said aloud.
    """

    dtype: str
    error: float | None
    limit: float


class Facts(EngineFacts, total=False):
    """What a stage has to say of itself in its manifest.

    Attributes:
        attempts: number of the attempt that finished.
        delivered: model folder -> how far the model loaded from it is from the trained one, and the limit.
        device: `cpu` or `cuda`.
        devices: model and UUID of the GPU of each process, in the order of ranks; absent on the CPU.
        merge: model folder -> what it would lose in half precision.
        training: role (`actor`, `critic`) -> facts of its engine, for a stage that trains two models.
        rows: `train`, `eval`, and `mixed` for SFT rows in PPO -> number of different rows that were used.
        rows_given: rows for the phase that are short enough; by `data_weights`, or by the number of steps, not all of
            them need be used.
        rows_per_epoch: rows that an epoch of PPO has, by `data_weights`.
        answers: that PPO has sampled and trained on.
        seen_in_train: rows of `eval` of which the prompt or the group is among the training rows too.
    """

    attempts: int
    checkpoints: CheckpointFacts
    world_size: int
    device: str
    devices: list[str]
    dtype: str
    lineage: Lineage
    training: dict[str, EngineFacts]
    rows: dict[str, int]
    rows_given: int
    rows_per_epoch: int
    answers: int
    seen_in_train: int
    steps: Steps
    sampling: Sampling
    delivered: dict[str, JsonObject]
    merge: dict[str, Merge]


class Manifest(Facts, Placement, total=False):
    """Content of manifest.json; every entry may be absent, because older code and other stages wrote other ones.

    Attributes:
        spec: the stage's specification as it was: `settings`, `upstream`, and `execution`.
        inputs: name -> fingerprint of what the stage read.
        outputs: file, relative to the folder -> its hash.
        started, finished: ISO 8601, with the zone.
        wall_seconds: of the attempt that finished.
    """

    schema_version: int
    stage: str
    id: str
    seed: int | None
    spec: JsonObject
    inputs: dict[str, str]
    outputs: dict[str, str]
    code: Code
    packages: dict[str, str]
    python: str
    host: str
    command: list[str]
    started: str
    finished: str
    wall_seconds: float


class ModelOrigin(TypedDict):
    """Where a cached model comes from.

    Attributes:
        hub: name on a hub; None for a folder.
        revision: as the configuration asks for it; None: the newest.
        commit: that the files are of; None where nobody knows.
        license: as the model's card states it.
        weights: `safetensors` or `pickled`.
        files: published file -> its hash.
    """

    hub: str | None
    revision: str | None
    commit: str | None
    license: str | None
    weights: str
    files: dict[str, str]


class ModelManifest(TypedDict, total=False):
    """The manifest of a cached model: what others need to know of it without loading it.

    Attributes:
        source: where it comes from; absent for a model from scratch.
        precision: type in which its weights are stored -> how many numbers.
        model_type: transformers' name of the family.
        parameters, vocabulary: their numbers.
        max_positions: longest sequence in tokens; None where there is no limit.
        linear_modules: names of the modules that LoRA patterns are compared with.
        outputs: file, relative to the folder -> its hash.
    """

    schema_version: int
    model_type: str
    parameters: int
    vocabulary: int
    eos_token: str
    pad_token: str
    max_positions: int | None
    linear_modules: list[str]
    source: ModelOrigin
    precision: dict[str, int]
    outputs: dict[str, str]


class Changes(NamedTuple):
    """Files that are missing, and files whose content is another than their manifest says; in its order."""

    missing: tuple[str, ...]
    changed: tuple[str, ...]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished stage.

    Raises:
        UserError: it is missing or damaged.
    """
    manifest: Manifest = read_object(folder / MANIFEST)
    return manifest


def peek_manifest(folder: Path) -> Manifest | None:
    """The manifest of a stage that may be made meanwhile: None where it is not there, empty where it is damaged."""
    manifest: Manifest | None = peek(folder / MANIFEST)
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest into a folder that holds all outputs: the stage is then finished."""
    write_json(folder / MANIFEST, manifest)


def read_model_manifest(file: Path) -> ModelManifest:
    """The manifest of a cached model.

    Raises:
        UserError: it is missing or damaged.
    """
    manifest: ModelManifest = read_object(file)
    return manifest


def changes(folder: Path) -> Changes:
    """Hash a finished stage's files again, and compare them with its manifest.

    Raises:
        UserError: the manifest is missing or damaged, so that it cannot be told.
    """
    outputs = read_manifest(folder).get("outputs")
    if not isinstance(outputs, dict):
        raise UserError(f"{folder / MANIFEST}: lists no outputs")
    missing = tuple(name for name in outputs if not (folder / name).is_file())
    changed = (name for name in outputs if name not in missing and sha256_file(folder / name) != outputs[name])
    return Changes(missing, tuple(changed))


def is_whole(folder: Path) -> bool:
    """Whether a folder has a manifest, and all files that it lists, as they were written."""
    try:
        return not any(changes(folder))
    except (UserError, OSError):
        return False
