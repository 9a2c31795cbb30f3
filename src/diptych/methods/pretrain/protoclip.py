"""ProtoCLIP: pictures also find the group that their text belongs to, and texts their picture's; groups are clusters.

Use it with 10^5 to 10^7 pairs and small batches, where groups of alike things form slowly: clusters of a whole episode
say what a batch cannot. Not where each pair is a kind of its own, nor for a few minutes of training: each episode
reads its pictures once more, and the first and the last two learn as clip does.

Chen et al., ProtoCLIP: Prototypical Contrastive Language Image Pretraining, arXiv 2206.10996 (TNNLS 2023), sections 3
and 4: clusters of each kind's projections; the prototypes that a student sees are the means of its own projections
over the teacher's clusters (back translation). Published: ImageNet linear 55.2 against 49.4 of CLIP, zero-shot 21.5
against 19.5 (RN50, CC2.5M, batch 512).
"""

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.core.load import load
from diptych.engine.clustering import kmeans, means_of, nearest
from diptych.engine.distributed import gather_in_turn, of_first, rank, world
from diptych.errors import DiptychError
from diptych.losses.prototypes import prototype_cross_entropy, prototype_targets
from diptych.methods.pretrain.parts.contrast import Contrast
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, PairLike, PairsLike, Phase, Recipe
from diptych.methods.pretrain.parts.teacher import text_vectors

READ, READERS = 128, 4  # pairs embedded at once when an episode begins, and threads that decode them
COMPONENTS = 64  # of a teacher's rows


@dataclass(frozen=True)
class Config:
    """episodes: of the run, each of `shortest` steps at least; episode: pairs that are clustered for one, drawn without
    repeats (all, where there are no more); clusters: of these, a tenth of the pairs at most; restarts, rounds: of
    k-means; projection, hidden: sizes of the heads; temperature: of the targets, 0 for the one cluster;
    back_translation: prototypes in the student's own space; teacher: whose vectors of the texts are clustered too, for
    both to learn: a field of the pairs' extra that holds them, or a model to read the texts once, such as mini;
    max_scale: the largest multiplier of both cosines.
    """

    episodes: int = 400
    shortest: int = 50
    episode: int = 200_000
    clusters: int = 20_000
    restarts: int = 3
    rounds: int = 20
    projection: int = 128
    hidden: int = 2048
    temperature: float = 0.01
    back_translation: bool = True
    teacher: str = ""
    max_scale: float = 100.0


class Heads(nn.Module):
    """A projection for each kind, and the prototypes' own temperature. The picture's starts as a copy of the text's."""

    def __init__(self, size: int, hidden: int, out: int) -> None:
        super().__init__()
        first = nn.Linear(size, hidden, bias=False)  # the norm behind it takes a bias away
        self.text = nn.Sequential(first, nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))
        self.image = copy.deepcopy(self.text)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def project(self, kind: str, embeddings: Tensor) -> Tensor:
        """Unit rows [B, projection] of embeddings [B, D] that are not normalised."""
        return F.normalize(self.get_submodule(kind)(embeddings), dim=1)


class ProtoClip(Contrast):
    Config = Config
    # the paper spares the heads weight decay; here their matrices have it like all others
    recipe = Recipe(batch=512, weight_decay=0.5, beta2=0.999, eps=1e-8, warmup=15_625, clip=10.0, crop=0.5)
    trains = ("both towers", "temperature", "projection heads")

    def prepare(self, clip: CLIP, pairs: PairsLike, seed: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.heads = Heads(clip.embed_dim, self.config.hidden, self.config.projection).to(clip.device)
        self.pairs, self.seed, self.now = pairs, seed, 0
        self.vectors = self.read_texts(clip)
        self.made: dict[str, Tensor] = {}  # of the episode: labels, centres, prototypes

    # -- episodes ------------------------------------------------------------------------------------------------------

    def phase(self, step: int, steps: int) -> Phase:
        """Plain first, as clusters of a fresh model say nothing; locked last; in between all terms."""
        count = max(5, min(self.config.episodes, steps // self.config.shortest))
        self.now = step * count // steps
        self.plain = not 0 < self.now < count - 2
        if self.now >= count - 2:
            return Phase(("towers.text.*", "log_scale"), ("contrastive",))
        return Phase(terms=("contrastive",)) if self.plain else Phase()

    @torch.no_grad()
    def begin(self, clip: CLIP) -> None:
        """Cluster the projections of some pairs, drawn by (seed, episode), and say where the clusters lie."""
        drawn = np.random.default_rng([self.seed, self.now]).permutation(len(self.pairs))[: self.config.episode]
        rows, kept = self.read(clip, drawn.tolist())
        made = {"episode": torch.tensor(self.now)}
        place = torch.full((len(self.pairs),), -1, device=clip.device)
        place[kept] = torch.arange(len(kept), device=clip.device)
        made["place"] = place  # of each pair among the rows, -1 for one that was not read
        count = max(1, min(self.config.clusters, len(kept) // 10))
        for kind, found in rows.items():
            clusters = kmeans(
                found, count, steps=self.config.rounds, restarts=self.config.restarts, seed=self.now, apart=count < 1000
            )
            made[f"{kind} labels"], made[f"{kind} centres"] = of_first(clusters.labels), of_first(clusters.centres)
        for student in ("image", "text"):
            for teacher in rows:
                if teacher == student:
                    continue
                means, sizes = means_of(rows[student], made[f"{teacher} labels"], count)
                own = self.config.back_translation or teacher == "teacher"
                made[f"{student} from {teacher}"] = means if own else made[f"{teacher} centres"]
                made[f"{teacher} present"] = sizes > 0
        self.made = made

    def read(self, clip: CLIP, index: list[int]) -> tuple[Embeddings, Tensor]:
        """(projections by kind [n, projection] and the teacher's vectors, numbers of the pairs [n]).

        Each process embeds its share, and has all. Pairs that cannot be read are left out. No dropout, plain pictures.
        """
        assert isinstance(self.heads, Heads)
        modes = clip.training, self.heads.training
        clip.eval()
        self.heads.eval()
        own, most = index[rank() :: world()], -(-len(index) // world())  # as many rows in each process
        kept, rows = torch.full((most,), -1, device=clip.device), {}
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(own), READ):
                found = pool.map(partial(self.read_one, clip), own[start : start + READ])
                seen = {place: one for place, one in enumerate(found, start) if one is not None}
                if not seen:
                    continue
                pixels, texts, extras = zip(*seen.values(), strict=True)
                part = {
                    "image": self.heads.project("image", clip.encode_image(torch.stack(pixels))),
                    "text": self.heads.project("text", clip.encode_tokens(clip.tokenize(texts))),
                    **{name: torch.from_numpy(np.stack([e[name] for e in extras])) for name in extras[0]},
                }
                kept[list(seen)] = torch.tensor([own[place] for place in seen], device=clip.device)
                for kind, made in part.items():
                    whole = rows.setdefault(kind, torch.zeros(most, made.shape[1], device=clip.device))
                    whole[list(seen)] = made.to(clip.device)
        clip.train(modes[0])
        self.heads.train(modes[1])
        kept = gather_in_turn(kept)
        return {kind: gather_in_turn(found)[kept >= 0].nan_to_num() for kind, found in rows.items()}, kept[kept >= 0]

    def read_one(self, clip: CLIP, index: int) -> tuple[Tensor, str, dict[str, np.ndarray]] | None:
        """Pixels, text and the teacher's vector of a pair; None for one that the loader sets aside."""
        try:
            pair = self.pairs[index]
            pixels = clip.preprocess(pair.picture())
        except DiptychError:
            return None
        rng = np.random.default_rng([self.seed, self.now, index])
        return pixels, self.words(pair, rng)["text"], self.extra_of(pair, index)

    def read_texts(self, clip: CLIP) -> Tensor | None:
        """What a model that teaches says of all texts [pairs, size]; None where the pairs hold its vectors."""
        name = self.config.teacher
        if not name or name in self.pairs[0].extra:
            return None
        try:
            return text_vectors(load(name, str(clip.device)), self.pairs, COMPONENTS)
        except DiptychError as error:
            raise DiptychError(
                f'protoclip.teacher: the pairs\' extra holds no "{name}"; as a model: {error}'
            ) from error

    def extra_of(self, pair: PairLike, index: int) -> dict[str, np.ndarray]:
        if not (field := self.config.teacher):
            return {}
        if self.vectors is not None:
            return {"teacher": self.vectors[index].numpy()}
        if field not in pair.extra:
            raise DiptychError(f'{pair.id} has no extra["{field}"], the vector of the teacher')
        return {"teacher": np.asarray(pair.extra[field], np.float32).reshape(-1)}

    # -- the loss ------------------------------------------------------------------------------------------------------

    def labels(self, teacher: str, rows: Tensor, index: Tensor) -> Tensor:
        """The cluster of each pair [B]: of the reading, or the nearest one for a pair that was not read."""
        place = self.made["place"][index]
        near = nearest(rows, self.made[f"{teacher} centres"], 1)[0][:, 0]
        return torch.where(place >= 0, self.made[f"{teacher} labels"][place.clamp_min(0)], near)

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(self.heads, Heads)
        terms = super().loss(embeddings, clip, batch)
        if self.plain:
            with torch.no_grad():  # the norms of the heads get to know the rows that the first clusters are made of
                for kind in ("image", "text"):
                    self.heads.project(kind, embeddings[kind])
            return terms
        if int(self.made.get("episode", -1)) != self.now:
            self.begin(clip)
        rows = {kind: self.heads.project(kind, embeddings[kind]) for kind in ("image", "text")}
        both = [self.learn(a, b, rows, rows[b], batch) for a, b in (("image", "text"), ("text", "image"))]
        terms["prototypes"] = torch.stack(both).mean()
        if self.config.teacher:
            known = batch.extra["teacher"]
            both = [self.learn(kind, "teacher", rows, known, batch) for kind in ("image", "text")]
            terms["teacher"] = torch.stack(both).mean()
        return terms

    def learn(self, student: str, teacher: str, rows: Embeddings, known: Tensor, batch: Batch) -> Tensor:
        """The student's projections over its prototypes, against the teacher's clusters; a scalar.

        Soft targets lie in the teacher's space, logits in the student's; another model's clusters are hard targets.
        """
        assert isinstance(self.heads, Heads)
        targets = self.labels(teacher, known.detach(), batch.index)
        if self.config.temperature > 0 and teacher != "teacher":
            targets = prototype_targets(self.made[f"{teacher} centres"], targets, self.config.temperature)
        return prototype_cross_entropy(
            rows[student],
            self.made[f"{student} from {teacher}"],
            self.heads.log_scale.exp(),
            targets,
            present=self.made[f"{teacher} present"],
        )

    @torch.no_grad()
    def after_step(self, clip: CLIP) -> None:
        super().after_step(clip)
        assert isinstance(self.heads, Heads)
        self.heads.log_scale.clamp_(max=math.log(self.config.max_scale))

    def state(self) -> dict[str, Tensor]:
        return self.made

    def load_state(self, state: dict[str, Tensor]) -> None:
        device = self.heads.log_scale.device if isinstance(self.heads, Heads) else None
        self.made = {name: tensor.to(device) for name, tensor in state.items()}

    @classmethod
    def requirements(cls) -> dict[str, Any]:
        return super().requirements() | {"cost": "both towers, and both once more without gradients"}
