"""The processes that run one stage together: one, or as many as torchrun, accelerate or Slurm have started."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

# How long processes wait for the one that has the longest shard, or writes a checkpoint to a slow disk.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """This process's rank among `size` processes."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: str = "auto") -> "World":
        """Return the world of the environment (RANK, WORLD_SIZE), and set up its process group."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        from accelerate import PartialState

        from iris.execution.device import find_device

        state = PartialState(cpu=find_device(device).type == "cpu", timeout=_PATIENCE)
        return cls(state.process_index, state.num_processes)

    @property
    def main(self) -> bool:
        """Whether this is the one process that writes."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """Return the main process's value, on every process."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        result: list[T] = broadcast_object_list([value])
        return result[0]

    def gather(self, value: T) -> list[T]:
        """Every process's value, in order of rank, on every process."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        values: list[T] = gather_object([value])
        return values

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()
