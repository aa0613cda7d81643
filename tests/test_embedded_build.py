"""The build of the embedded judge: its training is that of the whole prompt, it is cached, reproducible and honest."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from reward_server.embedded import TrainingSettings, build, builder, report, training
from reward_server.embedded.corpus import Example, make
from reward_server.embedded.rules import RuleBook
from reward_server.judge.prompts import PromptTemplate
from reward_server.types import JudgeError
from tests.judge_support import TINY, prompt, tiny_judge

CAPTIONS = [
    "The door opens.",
    "It's a wall.",
    "g - a key named The Master Key of Thievery.",
    "",
    "ö \\ <x> [INST]",
    "a" * 90,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_judge(tmp_path_factory.mktemp("judge"))


def _loaded(folder: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_the_shared_prefix_computes_what_the_whole_prompt_does(folder: Path) -> None:
    import torch

    model, tokenizer = _loaded(folder)
    with torch.no_grad():  # norms start as ones, which would hide an error in them
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    data = builder.encode(tokenizer, prompt(), [Example(c, 0, "") for c in CAPTIONS])
    ids = builder.label_ids(tokenizer, prompt().template)
    found_B2 = training.label_logits(model, data.prefix, data.suffixes, ids)
    for caption, suffix, found in zip(CAPTIONS, data.suffixes, found_B2, strict=True):
        turns = [{"role": m.role, "content": m.content} for m in prompt().chat(caption)]
        whole = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        assert whole["input_ids"][0].tolist() == data.prefix + suffix
        expected = model(**whole).logits[0, -1, ids]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_reaches_the_prefix(folder: Path) -> None:
    import torch

    model, tokenizer = _loaded(folder)
    data = builder.encode(tokenizer, prompt(), [Example(c, 0, "") for c in CAPTIONS])
    ids = builder.label_ids(tokenizer, prompt().template)
    training.label_logits(model, data.prefix, data.suffixes, ids).sum().backward()
    fast = model.model.layers[0].self_attn.k_proj.weight.grad.clone()
    model.zero_grad()
    for suffix in data.suffixes:
        model(torch.tensor([data.prefix + suffix])).logits[0, -1, ids].sum().backward()
    torch.testing.assert_close(fast, model.model.layers[0].self_attn.k_proj.weight.grad, rtol=1e-3, atol=1e-5)


def test_the_folder_is_a_hugging_face_model_with_a_chat_template(folder: Path) -> None:
    model, tokenizer = _loaded(folder)
    assert model.config.model_type == "qwen3"
    assert (folder / "model.safetensors").is_file()
    assert tokenizer.chat_template
    for label in prompt().template.labels:
        assert len(tokenizer(label)["input_ids"]) == 1
    text = 'Straße "<x>" 日本 \\u003c 0123'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_build_is_found_again_and_not_made_twice(folder: Path) -> None:
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert tiny_judge(folder.parent) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert [p for p in folder.parent.iterdir() if p.is_dir()] == [folder]


def test_a_build_is_a_function_of_its_seed(folder: Path, tmp_path: Path) -> None:
    again = tiny_judge(tmp_path)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name
    other = build(tmp_path, settings=TINY, seed=1, held_size=20)
    assert other != again
    assert (other / "model.safetensors").read_bytes() != (again / "model.safetensors").read_bytes()


def test_the_digest_follows_all_that_matters(monkeypatch) -> None:
    base = builder.build_digest(0, TINY)
    assert builder.build_digest(0, TINY) == base
    assert builder.build_digest(1, TINY) != base
    assert builder.build_digest(0, replace(TINY, steps=3)) != base
    template = PromptTemplate.load()
    changed = replace(template, data={**template.data, "system": "You judge otherwise."})
    monkeypatch.setattr(PromptTemplate, "load", classmethod(lambda cls, name="": changed))
    assert builder.build_digest(0, TINY) != base


def test_a_build_that_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    unfinished = tmp_path / f"embedded-{builder.build_digest(0, TINY)}"
    unfinished.mkdir()
    (unfinished / "config.json").write_text("{")
    assert report(tiny_judge(tmp_path))["digest"] == builder.build_digest(0, TINY)


def test_processes_that_ask_at_once_build_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        stamps = pool.map(_build_and_stamp, [str(tmp_path)] * 2)
    assert stamps[0] == stamps[1]


def _build_and_stamp(folder: str) -> int:
    return (tiny_judge(Path(folder)) / "model.safetensors").stat().st_ino


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(JudgeError, match=r"file.*judge\.cache_dir"):
        tiny_judge(blocker / "below")


def test_the_report_counts_right(folder: Path) -> None:
    facts = report(folder)
    assert facts["prompt_version"] == PromptTemplate.load().version
    assert facts["agreement"]["overall"]["messages"] == sum(
        v["messages"] for k, v in facts["agreement"].items() if k != "overall"
    )
    judged = [(1, True), (1, False), (0, True), (0, True), (0, True), (0, False)]
    found = builder._agreement(judged)
    assert (found.messages, found.recall_helpful, found.recall_unhelpful) == (6, 0.5, 0.75)
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.balanced_accuracy == pytest.approx(0.625)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_real_judge_agrees_with_the_rules_on_messages_it_never_saw() -> None:
    folder = build(".cache/judge")
    facts = report(folder)
    assert 1_000_000 < facts["parameters"] < 10_000_000
    for name, part in facts["agreement"].items():
        assert part["messages"] >= 300, name
        assert part["accuracy"] >= 0.95, (name, part)
    assert facts["agreement"]["overall"]["balanced_accuracy"] >= 0.95
    # Not taken from the report: the served model against the rules, on fresh messages.
    model, tokenizer = _loaded(folder)
    book = RuleBook.load()
    examples = make(book, seed=99, train_size=0, held_size=400).held_out["unseen_values"]
    data = builder.encode(tokenizer, prompt(), examples)
    found = training.probabilities(model, data.prefix, data.suffixes, builder.label_ids(tokenizer, prompt().template))
    hits = [(p > 0.5) == (book.label(e.text).label == 1) for p, e in zip(found, examples, strict=True)]
    assert sum(hits) / len(hits) >= 0.95
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]


def test_training_learns() -> None:
    """Cross-entropy on a two-word language falls well below chance within a hundred steps."""
    settings = TrainingSettings(
        steps=100,
        batch_size=16,
        warmup=5,
        hidden_size=32,
        layers=2,
        heads=2,
        key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
    )
    model = training.new_model(settings, 64, 1, 0, seed=0)
    data = training.Encoded([5, 6, 7, 8], [[10 + i % 2, 20 + i % 7] for i in range(64)], [i % 2 for i in range(64)])
    losses = [loss for _, loss in training.train(model, data, [2, 3], settings, seed=0)]
    assert losses[0] > 0.5
    assert sum(losses[-10:]) / 10 < 0.05
    found = training.probabilities(model, data.prefix, data.suffixes, [2, 3])
    assert [p > 0.5 for p in found] == [y == 1 for y in data.labels]
