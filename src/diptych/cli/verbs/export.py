"""Write a classifier as ONNX, checked, to run without diptych.

The folder gets model.onnx, the labels, and a short script that needs numpy, Pillow and onnxruntime alone.
"""

import argparse
from pathlib import Path

from diptych.cli import options as read
from diptych.cli.options import Parser

PLACE = 3
EXAMPLES = """
diptych export winner.safetensors --onnx out/
"""


def options(parser: Parser) -> None:
    parser.add_argument("classifier", metavar="CLASSIFIER", help="what compare saved as winner.safetensors")
    parser.add_argument("--onnx", metavar="DIR", required=True, type=Path, help="the folder to write")
    parser.add_argument("--model", metavar="M", help="where the base model is, if not where it was")


def run(given: argparse.Namespace) -> int:
    read.classifier(given.classifier)
    read.new_folder(given.onnx, "--onnx")
    from diptych.core.export import export

    print(export(given.classifier, given.onnx, model=given.model))
    return 0
