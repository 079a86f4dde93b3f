"""Report cached stages of a plan that other code has computed, and recompute them on request."""

from collections.abc import Iterator

from iris import outdated
from iris.plan import VERSIONS
from iris.store import Store
from sweeps.state.finished import Finished
from sweeps.study.plan import Plan

RECOMPUTE = "--recompute-changed"


def changed(plan: Plan, store: Store) -> outdated.Reasons:
    """Return the cached stages of a plan that other code has computed, and how the code differs."""
    finished = Finished(store)
    found = finished.outdated(stage for stage in plan.stages if stage in plan.cached)
    finished.save()
    return found


def note(plan: Plan, found: outdated.Reasons) -> Iterator[str]:
    """Yield one sentence on the stages found that count as cached, if there are any."""
    if kept := {name: reasons for name, reasons in found.items() if name in plan.cached}:
        key = plan.stages[next(iter(kept))].key
        yield outdated.sentence(kept, f"plan --why {key} shows how; launch {RECOMPUTE} computes them again.\n")


def forget(plan: Plan, found: outdated.Reasons) -> None:
    """Count stages and all that was made from them as missing in the plan."""
    gone: set[str] = set()
    for name, stage in plan.stages.items():
        if name in found or any(parent.id in gone for parent in stage.parents):
            gone.add(name)
    plan.cached -= gone


def recompute(plan: Plan, store: Store, found: outdated.Reasons) -> Iterator[str]:
    """Move the stages found, and all that was made from them, out of the store's way; yield what was done."""
    if found:
        count = outdated.set_aside(store, found)
        plan.cached = store.finished(VERSIONS) & plan.stages.keys()
        yield f"moved {count} stages to {store.root / '.replaced'}: other code had computed them.\n"
