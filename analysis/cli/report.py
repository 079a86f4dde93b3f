"""python -m analysis report study=NAME [store=FOLDER] [baseline=METHOD] [out=FILE.html] [--rebuild]

Writes one HTML page that needs nothing else: what was asked, tables, figures, what is missing, what it cost, where
every number comes from and how to get it again. By default outputs/analysis/STUDY.html.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analysis.cli import options
from analysis.collect.frames import Frames
from analysis.compare import methods, statistics
from analysis.compare.methods import Table
from analysis.show import efficiency, figures, search, style, tables
from analysis.show.differences import differences
from analysis.show.page import Picture, Section, page
from analysis.show.table import Cell, Sheet
from iris.errors import UserError
from sweeps.state.records import Records

_CAPTIONS = {
    "iterations": "The average by iteration; bars are 95 % intervals over seeds.",
    "efficiency": "The average after the last iteration over the number of annotations.",
    "alpha": "α and the gap that it follows.",
    "ratios": "Log-ratios of annotated and synthetic responses; how many samples of a batch their weights amount to.",
    "cost": "What an experiment has cost and the average that it reached; the line joins what nothing beats in both.",
    "tasks": "Scores by task.",
    "search": "The trials by number with the best so far, and by rung: pruned ones in grey, the best one in red.",
}


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if any(word in ("--help", "-h") for word in arguments):
        print(__doc__)
        return 0
    given = options.read(arguments, ("baseline", "out"))
    frames = options.frames(given)
    path = Path(given.settings.get("out", f"outputs/analysis/{frames.study}.html")).expanduser()
    if path.suffix != ".html":
        raise UserError(f"out={path}: give a file that ends in .html.")
    options.write(path, report(frames, given.settings.get("baseline")).encode())
    print(f"wrote {path}")
    return 0


def report(frames: Frames, baseline: str | None = None) -> str:
    """The page. Raises UserError for a baseline that is no method of the study."""
    found = methods.table(frames)
    against = methods.baseline(found, baseline)
    sections = [section for section in _sections(found, against) if section.sheets or section.pictures or section.text]
    footer = f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC from {frames.store.root}."
    return page(f"Study {frames.study}", _question(found, against), list(_warnings(frames)), sections, footer)


def _question(found: Table, baseline: str) -> str:
    total = len(found.frames.experiments)
    if search.trials(found.frames):
        return f"{total} trials of a search: which configuration is best, and how much of its score is luck?"
    which = f"which of {len(found.methods)} methods is better, by how much, how sure is that, and what did it cost?"
    return f"{total} experiments: {which} Compared with '{baseline}'."


def _warnings(frames: Frames) -> Iterator[str]:
    total, counts = len(frames.experiments), frames.experiments["state"].value_counts()
    ended = ("done", "pruned") if search.trials(frames) else ("done",)  # pruning is what a search is for
    left = {str(state): int(n) for state, n in counts.items() if state not in ended}
    if left:
        parts = ", ".join(f"{n} {state}" for state, n in left.items())
        yield f"{sum(left.values())} of {total} experiments are not finished ({parts}): what they lack is left out."
    if frames.damaged:
        yield f"Stages that do not match their checksums and are left out: {len(frames.damaged)}."
    seeds = frames.experiments.groupby("method", observed=True)["seed"].nunique()
    if len(seeds) and (warning := statistics.warning(int(seeds.min()))):
        yield warning
    if len(_versions(frames, "code")) > 1:
        yield "The stages were computed by more than one version of the code: see Provenance."


def _sections(found: Table, baseline: str) -> Iterator[Section]:
    frames, cost = found.frames, Section("Cost", sheets=[tables.cost(found)], pictures=_pictures(found.frames, "cost"))
    of_search = search.trials(frames)
    if of_search is None:
        yield from _comparison(found, baseline)
    else:
        yield Section("Trials", sheets=[search.sheet(of_search)], pictures=_pictures(frames, "search"))
    yield cost
    if of_search is None:
        yield Section("Completeness", sheets=[tables.completeness(found)])
    yield Section("Provenance", sheets=[_provenance(frames), *_revisions(frames)])
    yield Section("How to get every number again", text=_TEXT, commands=_commands(found, baseline))


def _comparison(found: Table, baseline: str) -> Iterator[Section]:
    frames = found.frames
    yield Section("Scores", sheets=[tables.scores(found)], pictures=_pictures(frames, "tasks"))
    yield Section(f"Differences from {baseline}", sheets=[differences(found, baseline)])
    yield Section("Iterations", sheets=[tables.iterations(found)], pictures=_pictures(frames, "iterations"))
    if _has_sizes(found):
        curves, sheets = efficiency.curves(found), [tables.sizes(found)]
        if curves.curve(baseline):
            sheets += [efficiency.claims(curves, baseline), efficiency.savings(curves, baseline)]
        yield Section("Data efficiency", sheets=sheets, pictures=_pictures(frames, "efficiency"))
    yield Section("Training", pictures=_pictures(frames, "alpha", "ratios"))


_TEXT = (
    "The first command computes what is missing and nothing that is there; the others make the tables and figures of "
    "this page from the store alone.",
)


def _pictures(frames: Frames, *names: str) -> list[Picture]:
    known = figures.of(frames)
    drawn = {name: known[name](frames) for name in names if name in known}
    return [Picture(name, style.svg(figure), _CAPTIONS[name]) for name, figure in drawn.items() if figure is not None]


def _versions(frames: Frames, key: str) -> dict[str, int]:
    """The distinct values of one part of the provenance, with the number of stages that have each."""
    counts: dict[str, int] = {}
    for text, number in frames.stages["provenance"].value_counts().items():
        said = json.loads(str(text)).get(key)
        if said is not None:
            value = json.dumps(said, sort_keys=True)
            counts[value] = counts.get(value, 0) + int(number)
    return counts


def _provenance(frames: Frames) -> Sheet:
    shown: dict[str, Callable[[Any], str]] = {
        "code": lambda code: (
            f"commit {code.get('commit')}" + (f" with changes ({code['diff']})" if code.get("diff") else "")
        ),
        "packages": lambda packages: ", ".join(f"{name} {version}" for name, version in packages.items()),
        "python": str,
        "device": str,
        "platform": str,
        "host": str,
        "harness": lambda harness: (
            f"lm-eval {harness.get('lm_eval')}: "
            + ", ".join(
                f"{task} version {about['version']}, {about['documents']} documents"
                for task, about in harness.get("tasks", {}).items()
            )
        ),
    }
    rows = [
        [Cell(key, kind="head"), Cell(text(json.loads(value))), Cell(str(number), number)]
        for key, text in shown.items()
        for value, number in _versions(frames, key).items()
    ]
    return Sheet("What computed it", ["what", "value", "stages"], rows)


def _revisions(frames: Frames) -> list[Sheet]:
    known = frames.stages[frames.stages["revision"] != ""]
    rows = [
        [Cell(stage, kind="head"), Cell(revision)]
        for stage, revision in zip(known["stage"], known["revision"], strict=True)
    ]
    return [Sheet("Models and data", ["stage", "commit, or digest of its content"], rows)] if rows else []


def _commands(found: Table, baseline: str) -> list[str]:
    frames, is_search = found.frames, search.trials(found.frames) is not None
    record = Records(frames.store).study(frames.study) or {}
    commands = []
    if record.get("launch"):
        launch = Records(frames.store).folder(record["launch"]).launch
        commands.append(["sweeps", "search" if is_search else "launch", *launch.command])
    made = [["table", f"by={by}"] for by in (("trial", "cost") if is_search else tables.STUDY)]
    if not is_search:
        made.append(["differences", f"baseline={baseline}"])
    if not is_search and _has_sizes(found):
        made.append(["efficiency", f"baseline={baseline}"])
    words = [f"study={frames.study}", f"store={frames.store.root}"]
    commands += [["analysis", command, *words, *more] for command, *more in [*made, ["figures"]]]
    return [shlex.join(["python", "-m", *command]) for command in commands]


def _has_sizes(found: Table) -> bool:
    return len([size for size in found.sizes if size == size]) > 1
