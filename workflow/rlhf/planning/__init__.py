"""Memory of a stage before it runs: what its own loss code would hold."""

import rlhf.training.distributed  # noqa: F401  settles DeepSpeed's accelerator before any other module imports it
