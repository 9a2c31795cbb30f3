"""diptych: which CLIP method is best for my pictures? Adapt, compare, use the winner.

    import diptych
    clip = diptych.load("mini")
    task = diptych.task("./photos", shots=16)
    best = diptych.compare(clip, task)
    best.predict("photo.jpg")

Every verb of the command line is a function here. Importing this imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

VERBS = {
    "load": ("diptych.core.load", "load"),
    "save": ("diptych.core.save", "save"),
    "task": ("diptych.data.task", "make_task"),
    "compare": ("diptych.comparison.run", "compare"),
    "train": ("diptych.training.run", "train"),
    "make": ("diptych.training.make", "make"),
    "teach": ("diptych.training.stream", "teach"),
    "index": ("diptych.search.run", "index"),
    "search": ("diptych.search.run", "search"),
    "rewrite": ("diptych.data.rewrite_store", "make_rewrites"),
    "pairs": ("diptych.data.pairs", "read_pairs"),
    "predict": ("diptych.comparison.predict", "predict"),
    "segment": ("diptych.comparison.segment", "segment"),
    "fit_segmenter": ("diptych.comparison.segment", "fit_segmenter"),
    "judge_segmenter": ("diptych.comparison.segment", "judge_segmenter"),
    "explain": ("diptych.comparison.explanations", "explain"),
    "probe": ("diptych.methods.probe.parts.run", "probe"),
    "export": ("diptych.core.export", "export"),
    "curate": ("diptych.curation.run", "curate"),
    "serve": ("diptych.search.web.server", "serve"),
    "systems": ("diptych.methods.discover", "describe"),
    "doctor": ("diptych.core.doctor", "doctor"),
    "cache_info": ("diptych.engine.store", "cache_info"),
    "cache_clear": ("diptych.engine.store", "cache_clear"),
    "CLIP": ("diptych.core.clip", "CLIP"),
    "Classifier": ("diptych.core.classifier", "Classifier"),
    "DiptychError": ("diptych.errors", "DiptychError"),
}
__all__ = ["__version__", *VERBS]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from diptych.comparison.explanations import explain as explain
    from diptych.comparison.predict import predict as predict
    from diptych.comparison.run import compare as compare
    from diptych.comparison.segment import fit_segmenter as fit_segmenter
    from diptych.comparison.segment import judge_segmenter as judge_segmenter
    from diptych.comparison.segment import segment as segment
    from diptych.core.classifier import Classifier as Classifier
    from diptych.core.clip import CLIP as CLIP
    from diptych.core.doctor import doctor as doctor
    from diptych.core.export import export as export
    from diptych.core.load import load as load
    from diptych.core.save import save as save
    from diptych.curation.run import curate as curate
    from diptych.data.pairs import read_pairs as pairs  # noqa: F401
    from diptych.data.rewrite_store import make_rewrites as rewrite  # noqa: F401
    from diptych.data.task import make_task as task  # noqa: F401
    from diptych.engine.store import cache_clear as cache_clear
    from diptych.engine.store import cache_info as cache_info
    from diptych.errors import DiptychError as DiptychError
    from diptych.methods.discover import describe as systems  # noqa: F401
    from diptych.methods.probe.parts.run import probe as probe
    from diptych.search.run import index as index
    from diptych.search.web.server import serve as serve
    from diptych.training.make import make as make
    from diptych.training.run import train as train
    from diptych.training.stream import teach as teach


def __getattr__(name: str) -> Any:
    if name not in VERBS:
        raise AttributeError(f"diptych has no {name}")
    module, attribute = VERBS[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
