"""Few-shot tasks of drawn scenes for `micro`, as a `FeatureSource`."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.data.records import Record, Records
from diptych.data.scenes import SceneRecord, Scenes, SceneSpec
from diptych.data.support import CROP, Support

SKETCH = SceneSpec(  # a style that micro was not trained on
    shapes=("circle", "triangle", "star"),
    colours=("red", "yellow", "blue"),
    counts=(1,),
    sizes=("large",),
    styles=("sketch",),
)


def pair(record: SceneRecord) -> str:
    """ "red circle": the first thing."""
    return f"{record.scene.things[0].colour} {record.scene.things[0].shape}"


class Drawn:
    """So many labelled scenes of each class."""

    def __init__(
        self, spec: SceneSpec, label: Callable[[SceneRecord], str], classes: int, each: int, seed: int
    ) -> None:
        counts, self.scenes = Counter[str](), dict[str, SceneRecord]()
        items = []
        for record in Scenes(spec, 1 << 30, seed):
            name = label(record)
            if name and counts[name] < each:
                counts[name] += 1
                self.scenes[record.id] = record
                items.append(Record(record.id, None, name))
            if len(items) == classes * each:
                break
        self.records = Records(tuple(items), "scenes")
        self.names = tuple(sorted(counts))

    def support(self, names: Sequence[str] = ()) -> Support:
        """All of them, or those of some classes."""
        names = tuple(names or self.names)
        records = self.records.filter(lambda record: record.label in names)
        labels = torch.tensor([names.index(record.label) for record in records if record.label])
        return Support(names, records, labels, self, tuple(range(len(records))))

    def images(self, clip: CLIP, records: Records, *, views: int = 0, crop: tuple[float, float] = CROP) -> Tensor:
        rng = np.random.default_rng(0)
        parts = [self.pixels(clip, records, rng=rng if views else None, crop=crop) for _ in range(views or 1)]
        with torch.inference_mode():
            rows = [F.normalize(clip.encode_image(pixels), dim=-1) for pixels in parts]
        return torch.stack(rows, 1).clone() if views else rows[0].clone()

    def texts(self, clip: CLIP, texts: Sequence[str]) -> Tensor:
        return clip.encode_text(texts)

    def pixels(
        self,
        clip: CLIP,
        records: Records,
        *,
        rng: np.random.Generator | None = None,
        crop: tuple[float, float] = CROP,
    ) -> Tensor:
        look = clip.preprocess if rng is None else lambda image: clip.preprocess.view(image, rng, crop)
        return torch.stack([look(self.scenes[record.id].image()) for record in records])


def accuracy(classifier: Classifier, clip: CLIP, test: Support) -> float:
    edited = classifier.clip(clip)
    with torch.inference_mode():
        guesses = classifier.logits(edited.encode_image(test.pixels(clip, range(len(test))))).argmax(1)
    return float((guesses == test.labels).double().mean())
