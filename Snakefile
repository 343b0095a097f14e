"""RLHF in three phases, run from the root of the repository; the workflow itself is workflow/Snakefile."""


include: "workflow/Snakefile"


# An included file does not decide what is made by default.
workflow.default_target = "all"
