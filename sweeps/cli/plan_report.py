"""A plan and its estimate for a terminal of 80 columns or more."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from iris.store import Store
from sweeps.cli.amounts import duration, size
from sweeps.cost.estimate import Estimate, KindEstimate
from sweeps.cost.formula import GPU
from sweeps.study.plan import Plan


class Unit:
    """Device time in hours, or in minutes where there is little of it."""

    def __init__(self, device: str, total: float) -> None:
        self.scale, word = (1, "hours") if total >= 1 else (60, "minutes")
        self.name = f"{device}-{word}"

    def shown(self, hours: float) -> str:
        """A number with about three digits."""
        value = hours * self.scale
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"

    def of(self, hours: float) -> str:
        """The number and the unit."""
        return f"{self.shown(hours)} {self.name}"


def print_report(console: Console, plan: Plan, store: Store, found: Estimate) -> None:
    """Counts and costs per kind of stage, what is saved, and what the estimate rests on."""
    unit = Unit("GPU" if found.machine is GPU else "CPU", found.hours)
    console.print(f"study {plan.study}: {_experiments(plan)}", markup=False)
    console.print(f"store {store.root}\n", markup=False, soft_wrap=True)
    console.print(_table(found, unit))
    console.print()
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(plan, found, unit):
        facts.add_row(name, value)
    console.print(facts)


def _experiments(plan: Plan) -> str:
    distinct = len({e.chain.name for e in plan.experiments})
    total = len(plan.experiments)
    same = f", {total - distinct} of which compute what another one does" if distinct < total else ""
    return f"{total:,} {'experiment' if total == 1 else 'experiments'}{same}"


def _table(found: Estimate, unit: Unit) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("stage", "all", "cached", "missing", "shared", unit.name, "disk", "one takes"):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for kind in found.kinds:
        table.add_row(*_row(kind, unit))
    sums = [sum(getattr(k, name) for k in found.kinds) for name in ("stages", "cached", "missing", "shared")]
    table.add_section()
    table.add_row(
        "total",
        *(f"{n:,}" for n in sums),
        unit.shown(found.hours),
        size(sum(k.stored for k in found.kinds)),
        style="bold",
    )
    return table


def _row(kind: KindEstimate, unit: Unit) -> list[str]:
    counts = [f"{n:,}" for n in (kind.stages, kind.cached, kind.missing, kind.shared)]
    if kind.seconds is None:
        return [kind.kind, *counts, "–", "–", "–"]
    return [kind.kind, *counts, unit.shown(kind.hours), size(kind.stored), duration(kind.seconds)]


def _facts(plan: Plan, found: Estimate, unit: Unit) -> Iterator[tuple[str, str]]:
    alone = found.hours + found.nested + found.shared + found.prefixes
    if found.shared:
        yield "saved by sharing", f"{unit.of(found.shared)} of {unit.shown(alone)}: a stage that several need runs once"
    if found.prefixes:
        yield "saved by prefix", f"{unit.of(found.prefixes)}: iterations that several have in common run once"
    if found.nested:
        yield "saved by nesting", f"{unit.of(found.nested)}: prompts that a smaller subset has are done"
    if found.cached:
        yield "already finished", f"{unit.of(found.cached)}"
    if found.longest:
        yield "wall time", f"{duration(found.longest)} for the longest chain of stages"
    yield "measured", _measured(found)
    yield "assumed", f"{found.machine.name}; one kind of machine for all" if _modelled(found) else "nothing"
    for note in found.notes:
        yield "", note
    if plan.missing:
        yield "--why KEY", f"tells why a stage will run, such as {plan.missing[-1].key}"


def _measured(found: Estimate) -> str:
    parts = [f"{kind} ({number})" for kind, number in found.measured.items()]
    return f"finished stages that are alike: {', '.join(parts)}" if parts else "nothing: no like stage has finished"


def _modelled(found: Estimate) -> bool:
    return any(kind.missing and kind.kind not in found.measured for kind in found.kinds)
