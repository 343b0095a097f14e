"""The model card of a trained model, written from its manifest."""

from __future__ import annotations

from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from rlhf.config.specification import PpoUpstream, TrainingSpecification
from rlhf.config.stages import PpoSettings
from rlhf.records.manifest import Manifest, Merge
from rlhf.records.metrics import MetricsLine, Phase

POLICY, REWARD = "text-generation", "text-classification"
STAGES = {
    "sft": (
        "Supervised fine-tuning (SFT)",
        "a causal language model fine-tuned on prompts and preferred answers",
    ),
    "reward": ("Reward model", "a model that scores an answer to a prompt, learned from pairs of answers"),
    "ppo": ("PPO", "an SFT model optimised with PPO against a reward model, with a KL penalty towards the SFT model"),
}
# Places and speeds say nothing of the model.
HIDDEN = {"epoch", "tokens", "tokens_per_second"}
HIDDEN |= {"time_generate", "time_score", "time_train", "learning_rate", "critic_learning_rate"}

TEMPLATE = """\
---
{{ front_matter }}---

# {{ title }}: {{ id }}

This is {{ description }}.
{% if averaged %}
Its weights are the exponential moving average of the policy's (decay {{ settings.ema_decay }}); the results below are
of the policy itself.
{% endif %}

{% if base.hub %}
- Pretrained model: `{{ base.hub }}`{% if base.revision %} at revision `{{ base.revision }}`{% endif %}

{% endif %}
{% if base.get("license") %}
- Licence of the pretrained model, as its card states it: {{ base.license }}
{% endif %}
{% if base.get("precision") %}
- The pretrained model's weights are stored in {{ base.precision | join(" and ") }}
{% endif %}
- Starts from: {{ base.stage }} {{ base.id }}
{% if rewarded_by %}
- Reward model: reward {{ rewarded_by }}
{% endif %}
- Seed: {{ seed }}
- Trained in {{ dtype }} by {{ world_size }} process{{ "es" if world_size > 1 }} ({{ device }})

## Data

| dataset | rows to SFT, reward, PPO | seed of the split | split |
|---|---|---|---|
{% for part in datasets %}
| {{ part.get("hub") or part.get("dataset") or "" }}\
{{ " (commit " + part.commit[:12] + ")" if part.get("commit") }} | {{ part.get("data_split", "") }} | \
{{ part.get("split_seed", "") }} | {{ part.split }} |
{% endfor %}

{% for name, count in rows.items() %}
- {{ count }} {{ purposes[name] }}
{% endfor %}
{% if seen %}

**Not all of the unseen rows are unseen**: the prompts or groups of {{ seen }} of them are trained on too.
{% endif %}

## Results

| | step | {{ columns | join(" | ") }} |
|---|---|{{ "---|" * columns | length }}
{% for line in results %}
| {{ line | join(" | ") }} |
{% endfor %}

{{ explanation }}

## Use

```python
{{ snippet }}
```

{{ usage }}

{% if lora_dim %}
The LoRA matrices (rank {{ lora_dim }}) are merged into these weights.
{% if has_adapter %}
They are saved apart too, as a PEFT folder (`adapter/`, beside this one) for the model that training started from.
{% if more_trained %}
Other weights (embeddings, norms, biases) were trained beside the matrices, so the matrices alone are not this model:
the PEFT folder holds these weights as well. `PeftModel.from_pretrained` loads them all; for a tool that reads LoRA
matrices only, use the merged weights here.
{% endif %}
{% endif %}

{% endif %}
{% if merge %}
Weights with merged LoRA matrices are in float32, though training was in {{ merge.dtype }}: load the model as
`config.json` says, or the PEFT folder on its base.
{% if merge.error is not none %}
Rounded to {{ merge.dtype }}, these weights would be off by {{ "%.0f" | format(100 * merge.error) }} % of the change
that was trained (norm of the rounding over norm of the change).
{% endif %}
`merged_adapters/` has the matrices of this stage and those before it, for training that goes on in {{ merge.dtype }}.

{% endif %}
## Limits

The model is a result of research. {{ limits }} It was not tested for safety, truth or bias; what it learned follows
from its pretrained model and the data named above.

{% if license == "unknown" %}
No licence is stated here: it follows from those of the pretrained model and of the data.
{% else %}
Licence: {{ license }}.
{% endif %}

## Settings

```yaml
{{ settings_yaml }}```

## Provenance

Code {{ code.hash }}{% if code.commit %}, commit {{ code.commit }}{% endif %}.

{% for name, version in packages.items() %}
- {{ name }} {{ version }}
{% endfor %}
"""

CHAT_PROMPT = """\
turns = [{"role": "user", "content": "a question"}]
prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)"""
ANSWERED = """\
answer = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""
SCORED = "score = (model(**inputs).logits[0, 0] - model.config.reward_mean) / model.config.reward_std"


def snippet(reward: bool, chat: bool) -> str:
    """How a model is asked: a program for its folder.

    Args:
        reward: whether it is a reward model; else a policy.
        chat: whether its chat template writes what it is asked, special tokens too.
    """
    model = "AutoModelForSequenceClassification" if reward else "AutoModelForCausalLM"
    if chat:
        text = 'prompt + "its answer" + tokenizer.eos_token' if reward else "prompt"
        note = "" if reward else "  # the template writes them"
        inputs = f'{CHAT_PROMPT}\ninputs = tokenizer({text}, add_special_tokens=False, return_tensors="pt"){note}'
    else:
        plain = '"a prompt" + " and its answer" + tokenizer.eos_token'
        text = plain if reward else '"a prompt in the format of the training data"'
        inputs = f'inputs = tokenizer({text}, return_tensors="pt")'
    return "\n".join(
        [
            f"from transformers import {model}, AutoTokenizer",
            "",
            'folder = "."  # this folder',
            f"model, tokenizer = {model}.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)",
            inputs,
            SCORED if reward else ANSWERED,
        ]
    )


POLICY_USAGE = (
    "`generation_config.json` holds the sampling settings: the model's own distribution at the temperature of "
    "training, without top-k and top-p. Answers end with the EOS token."
)
REWARD_USAGE = (
    "The score is read at the last token, the EOS that ends the answer. `reward_mean` and `reward_std` of "
    "`config.json` are those of unseen answers in training: with them, scores have mean 0 and deviation 1. Only scores "
    "of answers to the same prompt can be compared."
)
PURPOSES = {
    "train": "rows trained on{given}",
    "eval": "rows unseen in training, to evaluate",
    "mixed": "rows of SFT data mixed into its steps",
}
PROMPTS = "prompts trained on{given}, with {answers} sampled answers"
EXPLANATIONS = {
    "sft": "Loss is in nats per token.",
    "reward": "Loss is in nats per pair; accuracy is the share of pairs whose preferred answer scores higher.",
    "ppo": "Means over the answers of the last rollout. KL is the mean per answer to the SFT model, in nats.",
}
LIMITS = {
    "sft": "It imitates the answers of its data, right or wrong.",
    "reward": "Its scores hold for answers like those of its data; optimising against them finds their errors.",
    "ppo": "It was optimised for the score of a reward model, which is not the same as being good.",
}


def model_card(
    stage: TrainingSpecification,
    manifest: Manifest,
    metrics: list[MetricsLine],
    license: str = "unknown",
    averaged: bool = False,
    has_adapter: bool = False,
    merge: Merge | None = None,
    chat: bool = False,
) -> str:
    """The text of README.md: what the model is, from what it was made, how well, and how to load it.

    It says nothing of the host, the command or the folders that the manifest knows, because it is made to be published.

    Args:
        stage: what was trained, and how.
        manifest: of the stage, with the facts `lineage`, `rows`, `dtype`, `world_size` and `device`.
        metrics: lines of metrics.jsonl.
        license: identifier of a licence; `unknown` where nobody has stated it.
        averaged: whether these are the averaged weights of PPO.
        has_adapter: whether the adapters are saved apart, beside this folder.
        merge: `dtype` of a training in half precision that has merged adapters, and `error`, the share that a loader
            in that precision would lose (or None); None: there is nothing to lose.
        chat: whether a chat template wrote what it was trained on.
    """
    kind, settings = stage.stage, stage.settings
    trained = settings.actor if isinstance(settings, PpoSettings) else settings
    base = manifest["lineage"]["base_model"]
    title, description = STAGES[kind]
    seen = manifest.get("seen_in_train", 0)
    among = f" ({seen} of {manifest['rows']['eval']} trained on too)" if seen else ""
    columns, results = _results(metrics, f"unseen rows{among}")
    template = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE)
    return template.render(
        **{key: manifest[key] for key in ("id", "seed", "rows", "dtype", "world_size", "device", "code", "packages")},
        front_matter=_yaml(_front_matter(kind, base["hub"], license)),
        title=title,
        description=description,
        base=base,
        datasets=manifest["lineage"]["datasets"],
        rewarded_by=stage.upstream.reward if isinstance(stage.upstream, PpoUpstream) else None,
        columns=columns,
        results=results,
        explanation=EXPLANATIONS[kind],
        snippet=snippet(kind == "reward", chat),
        usage=REWARD_USAGE if kind == "reward" else POLICY_USAGE,
        limits=LIMITS[kind],
        purposes=_purposes(manifest),
        seen=seen,
        lora_dim=trained.lora_dim,
        more_trained=not trained.only_optimize_lora,
        has_adapter=has_adapter,
        merge=merge,
        averaged=averaged,
        license=license,
        settings=settings,
        settings_yaml=_yaml(stage.identity()["settings"]),
    )


def _purposes(manifest: Manifest) -> dict[str, str]:
    """What the rows of each kind were for, and of how many those that training has used are."""
    given, answers = manifest.get("rows_given"), manifest.get("answers")
    among = f", of {given} that it was given" if given is not None and given != manifest["rows"]["train"] else ""
    train = PURPOSES["train"] if answers is None else PROMPTS
    return PURPOSES | {"train": train.format(given=among, answers=answers)}


def _front_matter(kind: str, hub: str | None, license: str) -> dict[str, Any]:
    """What the hub reads; a base model only where it is one of the hub."""
    return {
        "library_name": "transformers",
        "pipeline_tag": REWARD if kind == "reward" else POLICY,
        **({"base_model": hub} if hub else {}),
        "license": license,
        "tags": ["rlhf", {"sft": "sft", "reward": "reward-model", "ppo": "ppo"}[kind], "deepspeed"],
    }


def _results(metrics: list[MetricsLine], unseen: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the last training step and the last evaluation, which is of the `unseen` rows."""
    last = {line.phase: line for line in metrics}
    labels: dict[Phase, str] = {"train": "last training step", "eval": unseen}
    lines = [(label, last[phase]) for phase, label in labels.items() if phase in last]
    columns = list(dict.fromkeys(name for _, line in lines for name in line.values if name not in HIDDEN))
    cells = [
        [label, str(line.step), *(f"{line.values[name]:.4g}" if name in line.values else "" for name in columns)]
        for label, line in lines
    ]
    return columns, cells


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
