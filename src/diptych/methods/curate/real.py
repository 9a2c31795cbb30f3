"""REAL: how often captions mean each of your classes, under all its names, and a balanced set of pictures for them.

It shows which classes a model has hardly seen, and what they are called where it has seen them: `concepts.json` feeds
`real_prompt`, the rows that are left (with a column `class`) feed `real_linear`. Use it on the captions a model was
trained on. Not on others: they say nothing of what that model knows. A picture that is a near-copy of a test picture
may be among those found; `real_linear` leaves out copies of what it is shown.

Parashar et al., The Neglected Tails of Vision-Language Models, CVPR 2024, arXiv 2401.12425: in LAION-400M 31 of
ImageNet's 1,000 classes have fewer than 100 relevant captions, and 118 are called otherwise by most. Here classes are
judged on captions drawn by chance, and a caption of several classes goes to the one it is nearest to.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from diptych.data.concepts import Concept, Counted, ask_synonyms, read_synonyms, tokens, told_apart, written
from diptych.data.language_model import language_model
from diptych.errors import DiptychError
from diptych.methods.curate.parts.concept_pages import frequency_sections
from diptych.methods.curate.parts.phrases import Phrases
from diptych.methods.curate.parts.pipeline import Counts, Pipeline, Place, Stage, Verdict, chance_of
from diptych.methods.curate.parts.relevance import Question, clip_of, judge_of
from diptych.methods.curate.parts.rows import Sound, captions, with_column
from diptych.methods.curate.parts.samples import Drawn, join, judged, least, pack, unpack
from diptych.report import Section

BATCH, SEEN, YES = 64, 1000, 200  # captions judged at a time; enough are judged, of which enough mean the class
SPARE = 2  # times as many rows are drawn as are wanted: addresses rot
LONE, UNLIKE = "names none of the classes", "means something else"
ENOUGH = "enough of its class are drawn"
FAR, FURTHER = "its caption is unlike the class", "others are nearer to the class"


@dataclass(frozen=True)
class Config:
    """synonyms: a JSON or text file of names (see `data.concepts`), or a language model (folder, .gguf file, http
    address) to ask for those of `classes`, a file with one a line or their names with commas between. asked: the
    language model's name at an address. relevance: "none", "embeddings" or a language model. model: the CLIP that ranks
    captions. n: pictures a class (the script's default is 100). limit: captions a class that may be judged. least:
    pixels; no side of a smaller picture is longer.
    """

    synonyms: str = ""
    classes: str = ""
    asked: str = ""
    relevance: str = "none"
    model: str = "mini"
    n: int = 500
    limit: int = 10_000
    least: int = 80


class REAL(Pipeline):
    Config = Config
    needs = "texts, synonyms"

    def stages(self, columns: Sequence[str], seed: int = 0) -> Sequence[Stage]:
        if not {"text", "texts"} & set(columns):
            raise DiptychError(f"real needs a column of captions, text or texts; there are {', '.join(columns)}")
        if self.config.n < 1 or self.config.limit < 1:
            raise DiptychError(f"real.n and real.limit are at least 1; they are {self.config.n}, {self.config.limit}")
        concepts = concepts_of(self.config)
        judge_of(self.config.relevance, self.config.asked, self.config.model)  # a mistake in it is said now
        steps: list[Stage] = [Frequency(concepts, self.config, seed)]
        if seen := {"punsafe", "nsfw", "width", "height"} & set(columns):
            steps.append(Sound(tuple(sorted(seen)), self.config.least))
        return [*steps, Ranked(concepts, self.config, seed)]


def concepts_of(config: Config) -> dict[str, Concept]:
    if not config.synonyms:
        raise DiptychError(
            'real needs names for the classes: --set real.synonyms=FILE, {"class": ["name", ...]}, or a language model '
            "in its place and real.classes=FILE"
        )
    model = language_model(config.synonyms, config.asked)
    if model is None:
        return told_apart(read_synonyms(config.synonyms))
    path = Path(config.classes).expanduser()
    listed = path.read_text("utf-8").splitlines() if path.is_file() else config.classes.split(",")
    classes = [name.strip() for name in listed if name.strip()]
    if not classes:
        raise DiptychError("a language model is asked for names of real.classes: a file with one a line")
    return told_apart(ask_synonyms(classes, model, config.synonyms, config.asked))


class Frequency(Stage):
    """Counts every name of every class, judges captions drawn of each, and keeps those that are wanted."""

    name, about, counts = "frequency", "captions that mean none of the classes, or more of them than are wanted", True
    needs, adds = ("key",), ("classes",)

    def __init__(self, concepts: dict[str, Concept], config: Config, seed: int) -> None:
        self.concepts, self.config, self.seed = concepts, config, seed
        names = [(c, name) for c, concept in enumerate(concepts.values()) for name in concept.names]
        self.classes, self.owner, self.names = [*concepts], [c for c, _ in names], [name for _, name in names]
        self.phrases = Phrases([tokens(name) for name in self.names])
        self.most = SPARE * config.n if config.relevance == "none" else config.limit

    def named(self, batch: pa.RecordBatch) -> Iterator[tuple[str, dict[int, tuple[int, str]], set[int]]]:
        """Of each row the key, class -> (number of a name, the caption that says it), and all numbers."""
        for key, texts in zip(batch.column("key").to_pylist(), captions(batch), strict=True):
            every: set[int] = set()
            by_class: dict[int, tuple[int, str]] = {}
            for text in texts:
                found = self.phrases.find(tokens(text))
                for number in sorted(found):
                    by_class.setdefault(self.owner[number], (number, text))
                every |= found
            yield str(key), by_class, every

    def chance(self, key: str, group: int) -> float:
        return float(chance_of([key], self.seed, f"real {self.classes[group]}")[0])

    def count(self, batch: pa.RecordBatch, place: Place) -> Counts:
        said, matched = np.zeros(len(self.names), np.int64), np.zeros(len(self.concepts), np.int64)
        drawn = []
        for key, by_class, every in self.named(batch):
            for number in every:
                said[number] += 1
            for group, (number, caption) in by_class.items():
                matched[group] += 1
                told = "" if self.config.relevance == "none" else caption
                drawn.append(Drawn(group, self.chance(key, group), number, told))
        return {"rows": np.array([batch.num_rows]), "said": said, "matched": matched} | join([pack(drawn)], self.most)

    def merge(self, counts: Sequence[Counts]) -> Counts:
        sums = {name: np.sum([one[name] for one in counts], axis=0) for name in ("rows", "said", "matched")}
        return sums | join(counts, self.most)

    def finish(self, counts: Counts) -> Counts:
        """Judge; fate: 1 wanted, -1 means something else, 0 beyond what is wanted; sorted by chance."""
        judge = judge_of(self.config.relevance, self.config.asked, self.config.model)
        relevance, seen = np.ones(len(self.concepts)), np.zeros(len(self.concepts), np.int64)
        fates: list[np.ndarray] = []
        for group, concept in enumerate(self.concepts.values()):
            drawn = list(unpack(counts, group))
            answers = [True] * len(drawn)
            if judge is not None and drawn:

                def relevant(some: Sequence[Drawn], concept: Concept = concept) -> list[bool]:
                    assert judge is not None
                    return judge.relevant([Question(one.caption, self.names[one.word], concept) for one in some])

                answers = judged(drawn, relevant, BATCH, SEEN, YES)
                relevance[group], seen[group] = np.mean(answers), len(answers)
            yes = np.array(answers, bool)
            fate = np.zeros(len(drawn), np.int8)
            fate[: len(yes)] = np.where(yes, np.cumsum(yes) <= SPARE * self.config.n, -1)
            fates.append(fate)
        order = np.argsort(counts["chance"], kind="stable")
        found = {"chance": counts["chance"][order], "fate": np.concatenate(fates)[order]}
        return {name: counts[name] for name in ("rows", "said", "matched")} | found | {
            "relevance": relevance, "seen": seen,
        }  # fmt: skip

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        wanted, why = [], []
        for key, by_class, _ in self.named(batch):
            fates = {group: self.fate(self.chance(key, group), counts) for group in by_class}
            wanted.append([self.classes[group] for group, fate in fates.items() if fate == 1])
            left = UNLIKE if -1 in fates.values() else ENOUGH
            why.append("" if wanted[-1] else left if fates else LONE)
        column = pa.array(wanted, pa.list_(pa.string()))
        return Verdict(with_column(batch, "classes", column), np.array([not one for one in why], bool), why)

    def fate(self, chance: float, counts: Counts) -> int:
        place = int(np.searchsorted(counts["chance"], chance))
        there = place < len(counts["chance"]) and counts["chance"][place] == chance
        return int(counts["fate"][place]) if there else 0

    def counted(self, counts: Counts) -> dict[str, Counted]:
        found: dict[str, Counted] = {}
        for group, name in enumerate(self.classes if counts else ()):  # where no row came, nothing was counted
            said = {self.names[i]: int(counts["said"][i]) for i, owner in enumerate(self.owner) if owner == group}
            share, seen = float(counts["relevance"][group]), int(counts["seen"][group])
            found[name] = Counted(said, int(counts["matched"][group]), share, seen)
        return found

    def files(self, counts: Counts) -> Mapping[str, bytes]:
        return {"concepts.json": written(self.counted(counts), int(sum(counts.get("rows", ()))))}

    def sections(self, counts: Counts, tallies: Mapping[str, int]) -> Sequence[Section]:
        return frequency_sections(
            self.counted(counts), int(sum(counts.get("rows", ()))), self.config.relevance != "none"
        )


class Ranked(Stage):
    """Of each class the captions nearest to its prompts, text to text: pictures near to them are the easy ones."""

    name, about, counts = "ranked", "more than the wanted number of each class, the least like it first", True
    needs, adds = ("key", "classes"), ("class", "class_similarity")

    def __init__(self, concepts: dict[str, Concept], config: Config, seed: int) -> None:
        self.concepts, self.config, self.seed = concepts, config, seed
        self.classes = [*concepts]

    @cached_property
    def prompts(self) -> np.ndarray:
        """[C, D]: the mean of the unit prompt means of all its names, so that a product is the mean of cosines."""
        from diptych.core.text import ENSEMBLE, TextRecipe, class_rows

        clip, recipe = clip_of(self.config.model), TextRecipe(ENSEMBLE)
        rows = (class_rows(clip, concept.names, recipe).float().mean(0) for concept in self.concepts.values())
        return np.stack([row.cpu().numpy() for row in rows])

    def count(self, batch: pa.RecordBatch, place: Place) -> Counts:
        from torch.nn import functional as F

        texts = captions(batch)
        rows = clip_of(self.config.model).encode_text([text for some in texts for text in some]).float()
        near = F.normalize(rows, dim=1).cpu().numpy() @ self.prompts.T
        ends = np.cumsum([len(some) for some in texts])
        group, similarity = [], []
        for some, end, classes in zip(texts, ends, batch.column("classes").to_pylist(), strict=True):
            own = [self.classes.index(name) for name in classes]
            best = near[end - len(some) : end, own].max(0).round(5)  # the same on every machine
            group.append(own[int(best.argmax())])
            similarity.append(best.max())
        chance = chance_of(batch.column("key").to_pylist(), self.seed, "real ranked")
        return {"group": np.array(group, np.int32), "similarity": np.array(similarity, np.float32), "chance": chance}

    def merge(self, counts: Sequence[Counts]) -> Counts:
        return {name: np.concatenate([one[name] for one in counts]) for name in ("group", "similarity", "chance")}

    def finish(self, counts: Counts) -> Counts:
        order = np.argsort(counts["chance"], kind="stable")
        found = {name: rows[order] for name, rows in counts.items()}
        kept = np.zeros(len(order), bool)
        kept[least(found["group"], -found["similarity"], self.config.n)] = True
        return found | {"kept": kept}

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        chance = chance_of(batch.column("key").to_pylist(), self.seed, "real ranked")
        at = np.searchsorted(counts["chance"], chance)
        similarity, kept = counts["similarity"][at], counts["kept"][at]
        why = [FAR if s < 0 else "" if k else FURTHER for s, k in zip(similarity, kept, strict=True)]
        batch = with_column(batch, "class", pa.array([self.classes[g] for g in counts["group"][at]], pa.string()))
        batch = with_column(batch, "class_similarity", pa.array(similarity, pa.float32()))
        return Verdict(batch, kept & (similarity >= 0), why)
