"""`diptych.train`: from pairs to a trained CLIP. A run that was killed goes on where it was, with the same result."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diptych.core.clip import CLIP
from diptych.core.device import choose_device
from diptych.data.mixture import mixture_of
from diptych.data.pairs import Pairs, read_pairs
from diptych.data.records import Records
from diptych.data.scan import SetAside
from diptych.engine.chunks import embed_in_chunks
from diptych.engine.distributed import gather, gather_embeddings, of_first, others_may_be_gone, own_rows
from diptych.engine.loop import Diverged, Loop, Runtime, Step, processes, runtime
from diptych.engine.provenance import provenance
from diptych.engine.sharding import blank, is_sharded, local, part_of, shard, whole
from diptych.engine.sharding import load as load_parts
from diptych.errors import DiptychError
from diptych.files import write_atomically
from diptych.losses.contrastive import groups_of
from diptych.methods.pretrain.parts.objective import Batch, Embeddings, PairsLike
from diptych.methods.pretrain.parts.patches import need_patches, random_patches
from diptych.training.base import open_model
from diptych.training.batches import Batches
from diptych.training.broken import first_broken
from diptych.training.evaluate import ZeroShot, zero_shot_on
from diptych.training.folder import Checkpoint, TrainingFolder
from diptych.training.held_out import hold_out
from diptych.training.outcome import Row, Trained, write_model
from diptych.training.plan import Plan, find_objective, make_plan, matching
from diptych.training.writers import Writer, writers

Strategy = Literal["ddp", "fsdp"]
HELD = 10  # at most one pair in so many is held out for a system that wants it


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
    strategy: Strategy = "ddp",
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
    whether they can be learned. strategy: with several processes (torchrun), "ddp" has the whole model in each, "fsdp"
    a part. The same call on the same `out` continues a run that was stopped, in any number of processes; the result is
    the first process's. Raises DiptychError, and Diverged where training breaks.
    """
    if data is None:
        raise DiptychError("train needs data: shards, a folder of pictures with texts, a table or a dataset folder")
    pairs: PairsLike = (
        read_pairs(data, image_column=image_column, text_columns=text_columns)
        if isinstance(data, (str, Path))
        else data
    )
    identified, held, count = digest(pairs), None, min(find_objective(system).held_out, len(pairs) // HELD)
    if count > 1:
        pairs, held = hold_out(pairs, count, seed)
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
    if strategy not in ("ddp", "fsdp"):
        raise DiptychError(f'strategy cannot be "{strategy}"; valid: ddp, fsdp')
    if strategy == "fsdp" and processes() == 1:
        raise DiptychError("--strategy fsdp shares the model out among processes: give --devices or --nodes too")
    if plan.order.batch % processes():
        even = plan.order.batch - plan.order.batch % processes()
        raise DiptychError(f"--batch {plan.order.batch} is no multiple of the {processes()} processes; {even} would be")
    where = choose_device(device)
    if where == "cuda" and processes() > 1:
        where = f"cuda:{os.environ['LOCAL_RANK']}"
    plan.objective.held = held
    clip = open_model(model, seed)
    identity = plan.identity() | {"model": model if isinstance(model, str) else clip.fingerprint, "data": identified}
    if isinstance(data, (str, Path)) and (sources := mixture_of(data)):
        identity["sources"] = sources
    folder = TrainingFolder(Path(out), identity)
    leads = rank_and_world()[0] == 0
    if leads:
        folder.refuse_others()
    judge = zero_shot_on(evaluate) if evaluate is not None and (leads or strategy == "fsdp") else None
    if check and not folder.steps():
        from diptych.training.check import overfit

        verdict = overfit(clip.to(where), pairs, plan)
        (say or print)(verdict)
    with torch.random.fork_rng(devices=[]), others_may_be_gone():
        return Run(plan, clip.to(where), pairs, folder, workers, judge, strategy).go(progress)


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
    strategy: Strategy = "ddp"
    batches: Batches = field(init=False)
    loop: Loop = field(init=False)
    trainable: dict[str, Tensor] = field(init=False)
    average: dict[str, Tensor] = field(init=False)
    result: CLIP = field(init=False)  # what takes the whole weights at the end
    moving: set[str] | None = None
    seen: tuple[Batch, list[str]] | None = None

    def __post_init__(self) -> None:
        plan, objective = self.plan, self.plan.objective
        engine = runtime(self.clip.device)
        torch.manual_seed(plan.order.seed)
        if self.strategy == "fsdp" and objective.reshapes:
            raise DiptychError(f"{objective.system()} cuts its model as it goes, as --strategy fsdp cannot; use ddp")
        objective.prepare(self.clip, self.pairs, plan.order.seed)
        if objective.heads is not None:
            objective.heads.to(self.clip.device)
        if plan.recipe.patch_dropout:
            need_patches(self.clip)
        if plan.recipe.checkpoint:
            self.clip.image.set_checkpoint()
            self.clip.text.set_checkpoint()
        self.trainable = self.choose()
        self.result = self.clip
        if self.strategy == "fsdp":
            self.result = blank(self.clip)
            shard(self.clip)
            self.trainable = self.choose()  # the same names, now of parts
        self.batches = Batches(
            self.pairs, self.clip, objective, plan.order, plan.recipe.crop, self.workers, rank_and_world()
        )
        self.loop = self.new_loop(engine)

    def new_loop(self, engine: Runtime) -> Loop:
        """The optimiser's beginning, and that of the average of the weights."""
        plan = self.plan
        self.average = {n: t.detach().clone() for n, t in self.trainable.items()} if plan.recipe.ema else {}
        return Loop(
            self.trainable, plan.optimiser(), plan.steps, groups=plan.groups(self.trainable), schedule=plan.schedule(),
            clip=plan.recipe.clip or None, strict=False, run=engine,
        )  # fmt: skip

    def reshaped(self) -> None:
        """The CLIP or the heads have other parameters now: the optimiser starts afresh on them."""
        if self.plan.objective.heads is not None:
            self.plan.objective.heads.to(self.clip.device)
        self.trainable = self.choose()
        self.loop = self.new_loop(self.loop.run)

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
        """The terms of one batch."""
        objective = self.plan.objective
        phase = objective.phase(batch.step, self.plan.steps)
        self.seen = (batch, ids)
        embeddings = self.embed(batch)
        if self.batches.share[1] > 1 and not objective.per_process:
            embeddings, batch = gathered(embeddings, batch)
        if self.plan.recipe.repeats:
            keys = (batch.index,) if batch.text_ids is None else (batch.index, batch.text_ids)
            batch = replace(batch, same=groups_of(*keys))
        try:
            terms = objective.loss(embeddings, self.clip, batch)
        except RuntimeError as error:
            if self.strategy == "fsdp" and "DTensor" in str(error):
                raise DiptychError(
                    f"{objective.system()} uses a tower's weights in its loss, and with --strategy fsdp no process has "
                    "them whole; use ddp"
                ) from error
            raise
        return {k: v for k, v in terms.items() if phase.terms is None or k in phase.terms}

    def embed(self, batch: Batch) -> Embeddings:
        """This process's rows. Dropout draws from (seed, step, process) alone."""
        recipe, seed = self.plan.recipe, self.plan.order.seed
        torch.manual_seed(hash((seed, batch.step, self.batches.share[0])) & 0x7FFFFFFF)

        def embed(part: Batch) -> Embeddings:
            if not recipe.patch_dropout:
                return self.plan.objective.embed(self.clip, part)
            with random_patches(self.clip, 1 - recipe.patch_dropout, seed, part):
                return self.plan.objective.embed(self.clip, part)

        if not 0 < recipe.chunk < len(batch):
            return embed(batch)
        starts = range(0, len(batch), recipe.chunk)
        return embed_in_chunks(embed, [batch.rows(slice(i, i + recipe.chunk)) for i in starts])

    def step(self, step: int, batch: Batch, ids: list[str]) -> Step:
        """One update of the weights."""
        objective = self.plan.objective
        if objective.reshape(self.clip, step, self.plan.steps):
            self.reshaped()
        self.hold(objective.phase(step, self.plan.steps).trains)
        batch = to(batch, self.clip.device)
        try:
            done = self.loop.step(step, lambda _: self.loss(batch, ids), self.moving)
        except Diverged as error:
            raise self.diverged(error) from error
        objective.after_step(self.clip)
        if self.average:
            averages, weights = ([local(t) for t in held.values()] for held in (self.average, self.trainable))
            with torch.no_grad():
                torch._foreach_lerp_(averages, weights, 1 - self.plan.recipe.ema)  # pyright: ignore[reportPrivateImportUsage]
        self.seen = None
        return done

    def hold(self, patterns: tuple[str, ...]) -> None:
        """Only parameters that a pattern of the phase fits move."""
        if patterns == ("*",):
            moving = set(self.trainable)
        else:
            moving = set(matching(self.trainable, ",".join(patterns), "freeze"))
        if self.strategy == "fsdp":  # whether a sharded parameter wants a gradient is settled at its first use
            self.moving = moving
            return
        for name, parameter in self.trainable.items():
            parameter.requires_grad_(name in moving)

    def diverged(self, error: Diverged) -> Diverged:
        """The error with the pairs of the batch and the first tensor that is no number."""
        if self.seen is None:
            return error
        batch, ids = self.seen
        pixels = dict(zip(ids, batch.pixels, strict=True))
        weights = dict(self.clip.named_parameters()) | self.trainable
        culprit = first_broken(pixels, weights, self.clip, lambda: self.embed(batch))
        where = ""
        if self.folder is not None:
            rank = self.batches.share[0]
            place = self.folder.path / (f"broken-{rank}.json" if rank else "broken.json")
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
        done = self.resume(folder)
        rows = [row for row in folder.rows() if row["step"] <= done] if leads else []
        spent = rows[-1]["seconds"] if rows else 0.0
        start = last = time.perf_counter()
        self.clip.train()
        with contextlib.ExitStack() as stack:
            loggers: list[Writer] = []
            for step, (batch, ids) in enumerate(self.batches.run(done, plan.steps), done):
                made = self.step(step, batch, ids)
                speed = plan.order.batch / (time.perf_counter() - last)
                if leads and step == done:  # nothing is written before a first step has been possible
                    folder.open()
                    folder.begin(done)
                    loggers = stack.enter_context(writers(folder.path, done, folder.identity))
                row = self.row(step, made) | {"samples_per_second": speed}
                finished = step + 1
                if self.judge and (finished % plan.look == 0 or finished == plan.steps):
                    row["accuracy"] = self.judge.accuracy(self.clip)
                row["seconds"] = spent + time.perf_counter() - start
                if leads:
                    rows.append(row)
                    folder.log(row)
                    for log in loggers:
                        log(row)
                    if progress:
                        progress(row, plan)
                if finished % plan.save == 0 or finished == plan.steps:
                    self.save(folder, finished)
                last = time.perf_counter()
        return self.finish(rows)

    def save(self, folder: TrainingFolder, finished: int) -> None:
        """A checkpoint, by the first process."""
        leads = self.batches.share[0] == 0
        if leads or self.strategy == "fsdp":
            tensors = self.tensors()
            if leads:
                folder.save(finished, tensors, self.state())

    def resume(self, folder: TrainingFolder) -> int:
        """Go on from the last checkpoint; -> the steps that are done, the same in all processes."""
        found = folder.last()
        done = int(of_first(torch.tensor(found.step if found else 0, device=self.clip.device)))
        if done != (found.step if found else 0):
            raise DiptychError(
                f"the first process goes on from step {done}, which {folder.checkpoints} does not have here: --out "
                "must lie where all machines see it"
            )
        return self.take_up(found) if found else 0

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
        leads, found = self.batches.share[0] == 0, {}
        for part, tensors in parts.items():
            for name, tensor in tensors.items():
                full = whole(tensor)
                if leads:
                    found[f"{part}.{name}"] = full.cpu() if is_sharded(tensor) else full
        return found

    def state(self) -> dict[str, Any]:
        return {"set_aside": [(i, one.id, one.reason) for i, one in sorted(self.batches.set_aside.items())]}

    def take_up(self, found: Checkpoint) -> int:
        """Go on from a checkpoint; -> the steps that are done."""
        if self.plan.objective.rebuild(self.clip, found.part("objective")):
            self.reshaped()
        heads = self.plan.objective.heads
        load_parts(self.clip, found.part("clip"))
        if heads is not None:
            heads.load_state_dict(found.part("heads"))
        self.plan.objective.load_state(found.part("objective"))
        self.loop.load_state(found.part("optimiser"))
        for name, tensor in found.part("average").items():
            self.average[name] = part_of(tensor, self.average[name])
        self.batches.set_aside |= {i: SetAside(one, why) for i, one, why in found.state["set_aside"]}
        return found.step

    def finish(self, rows: list[Row]) -> Trained:
        """The final model, and the report, by the first process."""
        from diptych.training.pages import write_report

        folder, clip = self.folder, self.result
        assert folder is not None
        with torch.no_grad():
            for name, tensor in self.average.items():
                local(self.trainable[name]).copy_(local(tensor))
        if clip is not self.clip:
            full = {name: whole(tensor) for name, tensor in self.clip.state_dict().items()}
            clip.load_state_dict(full, assign=True)
        if self.batches.share[0] != 0:
            return Trained(folder.path, clip, [], [])
        aside = [*getattr(self.pairs, "set_aside", ()), *self.batches.set_aside.values()]
        made = write_model(self.plan.objective, clip, folder.path, rows, aside, self.clip.cuts)
        about = folder.identity | provenance() | {"can become": made.forms}
        write_report(folder.path / "report.html", self.plan, self.pairs.source, len(self.pairs), made, about)
        return made


def to(batch: Batch, device: torch.device) -> Batch:
    texts = {role: tokens.to(device) for role, tokens in batch.texts.items()}
    extra = {name: tensor.to(device) for name, tensor in batch.extra.items()}
    pixels = batch.pixels.pin_memory() if device.type == "cuda" else batch.pixels
    ids = None if batch.text_ids is None else batch.text_ids.to(device)
    return Batch(batch.index.to(device), pixels.to(device, non_blocking=True), texts, extra, batch.step, ids)


def rank_and_world() -> tuple[int, int]:
    return int(os.environ.get("RANK", "0")), processes()


def gathered(embeddings: Embeddings, batch: Batch) -> tuple[Embeddings, Batch]:
    """Rows of all processes, and which are this one's; losses of all rows and of own ones get the right gradients."""
    extra = {name: gather(rows) for name, rows in batch.extra.items()}
    texts = None if batch.text_ids is None else gather(batch.text_ids)
    everyone = replace(batch, index=gather(batch.index), extra=extra, text_ids=texts, own=own_rows(len(batch)))
    return gather_embeddings(embeddings), everyone
