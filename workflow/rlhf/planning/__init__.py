"""Memory of a stage before it runs, from dry runs of its own loss functions."""

import rlhf.training.distributed  # noqa: F401  settles DeepSpeed's accelerator before any other module imports it
