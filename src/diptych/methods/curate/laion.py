"""LAION: pictures with texts out of web archives, downloaded, filtered by a CLIP and scored.

Use it to make an open set of pairs from WAT or WARC files (Common Crawl's), from a table of addresses and captions, or
from shards that img2dataset wrote: it finds the pairs, drops what is short, repeated, refused by its site, broken or
small, keeps pictures that a CLIP finds described by their text, and adds scores of safety, watermark and, with a head,
beauty. Not for balancing what is there (`metaclip`), nor with the published thresholds on another model than OpenAI's
ViT-B/32: similarities have another scale in each, so give a share to keep (`keep`; LAION kept about a tenth) or values
of your own. Never publish links without the filters: LAION-5B was withdrawn and cleaned for that reason.

Schuhmann et al., LAION-5B, NeurIPS 2022 Datasets and Benchmarks, arXiv 2210.08402: 5.85 billion pairs out of some 50
billion candidates; CLIP ViT-L/14 trained on 2 billion of them has 75.3 % on ImageNet, OpenAI's 75.5 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diptych.errors import DiptychError
from diptych.methods.curate.parts.archives import Archives
from diptych.methods.curate.parts.clip_filter import ClipFilter, ClipShare, Screen
from diptych.methods.curate.parts.decode import Decode, Digest
from diptych.methods.curate.parts.dedup import SamePair, SamePicture, SameUrl
from diptych.methods.curate.parts.download import Download
from diptych.methods.curate.parts.embed import Embed
from diptych.methods.curate.parts.fetch import DIRECTIVES
from diptych.methods.curate.parts.join import Hashed
from diptych.methods.curate.parts.language import Language
from diptych.methods.curate.parts.pipeline import Pipeline, Source, Stage
from diptych.methods.curate.parts.scores import Aesthetic, Score, Toxic, Unsafe, Watermark
from diptych.methods.curate.parts.web_rules import ShortText, WebAddress


@dataclass(frozen=True)
class Config:
    """Published values; img2dataset's names where it has one.

    languages: streams or codes to keep; language: the least probability. blocked: a file of host names. url_error: of
    the Bloom filter. private: hosts of a private network that may be asked. min_bytes: of a file; min_image_size: of
    its shorter side; max_image_area and max_aspect_ratio: 0 is no limit. verify_hash: against the input's column of
    that name. keep: the share of each stream to keep by similarity, instead of the values; 0 goes by those. screen:
    remove forbidden categories. unsafe, watermark, toxic, aesthetic: a head ("prompts", a file; "" for none); prompts
    do not find watermarks.
    """

    min_text: int = 5
    language: float = 0.7
    languages: tuple[str, ...] = ("en", "other", "nolang")
    blocked: str = ""
    url_error: float = 1e-3

    thread_count: int = 64
    timeout: float = 10.0
    retries: int = 0
    user_agent_token: str = "diptych"
    disallowed_header_directives: tuple[str, ...] = DIRECTIVES
    max_bytes: int = 1 << 25
    private: tuple[str, ...] = ("",)

    compute_hash: str = "sha256"
    verify_hash: bool = False
    min_bytes: int = 5120
    min_image_size: int = 0
    max_image_area: int = 0
    max_aspect_ratio: float = 0.0
    resize_mode: str = "keep_ratio"
    image_size: int = 384
    resize_only_if_bigger: bool = True
    encode_quality: int = 95
    skip_reencode: bool = True
    extract_exif: bool = True

    model: str = "mini"
    english: float = 0.28
    others: float = 0.26
    keep: float = 0.0
    screen: bool = True
    unsafe: str = "prompts"
    punsafe: float = 0.5
    watermark: str = ""
    pwatermark: float = 0.8
    toxic: str = "prompts"
    toxicity: float = 0.5
    aesthetic: str = ""


class Laion(Pipeline):
    Config = Config
    needs = "web archives, addresses with texts, or pictures with texts"

    def stages(self, columns: Sequence[str], seed: int = 0) -> Sequence[Source | Stage]:
        c: Config = self.config
        archives = "archive" in columns
        if not archives and "text" not in columns:
            several = "; it has several a row, of which one must be chosen" if "texts" in columns else ""
            raise DiptychError(f"laion needs a column of texts{several}: name it with --text")
        if not archives and not {"url", "picture"} & set(columns):
            raise DiptychError("laion needs WAT or WARC files, a column `url` to download from, or pictures")
        web = archives or "url" in columns
        there = "picture" in columns
        return [
            *([Archives()] if archives else []),
            ShortText(c.min_text),
            *([WebAddress(c.blocked), SamePair()] if web else []),
            Language(c.language, given(c.languages)),
            *([SameUrl(c.url_error)] if web else []),
            *([] if there else [self.download(seed)]),
            Digest(c.compute_hash, c.verify_hash),
            self.decode(),
            SamePicture(c.compute_hash),
            Embed(c.model),
            ClipShare(c.keep) if c.keep else ClipFilter(c.english, c.others),
            *self.scores(),
            *([Hashed()] if web else []),
        ]

    def download(self, seed: int) -> Download:
        c: Config = self.config
        return Download(
            threads=c.thread_count,
            timeout=c.timeout,
            retries=c.retries,
            user_agent_token=c.user_agent_token,
            directives=given(c.disallowed_header_directives),
            most_bytes=c.max_bytes,
            allowed=given(c.private),
            seed=seed,
        )

    def decode(self) -> Decode:
        c: Config = self.config
        return Decode(
            min_bytes=c.min_bytes,
            min_side=c.min_image_size,
            max_area=c.max_image_area or math.inf,
            max_aspect=c.max_aspect_ratio or math.inf,
            mode=c.resize_mode,
            size=c.image_size,
            only_if_bigger=c.resize_only_if_bigger,
            quality=c.encode_quality,
            skip_reencode=c.skip_reencode,
            exif=c.extract_exif,
        )

    def scores(self) -> list[Stage]:
        """Each where there is a head for it."""
        c: Config = self.config
        found: list[Stage] = [Screen()] if c.screen else []
        found += [Unsafe(c.unsafe, c.punsafe)] if c.unsafe else []
        found += [Watermark(c.watermark, c.pwatermark)] if c.watermark else []
        found += [Toxic(c.toxic, c.toxicity)] if c.toxic else []
        found += [Aesthetic(c.aesthetic)] if c.aesthetic else []
        for stage in found:
            if isinstance(stage, Score):
                stage.check(c.model)  # before anything is downloaded
        return found


def given(words: Sequence[str]) -> tuple[str, ...]:
    """A setting that is an empty word is none."""
    return tuple(word for word in words if word)
