"""The `transformers` engine against the model called by hand."""

import asyncio
from pathlib import Path

import pytest

from reward_server.judge.engines.base import ChatRenderer, Request
from reward_server.judge.engines.transformers_engine import TransformersEngine
from reward_server.judge.judge import build_judge
from reward_server.settings import JudgeSettings
from reward_server.types import JudgeError, JudgeUnavailableError
from tests.judge_support import prompt, tiny_judge

CAPTIONS = ["The door opens.", "It's a wall.", "g - a key named The Master Key of Thievery. You hear a door open.", ""]
CHOOSE = Request(1, ("0", "1"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_judge(tmp_path_factory.mktemp("judge"))


def ask(engine: TransformersEngine, captions: list[str], request: Request = CHOOSE):
    return asyncio.run(engine.complete([prompt().chat(c) for c in captions], request))


def test_probabilities_are_those_of_a_forward_pass_of_each_prompt_alone(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    engine = TransformersEngine(str(folder), dtype="float32", batch_size=3)
    found = ask(engine, CAPTIONS)
    for caption, completion in zip(CAPTIONS, found, strict=True):
        turns = [{"role": m.role, "content": m.content} for m in prompt().chat(caption)]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**ids).logits[0, -1]
        # A label may be written with a space before it, where that is one token.
        pieces = {
            c: {tokenizer(t)["input_ids"][-1] for t in (c, f" {c}") if len(tokenizer(t)["input_ids"]) == 1}
            for c in "01"
        }
        mass = {c: sum(logits.softmax(-1)[i].item() for i in ids) for c, ids in pieces.items()}
        assert completion.probabilities is not None
        assert completion.probabilities["1"] == pytest.approx(mass["1"] / (mass["0"] + mass["1"]), abs=1e-5)
        assert completion.text == max(mass, key=lambda c: mass[c])
        assert completion.prompt_tokens == ids["input_ids"].shape[1]
    asyncio.run(engine.close())


def test_free_text_is_generated_within_its_bound(folder: Path) -> None:
    engine = TransformersEngine(str(folder))
    (found,) = ask(engine, CAPTIONS[:1], Request(5))
    assert found.probabilities is None
    assert found.output_tokens is not None
    assert found.output_tokens <= 5
    asyncio.run(engine.close())


def test_a_temperature_draws_by_the_probabilities_and_by_the_seed(folder: Path) -> None:
    drawn = []
    for _ in range(2):
        engine = TransformersEngine(str(folder), seed=7)
        drawn.append([c.text for c in ask(engine, CAPTIONS[:2] * 40, Request(1, ("0", "1"), 5.0))])
        asyncio.run(engine.close())
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {"0", "1"}


def test_labels_that_are_no_single_token_and_prompts_too_long_are_named(folder: Path) -> None:
    engine = TransformersEngine(str(folder), max_model_len=100)
    with pytest.raises(JudgeError, match=r"judge\.max_model_len=100"):
        ask(engine, CAPTIONS)
    asyncio.run(engine.close())
    with pytest.raises(JudgeUnavailableError, match="closed"):
        ask(engine, CAPTIONS)

    from transformers import AutoTokenizer

    renderer = ChatRenderer(AutoTokenizer.from_pretrained(folder), "tiny")
    with pytest.raises(JudgeError, match="'helpful indeed' is not one token"):
        renderer.choice_ids(["helpful indeed"])


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(JudgeError, match=f"judge.model={tmp_path} cannot be loaded"):
        build_judge(JudgeSettings(engine="transformers", model=str(tmp_path)))


@pytest.mark.parametrize("mode", ["direct", "reasoned"])
def test_a_judge_in_process_answers_every_caption(folder: Path, mode: str) -> None:
    judge = build_judge(JudgeSettings(engine="transformers", model=str(folder), mode=mode, reason_tokens=4))
    answers = asyncio.run(judge.ask(CAPTIONS))
    again = asyncio.run(judge.ask(CAPTIONS))  # another event loop
    asyncio.run(judge.close())
    assert [a.label for a in answers] == [int((a.probability or 0) > 0.5) for a in answers]
    assert [a.probability for a in answers] == [a.probability for a in again]
    assert judge.key.model.startswith(folder.name)
    assert asyncio.run(judge.ask([])) == []
