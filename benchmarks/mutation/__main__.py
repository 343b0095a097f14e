"""Mutation score: small changes of the code, one at a time, which the unit tests must notice.

python -m benchmarks.mutation        (or `make mutation`; about an hour on two cores)

mutmut makes the mutants, finds the tests that call a mutated function, and tries each mutant on those in a forked child
of a process that has imported torch, DeepSpeed and the tests. Writes benchmarks/mutation.md. Survivors that cannot
change a result are argued in benchmarks/mutation/equivalent.yaml.

python -m benchmarks.mutation --again

tries once more what survived, or ran out of time, against the tests as they are now, and reports both passes together.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import yaml
from benchmarks.mutation.mutants import LEFT_OUT, Mutant, mutants_of
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".mutation"
RESULT = ROOT / "benchmarks/mutation.md"
RESULTS = "results.json"  # in the working folder
EQUIVALENT = Path(__file__).with_name("equivalent.yaml")

# What is mutated, below workflow/rlhf/: the code that decides what is learnt and what is measured.
SOURCES = (
    *("data/batching.py", "data/comparisons.py", "data/corpus.py", "data/partition.py", "data/split.py"),
    *("data/encoding.py", "data/tokens.py"),
    *("models/attention.py", "models/lora.py", "models/merged.py", "models/scores.py"),
    *("training/accumulation.py", "training/delivery.py", "training/engine.py", "training/frame.py"),
    *("training/reward.py", "training/sft.py", "training/supervised.py", "training/weights.py"),
    *("ppo/*.py", "evaluation/*.py"),
)
PARTS = ("data", "evaluation", "models", "ppo", "training")
TESTS = ("unit", "oracle")
# Tests that reach these parts on their way to something else, and take long.
FOREIGN_TESTS = {
    *("test_config.py", "test_data_reviews.py", "test_data_sources.py", "test_models.py", "test_planning.py"),
    *("test_planning_engine.py", "test_properties.py", "test_security.py"),
}
# Tests that start processes, each of which imports everything anew.
SLOW_TESTS = ("tests/unit/test_loading.py::test_no_process_of_two_ever_holds_the_whole_model",)
OPTIONS = ("-p", "no:cacheprovider", "-p", "benchmarks.mutation.quickest_first")
TIMED_OUT_TWICE = "timeout twice"
KILLED = {"killed", "segfault", TIMED_OUT_TWICE}  # a single timeout may be the load of other work
DOUBTFUL = {"survived", "no tests", "timeout"}  # tried again with --again

CONFIGURATION = """

[tool.mutmut]
source_paths = ["src/"]
only_mutate = {mutated}
also_copy = {copied}
pytest_add_cli_args = {options}
pytest_add_cli_args_test_selection = {tests}
process_isolation = "forkserver"  # torch and its process groups do not survive a fork
use_git_change_detection = false
timeout_constant = 5.0
"""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: a status of mutmut, or the argument why no test can notice it."""

    mutant: Mutant
    status: str
    argument: str | None = None

    @property
    def is_killed(self) -> bool:
        """Whether a test failed, or did not end in two passes."""
        return self.status in KILLED


@dataclass(frozen=True)
class Pass:
    """One run over mutants; the first one tries a sample, each later one what was left of it."""

    commit: str
    day: str
    minutes: int
    tried: int
    jobs: int


@dataclass(frozen=True)
class Results:
    """What became of a sample of mutants in one pass or several.

    Attributes:
        how: of which mutants they are, in words.
        statuses: key of each mutant -> its last status.
        passes: oldest first.
    """

    how: str
    statuses: dict[tuple[str, str, str, int], str]
    passes: list[Pass]

    @classmethod
    def read(cls, work: Path) -> Results:
        """Those of the last run; what `write` wrote."""
        try:
            content = json.loads((work / RESULTS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            sys.exit(f"{work / RESULTS}: not there; run without --again first")
        statuses = {(*key[:3], key[3]): status for key, status in content["statuses"]}
        return cls(content["how"], statuses, [Pass(**entry) for entry in content["passes"]])

    def write(self, work: Path) -> None:
        """Keep them in the working folder."""
        content = vars(self) | {"statuses": list(self.statuses.items()), "passes": [vars(one) for one in self.passes]}
        (work / RESULTS).write_text(json.dumps(content, indent=1), encoding="utf-8")


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=600, help="mutants to try; 0 tries all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--sources", default="", help="pattern of the mutated files, such as '^data/'")
    parser.add_argument("--tests", default="", help="pattern of the test files to try them on")
    parser.add_argument("--again", action="store_true", help="try again what the last run left, and report both")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was broken off")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time")
    parser.add_argument("--work", type=Path, default=WORK, help="folder to work in")
    parser.add_argument("--output", type=Path, default=RESULT, help="file of the result")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Make, choose and try the mutants, and write the report."""
    started = time.monotonic()
    args.work = args.work.resolve()
    last = Results.read(args.work) if args.again else None
    if not args.resume:
        prepare(args.work, args)
        if last is not None:
            last.write(args.work)
    mutants = list(all_mutants(args.work, args.sources))
    arguments = read_arguments(mutants, args.sources)
    chosen = choose(mutants, args) if last is None else left_of(mutants, last)
    run(args.work, [mutant.name for mutant in chosen], args.jobs)
    before = {} if last is None else last.statuses
    found = statuses(args.work)
    this = Pass(_commit(), str(date.today()), round((time.monotonic() - started) / 60), len(chosen), args.jobs)
    results = Results(
        last.how if last is not None else _how(args, len(chosen)),
        before | {mutant.key: _last_status(found[mutant.name], before.get(mutant.key)) for mutant in chosen},
        [*([] if last is None else last.passes), this],
    )
    results.write(args.work)
    by_key = {mutant.key: mutant for mutant in mutants}
    verdicts = [Verdict(by_key[key], status, arguments.get(key)) for key, status in results.statuses.items()]
    wrong = [verdict.mutant for verdict in verdicts if verdict.is_killed and verdict.argument]
    for mutant in wrong:
        print(f"argued equivalent, but killed: {mutant.function}: {mutant.was} -> {mutant.now}")
    for verdict in _survivors(verdicts):
        print(f"{verdict.status}: {verdict.mutant.function}\n  - {verdict.mutant.was}\n  + {verdict.mutant.now}")
    args.output.write_text(report(verdicts, mutants, results), encoding="utf-8")
    sys.exit(bool(wrong))


def prepare(work: Path, args: argparse.Namespace) -> None:
    """A copy of the repository in which modules lie below `src`, the layout that mutmut knows."""
    shutil.rmtree(work, ignore_errors=True)
    for name in _git("ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / name).exists():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, work / name)
    copied = sorted(path.name for path in work.iterdir())
    shutil.copytree(work / "workflow/rlhf", work / "src/rlhf")
    mutated = [f"src/rlhf/{pattern}" for pattern in SOURCES if re.search(args.sources, pattern)]
    for pattern in mutated:
        if not list(work.glob(pattern)):
            sys.exit(f"SOURCES: {pattern} matches no file; name the file that its code moved to")
    lists = {
        "mutated": mutated,
        "copied": copied,
        "options": [*OPTIONS, *(f"--deselect={test}" for test in SLOW_TESTS)],
        "tests": [name for name in tests_of_parts() if re.search(args.tests, name)],
    }
    with (work / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write(CONFIGURATION.format(**{name: json.dumps(values) for name, values in lists.items()}))


def tests_of_parts() -> list[str]:
    """Tests that import one of the mutated parts, or run stages; mutmut takes those that call a mutated function."""
    prefixes = ("tests.oracle", *(f"rlhf.{part}" for part in PARTS))
    return sorted(
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "tests").glob("*/test_*.py")
        if file.parent.name in TESTS
        and file.name not in FOREIGN_TESTS
        and any(module.startswith(prefixes) for module in _imports(file))
    )


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def all_mutants(work: Path, sources: str) -> Iterator[Mutant]:
    """The mutants of all sources that match a pattern, those that are not tried included."""
    with contextlib.chdir(work):
        patterns = [pattern for pattern in SOURCES if re.search(sources, pattern)]
        for file in sorted({file for pattern in patterns for file in Path("src/rlhf").glob(pattern)}):
            yield from mutants_of(file, ".".join(file.with_suffix("").parts[1:]))


def choose(mutants: list[Mutant], args: argparse.Namespace) -> list[Mutant]:
    """The mutants to try: all, or a seeded sample."""
    tried = [mutant for mutant in mutants if mutant.left_out is None]
    if not args.sample or args.sample >= len(tried):
        return tried
    return random.Random(args.seed).sample(tried, args.sample)


def left_of(mutants: list[Mutant], last: Results) -> list[Mutant]:
    """The mutants that survived the last run or ran out of time; the code must be as it was."""
    gone = last.statuses.keys() - {mutant.key for mutant in mutants}
    if gone:
        sys.exit(f"the code has changed, {len(gone)} mutants of the last run are no more; measure anew without --again")
    return [mutant for mutant in mutants if last.statuses.get(mutant.key) in DOUBTFUL]


def run(work: Path, names: list[str], jobs: int) -> None:
    """Try the mutants that have no result yet."""
    done = statuses(work)
    waiting = [name for name in names if done.get(name, "not checked") == "not checked"]
    if not waiting:
        return
    # Processes that tests start import the mutants too. Python ignores a folder that is not there when it starts.
    mutated = work / "mutants/src"
    mutated.mkdir(parents=True, exist_ok=True)
    paths = [str(mutated), os.environ.get("PYTHONPATH", "")]
    # CI: Hypothesis has neither deadlines nor a database.
    surroundings = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "CI": "true"}
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(jobs), *waiting]
    subprocess.run(command, cwd=work, env=os.environ | surroundings, check=True)


def statuses(work: Path) -> dict[str, str]:
    """What became of each mutant, by the name that mutmut gives it, from the files that mutmut keeps."""
    from mutmut.stats import status_by_exit_code

    return {
        name: status_by_exit_code[code]
        for file in (work / "mutants/src").rglob("*.meta")
        for name, code in json.loads(file.read_text(encoding="utf-8"))["exit_code_by_key"].items()
    }


def read_arguments(mutants: list[Mutant], sources: str) -> dict[tuple[str, str, str, int], str]:
    """Key of a mutant -> why no test can notice it. With all sources, one for no mutant at all is an error."""
    content = yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8")) or {}
    arguments = {
        (function, entry["was"], entry["now"], entry.get("occurrence", 0)): entry["because"]
        for function, entries in content.items()
        for entry in entries
    }
    unknown = arguments.keys() - {mutant.key for mutant in mutants}
    if unknown and not sources:
        lines = "\n".join(f"  {function}: {was} -> {now}" for function, was, now, _ in sorted(unknown))
        sys.exit(f"{EQUIVALENT}: no such mutant (its code has changed; look at it again):\n{lines}")
    return arguments


def _last_status(status: str, before: str | None) -> str:
    return TIMED_OUT_TWICE if status == before == "timeout" else status


def _how(args: argparse.Namespace, tried: int) -> str:
    return f"a random sample of {tried} (seed {args.seed})" if args.sample else "all"


def _survivors(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """What no test noticed, and nobody argued to be unnoticeable."""
    left = [verdict for verdict in verdicts if not verdict.is_killed and not verdict.argument]
    return sorted(left, key=lambda verdict: verdict.mutant.key)


def _score(verdicts: list[Verdict]) -> float:
    return 1 - len(_survivors(verdicts)) / len(verdicts)


def report(verdicts: list[Verdict], mutants: list[Mutant], results: Results) -> str:
    """The report as Markdown."""
    by_part = {part: [v for v in verdicts if v.mutant.package == part] for part in PARTS}
    groups = {part: group for part, group in by_part.items() if group} | {"all": verdicts}
    made = Counter(mutant.package for mutant in mutants if mutant.left_out is None)
    made["all"] = made.total()
    table = [
        [part, made[part], len(group), *_counts(group), len(_survivors(group)), f"{_score(group):.1%}"]
        for part, group in groups.items()
    ]
    left_out = Counter(mutant.left_out for mutant in mutants)
    reasons = ", ".join(f"{left_out[reason]} of {reason}" for reason in LEFT_OUT)
    equivalent = [verdict for verdict in verdicts if verdict.argument and not verdict.is_killed]
    headers = ["part", "mutants", "tried", "killed", "timed out twice", "argued equivalent", "survived", "score"]
    return "\n".join(
        [
            "# Mutation score",
            "",
            "Small changes of the code, one at a time: does a unit test fail? Written by `make mutation`.",
            "",
            *map(_told, range(1, len(results.passes) + 1), results.passes),
            f"- {_tool()}, Python {platform.python_version()}, {os.cpu_count()} cores that other work shared",
            f"- of all mutants of {', '.join(f'`{pattern}`' for pattern in SOURCES)}: {results.how}",
            f"- left out beforehand: {reasons}",
            "- score: killed, timed out in two passes or argued equivalent, of those tried",
            "",
            tabulate(table, headers, "github"),
            "",
            "## Argued equivalent",
            "",
            *_lines(equivalent),
            "",
            "## Survived",
            "",
            *_lines(_survivors(verdicts)),
            "",
        ]
    )


def _told(number: int, one: Pass) -> str:
    what = f"{one.tried} mutants, {one.jobs} at a time" if number == 1 else f"{one.tried} that were left, tried again"
    return f"- pass {number}: {one.day}, commit {one.commit}: {what}, {one.minutes} minutes"


def _counts(group: list[Verdict]) -> list[int]:
    timed_out = sum(verdict.status == TIMED_OUT_TWICE for verdict in group)
    equivalent = sum(bool(verdict.argument) and not verdict.is_killed for verdict in group)
    return [sum(verdict.is_killed for verdict in group) - timed_out, timed_out, equivalent]


def _lines(verdicts: list[Verdict]) -> list[str]:
    return [
        f"- {verdict.mutant.function.removeprefix('rlhf.')}: `{verdict.mutant.was}` -> `{verdict.mutant.now}`"
        + (f" ({verdict.status})" if verdict.status != "survived" and not verdict.argument else "")
        + (f": {verdict.argument}" if verdict.argument else "")
        for verdict in sorted(verdicts, key=lambda verdict: verdict.mutant.key)
    ] or ["none"]


def _commit() -> str:
    return _git("rev-parse", "--short", "HEAD") + (" and changes" if _git("status", "--porcelain", "workflow") else "")


def _git(*command: str) -> str:
    return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _tool() -> str:
    from importlib.metadata import version

    return f"mutmut {version('mutmut')}"


if __name__ == "__main__":
    main(parse_args())
