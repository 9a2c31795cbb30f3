"""What a run leaves: the finished model in a folder that opens again, and what is known of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diptych.core.clip import CLIP
from diptych.core.cut import Cuts
from diptych.core.forms import YES, forms
from diptych.core.save import save
from diptych.data.scan import SetAside
from diptych.methods.pretrain.parts.objective import Objective
from diptych.training.card import write_card

Row = dict[str, float]  # a line of metrics.csv


@dataclass(frozen=True)
class Trained:
    """What a run left. folder: its model/ opens with `diptych.load`; rows: of metrics.csv, none where nothing was
    trained; forms: what the model can become, or why not (`core.forms`); facts: what was gained and lost."""

    folder: Path
    clip: CLIP
    rows: list[Row]
    set_aside: list[SetAside]
    forms: dict[str, str] = field(default_factory=dict)
    facts: list[tuple[str, str, str]] = field(default_factory=list)


def write_model(
    objective: Objective,
    clip: CLIP,
    folder: Path,
    rows: list[Row],
    set_aside: Sequence[SetAside] = (),
    cuts: Cuts | None = None,
) -> Trained:
    """Write `folder`/model in the layout that most can read, with its card. The CLIP is frozen."""
    clip.__dict__.pop("fingerprint", None)  # its weights are others now
    clip.eval().requires_grad_(False)
    can = forms(clip)
    save(clip, folder / "model", layout="open_clip" if can["open_clip"] == YES else "diptych")
    left_out = [name for name, _ in objective.heads.named_children()] if objective.heads else []
    write_card(folder / "model", objective.system(), can, left_out)
    facts = objective.facts(clip)
    if cuts and cuts.cut:
        facts.append(("texts that were cut", f"{cuts.cut}", f"of {cuts.read} that this process read"))
    return Trained(folder, clip, rows, list(set_aside), can, facts)
