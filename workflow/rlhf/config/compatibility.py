"""Values by which an experiment computes what another program computes: they lie beneath the user's own keys.

What DeepSpeed-Chat has as constants and formulas, not as flags. Its flags are ordinary keys here.
"""

from __future__ import annotations

from typing import Any

_OPTIMIZATION = {
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-8,
    "gradient_clipping": 1.0,
    "lora_alpha": 1.0,  # its LoRA scale is 1 / rank
}

PRESETS: dict[str, dict[str, Any]] = {
    "deepspeed_chat": {
        "sft": {"loss_on": "all", **_OPTIMIZATION},
        "reward": {"loss": "token_wise", "start_from": "pretrained", **_OPTIMIZATION},
        "ppo": {
            "answers_per_prompt": 1,
            "advantage_estimator": "gae",
            "kl_coefficient": 0.1,
            "kl_estimator": "k1",
            "kl_in": "reward",
            "kl_target": None,
            "gamma": 1.0,
            "gae_lambda": 0.95,
            "clip_range": 0.2,
            "value_clip_range": 0.2,
            "score_at": "before_eos",
            "reward_clip": 5.0,
            "normalise_score": False,
            "whiten_rewards": False,
            "whiten_advantages": False,
            "missing_eos_penalty": 0.0,
            "critic_warmup_iterations": 0,
            "actor": dict(_OPTIMIZATION),
            "critic": dict(_OPTIMIZATION),
        },
    },
}
