"""Which word of a caption is false: clip4dm against chance, clamped relevance and leaving words out, on micro and mini.

    python benchmarks/clip4dm.py scenes 0 --folder parts          # micro; seeds 0, 1, 2: sets of scenes
    python benchmarks/clip4dm.py counts 0 --folder parts          # micro; scenes with several of a kind
    python benchmarks/clip4dm.py coco 0 --folder parts --data D   # mini; D/coco-mini: 80 photos with 5 captions each
    python benchmarks/clip4dm.py maps --folder parts --data D     # mini; maps against COCO's boxes
    python benchmarks/clip4dm.py speed 0 --folder parts           # processor time a caption
    python benchmarks/clip4dm.py report --folder parts [--write]  # all parts -> JSON

Foils of scenes are captions false by one marked word. Those of COCO: a noun that names one of COCO's objects becomes
another of the same kind of object which is in no caption and no annotation of the photo. Settings are the published
ones. The lowest content word is the guess; chance is one over the number of content words, caption by caption. eps is
set on other scenes than those measured, or on half of the photos; words and captions flagged are of the other half.
A part takes one to three minutes on one thread.
"""

import argparse
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

import diptych
from diptych.core.clip import CLIP
from diptych.core.tower import Prompt, Tap, Tokens, Tower
from diptych.core.words import ReadText, read_words
from diptych.data.pictures import open_picture
from diptych.data.scenes import SceneRecord, Scenes, SceneSpec
from diptych.engine.provenance import provenance
from diptych.methods.explain.clip4dm import Clip4DM, Config, attribute, f_clip_score, judge
from diptych.methods.explain.parts.explainer import unit
from diptych.metrics.words import localisation_accuracy, paired_accuracy

RESULTS = Path(__file__).parents[1] / "docs" / "results"
STOP = """a an and the of on in at to with by for from up into over is are be has have that this it its his her their he
she they there as while some other each next near under out off top"""
SPEC = SceneSpec(textures=("solid",) * 3 + ("striped", "dotted", "checked"))  # as micro was trained, with more textures
SEVERAL = replace(SPEC, counts=(1, 2), copies=(2, 3), textures=("solid",))
SCENES, CALIBRATION = 150, 150
METHODS = ("clip4dm", "clamped", "left_out")


@dataclass(frozen=True)
class Case:
    """A true caption and one that is false by the word (or words) at `places` of its content words."""

    kind: str
    picture: int
    true: str
    false: str
    wrong: tuple[int, ...]  # in text.split()


# -- scores of words ---------------------------------------------------------------------------------------------------


def clamped(tower: Tower, tokens: Tokens, target: Tensor, layers: int) -> Tensor:
    """Relevance as before this method (Chefer et al. 2021, arXiv 2103.15679): only positive evidence, and the layers
    multiplied: R = R + C R from the identity. -> [B, N], the rows that the embedding is read from."""
    first = max(0, tower.depth - layers)
    taps, last = [Tap(i, "attention") for i in range(first, tower.depth)], Tap(tower.depth - 1)
    nothing = Prompt(torch.zeros(0, tower.width, requires_grad=True), block=first)
    out = tower(tokens, prompts=[nothing], taps=[*taps, last])
    maps = [out.taps[tap] for tap in taps]
    cosine = (unit(out.embedding) * target).sum()
    *gradients, read = torch.autograd.grad(cosine, [*maps, out.taps[last]])
    relevance = torch.eye(maps[0].shape[-1]).expand(len(target), -1, -1)
    for attention, gradient in zip(maps, gradients, strict=True):
        relevance = relevance + (gradient * attention.detach()).clamp(min=0).mean(1) @ relevance
    rows = (read != 0).any(-1).float()
    return torch.einsum("bi,bij->bj", rows, relevance) / rows.sum(-1, keepdim=True)


def left_out(clip: CLIP, text: str, template: str, target: Tensor) -> list[float]:
    """How much the cosine falls without each word of `text.split()`."""
    words = text.split()
    without = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    with torch.no_grad():
        rows = unit(clip.encode_tokens(clip.tokenize([template + one for one in [text, *without]])))
    cosines = rows @ target
    return (cosines[0] - cosines[1:]).tolist()


def by_space(read: ReadText, scores: Tensor) -> list[float]:
    """Scores of tokens [N] -> one a word of `text.split()`: the mean over its pieces, without full stops and commas."""
    found: list[float] = []
    for match in re.finditer(r"\S+", read.text):
        pieces = [
            t
            for w in read.words
            if match.start() <= w.start < match.end() and w.text not in (".", ",")
            for t in w.tokens
        ]
        found.append(scores[pieces].mean().item() if pieces else float("inf"))
    return found


def words_of(read: ReadText, scores: Tensor) -> list[float]:
    """As `Clip4DM` has it: every word, full stops and commas as well."""
    return [scores[list(w.tokens)].mean().item() if w.tokens else float("inf") for w in read.words]


def content(text: str) -> list[int]:
    return [i for i, word in enumerate(text.split()) if re.sub(r"\W", "", word).lower() not in STOP.split()]


@dataclass
class Scored:
    """One text against one picture: the cosine, scores of `text.split()` by method, those of clip4dm's own words."""

    text: str
    cosine: float
    scores: dict[str, list[float]]
    words: list[float]
    judged: list[float]  # inf: punctuation


def score(clip: CLIP, texts: Sequence[str], target: Tensor, config: Config, others: bool = True) -> list[Scored]:
    reads = [read_words(clip, text, config.template) for text in texts]
    tokens = clip.tokenize([f"{config.template}{text}" for text in texts])
    targets = target.expand(len(texts), -1)
    cosines, rows = attribute(clip.text, tokens, targets, config.layers)
    relevance = clamped(clip.text, tokens, targets, config.layers) if others else rows
    found = []
    for i, (text, read) in enumerate(zip(texts, reads, strict=True)):
        scores = {"clip4dm": by_space(read, rows[i])}
        if others:
            scores |= {
                "clamped": by_space(read, relevance[i]),
                "left_out": left_out(clip, text, config.template, target),
            }
        words = words_of(read, rows[i])
        judged = [float("inf") if w.punctuation else s for w, s in zip(read.words, words, strict=True)]
        found.append(Scored(text, cosines[i].item(), scores, words, judged))
    return found


# -- what is measured --------------------------------------------------------------------------------------------------


def measure(cases: Sequence[Case], scored: dict[tuple[int, str], Scored], eps: float) -> dict[str, Any]:
    kinds = sorted({case.kind for case in cases})
    return {kind: of_kind([c for c in cases if kind in ("all", c.kind)], scored, eps) for kind in [*kinds, "all"]}


def of_kind(cases: Sequence[Case], scored: dict[tuple[int, str], Scored], eps: float) -> dict[str, Any]:
    said = [content(case.false) for case in cases]
    wrong = [{c.index(i) for i in case.wrong} for case, c in zip(cases, said, strict=True)]
    found: dict[str, Any] = {
        "foils": len(cases),
        "chance": statistics.mean(len(w) / len(c) for w, c in zip(wrong, said, strict=True)),
    }
    for method in METHODS:
        scores = [
            [scored[case.picture, case.false].scores[method][i] for i in c] for case, c in zip(cases, said, strict=True)
        ]
        found[f"localised by {method}"] = localisation_accuracy(scores, wrong)
    pairs = [(scored[case.picture, case.true], scored[case.picture, case.false]) for case in cases]
    for name, of in measures(eps).items():
        true, false = ([of(one) for one in side] for side in zip(*pairs, strict=True))
        found[f"{name}, pairs"] = paired_accuracy(true, false)
        found[f"{name}, AP"] = float(average_precision_score([1] * len(true) + [0] * len(false), true + false))
    return found


def measures(eps: float) -> dict[str, Callable[[Scored], float]]:
    def negative(one: Scored, mode: str, eps: float = eps) -> float:
        return f_clip_score(judge(one.words if mode == "most_negative" else one.judged, mode, eps)[1], one.cosine)

    return {
        "CLIPScore": lambda one: 2.5 * max(one.cosine, 0.0),
        "F-CLIPScore, most_negative": lambda one: negative(one, "most_negative"),
        "F-CLIPScore, threshold": lambda one: negative(one, "threshold"),
        "F-CLIPScore, eps 0": lambda one: negative(one, "threshold", 0.0),  # looked at on scenes of another seed
    }


def flags(scored: Sequence[Scored], eps: float) -> dict[str, float]:
    low = [[score < eps for score in one.judged if score < float("inf")] for one in scored]
    return {
        "words": statistics.mean(flag for one in low for flag in one),
        "captions": statistics.mean(any(one) for one in low),
    }


def calibration(scored: Sequence[Scored], share: float = 0.05) -> float:
    """As `Clip4DM.calibrated`, of scores that are there already."""
    return min(0.0, sorted(min(one.judged) for one in scored)[int(share * len(scored))])


def evidence(cases: Sequence[Case], scored: dict[tuple[int, str], Scored]) -> dict[str, dict[str, float]]:
    """What speaks against true and false captions (the sum below 0), and their cosines: means, the spread."""
    sides = {
        "true": [scored[case.picture, case.true] for case in cases],
        "false": [scored[case.picture, case.false] for case in cases],
    }
    found = {}
    for name, of in {"n": lambda one: judge(one.judged, "threshold", 0.0)[1], "cosine": lambda one: one.cosine}.items():
        values = {side: [of(one) for one in every] for side, every in sides.items()}
        means = {side: statistics.mean(every) for side, every in values.items()}
        found[name] = means | {"spread of the true": statistics.stdev(values["true"])}
    return found


def flagged_foils(cases: Sequence[Case], scored: dict[tuple[int, str], Scored], eps: float) -> dict[str, float]:
    """Of false captions: with any flag, and with the false word flagged."""
    one = [scored[case.picture, case.false] for case in cases]
    return {
        "captions": flags(one, eps)["captions"],
        "the false word": statistics.mean(
            any(s.scores["clip4dm"][i] < eps for i in case.wrong) for case, s in zip(cases, one, strict=True)
        ),
    }


# -- scenes ------------------------------------------------------------------------------------------------------------


def targets_of(clip: CLIP, records: Sequence[SceneRecord]) -> Tensor:
    with torch.no_grad():
        return unit(clip.encode_image(torch.stack([clip.preprocess(record.image()) for record in records])))


def scenes(seed: int, spec: SceneSpec) -> dict[str, Any]:
    clip, config = diptych.load("micro", "cpu"), Config()
    records = list(Scenes(spec, SCENES, 100 + seed))
    targets = targets_of(clip, records)
    cases = [
        Case(foil.kind, i, foil.caption, foil.text, foil.words)
        for i, record in enumerate(records)
        for foil in record.foils
        if foil.kind != "order"  # two whole phrases, not a word or two
    ]
    scored = {}
    for i, record in enumerate(records):
        texts = [record.text(), *(case.false for case in cases if case.picture == i)]
        scored |= {(i, one.text): one for one in score(clip, texts, targets[i], config)}
    others = list(Scenes(spec, CALIBRATION, 200 + seed))
    matched = [
        score(clip, [record.text()], target, config, others=False)[0]
        for record, target in zip(others, targets_of(clip, others), strict=True)
    ]
    eps = calibration(matched)
    singles = [case for case in cases if case.kind != "swap"]
    own = [scored[i, record.text()] for i, record in enumerate(records)]
    swaps = [case for case in cases if case.kind == "swap"]
    return {
        "foils": measure(singles, scored, eps) | ({"swap": of_kind(swaps, scored, eps)} if swaps else {}),
        "eps": eps,
        "flagged, matched": flags(own, eps),
        "flagged, false": flagged_foils(singles, scored, eps),
        "flagged, published eps, matched": flags(own, config.eps),
        "against": evidence(singles, scored),
        "captions of other scenes": others_captions(clip, records, targets, config, eps),
    } | ({"map": pointing(clip, records)} if spec.copies == (1,) else {})  # a phrase then has one place


def others_captions(
    clip: CLIP, records: Sequence[SceneRecord], targets: Tensor, config: Config, eps: float
) -> dict[str, float]:
    """A caption of the next scene: how often words of colours and shapes are flagged that are, and are not, there."""
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for i, record in enumerate(records):
        other = records[(i + 1) % len(records)]
        [one] = score(clip, [other.text()], targets[i], config, others=False)
        there = {word for thing in record.scene.things for word in (thing.colour, thing.shape)}
        named = {word for thing in other.scene.things for word in (thing.colour, thing.shape)}
        for word, value in zip(other.text().split(), one.scores["clip4dm"], strict=True):
            if word in named:
                hits[word in there].append(value < eps)
    return {"absent": statistics.mean(hits[False]), "present": statistics.mean(hits[True])}


def pointing(clip: CLIP, records: Sequence[SceneRecord], count: int = 100) -> dict[str, float]:
    """Is the strongest place of the map of "a red circle" in that thing's box? share: of the picture in boxes."""
    hits, shares = {layers: [] for layers in (1, 3)}, []
    for record in records[:count]:
        for region in record.regions:
            thing = record.scene.things[region.thing]
            x0, y0, x1, y1 = region.box
            side = record.spec.side
            shares.append((x1 - x0) * (y1 - y0) / side**2)
            for layers, found in hits.items():
                heat = Clip4DM(clip, Config(layers=layers)).heat(record.image(), f"a {thing.colour} {thing.shape}")
                row, column = divmod(int(heat.argmax()), heat.shape[1])
                x, y = (column + 0.5) * side / heat.shape[1], (row + 0.5) * side / heat.shape[0]
                found.append(x0 <= x <= x1 and y0 <= y <= y1)
    return {"share": statistics.mean(shares)} | {f"{n} layers": statistics.mean(found) for n, found in hits.items()}


# -- COCO --------------------------------------------------------------------------------------------------------------

SAID = {  # how people call COCO's objects; those of one plain word are called so
    "bicycle": "bicycle bike", "motorcycle": "motorcycle motorbike", "airplane": "airplane plane jet",
    "couch": "couch sofa", "tv": "tv television", "refrigerator": "refrigerator fridge", "cell phone": "phone",
    "donut": "donut doughnut", "dining table": "table", "potted plant": "plant", "sports ball": "ball",
    "hot dog": "hotdog", "tennis racket": "racket racquet", "teddy bear": "teddy", "skis": "", "scissors": "",
    "person": "person man woman boy girl child kid people men women children lady guy",
}  # fmt: skip


@dataclass(frozen=True)
class Photos:
    files: dict[int, Path]
    captions: dict[int, list[str]]
    there: dict[int, set[str]]  # annotated categories
    kinds: dict[str, str]  # category -> its kind

    @classmethod
    def read(cls, root: Path) -> "Photos":
        instances = json.loads((root / "annotations" / "instances_train2017.json").read_text())
        told = json.loads((root / "annotations" / "captions_train2017.json").read_text())
        names = {one["id"]: one["name"] for one in instances["categories"]}
        captions: dict[int, list[str]] = {}
        there: dict[int, set[str]] = {}
        for one in sorted(told["annotations"], key=lambda one: one["id"]):
            captions.setdefault(one["image_id"], []).append(" ".join(one["caption"].split()))
        for one in instances["annotations"]:
            there.setdefault(one["image_id"], set()).add(names[one["category_id"]])
        files = {one["id"]: root / "train2017" / one["file_name"] for one in told["images"]}
        return cls(files, captions, there, {one["name"]: one["supercategory"] for one in instances["categories"]})

    def nouns(self) -> dict[str, tuple[str, bool]]:
        """word -> (category, whether it is several)."""
        found: dict[str, tuple[str, bool]] = {}
        for category in self.kinds:
            for word in SAID.get(category, category if " " not in category else "").split():
                several = word in ("people", "men", "women", "children")
                found[word] = (category, several)
                if not several:
                    found[word + ("es" if word.endswith(("s", "sh", "ch")) else "s")] = (category, True)
        return found

    def cases(self, seed: int) -> Iterator[Case]:
        """One foil a caption that names an object, people excepted: one word for another of its kind and number."""
        rng, nouns = random.Random(seed), self.nouns()
        for photo in sorted(self.captions):
            said = set(re.findall(r"[a-z]+", " ".join(self.captions[photo]).lower()))
            there = {nouns[word][0] for word in said & set(nouns)} | self.there.get(photo, set())
            for caption in self.captions[photo]:
                words = caption.split()
                plain = [re.sub(r"\W", "", word).lower() for word in words]
                places = [i for i, word in enumerate(plain) if nouns.get(word, ("person", False))[0] != "person"]
                if not places:
                    continue
                at = rng.choice(places)
                category, several = nouns[plain[at]]
                other = [
                    word
                    for word, (kind, number) in sorted(nouns.items())
                    if number == several and kind not in there and self.kinds[kind] == self.kinds[category] != "person"
                ]
                if other:
                    new = words[at].lower().replace(plain[at], rng.choice(other))
                    yield Case(
                        self.kinds[category], photo, caption, " ".join([*words[:at], new, *words[at + 1 :]]), (at,)
                    )


def coco(seed: int, root: Path, kept: Path, most: int) -> dict[str, Any] | None:
    """Scores of photos are kept in a file, at most `most` are made now; None while some are still to be made."""
    photos, scored = Photos.read(root), {}
    names, cases, config = sorted(photos.captions), list(photos.cases(seed)), Config()
    clip = diptych.load("mini", "cpu")
    lines = kept.read_text().splitlines() if kept.exists() else []
    for line in lines:
        name, found = json.loads(line)
        scored |= {(name, one["text"]): Scored(**one) for one in found}
    for name in names[len(lines) : len(lines) + most]:
        with torch.no_grad():
            target = unit(clip.encode_image(clip.preprocess(open_picture(photos.files[name]))[None]))[0]
        false = list(dict.fromkeys(case.false for case in cases if case.picture == name))
        found = score(clip, photos.captions[name], target, config, others=False)
        found += score(clip, false, target, config) if false else []
        scored |= {(name, one.text): one for one in found}
        with kept.open("a") as file:
            file.write(json.dumps([name, [vars(one) for one in found]]) + "\n")
    if len(lines) + most < len(names):
        return None
    half = set(random.Random(1000 + seed).sample(names, len(names) // 2))
    own = {
        side: [scored[n, c] for n in names if (n in half) == side for c in photos.captions[n]] for side in (True, False)
    }
    eps = calibration(own[True])
    held = [case for case in cases if case.picture not in half]
    return {
        "foils": measure(cases, scored, eps),
        "held-out half": of_kind(held, scored, eps),
        "eps": eps,
        "flagged, matched": flags(own[False], eps),
        "flagged, false": flagged_foils(held, scored, eps),
        "flagged, published eps, matched": flags(own[False], config.eps),
        "against": evidence(cases, scored),
        "examples": [example(case, scored[case.picture, case.false]) for case in cases[::60]],
    }


def example(case: Case, one: Scored) -> dict[str, Any]:
    return {"true": case.true, "scores": dict(zip(case.false.split(), one.scores["clip4dm"], strict=True))}


def coco_maps(root: Path, most: int) -> dict[str, float]:
    """The map of "a dog" for the largest kind of object of a photo: is its strongest place in a box of that kind?"""
    clip, photos = diptych.load("mini", "cpu"), Photos.read(root)
    instances = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    names = {one["id"]: one["name"] for one in instances["categories"]}
    hits, shares = [], []
    for photo in sorted(photos.there)[:most]:
        every = [one for one in instances["annotations"] if one["image_id"] == photo]
        kind = max(every, key=lambda one: one["area"])["category_id"]
        image = open_picture(photos.files[photo])
        heat = Clip4DM(clip).heat(image, f"a {names[kind]}")
        side, short = heat.shape[0], min(image.size)
        inside = torch.zeros(side, side, dtype=torch.bool)
        for x, y, width, height in (one["bbox"] for one in every if one["category_id"] == kind):
            centres = (torch.arange(side) + 0.5) * short / side  # of the map's cells, in the centre crop
            across, down = centres + (image.width - short) / 2, centres + (image.height - short) / 2
            inside |= ((down >= y) & (down <= y + height))[:, None] & ((across >= x) & (across <= x + width))[None]
        hits.append(bool(inside.flatten()[heat.argmax()]))
        shares.append(inside.double().mean().item())
    return {"photos": len(hits), "hits": statistics.mean(hits), "share": statistics.mean(shares)}


# -- speed -------------------------------------------------------------------------------------------------------------


def speed(seed: int) -> dict[str, Any]:
    """Processor time of a caption with its picture's embedding at hand, one caption at a time, interleaved."""
    found = {}
    for model in ("micro", "mini"):
        clip, config = diptych.load(model, "cpu"), Config()
        texts = [record.text() for record in Scenes(SPEC, 20, 300 + seed)]
        target = unit(torch.randn(clip.embed_dim, generator=torch.Generator().manual_seed(seed)))
        spent: dict[str, list[float]] = {"clip4dm": [], "left_out": []}
        for turn in range(3):
            for text in texts:
                tokens = clip.tokenize([config.template + text])
                start = time.process_time()
                cosine, _ = attribute(clip.text, tokens, target[None], config.layers)
                middle = time.process_time()
                left_out(clip, text, config.template, target)
                end = time.process_time()
                with torch.no_grad():
                    plain = unit(clip.encode_tokens(tokens))[0] @ target
                assert abs(plain.item() - cosine.item()) < 1e-5, "both must read the same text"
                if turn:
                    spent["clip4dm"].append(middle - start)
                    spent["left_out"].append(end - middle)
        medians = {name: statistics.median(values) for name, values in spent.items()}
        words = statistics.mean(len(text.split()) for text in texts)
        ratio = medians["left_out"] / medians["clip4dm"]
        found[model] = {"words a caption": words, "left out over clip4dm": ratio} | {
            f"{k}, ms": 1e3 * v for k, v in medians.items()
        }
    return found


# -- all together ------------------------------------------------------------------------------------------------------


def blend(values: Sequence[Any]) -> Any:
    """Equal trees of numbers -> mean and standard deviation of each; lists are kept from the first."""
    if isinstance(values[0], dict):
        keys = [key for key in values[0] if all(key in value for value in values)]
        return {key: blend([value[key] for value in values]) for key in keys}
    if isinstance(values[0], (int, float)):
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return {"mean": float(f"{statistics.mean(values):.4g}"), "sd": float(f"{spread:.3g}")}
    return values[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("scenes", "counts", "coco", "maps", "speed", "report"))
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--most", type=int, default=1000, help="photos of COCO scored now; the same words go on")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.part != "report":
        if given.part == "coco":
            kept = given.folder / f"coco-{given.seed}.jsonl"
            made = coco(given.seed, given.data / "coco-mini", kept, given.most)
            if made is None:
                print("not all photos are scored yet: the same words go on")
                return
        elif given.part == "maps":
            made = coco_maps(given.data / "coco-mini", given.most)
        elif given.part == "speed":
            made = speed(given.seed)
        else:
            made = scenes(given.seed, SPEC if given.part == "scenes" else SEVERAL)
        path = given.folder / f"{given.part}-{given.seed}.json"
        path.write_text(json.dumps(made, indent=1))
        print(json.dumps(blend([made]), indent=1))
        return
    result: dict[str, Any] = {}
    for part in ("scenes", "counts", "coco", "maps", "speed"):
        found = [json.loads(path.read_text()) for path in sorted(given.folder.glob(f"{part}-*.json"))]
        if found:
            result[part] = {"seeds": len(found), **blend(found)}
    result["provenance"] = provenance()
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if given.write:
        (RESULTS / "clip4dm.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
