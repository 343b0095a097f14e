"""With this folder on PYTHONPATH, training scripts that others start (Snakemake, a launcher) are slowed down.

Python imports this module when it starts, so only the scripts themselves may cause the heavy imports.
"""

import os
import re
import sys

if "STAGE_PAUSE" in os.environ and any(re.search(r"scripts/train_\w+\.py$", word) for word in sys.orig_argv[1:3]):
    from tests.faults.slow import install

    install(float(os.environ["STAGE_PAUSE"]))
