"""The processes of a guest, as stops show them."""

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rr86.cpu.inspection import Inspector
    from rr86.kernel.tasks import Task, Tasks


class Processes:
    """Which process a vCPU runs. Made with every session: what it takes is read at first use."""

    def __init__(self, inspector: "Inspector") -> None:
        self._inspector = inspector

    @functools.cached_property
    def tasks(self) -> "Tasks":
        """The guest's tasks."""
        from rr86.kernel.tasks import Tasks

        return Tasks(self._inspector)

    def current(self, vcpu: int) -> "Task | None":
        """The task that a vCPU runs; None where that is not known."""
        return self.tasks.current(vcpu)

    def running(self, vcpu: int) -> str | None:
        """What a vCPU runs, as it is put behind its name: `in init (pid 1)`, or `idle`."""
        task = self.current(vcpu)
        if task is None:
            return None
        return "idle" if task.idle else f"in {task}"

    def as_dict(self, vcpu: int) -> dict[str, object] | None:
        """The same as plain data."""
        task = self.current(vcpu)
        if task is None:
            return None
        return {
            "name": task.name,
            "pid": task.pid,
            "tgid": task.tgid,
            "idle": task.idle,
            "kernel": task.kernel,
            "task_struct": task.address,
        }
