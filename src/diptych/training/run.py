"""`diptych.train`: from pairs to a trained CLIP. A run that was killed goes on where it was, with the same result."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.core.clip import CLIP
from diptych.core.device import choose_device
from diptych.core.forms import YES, forms
from diptych.core.save import save
from diptych.data.pairs import Pairs, read_pairs
from diptych.data.records import Records
from diptych.data.scan import SetAside
from diptych.engine.chunks import embed_in_chunks
from diptych.engine.distributed import gather, gather_embeddings
from diptych.engine.loop import Diverged, Loop, Step, processes
from diptych.engine.provenance import provenance
from diptych.errors import DiptychError
from diptych.files import write_atomically
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, PairsLike
from diptych.training.batches import Batches
from diptych.training.card import write_card
from diptych.training.evaluate import ZeroShot, zero_shot_on
from diptych.training.folder import Checkpoint, TrainingFolder
from diptych.training.plan import Plan, make_plan, matching

Row = dict[str, float]  # a line of metrics.csv


@dataclass(frozen=True)
class Trained:
    """What a run left. folder: its model/ opens with `diptych.load`; rows: of metrics.csv; forms: what the model can
    become, or why not (`core.forms`)."""

    folder: Path
    clip: CLIP
    rows: list[Row]
    set_aside: list[SetAside]
    forms: dict[str, str] = field(default_factory=dict)


def train(
    system: str = "clip",
    data: str | Path | PairsLike | None = None,
    *,
    model: str | CLIP = "ViT-B-16",
    out: str | Path = "run",
    settings: Mapping[str, Any] | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    batch: int | None = None,
    rate: float | None = None,
    workers: int = 2,
    device: str | None = None,
    seed: int = 0,
    save_every: int | None = None,
    evaluate: str | Path | Records | None = None,
    eval_every: int | None = None,
    check: bool = False,
    image_column: str | None = None,
    text_columns: Sequence[str] | None = None,
    progress: Callable[[Row, Plan], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Trained:
    """Train a CLIP on pairs of pictures and texts with a system of the `pretrain` family.

    data: what `read_pairs` reads, or pairs by number. model: an architecture of open_clip (fresh weights), or what
    `diptych.load` opens, to go on from. settings: "<system>.<field>" and "recipe.<field>". evaluate: a class folder
    or labelled records for zero-shot accuracy every `eval_every` steps. check: overfit 32 pairs first, and `say`
    whether they can be learned. The same call on the same `out` continues a run that was stopped. Raises DiptychError,
    and Diverged where training breaks.
    """
    if data is None:
        raise DiptychError("train needs data: shards, a folder of pictures with texts, a table or a dataset folder")
    pairs: PairsLike = (
        read_pairs(data, image_column=image_column, text_columns=text_columns)
        if isinstance(data, (str, Path))
        else data
    )
    plan = make_plan(
        system,
        len(pairs),
        settings or {},
        steps=steps,
        epochs=epochs,
        batch=batch,
        rate=rate,
        seed=seed,
        save_every=save_every,
        eval_every=eval_every,
    )
    where = choose_device(device)
    if where == "cuda" and processes() > 1:
        where = f"cuda:{os.environ['LOCAL_RANK']}"
    clip = open_model(model, seed)
    identity = plan.identity() | {"model": model if isinstance(model, str) else clip.fingerprint, "data": digest(pairs)}
    folder = TrainingFolder(Path(out), identity)
    leads = rank_and_world()[0] == 0
    if leads:
        folder.open()
    judge = zero_shot_on(evaluate) if evaluate is not None and leads else None
    if check and not folder.steps():
        from diptych.training.check import overfit

        verdict = overfit(clip.to(where), pairs, plan)
        (say or print)(verdict)
    with torch.random.fork_rng(devices=[]):
        return Run(plan, clip.to(where), pairs, folder, workers, judge).go(progress)


def open_model(model: str | CLIP, seed: int) -> CLIP:
    """Fresh weights for an architecture; what is there otherwise."""
    from diptych.core.fresh import fresh
    from diptych.core.load import load

    if isinstance(model, CLIP):
        return model
    path = Path(model).expanduser()
    is_architecture = path.suffix == ".json" or not (path.exists() or ":" in model or model == "mini")
    return fresh(model, seed) if is_architecture else load(model, device="cpu")


def digest(pairs: PairsLike) -> str:
    """What tells these pairs from others: the files, or the texts of a few pairs."""
    if isinstance(pairs, Pairs):
        return pairs.digest
    some = [pairs[i] for i in range(0, len(pairs), max(1, len(pairs) // 16))]
    about = [pairs.source, len(pairs), [(pair.id, pair.texts) for pair in some]]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


@dataclass
class Run:
    """One run: its parts, and the steps."""

    plan: Plan
    clip: CLIP
    pairs: PairsLike
    folder: TrainingFolder | None
    workers: int = 0
    judge: ZeroShot | None = None
    batches: Batches = field(init=False)
    loop: Loop = field(init=False)
    trainable: dict[str, Tensor] = field(init=False)
    average: dict[str, Tensor] = field(init=False)
    seen: tuple[Batch, list[str], Embeddings] | None = None

    def __post_init__(self) -> None:
        plan, objective = self.plan, self.plan.objective
        torch.manual_seed(plan.order.seed)
        objective.prepare(self.clip, self.pairs, plan.order.seed)
        if objective.heads is not None:
            objective.heads.to(self.clip.device)
        self.trainable = self.choose()
        self.batches = Batches(
            self.pairs, self.clip, objective, plan.order, plan.recipe.crop, self.workers, rank_and_world()
        )
        self.loop = Loop(
            self.trainable,
            plan.optimiser(),
            plan.steps,
            groups=plan.groups(self.trainable),
            schedule=plan.schedule(),
            clip=plan.recipe.clip or None,
            strict=False,
        )
        self.average = {n: t.detach().clone() for n, t in self.trainable.items()} if plan.recipe.ema else {}

    def choose(self) -> dict[str, Tensor]:
        """All parameters of the CLIP and the heads, but those that the recipe freezes."""
        named = dict(self.clip.named_parameters())
        heads = self.plan.objective.heads
        named |= {f"heads.{name}": p for name, p in heads.named_parameters()} if heads is not None else {}
        frozen = set(matching(named, self.plan.recipe.freeze, "freeze"))
        for name, parameter in named.items():
            parameter.requires_grad_(name not in frozen)
        found: dict[str, Tensor] = {name: p for name, p in named.items() if p.requires_grad}
        if not found:
            raise DiptychError("recipe.freeze leaves nothing to train")
        return found

    # -- one step ------------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch, ids: list[str]) -> dict[str, Tensor]:
        """The terms of one batch. Dropout draws from (seed, step, process) alone."""
        plan, objective, chunk = self.plan, self.plan.objective, self.plan.recipe.chunk
        rank, world = self.batches.share
        torch.manual_seed(hash((plan.order.seed, batch.step, rank)) & 0x7FFFFFFF)
        phase = objective.phase(batch.step, plan.steps)
        if chunk and chunk < len(batch):
            parts = [batch.rows(slice(i, i + chunk)) for i in range(0, len(batch), chunk)]
            embeddings = embed_in_chunks(lambda part: objective.embed(self.clip, part), parts)
        else:
            embeddings = objective.embed(self.clip, batch)
        self.seen = (batch, ids, embeddings)
        if world > 1:
            embeddings, batch = gathered(embeddings, batch)
        terms = objective.loss(embeddings, self.clip, batch)
        return {k: v for k, v in terms.items() if phase.terms is None or k in phase.terms}

    def step(self, step: int, batch: Batch, ids: list[str]) -> Step:
        """One update of the weights."""
        objective = self.plan.objective
        self.hold(objective.phase(step, self.plan.steps).trains)
        batch = to(batch, self.clip.device)
        try:
            done = self.loop.step(step, lambda _: self.loss(batch, ids))
        except Diverged as error:
            raise self.diverged(error) from error
        objective.after_step(self.clip)
        if self.average:
            with torch.no_grad():
                torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                    list(self.average.values()), list(self.trainable.values()), 1 - self.plan.recipe.ema
                )
        self.seen = None
        return done

    def hold(self, patterns: tuple[str, ...]) -> None:
        """Only parameters that a pattern of the phase fits move."""
        moving = set(self.trainable if patterns == ("*",) else matching(self.trainable, ",".join(patterns), "freeze"))
        for name, parameter in self.trainable.items():
            parameter.requires_grad_(name in moving)

    def diverged(self, error: Diverged) -> Diverged:
        """The error with the pairs of the batch and the first tensor that is no number."""
        if self.seen is None:
            return error
        batch, ids, embeddings = self.seen
        tensors = {
            **{f"pixels of {ids[row]}": pixels for row, pixels in enumerate(batch.pixels)},
            **{f"parameter {name}": tensor for name, tensor in self.trainable.items()},
            **{f"the {name} embedding": rows for name, rows in embeddings.items()},
        }
        culprit = next((name for name, tensor in tensors.items() if not bool(tensor.detach().isfinite().all())), None)
        where = ""
        if self.folder is not None:
            place = self.folder.path / "broken.json"
            about = {"error": str(error), "tensor": culprit, "pairs": ids}
            write_atomically(place, json.dumps(about, indent=1).encode())
            where = f"; all {len(ids)} are in {place}"
        first = f"; the first tensor that is no number: {culprit}" if culprit else ""
        return Diverged(f"{error}{first}; pairs of the batch: {', '.join(ids[:5])}{where}")

    # -- the whole run -------------------------------------------------------------------------------------------------

    def go(self, progress: Callable[[Row, Plan], None] | None) -> Trained:
        folder, plan = self.folder, self.plan
        assert folder is not None
        leads = self.batches.share[0] == 0
        found = folder.last()
        done = self.take_up(found) if found else 0
        rows = folder.begin(done) if leads else []
        spent = rows[-1]["seconds"] if rows else 0.0
        start = last = time.perf_counter()
        self.clip.train()
        with writers(folder.path) if leads else contextlib.nullcontext([]) as loggers:
            for step, (batch, ids) in enumerate(self.batches.run(done, plan.steps), done):
                made = self.step(step, batch, ids)
                now = time.perf_counter()
                row = self.row(step, made) | {"samples_per_second": plan.order.batch / (now - last)}
                last = now
                finished = step + 1
                if leads and self.judge and (finished % plan.look == 0 or finished == plan.steps):
                    row["accuracy"] = self.judge.accuracy(self.clip)
                    last = time.perf_counter()
                row["seconds"] = spent + time.perf_counter() - start
                if leads:
                    rows.append(row)
                    folder.log(row)
                    for log in loggers:
                        log(row)
                    if progress:
                        progress(row, plan)
                    if finished % plan.save == 0 or finished == plan.steps:
                        folder.save(finished, self.tensors(), self.state())
        return self.finish(rows) if leads else Trained(folder.path, self.clip, [], [])

    def row(self, step: int, made: Step) -> Row:
        epoch = (step + 1) / self.plan.order.steps_per_epoch
        scale = float(self.clip.logit_scale.detach())
        about = {"temperature": scale, "gradient_norm": made.norm, "rate": made.rate}
        return {"step": step + 1, "epoch": epoch, "loss": made.loss, **made.terms, **about}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""
        heads = self.plan.objective.heads
        parts: dict[str, Mapping[str, Tensor]] = {
            "clip": self.clip.state_dict(),
            "heads": heads.state_dict() if heads is not None else {},
            "objective": self.plan.objective.state(),
            "optimiser": self.loop.state(),
            "average": self.average,
        }
        return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def state(self) -> dict[str, Any]:
        return {"set_aside": [(i, one.id, one.reason) for i, one in sorted(self.batches.set_aside.items())]}

    def take_up(self, found: Checkpoint) -> int:
        """Go on from a checkpoint; -> the steps that are done."""
        heads = self.plan.objective.heads
        self.clip.load_state_dict(found.part("clip"))
        if heads is not None:
            heads.load_state_dict(found.part("heads"))
        self.plan.objective.load_state(found.part("objective"))
        self.loop.load_state(found.part("optimiser"))
        for name, tensor in found.part("average").items():
            self.average[name].copy_(tensor)
        self.batches.set_aside |= {i: SetAside(one, why) for i, one, why in found.state["set_aside"]}
        return found.step

    def finish(self, rows: list[Row]) -> Trained:
        """The final model, and the report."""
        from diptych.training.pages import write_report

        folder, clip = self.folder, self.clip
        assert folder is not None
        with torch.no_grad():
            for name, tensor in self.average.items():
                self.trainable[name].copy_(tensor)
        clip.__dict__.pop("fingerprint", None)  # its weights are others now
        clip.eval().requires_grad_(False)
        can = forms(clip)
        save(clip, folder.path / "model", layout="open_clip" if can["open_clip"] == YES else "diptych")
        left_out = [name for name, _ in self.plan.objective.heads.named_children()] if self.plan.objective.heads else []
        write_card(folder.path / "model", self.plan.objective.system(), can, left_out)
        aside = [*getattr(self.pairs, "set_aside", ()), *self.batches.set_aside.values()]
        about = folder.identity | provenance() | {"can become": can}
        write_report(folder.path / "report.html", self.plan, self.pairs.source, len(self.pairs), rows, aside, about)
        return Trained(folder.path, clip, rows, aside, can)


def to(batch: Batch, device: torch.device) -> Batch:
    texts = {role: tokens.to(device) for role, tokens in batch.texts.items()}
    extra = {name: tensor.to(device) for name, tensor in batch.extra.items()}
    pixels = batch.pixels.pin_memory() if device.type == "cuda" else batch.pixels
    return Batch(batch.index.to(device), pixels.to(device, non_blocking=True), texts, extra, batch.step)


def rank_and_world() -> tuple[int, int]:
    return int(os.environ.get("RANK", "0")), processes()


def gathered(embeddings: Embeddings, batch: Batch) -> tuple[Embeddings, Batch]:
    """Rows of all processes; every process then has the loss of the whole batch."""
    extra = {name: gather(rows) for name, rows in batch.extra.items()}
    whole = replace(batch, index=gather(batch.index), extra=extra)
    return gather_embeddings(embeddings, with_gradient=False), whole


@contextlib.contextmanager
def writers(folder: Path) -> Iterator[list[Callable[[Row], None]]]:
    """Where metrics go beside metrics.csv: TensorBoard where it is installed, W&B where a project is named."""
    import importlib.util

    loggers: list[Callable[[Row], None]] = []
    with contextlib.ExitStack() as stack:
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            board = stack.enter_context(SummaryWriter(str(folder / "tensorboard")))

            def to_board(row: Row) -> None:
                for name, value in row.items():
                    board.add_scalar(name, value, int(row["step"]))

            loggers.append(to_board)
        if os.environ.get("WANDB_PROJECT") and importlib.util.find_spec("wandb"):
            import wandb

            run: Any = stack.enter_context(wandb.init(dir=str(folder), name=folder.name))
            loggers.append(lambda row: run.log(row, step=int(row["step"])))
        yield loggers
