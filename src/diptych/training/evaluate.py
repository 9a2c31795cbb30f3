"""Zero-shot accuracy on a folder of classes while a model trains. Nothing is cached: its weights change."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.core.text import ENSEMBLE, TextRecipe, class_rows
from diptych.data.pictures import open_picture
from diptych.data.records import Record, Records
from diptych.data.task import Task, make_task

BATCH = 64


@dataclass(frozen=True)
class ZeroShot:
    """All labelled pictures of a task, judged by the text tower alone."""

    task: Task
    records: tuple[Record, ...]
    labels: tuple[int, ...]

    @torch.no_grad()
    def accuracy(self, clip: CLIP) -> float:
        """The share of pictures whose class name is the nearest."""
        training = clip.training
        clip.eval()
        recipe = TextRecipe(self.task.templates or ENSEMBLE)
        rows = class_rows(clip, self.task.names, recipe)
        right = 0

        def load(part: Sequence[Record]) -> torch.Tensor:
            return torch.stack([clip.preprocess(open_picture(record)) for record in part])

        parts = [self.records[i : i + BATCH] for i in range(0, len(self.records), BATCH)]
        with ThreadPoolExecutor(2) as pool:
            for start, pixels in zip(range(0, len(self.records), BATCH), pool.map(load, parts), strict=True):
                guess = (F.normalize(clip.encode_image(pixels).float(), dim=-1) @ rows.T).argmax(1).cpu()
                right += int((guess == torch.tensor(self.labels[start : start + BATCH])).sum())
        clip.train(training)
        return right / len(self.records)


def zero_shot_on(folder: str | Path | Records) -> ZeroShot:
    """A class folder, table, dataset or records as a zero-shot evaluation; no picture of it is learned from."""
    task = make_task(folder)
    records = (*task.pool, *task.test)
    return ZeroShot(task, records, tuple(task.labels(records)))
