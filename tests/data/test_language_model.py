"""Language models: a server that is busy, breaks, talks or answers nonsense, its key; and a model on this machine."""

import json
from pathlib import Path
from typing import Any

import pytest

from diptych.data.descriptions import parse
from diptych.data.language_model import KEY, Endpoint, LocalModel, language_model
from diptych.errors import DiptychError

from .stand_in import Answer, StandIn, chat, completion, serving

SECRET = "sk-hush-hush"
NO_TEXT: Answer = (200, {"choices": [{"text": None}]}, {})


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)


class Script:
    """Answers one after the other; the last one again and again."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)

    def __call__(self, path: str, body: dict[str, Any]) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def endpoint(stand_in: StandIn, waited: list[float] | None = None, **options: Any) -> Endpoint:
    sleep = (lambda seconds: None) if waited is None else waited.append
    return Endpoint(f"{stand_in.address}/v1", sleep=sleep, **options)


def test_a_server_is_asked_without_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)
    with serving(StandIn(lambda *_: completion(" whiskers\n- fur"))) as server:
        model = language_model(f"{server.address}/v1/", "small")
        assert isinstance(model, Endpoint)
        assert parse(model.complete("which features tell a cat?\n-")) == ("whiskers", "fur")
    path, body, headers = server.seen[0]
    assert path == "/v1/completions" and headers["Authorization"] == f"Bearer {SECRET}"
    assert body == {"prompt": "which features tell a cat?\n-", "temperature": 0, "max_tokens": 100, "model": "small"}
    assert SECRET not in repr(model)


def test_sampling_is_the_prompts_own() -> None:
    with serving(StandIn(lambda *_: completion("x"))) as server:
        model = endpoint(server, temperature=0.9, top_p=0.95, stop="\n")
        for prompt in ("a", "b", "a"):
            model.complete(prompt)
    first, second, third = (body for _, body, _ in server.seen)
    assert first == third and first["seed"] != second["seed"]
    assert (first["top_p"], first["stop"]) == (0.95, ["\n"])


def test_a_server_that_only_talks_is_asked_for_completions_once() -> None:
    def respond(path: str, body: dict[str, Any]) -> Answer:
        return chat("Gladly:\n- whiskers\n- fur") if path.endswith("chat/completions") else (404, {}, {})

    with serving(StandIn(respond)) as server:
        model = endpoint(server)
        assert parse(model.complete("a cat?\n-")) == parse(model.complete("a cat?\n-")) == ("whiskers", "fur")
    assert [path.rpartition("v1/")[2] for path, _, _ in server.seen] == ["completions", *["chat/completions"] * 2]
    assert "Authorization" not in server.seen[0][2]


@pytest.mark.parametrize(
    "wrong",
    [
        (429, {}, {}),
        (503, b"<html>", {}),
        (200, b"{", {}),
        (200, {"no": "choices"}, {}),
        (200, [], {}),
        NO_TEXT,
    ],
    ids=["busy", "broken", "no JSON", "no choices", "a list", "no text"],
)
def test_what_passes_is_tried_again(wrong: Answer) -> None:
    waited: list[float] = []
    with serving(StandIn(Script(wrong, wrong, completion("fur")))) as server:
        assert endpoint(server, waited).complete("a cat?") == "fur"
    assert len(server.seen) == 3 and waited == [1.0, 2.0]


def test_a_server_says_how_long_to_wait() -> None:
    waited: list[float] = []
    busy = [(429, {}, {"Retry-After": word}) for word in ("7", "100000", "Wed, 21 Oct 2026 07:28:00 GMT")]
    with serving(StandIn(Script(*busy, completion("fur")))) as server:
        assert endpoint(server, waited).complete("a cat?") == "fur"
    assert waited == [7.0, 60.0, 4.0]


def test_what_stays_is_said_in_words() -> None:
    for wrong, words in (((429, {}, {}), "429"), (NO_TEXT, "no completion"), ((500, b"oh", {}), "oh")):
        said = pytest.raises(DiptychError, match=f"/v1 did not answer: .*{words}")
        with serving(StandIn(Script(wrong))) as server, said:
            endpoint(server, tries=3).complete("a cat?")
        assert len(server.seen) == 3


def test_a_refusal_is_final_and_no_key_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)
    refusal = Script((401, {"error": f"the key {SECRET} is not known"}, {}))
    with serving(StandIn(refusal)) as server, pytest.raises(DiptychError, match=KEY) as caught:
        endpoint(server).complete("a cat?")
    assert SECRET not in str(caught.value) and "is not known" in str(caught.value)
    assert len(server.seen) == 1


def test_the_key_follows_no_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)
    with serving(StandIn(lambda *_: completion("mine"))) as other:
        moved = Script((302, {}, {"Location": f"{other.address}/v1/completions"}))
        with serving(StandIn(moved)) as server, pytest.raises(DiptychError, match="302"):
            endpoint(server).complete("a cat?")
    assert not other.seen


def test_nobody_listens() -> None:
    waited: list[float] = []
    with pytest.raises(DiptychError, match=r"http://127\.0\.0\.1:9/v1 did not answer") as caught:
        Endpoint("http://me:word@127.0.0.1:9/v1", tries=2, sleep=waited.append).complete("a cat?")
    assert waited == [1.0] and "word" not in str(caught.value)


def small_model(folder: Path) -> set[str]:
    """A tiny random causal model in transformers' layout; -> its words."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["[END]", "[UNK]", "a", "cat", "has", "fur", "-"])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[END]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    config = transformers.GPT2Config(vocab_size=7, n_positions=256, n_embd=8, n_layer=1, n_head=1, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return set(vocabulary)


def test_a_local_model_completes(tmp_path: Path) -> None:
    words = small_model(tmp_path)
    model = language_model(str(tmp_path))
    assert isinstance(model, LocalModel)
    assert model.complete("a cat has") == model.complete("a cat has")
    assert set(model.complete("a cat has").split()) <= words
    sampled = LocalModel(tmp_path, temperature=0.9, top_p=0.95, length=12)
    assert sampled.complete("a cat has") == sampled.complete("a cat has") != sampled.complete("a cat")


def test_an_answer_ends_where_it_should(tmp_path: Path) -> None:
    small_model(tmp_path)
    free = LocalModel(tmp_path, temperature=5.0, length=60)
    said = free.complete("a cat has")
    assert "fur" in said.split()[:-1]
    stopped = LocalModel(tmp_path, temperature=5.0, length=60, stop="fur").complete("a cat has")
    assert stopped.split() == said.split()[: said.split().index("fur") + 1]


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(DiptychError, match="cannot open a language model at"):
        LocalModel(tmp_path).complete("a cat")


def test_what_is_a_language_model(tmp_path: Path) -> None:
    assert isinstance(language_model("http://x/v1"), Endpoint)
    assert language_model(str(tmp_path / "bank.json")) is None
    assert language_model("") is None
    assert isinstance(language_model("model.gguf"), LocalModel)


def test_prompts_reach_the_server_as_json() -> None:
    with serving(StandIn(lambda *_: completion("x"))) as server:
        endpoint(server).complete('a "cat"\nfür 猫')
    assert json.loads(json.dumps(server.prompts)) == ['a "cat"\nfür 猫']
