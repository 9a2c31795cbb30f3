"""What a CLIP can become, and why it cannot become the rest: the one place that `save`, `export` and `train` ask."""

from typing import Any

from diptych.core.clip import CLIP, EditedCLIP
from diptych.core.huggingface_layout import HF_VIT, no_huggingface, no_open_clip, no_tokenizer
from diptych.errors import DiptychError, Unsupported, nearest

NAMES = {"open_clip": "open_clip", "huggingface": "Hugging Face", "onnx": "ONNX", "diptych": "diptych"}
YES = "yes"


def forms(clip: CLIP) -> dict[str, str]:
    """For each form ("open_clip", "huggingface", "onnx", "diptych"): "yes", or the reason why the CLIP cannot be it."""
    return {form: refusal(clip, form) or YES for form in NAMES}


def refusal(clip: CLIP, form: str) -> str:
    """Why a CLIP cannot become a form; "" where it can. Raises DiptychError for a form that there is none of."""
    if form not in NAMES:
        raise DiptychError(f'no form is called "{form}"{nearest(form, NAMES)}')
    if isinstance(clip, EditedCLIP):
        if any(edit.prompts for edit in clip.edits.towers.values()):
            return "prompts are arguments of a call, not weights: save the classifier, not the model"
        clip = clip.base[0]
    more = [name for name in clip.towers if name not in ("image", "text")]
    if more:
        return f"it has a tower for {', '.join(more)} beside picture and text"
    if form == "onnx":
        return no_tokenizer(clip)
    if clip.origin is None:
        return "it was not made by `load`: what it was built from is not known"
    library = clip.origin["library"]
    if library == "mini" and form != "diptych":
        parts = "a classifier's logits and a sentence encoder, joined in closed form"
        return f"{NAMES[form]} has no model like mini ({parts})"
    if "shapes" in clip.origin and form != "diptych":
        return f"its blocks were cut unevenly, and {NAMES[form]} has only models whose blocks are all alike"
    if form == "open_clip":
        return why_not_open_clip(clip, clip.origin)
    return no_huggingface(clip) if form == "huggingface" else ""


def why_not_open_clip(clip: CLIP, origin: dict[str, Any]) -> str:
    if clip.image.kind == HF_VIT:
        return no_open_clip(origin["config"]) or no_tokenizer(clip)
    if origin["library"] != "open_clip":
        return f"it is a CLIP of {origin['library']}"
    if "multimodal_cfg" in origin["model_cfg"]:
        return "it is a CoCa, whose decoder is no part of a CLIP"
    return ""


def refuse(clip: CLIP, form: str) -> None:
    """Raise Unsupported with the reason and what the CLIP can become, where it cannot become this form."""
    if reason := refusal(clip, form):
        can = [name for name, answer in forms(clip).items() if answer == YES]
        instead = f"; it can become {', '.join(can)}" if can else ""
        raise Unsupported(f"{clip.name} cannot become {NAMES[form]}: {reason}{instead}")


def said(found: dict[str, str]) -> str:
    """Two lines at most a form: "can become open_clip, ONNX" and "not Hugging Face: ..."."""
    can = ", ".join(NAMES[form] for form, answer in found.items() if answer == YES)
    cannot = [f"not {NAMES[form]}: {answer}" for form, answer in found.items() if answer != YES]
    return "\n".join([f"can become {can}" if can else "can become nothing else", *cannot])
