"""Turn a CLIP into another form, or a classifier into ONNX, checked.

MODEL is what --model of other verbs takes, such as run/model of a training, or a classifier. Without --to you are told
what it can become, and why not the rest. What is written is opened again by the library it is for, and kept only if the
embeddings are equal. A classifier becomes ONNX with its labels and a short script that needs no diptych.
"""

import argparse
from pathlib import Path

from diptych.cli import options as read
from diptych.cli.options import Parser
from diptych.errors import DiptychError, nearest

PLACE = 10
FORMS = ("open_clip", "huggingface", "onnx", "diptych")
EXAMPLES = """
diptych export winner.safetensors --onnx out/
diptych export run/model
diptych export run/model --to huggingface --out my-clip
diptych export ./huggingface-clip --to open_clip --out my-clip
diptych export ViT-B-32:laion2b_s34b_b79k --to onnx --out vit/
"""


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("source", metavar="MODEL", help="a CLIP, or what compare saved as winner.safetensors")
    add("--to", metavar="FORM", help=f"{', '.join(FORMS)}; without it: what the model can become")
    add("--out", metavar="DIR", type=Path, help="the folder to write")
    add("--onnx", metavar="DIR", type=Path, help="the same as --to onnx --out DIR")
    add("--model", metavar="M", help="where a classifier's base model is, if not where it was")


def run(given: argparse.Namespace) -> int:
    if given.onnx is not None:
        if given.to or given.out:
            raise DiptychError("export: --onnx DIR is --to onnx --out DIR; give one of them")
        given.to, given.out = "onnx", given.onnx
    path = Path(given.source).expanduser()
    winner = path.is_file() or (path.suffix == ".safetensors" and ":" not in given.source)
    if given.to is not None and given.to not in FORMS:
        raise DiptychError(f"export --to {given.to}: no such form{nearest(given.to, FORMS)}")
    if (given.to is None) != (given.out is None) or (winner and given.out is None):
        raise DiptychError("export: required: --onnx DIR, or both --to FORM and --out DIR")
    if given.out is not None and given.to is not None:
        read.classifier(given.source) if winner else read.model(given.source)
        read.new_folder(given.out, "--out" if given.onnx is None else "--onnx")
        from diptych.core.export import export

        print(export(str(path) if winner else given.source, given.out, to=given.to, model=given.model))
        return 0
    read.model(given.source)
    from diptych.core.forms import forms, said
    from diptych.core.load import load

    clip = load(given.source, "cpu")
    print(f"{clip.name} {said(forms(clip))}")
    return 0
