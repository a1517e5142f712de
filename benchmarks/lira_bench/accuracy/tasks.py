"""The tasks of `lira-edge eval`, by name."""

from __future__ import annotations

from lira_bench.accuracy import attreval, chair, gcg, pope, refseg, vqa
from lira_bench.accuracy.items import Task
from lira_engine.errors import LiraError

TASKS: dict[str, Task] = {
    task.name: task for task in (refseg.TASK, gcg.TASK, vqa.TASK, attreval.TASK, pope.TASK, chair.TASK)
}


def task_named(name: str) -> Task:
    """Return the task. Raises LiraError for an unknown name."""
    if name not in TASKS:
        raise LiraError(f"there is no task {name!r}; there are: {', '.join(TASKS)}")
    return TASKS[name]
