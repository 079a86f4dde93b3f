"""Print a plan and its estimate on a terminal of 80 columns or more."""

from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table

from iris.store import Store
from sweeps.cli.amounts import duration, size
from sweeps.cost.estimate import Estimate, KindEstimate
from sweeps.cost.formula import GPU
from sweeps.study.plan import Plan


def print_report(console: Console, plan: Plan, store: Store, found: Estimate) -> None:
    """Print counts and costs per kind of stage, savings, and what the estimate rests on."""
    scale, unit = (1, "hours") if found.hours >= 1 else (60, "minutes")
    unit = f"{'GPU' if found.machine is GPU else 'CPU'}-{unit}"

    def hours(count: float) -> str:
        value = count * scale
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"

    console.print(f"study {plan.study}: {_experiments(plan)}", markup=False)
    console.print(f"store {store.root}\n", markup=False, soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("stage", "all", "cached", "missing", "shared", unit, "disk", "one takes"):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for kind in found.kinds:
        table.add_row(*_row(kind, hours))
    sums = [sum(getattr(k, name) for k in found.kinds) for name in ("stages", "cached", "missing", "shared")]
    stored = size(sum(k.stored for k in found.kinds))
    table.add_row("total", *(f"{n:,}" for n in sums), hours(found.hours), stored, style="bold")
    console.print(table, "")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for fact in _facts(plan, found, lambda count: f"{hours(count)} {unit}"):
        facts.add_row(*fact)
    console.print(facts)


def _experiments(plan: Plan) -> str:
    distinct, total = len({e.chain.name for e in plan.experiments}), len(plan.experiments)
    same = f", {total - distinct} of which equal another one" if distinct < total else ""
    return f"{total:,} {'experiment' if total == 1 else 'experiments'}{same}"


def _row(kind: KindEstimate, hours: Callable[[float], str]) -> list[str]:
    counts = [f"{n:,}" for n in (kind.stages, kind.cached, kind.missing, kind.shared)]
    if kind.seconds is None:
        return [kind.kind, *counts, "–", "–", "–"]
    return [kind.kind, *counts, hours(kind.hours), size(kind.stored), duration(kind.seconds)]


def _facts(plan: Plan, found: Estimate, hours: Callable[[float], str]) -> Iterator[tuple[str, str]]:
    if found.shared:
        alone = found.hours + found.nested + found.shared + found.prefixes
        yield "saved by sharing", f"{hours(found.shared)} of {hours(alone)}: a stage of several experiments runs once"
    if found.prefixes:
        yield "saved by prefix", f"{hours(found.prefixes)}: common iterations run once"
    if found.nested:
        yield "saved by nesting", f"{hours(found.nested)}: prompts of a smaller subset are not repeated"
    if found.cached:
        yield "already finished", hours(found.cached)
    if found.longest:
        yield "wall time", f"{duration(found.longest)} for the longest chain of stages"
    measured = ", ".join(f"{kind} ({count})" for kind, count in found.measured.items())
    yield "measured", f"similar finished stages: {measured}" if measured else "nothing: no similar stage has finished"
    modelled = any(kind.missing and kind.kind not in found.measured for kind in found.kinds)
    yield "assumed", f"{found.machine.name}; one kind of machine for all" if modelled else "nothing"
    for note in found.notes:
        yield "", note
    if plan.missing:
        yield "--why KEY", f"shows why a stage will run, such as {plan.missing[-1].key}"
