"""Downloading the pictures that a table names: img2dataset's rules and names for them.

A failure is a row with a reason, never an error: `status` and `error_message` say what happened, as img2dataset's
tables do. Addresses of a batch are asked in an order drawn by chance, so that no site gets all of a thread's requests
in a row. See `fetch` for what is refused.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from diptych.methods.curate.parts.fetch import Manners, NoFile, fetch
from diptych.methods.curate.parts.pipeline import Counts, Place, Stage, Verdict, chance_of
from diptych.methods.curate.parts.vectors import with_column
from diptych.methods.curate.parts.web_rules import by_reason

SUCCESS, FAILED, UNUSABLE = "success", "failed_to_download", "failed_to_resize"
AGENT = "Mozilla/5.0 (compatible; {token}; image downloader)"


class Download(Stage):
    """Adds `picture`, the bytes as they came. Where a row's file did not come it is null."""

    name = "download"
    about = "what did not come, or may not be taken"
    needs = ("key", "url")
    adds = ("picture", "status", "error_message")

    def __init__(
        self,
        *,
        threads: int = 64,
        timeout: float = 10.0,
        retries: int = 0,
        user_agent_token: str = "diptych",
        directives: Sequence[str] = Manners.refused,
        most_bytes: int = Manners.most_bytes,
        allowed: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        """directives: of X-Robots-Tag, that are obeyed; allowed: hosts that may lie in a private network."""
        self.threads, self.retries, self.seed = threads, retries, seed
        agent = AGENT.format(token=user_agent_token)
        self.manners = Manners(agent, user_agent_token, tuple(directives), timeout, most_bytes, tuple(allowed))

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        urls = batch.column("url").to_pylist()
        order = np.argsort(chance_of(batch.column("key").to_pylist(), self.seed, self.name), kind="stable").tolist()
        with ThreadPoolExecutor(min(self.threads, max(1, len(urls)))) as pool:
            came = dict(zip(order, pool.map(self.get, [urls[n] for n in order]), strict=True))
        found = [came[n] for n in range(len(urls))]
        faults = [one if isinstance(one, NoFile) else None for one in found]
        files = [one if isinstance(one, bytes) else None for one in found]
        batch = with_column(batch, "picture", pa.array(files, pa.binary()))
        return by_reason(with_status(batch, faults, FAILED), [one.why if one else "" for one in faults])

    def get(self, url: str | None) -> bytes | NoFile:
        fault = NoFile("no address")
        for _ in range(self.retries + 1 if url else 0):
            assert url
            try:
                return fetch(url, self.manners)
            except NoFile as error:
                fault = error
        return fault


def with_status(batch: pa.RecordBatch, faults: Sequence[Exception | None], failed: str) -> pa.RecordBatch:
    """img2dataset's two columns."""
    status = pa.array([failed if fault else SUCCESS for fault in faults], pa.string())
    messages = pa.array([str(fault) if fault else None for fault in faults], pa.string())
    return with_column(with_column(batch, "status", status), "error_message", messages)
