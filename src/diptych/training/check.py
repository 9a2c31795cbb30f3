"""Can it work at all? A few pairs are learned by heart before the long run."""

from copy import deepcopy
from dataclasses import dataclass, replace

from PIL import Image

from diptych.core.clip import CLIP
from diptych.data.pairs import BadPair, Pair
from diptych.data.pictures import BadPicture
from diptych.engine.loop import Diverged, processes
from diptych.errors import DiptychError
from diptych.methods.pretrain.parts.objective import PairsLike
from diptych.training.batches import Order
from diptych.training.plan import Plan

PAIRS, STEPS = 32, 60
LEARNED = 0.5  # share of the first loss that a loss which can be learned falls below


@dataclass(frozen=True)
class Few:
    """A few pairs with their pictures at hand."""

    source: str
    items: list[Pair]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Pair:
        return self.items[index]


def overfit(clip: CLIP, pairs: PairsLike, plan: Plan) -> str:
    """Learn 32 pairs by heart at the rate of the plan, and at a tenth and ten times of it where that fails.

    -> what was found, in words. Raises DiptychError where they cannot be learned at any of the rates. The model and
    the objective stay as they are.
    """
    few = first_pairs(pairs)
    few = Few(few.source, few.items[: len(few) - len(few) % processes()])
    texts = len({pair.texts for pair in few.items})
    pictures = len({pair.picture().tobytes() for pair in few.items})
    about = f"{len(few)} pairs with {texts} different texts and {pictures} different pictures"
    tried: list[str] = []
    for share in (1.0, 0.1, 10.0):
        rate = plan.recipe.rate * share
        try:
            first, last = learn(clip, few, plan, rate)
        except Diverged as error:
            tried.append(f"at rate {rate:.2g} {error}")
            continue
        tried.append(f"at rate {rate:.2g} the loss went from {first:.3f} to {last:.3f}")
        if last < LEARNED * first:
            hint = "" if share == 1 else f"; use --rate {rate:.2g}"
            return f"check: {about} can be learned by heart in {STEPS} steps: {'; '.join(tried)}{hint}"
    why = "their texts or pictures repeat" if min(texts, pictures) < len(few) / 2 else "data, loss or model do not fit"
    raise DiptychError(f"check: {about} cannot be learned by heart ({why}): {'; '.join(tried)}")


def first_pairs(pairs: PairsLike) -> Few:
    """The first that can be used."""
    found: list[Pair] = []
    for number in range(len(pairs)):
        try:
            pair = pairs[number]
            found.append(Pair(pair.id, at_hand(pair.picture()), pair.texts, pair.extra))
        except (BadPair, BadPicture):
            continue
        if len(found) == PAIRS:
            break
    if len(found) < 2:
        raise DiptychError(f"check: {pairs.source} has fewer than two usable pairs")
    return Few(pairs.source, found)


def at_hand(image: Image.Image):
    return lambda: image


def learn(clip: CLIP, few: Few, plan: Plan, rate: float) -> tuple[float, float]:
    """(first, last) loss of some steps on copies."""
    from diptych.training.run import Run

    recipe = replace(plan.recipe, rate=rate, batch=len(few), crop=1.0, ema=0.0, cycles=1)
    order = Order(len(few), len(few), plan.order.seed)
    small = replace(plan, objective=deepcopy(plan.objective), recipe=recipe, order=order, steps=STEPS)
    run = Run(small, deepcopy(clip).train(), few, None)
    losses = [run.step(step, *run.batches[step]).loss for step in range(STEPS)]
    return losses[0], sum(losses[-5:]) / 5
