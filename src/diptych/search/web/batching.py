"""Many users, one model: what comes in while a batch is being worked on makes up the next."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Batcher(Generic[A, B]):
    """`await batcher(item)`: `work` gets up to `most` items at once, in a thread, its own unless told otherwise, and
    gives as many results, or exceptions in their place. Nothing waits for a batch to fill: one alone goes at once."""

    def __init__(
        self,
        work: Callable[[Sequence[A]], Sequence[B | Exception]],
        most: int = 32,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        self.work, self.most = work, most
        self.waiting: list[tuple[A, asyncio.Future[B]]] = []
        self.task: asyncio.Task[None] | None = None
        self.thread = thread or ThreadPoolExecutor(1, "diptych-search")

    async def __call__(self, item: A) -> B:
        future: asyncio.Future[B] = asyncio.get_running_loop().create_future()
        self.waiting.append((item, future))
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self.run())
        return await future

    async def run(self) -> None:
        while self.waiting:
            taken, self.waiting = self.waiting[: self.most], self.waiting[self.most :]
            taken = [(item, future) for item, future in taken if not future.cancelled()]  # the asker has gone
            if not taken:
                continue
            try:
                found = await asyncio.get_running_loop().run_in_executor(self.thread, self.work, [i for i, _ in taken])
            except Exception as error:
                found = [error] * len(taken)
            for (_, future), result in zip(taken, found, strict=True):
                if future.cancelled():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
