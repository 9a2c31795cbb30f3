"""All that is asked of a language model: what follows a prompt. By a model on this machine, or by a server."""

import json
import os
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from diptych.errors import DiptychError, missing_extra

LENGTH = 100  # tokens of an answer
KEY = "DIPTYCH_LLM_KEY"  # the environment's variable that holds a server's key
LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for
BUSY = (408, 409, 425, 429)  # answers of a server that may be asked again, as are those from 500


class LanguageModel(Protocol):
    def complete(self, prompt: str) -> str:
        """The text that follows the prompt; the same for the same prompt."""
        ...


@dataclass(frozen=True)
class LocalModel:
    """A causal language model of a folder (transformers layout) or a .gguf file; nothing is downloaded.

    temperature, top_p: of sampling, seeded by the prompt; 0 is greedy. length: tokens of an answer at most.
    stop: what an answer ends with, if anything.
    """

    path: Path
    temperature: float = 0.0
    top_p: float = 1.0
    length: int = LENGTH
    stop: str = ""

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        try:
            import transformers
        except ImportError as error:
            raise missing_extra("transformers", "huggingface", "a language model on this machine") from error
        folder, extra = self.path, {"local_files_only": True}
        if self.path.suffix == ".gguf":
            folder, extra = self.path.parent, {**extra, "gguf_file": self.path.name}
        from diptych.core.load import quiet

        try:
            with quiet(transformers):
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **extra)
                model = transformers.AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **extra)
        except (OSError, ValueError, ImportError) as error:
            raise DiptychError(f"cannot open a language model at {self.path}: {error}") from error
        return tokenizer, model.eval()

    def complete(self, prompt: str) -> str:
        import torch

        tokenizer, model = self.parts
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        how: dict[str, Any] = {"do_sample": False}
        if self.temperature:
            how = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        if self.stop:
            # transformers' own stop_strings fails on tokenizers whose words are no bytes

            def ended(made: Any, *_: Any, **__: Any) -> Any:
                return torch.tensor([self.stop in tokenizer.decode(made[0, ids.shape[1] :])], device=made.device)

            how["stopping_criteria"] = [ended]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(prompt.encode()))
            mask = torch.ones_like(ids)
            made = model.generate(ids, attention_mask=mask, max_new_tokens=self.length, pad_token_id=pad, **how)
        return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected request would carry the key to another server."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None


@dataclass
class Endpoint:
    """An OpenAI-compatible server, such as http://localhost:8080/v1. Its key is read from DIPTYCH_LLM_KEY, if set, and
    goes nowhere but into the request.

    temperature, top_p, length, stop: as those of `LocalModel`. tries: how often a prompt is sent when the server is
    busy, breaks or answers nonsense; pause: seconds before the second, doubled each time, where it does not say how
    long. talks: only chat is there (found out at the first prompt).
    """

    url: str
    model: str = ""
    timeout: float = 120.0
    temperature: float = 0.0
    top_p: float = 1.0
    length: int = LENGTH
    stop: str = ""
    tries: int = 6
    pause: float = 1.0
    talks: bool = False
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def complete(self, prompt: str) -> str:
        asked: dict[str, Any] = {"temperature": self.temperature, "max_tokens": self.length}
        if self.temperature:
            asked |= {"top_p": self.top_p, "seed": zlib.crc32(prompt.encode())}
        if self.stop:
            asked["stop"] = [self.stop]
        if self.model:
            asked["model"] = self.model
        if not self.talks:
            try:
                return self.ask("completions", asked | {"prompt": prompt}, lambda choice: choice["text"])
            except urllib.error.HTTPError as error:
                if error.code not in (400, 404, 405):
                    raise self.failed(error) from error
        try:
            talk = asked | {"messages": [{"role": "user", "content": prompt}]}
            said = self.ask("chat/completions", talk, lambda choice: choice["message"]["content"])
        except urllib.error.HTTPError as error:
            raise self.failed(error) from error
        self.talks = True
        return said[max(said.find("- "), 0) :] if prompt.endswith("-") else said  # a list without courtesies

    def ask(self, verb: str, body: dict[str, Any], text_of: Callable[[Any], Any]) -> str:
        """The text of the first choice. Raises HTTPError for a refusal, DiptychError when all tries came to nothing."""
        headers = {"Content-Type": "application/json"}
        if secret := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {secret}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/{verb}", json.dumps(body).encode(), headers)
        opener = urllib.request.build_opener(NoRedirect)
        for left in reversed(range(self.tries)):
            try:
                with opener.open(request, timeout=self.timeout) as answer:
                    text = text_of(json.load(answer)["choices"][0])
                if not isinstance(text, str):
                    raise TypeError(f"an answer of {type(text).__name__}")
                return text
            except urllib.error.HTTPError as error:
                if error.code < 500 and error.code not in BUSY:
                    raise
                if not left:
                    raise self.failed(error) from error
                wait = error.headers.get("Retry-After", "")
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                if not left:
                    raise self.failed(error) from error
                wait = ""
            backoff = self.pause * 2.0 ** (self.tries - 1 - left)
            self.sleep(min(float(wait) if wait.isdecimal() else backoff, LONGEST_WAIT))
        raise AssertionError("tries is at least 1")

    def failed(self, error: Exception) -> DiptychError:
        """The error in words, without the key, whatever the server repeats."""
        said = str(error)
        if isinstance(error, urllib.error.HTTPError):
            said = f"{said} {error.read(500).decode(errors='replace')}".strip()
            if error.code in (401, 403):
                said += f"; its key is read from {KEY}"
        elif isinstance(error, (ValueError, KeyError, IndexError, TypeError)):
            said = f"what it sent is no completion ({type(error).__name__}: {error})"
        if secret := os.environ.get(KEY):
            said = said.replace(secret, "...")
        return DiptychError(f"the language model at {plain(self.url)} did not answer: {said}")


def plain(url: str) -> str:
    """An address without a password in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def language_model(source: str, model: str = "") -> LanguageModel | None:
    """What `source` names, if it names a language model: an http(s) address, a folder or a .gguf file."""
    if source.startswith(("http://", "https://")):
        return Endpoint(source, model)
    path = Path(source).expanduser()
    return LocalModel(path) if source and (path.suffix == ".gguf" or path.is_dir()) else None
