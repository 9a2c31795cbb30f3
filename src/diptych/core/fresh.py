"""A CLIP with fresh weights, of an architecture of open_clip."""

from pathlib import Path

import torch

from diptych.core.build import build_open_clip
from diptych.core.clip import CLIP
from diptych.core.load import EMBEDDED, finish_open_clip, hub, need_open_clip, read_json
from diptych.core.preprocess import Preprocess
from diptych.errors import DiptychError, nearest

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of OpenAI's CLIP


def fresh(architecture: str, seed: int = 0) -> CLIP:
    """A CLIP on the CPU as open_clip starts it, a function of the seed.

    architecture: open_clip's name ("ViT-B-16"), or a .json file with a `model_cfg` as open_clip writes them.
    Raises DiptychError for an unknown one.
    """
    need_open_clip(f"the architecture {architecture!r}")
    import open_clip

    path = Path(architecture).expanduser()
    if path.suffix == ".json":
        config = read_json(path)
        config, known = config.get("model_cfg", config), ""  # no name that open_clip would look up: CLIP's tokenizer
        if config.get("text_cfg", {}).get("hf_tokenizer_name"):
            raise DiptychError(f"{path} names a tokenizer of Hugging Face: make it a model folder")
    else:
        known = architecture.replace("/", "-")
        config = open_clip.get_model_config(known)
        if config is None:
            raise DiptychError(f'no architecture is called "{architecture}"{nearest(known, open_clip.list_models())}')
    with torch.random.fork_rng(devices=[]), hub(architecture, needed=bool(config["text_cfg"].get("hf_model_name"))):
        torch.manual_seed(seed)
        model = build_open_clip(config, architecture)
    size = model.visual.image_size
    look = Preprocess(size[0] if isinstance(size, tuple) else size, MEAN, STD)
    return finish_open_clip(model, config, known, look, name=path.stem, source=architecture)


def is_architecture(model: str) -> bool:
    """Whether it names an architecture, whose weights are fresh, and not a model that `load` opens."""
    path = Path(model).expanduser()
    return path.suffix == ".json" or not (path.exists() or ":" in model or model in EMBEDDED)
