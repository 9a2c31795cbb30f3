"""From a name, a checkpoint file or a folder to a CLIP. What is not known for sure is refused, not guessed."""

import contextlib
import functools
import json
import os
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diptych.core.clip import CLIP
from diptych.core.device import choose_device
from diptych.errors import DiptychError, Unsupported, missing_extra, nearest

OURS = "diptych_model.json"
OUR_WEIGHTS = "diptych_model.safetensors"
FORMAT = 1
OPEN_CLIP_CONFIG = "open_clip_config.json"
# In open_clip's own order of preference.
OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
EMBEDDED = ("mini", "micro")  # come with diptych: no hub, no open_clip
LOCAL_FORMS = (
    'local forms that need no hub: "mini"; "micro"; "ViT-B-32:/path/to/checkpoint" (safetensors, .pt, .bin); '
    "a folder with open_clip_config.json and open_clip_model.safetensors; a Hugging Face CLIP folder; "
    "a folder written by diptych"
)


def load(name: str = "mini", device: str | None = None) -> CLIP:
    """A CLIP by name, on `device` (none: the accelerator where there is one).

    name: "mini"; "micro"; "ViT-B-32:laion2b_s34b_b79k" (open_clip's architecture and pretrained tag);
    "ViT-B-32:/path/checkpoint.safetensors"; "hf-hub:<owner>/<model>" of open_clip; a folder in open_clip's, Hugging
    Face CLIP's or our own layout. Raises DiptychError with what is wrong and what would be right; never runs code
    found in a checkpoint.
    """
    device = choose_device(device)
    return find(name).to(device)


def find(name: str) -> CLIP:
    if name == "mini":
        from diptych.core.mini import mini

        return mini()
    if name == "micro":
        from diptych.core.micro import micro

        return micro()
    path = Path(name).expanduser()
    if path.is_dir():
        return load_folder(path.resolve())
    if path.is_file():
        raise DiptychError(
            f'{name} is a checkpoint without a config: name its architecture too, such as "ViT-B-32:{name}"'
        )
    if name.startswith((".", "/", "~")) or path.suffix in (".pt", ".pth", ".bin", ".safetensors"):
        architecture = name.partition(":")[0]
        if architecture == name or os.sep in architecture:
            raise DiptychError(f"no such file or folder: {name}; {LOCAL_FORMS}")
    need_open_clip(f"the model {name!r}")
    if name.startswith("hf-hub:"):
        return load_hub(name)
    architecture, _, tag = name.partition(":")
    return load_named(architecture, tag)


def need_open_clip(purpose: str) -> None:
    try:
        import open_clip  # noqa: F401
    except ImportError as error:
        raise missing_extra("open_clip_torch", "openclip", purpose) from error


def load_named(architecture: str, tag: str) -> CLIP:
    """An architecture of open_clip with a pretrained tag, or with a checkpoint file of the user's."""
    import open_clip
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

    from diptych.core.build import build_open_clip, preprocess_of_open_clip

    known = architecture.replace("/", "-")
    config = open_clip.get_model_config(known)
    if config is None:
        hint = nearest(known, [*EMBEDDED, *open_clip.list_models()])
        raise DiptychError(f'no model is called "{architecture}"{hint}; {LOCAL_FORMS}')
    tags = list_pretrained_tags_by_model(known)
    name = f"{architecture}:{tag}"
    checkpoint = Path(tag).expanduser()
    if tag and checkpoint.is_file():
        checkpoint = checkpoint.resolve()
        name = f"{architecture}:{checkpoint}"
        preprocess_cfg = preprocess_of_architecture(known, tags)
    elif tag in tags:
        preprocess_cfg = get_pretrained_cfg(known, tag)
        # OpenAI's activation: open_clip only warns when architecture and tag disagree
        if preprocess_cfg.get("quick_gelu"):
            config["quick_gelu"] = True
        with hub(name):
            checkpoint = Path(download_pretrained(preprocess_cfg))
    elif not tag:
        listed = ", ".join(f'"{architecture}:{t}"' for t in tags[:8]) or "none are known to open_clip"
        raise DiptychError(f'"{architecture}" is an architecture; say which weights: {listed}; {LOCAL_FORMS}')
    elif os.sep in tag or checkpoint.suffix in (".pt", ".pth", ".bin", ".safetensors"):
        raise DiptychError(f"no such checkpoint: {tag}")
    else:
        raise DiptychError(
            f'"{architecture}" has no pretrained weights "{tag}"{nearest(tag, tags) if tags else ""}; '
            f"it has: {', '.join(tags) or 'none'}"
        )
    with hub(name, needed=bool(config["text_cfg"].get("hf_model_name"))):
        model = build_open_clip(config, name)
    read_weights(model, checkpoint, architecture)
    preprocess = preprocess_of_open_clip(preprocess_cfg, model.visual.image_size, name)
    return finish_open_clip(model, config, known, preprocess, name=name, source=name)


def preprocess_of_architecture(architecture: str, tags: list[str]) -> dict[str, Any]:
    """The preprocessing that all published weights of an architecture share; refused where they differ."""
    from open_clip.pretrained import get_pretrained_cfg

    keys = ("mean", "std", "interpolation", "resize_mode")
    found = {tuple(get_pretrained_cfg(architecture, tag)[key] for key in keys) for tag in tags}
    if len(found) != 1:
        raise DiptychError(
            f"which preprocessing goes with a bare checkpoint of {architecture} is not known; make it a folder with "
            f"{OPEN_CLIP_CONFIG} (model_cfg and preprocess_cfg with mean, std, interpolation, resize_mode)"
        )
    return dict(zip(keys, found.pop(), strict=True))


def load_hub(name: str) -> CLIP:
    """A model in open_clip's layout on the Hugging Face hub, or in its cache here."""
    from open_clip.pretrained import download_pretrained_from_hf

    identifier = name.removeprefix("hf-hub:")
    with hub(name):
        config = Path(download_pretrained_from_hf(identifier, filename=OPEN_CLIP_CONFIG))
        weights = Path(download_pretrained_from_hf(identifier))
    return open_clip_folder(read_json(config), weights, name, name=identifier, source=name)


def load_folder(folder: Path) -> CLIP:
    """A folder in one of the three layouts, told apart by its config."""
    if (folder / OURS).is_file():
        return load_ours(folder)
    if (folder / OPEN_CLIP_CONFIG).is_file():
        need_open_clip(f"the folder {folder}")
        weights = next((folder / n for n in OPEN_CLIP_WEIGHTS if (folder / n).is_file()), None)
        if weights is None:
            raise DiptychError(f"{folder} has {OPEN_CLIP_CONFIG} but no weights: {OPEN_CLIP_WEIGHTS[0]} is expected")
        config = read_json(folder / OPEN_CLIP_CONFIG)
        return open_clip_folder(config, weights, f"local-dir:{folder}", name=folder.name, source=str(folder))
    if (folder / "config.json").is_file():
        return load_huggingface(folder)
    raise DiptychError(
        f"{folder} is no model folder: it has none of {OPEN_CLIP_CONFIG}, config.json (Hugging Face CLIP), {OURS}"
    )


def open_clip_folder(config: dict[str, Any], weights: Path, schema: str, *, name: str, source: str) -> CLIP:
    """From a parsed open_clip_config.json and its weights; schema: what open_clip calls the place."""
    from diptych.core.build import build_open_clip, preprocess_of_open_clip

    where = f"{source}/{OPEN_CLIP_CONFIG}"
    if not isinstance(config.get("model_cfg"), dict):
        raise DiptychError(f"{where} lacks model_cfg")
    if not isinstance(config.get("preprocess_cfg"), dict):
        raise DiptychError(f"{where} lacks preprocess_cfg (mean, std, interpolation, resize_mode); it is never guessed")
    encoder = config["model_cfg"].get("text_cfg", {}).get("hf_model_name", "")
    with hub(name, needed=bool(encoder) and not Path(encoder).is_dir()):
        model = build_open_clip(config["model_cfg"], where)
    preprocess = preprocess_of_open_clip(config["preprocess_cfg"], model.visual.image_size, where)
    read_weights(model, weights, name)
    return finish_open_clip(model, config["model_cfg"], schema, preprocess, name=name, source=source)


def finish_open_clip(
    model: Any, config: dict[str, Any], schema: str, preprocess: Any, *, name: str, source: str
) -> CLIP:
    import open_clip

    from diptych.core.build import clip_of_open_clip, tokenizer_of_open_clip

    text = config["text_cfg"]
    if schema.startswith("local-dir:"):
        try:
            tokenizer = open_clip.get_tokenizer(schema)
        except (OSError, ValueError, KeyError) as error:
            raise DiptychError(f"{source} lacks the tokenizer that its text_cfg names (tokenizer.json)") from error
    else:
        with hub(name, needed=bool(text.get("hf_tokenizer_name")) or "siglip" in schema.lower()):
            tokenizer = open_clip.get_tokenizer(schema)
    tokenizer = tokenizer_of_open_clip(tokenizer, text.get("context_length", 77))
    return clip_of_open_clip(model, config, tokenizer, preprocess, name=name, source=source)


def load_huggingface(folder: Path) -> CLIP:
    """A folder that transformers' CLIPModel.save_pretrained wrote, with its tokenizer and image processor."""
    config = read_json(folder / "config.json")
    if config.get("model_type") != "clip":
        raise Unsupported(
            f"{folder / 'config.json'} is a {config.get('model_type', 'nameless')!r} model of transformers; known is "
            '"clip" (CLIPModel), and anything that open_clip reads in its own layout'
        )
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("transformers", "huggingface", f"the folder {folder}") from error
    from diptych.core.build import clip_of_huggingface, preprocess_of_huggingface, tokenizer_of_huggingface

    about = next(
        (folder / n for n in ("preprocessor_config.json", "processor_config.json") if (folder / n).is_file()), None
    )
    if about is None:
        raise DiptychError(f"{folder} lacks preprocessor_config.json; preprocessing is never guessed")
    preprocess = preprocess_of_huggingface(read_json(about), str(about))
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    weights = next((folder / n for n in names if (folder / n).is_file()), None)
    if weights is None:
        raise DiptychError(f"{folder} has no weights: model.safetensors is expected")
    with reading(weights, folder.name), quiet(transformers):
        found: Any = transformers.CLIPModel.from_pretrained(
            folder, local_files_only=True, dtype="float32", output_loading_info=True, ignore_mismatched_sizes=False
        )
    model, info = found
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise DiptychError(f"{weights} does not hold the weights of a CLIPModel: {some} and others are missing")
    try:
        source = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise DiptychError(f"{folder} has no tokenizer that transformers reads (tokenizer.json is expected)") from error
    size = model.config.vision_config.image_size
    if preprocess.size != size:
        raise DiptychError(f"{about} makes pictures of {preprocess.size} pixels, config.json wants {size}")
    tokenizer = tokenizer_of_huggingface(source, model.config.text_config.max_position_embeddings)
    return clip_of_huggingface(model.eval(), tokenizer, preprocess, name=folder.name, source=str(folder))


def load_ours(folder: Path) -> CLIP:
    """A folder written by `diptych.save(clip, folder, layout="diptych")`."""
    from safetensors.torch import load_file
    from torch import nn

    from diptych.core.build import build_open_clip, clip_of_huggingface, clip_of_open_clip, copy_weights
    from diptych.core.preprocess import Preprocess
    from diptych.core.tokenizer import read_tokenizer

    where = folder / OURS
    about = read_json(where)
    if about.get("format") != FORMAT:
        raise DiptychError(f"{where} has format {about.get('format')!r}; this diptych reads {FORMAT}")
    origin, name, place = about["origin"], about["name"], str(folder)
    if origin["library"] == "mini":
        from diptych.core.mini import mini

        clip = mini()
        clip.name, clip.source = name, place
    else:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in about["preprocess"].items()}
        preprocess, tokenizer = Preprocess(**values), read_tokenizer(folder)
        if origin["library"] == "open_clip":
            need_open_clip(f"the folder {folder}")
            encoder = origin["model_cfg"]["text_cfg"].get("hf_model_name", "")
            with hub(name, needed=bool(encoder) and not Path(encoder).is_dir()):
                model = build_open_clip(origin["model_cfg"], str(where))
            clip = clip_of_open_clip(model, origin["model_cfg"], tokenizer, preprocess, name=name, source=place)
            if "shapes" in origin:
                from diptych.core.surgery import take_shapes

                take_shapes(clip, origin["shapes"], str(where))
        else:
            import transformers

            model = transformers.CLIPModel(transformers.CLIPConfig(**origin["config"]))
            clip = clip_of_huggingface(model, tokenizer, preprocess, name=name, source=place)
    with reading(folder / OUR_WEIGHTS, name):
        tensors = load_file(folder / OUR_WEIGHTS)
    if "logit_bias" in tensors and clip.logit_bias is None:  # of a training; the source library has none
        clip.logit_bias = nn.Parameter(tensors["logit_bias"], requires_grad=False)
    copy_weights(clip, tensors, str(folder / OUR_WEIGHTS))
    return clip


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DiptychError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise DiptychError(f"{path} holds a {type(found).__name__}; an object is expected")
    return found


def read_weights(model: Any, path: Path, name: str) -> None:
    """Fill an open_clip model from a checkpoint, converted as open_clip does. Nothing is unpickled but tensors."""
    from open_clip.factory import load_checkpoint

    with reading(path, name):
        load_checkpoint(model, str(path), strict=True, weights_only=True)
    model.eval()


@contextlib.contextmanager
def reading(path: Path, name: str) -> Iterator[None]:
    """Turn what readers of checkpoints raise into words."""
    from safetensors import SafetensorError

    from diptych.core.build import first_line, mismatch

    try:
        yield
    except DiptychError:
        raise
    except pickle.UnpicklingError as error:
        if "truncated" in str(error) or "Ran out of input" in str(error):
            raise DiptychError(f"{path} is cut off; fetch it again") from error
        raise DiptychError(
            f"{path} is a pickle that holds more than tensors, possibly code; it was not run. "
            "Ask for a safetensors file, or save its state_dict alone"
        ) from error
    except SafetensorError as error:
        raise DiptychError(f"{path} is cut off or no safetensors file: {error}; fetch it again") from error
    except EOFError as error:
        raise DiptychError(f"{path} is empty or cut off; fetch it again") from error
    except RuntimeError as error:
        text = str(error)
        if "state_dict" in text or "size mismatch" in text:
            raise DiptychError(f"{path} does not hold the weights of {name}: {mismatch(error)}") from error
        if "TorchScript" in text:
            raise DiptychError(
                f"{path} is a TorchScript program; save its state_dict as safetensors instead"
            ) from error
        raise DiptychError(f"{path} is cut off or no checkpoint: {first_line(error)}") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StopIteration, IndexError) as error:
        raise DiptychError(f"{path} does not hold the weights of {name}: {first_line(error)}") from error


@contextlib.contextmanager
def hub(name: str, needed: bool = True) -> Iterator[None]:
    """Work that may ask the Hugging Face hub: fails at once, in words, where there is no way to it.

    needed: false for what is on this machine anyway; then nothing is asked.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not needed or not reachable(constants.ENDPOINT)
    try:
        yield
    except DiptychError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        why = "the hub cannot be reached" if constants.HF_HUB_OFFLINE else f"fetching failed ({error})"
        raise DiptychError(f"{name} is not on this machine and {why}; {LOCAL_FORMS}") from error
    finally:
        constants.HF_HUB_OFFLINE = before


@functools.cache
def reachable(endpoint: str, seconds: float = 5) -> bool:
    """Whether a server answers; assumed where a proxy stands between."""
    from urllib.parse import urlparse

    if any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    parts = urlparse(endpoint)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 443), seconds):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """No warnings and bars of transformers while a model is read: what matters is checked afterwards."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
