"""The card in the folder of a trained model: what it is, what it can become, and what is no part of it."""

from collections.abc import Sequence
from pathlib import Path

from diptych.core.forms import NAMES, YES
from diptych.files import write_atomically


def write_card(folder: Path, system: str, forms: dict[str, str], left_out: Sequence[str]) -> Path:
    """Write README.md beside the weights. left_out: what was trained beside the CLIP and stays in the checkpoints."""
    lines = [f"# A CLIP made with {system}", "", "Written by diptych. It can become:", ""]
    for form, answer in forms.items():
        how = f"`diptych export {folder.parent.name}/{folder.name} --to {form} --out DIR`"
        lines.append(f"- {NAMES[form]}: {how if answer == YES else f'no, for {answer}'}")
    if left_out:
        lines += ["", f"Trained beside it and no part of it: {', '.join(left_out)}. The checkpoints have them."]
    return write_atomically(folder / "README.md", ("\n".join(lines) + "\n").encode())
