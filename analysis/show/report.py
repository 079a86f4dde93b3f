"""The report of a study: its sections, captions, warnings and commands."""

import shlex
from collections.abc import Iterator
from datetime import UTC, datetime

from analysis.collect.frames import Frames
from analysis.collect.provenance import provenance
from analysis.compare import statistics
from analysis.compare.efficiency import Efficiency
from analysis.compare.methods import Results
from analysis.compare.methods import results as results_of
from analysis.compare.trials import trials
from analysis.show import efficiency, figures, search, style, tables
from analysis.show.differences import differences
from analysis.show.page import Picture, Section, page
from analysis.show.table import Cell, Table, count_cell, head
from sweeps.state.records import DONE, Records
from sweeps.state.study_status import PRUNED

_CAPTIONS = {
    "iterations": "Average score by iteration, with 95 % intervals over seeds.",
    "efficiency": "Average score after the last iteration by number of annotations.",
    "alpha": "α and the gap from which the adaptive schedule sets it.",
    "ratios": "Log-ratios of annotated and synthetic responses, and the effective sample size of each batch's weights.",
    "cost": "Average score and cost of each policy; none is cheaper and better than those on the Pareto front.",
    "tasks": "Scores by task.",
    "search": "Scores by trial with the best so far, and by rung: pruned trials in grey, the best trial in red.",
}
_AGAIN = "The first command computes missing stages. The others make this page's tables and figures from the store."


def report(frames: Frames, baseline: str | None = None) -> str:
    """Return the HTML page of a study. Raises UserError if the baseline is no method of the study."""
    results = results_of(frames)
    against = results.baseline(baseline)
    sections = [s for s in _sections(results, against) if s.tables or s.pictures or s.text]
    footer = f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC from {frames.store.root}."
    return page(f"Study {frames.study}", _question(results, against), list(_warnings(frames)), sections, footer)


def _question(results: Results, baseline: str) -> str:
    total = len(results.frames.experiments)
    if trials(results.frames):
        return f"{total} trials of a search: which configuration is best, and how much of its score is luck?"
    which = f"which of {len(results.trained)} methods is best, by how much, how certain is that, and what did it cost?"
    return f"{total} experiments: {which} Baseline: '{baseline}'."


def _warnings(frames: Frames) -> Iterator[str]:
    total, counts = len(frames.experiments), frames.experiments["state"].value_counts()
    ended = (DONE, PRUNED) if trials(frames) else (DONE,)
    left = {str(state): int(n) for state, n in counts.items() if state not in ended}
    if left:
        parts = ", ".join(f"{n} {state}" for state, n in left.items())
        yield f"{sum(left.values())} of {total} experiments are not finished ({parts}); missing scores are left out."
    if frames.damaged:
        yield f"Stages left out because they do not match their checksums: {len(frames.damaged)}."
    seeds = frames.experiments.groupby("method", observed=True)["seed"].nunique()
    if len(seeds) and (warning := statistics.warning(int(seeds.min()))):
        yield warning
    if len(provenance(frames).get("commit", ())) > 1:
        yield "The stages were computed by several versions of the code: see Provenance."


def _sections(results: Results, baseline: str) -> Iterator[Section]:
    frames, found = results.frames, trials(results.frames)
    if found is None:
        yield from _comparison(results, baseline)
    else:
        yield Section("Trials", tables=[search.table(found)], pictures=_pictures(frames, "search"))
    yield Section("Cost", tables=[tables.cost(results)], pictures=_pictures(frames, "cost"))
    if found is None:
        yield Section("Completeness", tables=[tables.states(results)])
    yield Section("Provenance", tables=[_provenance(frames), *_revisions(frames)])
    yield Section("Reproduce", text=[_AGAIN], commands=_commands(results, baseline))


def _comparison(results: Results, baseline: str) -> Iterator[Section]:
    frames = results.frames
    yield Section("Scores", tables=[tables.scores(results)], pictures=_pictures(frames, "tasks"))
    yield Section(f"Differences from {baseline}", tables=[differences(results, baseline)])
    yield Section("Iterations", tables=[tables.iterations(results)], pictures=_pictures(frames, "iterations"))
    if _has_sizes(results):
        curves, shown = Efficiency(results), [tables.sizes(results)]
        if curves.curve(baseline):
            shown += [efficiency.claims(curves, baseline), efficiency.savings(curves, baseline)]
        yield Section("Data efficiency", tables=shown, pictures=_pictures(frames, "efficiency"))
    yield Section("Training", pictures=_pictures(frames, "alpha", "ratios"))


def _has_sizes(results: Results) -> bool:
    return len([size for size in results.sizes if size == size]) > 1


def _pictures(frames: Frames, *names: str) -> list[Picture]:
    known = figures.of(frames)
    drawn = {name: figure for name in names if name in known and (figure := known[name](frames))}
    return [Picture(name, style.content(one, "svg").decode(), _CAPTIONS[name]) for name, one in drawn.items()]


def _provenance(frames: Frames) -> Table:
    counts = provenance(frames).items()
    rows = [[head(part), Cell(text), count_cell(n)] for part, values in counts for text, n in values.items()]
    return Table("Code, packages and machines", ["part", "value", "stages"], rows)


def _revisions(frames: Frames) -> list[Table]:
    known = frames.stages[frames.stages["revision"] != ""]
    rows = [[head(stage), Cell(text)] for stage, text in zip(known["stage"], known["revision"], strict=True)]
    return [Table("Models and data", ["stage", "commit or content digest"], rows)] if rows else []


def _commands(results: Results, baseline: str) -> list[str]:
    """Return the commands that compute the study and make every table and figure."""
    frames, is_search = results.frames, trials(results.frames) is not None
    made = [["table", f"by={by}"] for by in (("trial", "cost") if is_search else tables.STUDY)]
    if not is_search:
        made.append(["differences", f"baseline={baseline}"])
        made += [["efficiency", f"baseline={baseline}"]] if _has_sizes(results) else []
    settings = [f"study={frames.study}", f"store={frames.store.root}"]
    commands = [["analysis", command, *settings, *more] for command, *more in [*made, ["figures"]]]
    record = Records(frames.store).study(frames.study) or {}
    if record.get("launch"):
        launch = Records(frames.store).folder(record["launch"]).launch
        commands.insert(0, ["sweeps", "search" if is_search else "launch", *launch.command])
    return [shlex.join(["python", "-m", *command]) for command in commands]
