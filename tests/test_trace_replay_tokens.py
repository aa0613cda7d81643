"""Stored tokens under stored weights, with a tiny Qwen3 and an independent way to compute what it says of each token."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from orchestration.errors import UsageError
from orchestration.traces.reader import Trace, read_trace
from orchestration.traces.replay.command import run_replay
from orchestration.traces.replay.tokens import force_tokens
from orchestration.traces.replay.verdict import Outcome, UnreplayableError
from orchestration.traces.schema import LlmCall
from orchestration.traces.validate import validate_file
from tests import trace_replay_support as support
from tests.trace_support import Played, record, recorder

SAMPLING: dict[str, Any] = {"temperature": 0.7, "top_k": 12, "top_p": 0.9, "max_tokens": 8, "seed": 3}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def generate(model: Qwen3ForCausalLM, prompt: list[int], sampling: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Token by token, without a cache, and each distribution made by hand: what was kept is scaled and sorted."""
    ids, log_probs = list(prompt), list[float]()
    draw = torch.Generator().manual_seed(1)
    for _ in range(8):
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, -1].double() / sampling.get("temperature", 1.0)
        top = sampling.get("top_k", -1)
        kept = sorted(range(64), key=lambda token: -float(logits[token]))[: top if top > 0 else 64]
        p = torch.softmax(logits[kept], 0)
        share = sampling.get("top_p", 1.0)
        count = next((n for n in range(1, len(kept)) if float(p[:n].sum()) >= share), len(kept))
        p = p[:count] / p[:count].sum()
        chosen = int(torch.multinomial(p, 1, generator=draw))
        ids.append(kept[chosen])
        log_probs.append(math.log(float(p[chosen])))
    return ids[len(prompt) :], log_probs


def played(folder: Path, weights: Path, sampling: dict[str, Any]) -> Trace:
    """An episode of two steps, each action of which a language model chose."""
    record(recorder(folder), Played("e1", [0, 1], ["", ""], [0.0, 0.0], [3, 3]))
    trace = read_trace(folder / "e1.jsonl.zst")
    model = Qwen3ForCausalLM.from_pretrained(weights)
    events = list(trace.events)
    for number, step in reversed(list(enumerate(trace.steps))):
        prompt = [5 + number, 9, 33]
        output, log_probs = generate(model, prompt, sampling)
        call = LlmCall(
            id=f"call{number}", seq=0, t=step.t, agent="llm", parents=step.parents, model=str(weights), version=0,
            prompt=tuple(prompt), output=tuple(output), prompt_tokens=3, output_tokens=8, log_probs=tuple(log_probs),
            sampling=sampling, latency_s=0.0,
        )  # fmt: skip
        events.insert(events.index(step), call)
    events = [dataclasses.replace(event, seq=at) for at, event in enumerate(events)]
    assert trace.end is not None
    costs = {**trace.end.costs, "tokens": 22, "llm_calls": 2}
    end = dataclasses.replace(trace.end, events=len(events), costs=costs)
    path = support.write(dataclasses.replace(trace, events=tuple(events), end=end), folder, "spoken")
    assert validate_file(path) == []
    return read_trace(path)


def change(trace: Trace, number: int, **fields: Any) -> Trace:
    events = [
        dataclasses.replace(event, **fields) if isinstance(event, LlmCall) and event.id == f"call{number}" else event
        for event in trace.events
    ]
    return dataclasses.replace(trace, events=tuple(events))


@pytest.mark.parametrize("sampling", [{}, SAMPLING, {"temperature": 2.0, "top_k": -1, "top_p": 1.0}])
def test_stored_tokens_have_the_log_probabilities_that_they_had(
    tmp_path: Path, weights: Path, sampling: dict[str, Any]
) -> None:
    found = force_tokens(played(tmp_path, weights, sampling))
    assert (found.outcome, found.calls, found.tokens) == (Outcome.MATCH, 2, 16)
    assert found.most.size < 1e-4


def test_what_was_planted_is_found_at_its_step(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = played(tmp_path, weights, {"temperature": 0.7})
    call = next(event for event in trace.events if isinstance(event, LlmCall) and event.id == "call1")
    assert call.output is not None and call.log_probs is not None
    other = (*call.log_probs[:4], call.log_probs[4] - 0.2, *call.log_probs[5:])
    found = force_tokens(change(trace, 1, log_probs=other))
    assert found.first is not None
    assert (found.first.step, found.first.position, found.first.size) == (1, 4, pytest.approx(0.2, abs=1e-3))
    assert "DIVERGED at step 1 (token 4 of call1" in found.line
    assert force_tokens(change(trace, 1, log_probs=other), tolerance=0.3).outcome is Outcome.MATCH
    token = (call.output[0] + 1) % 64
    found = force_tokens(change(trace, 1, output=(token, *call.output[1:])))
    assert found.first is not None and (found.first.step, found.first.position) == (1, 0)
    assert run_replay([trace.path], force_tokens=True) == 0
    assert "MATCH within 0.1 (2 calls, 16 tokens" in capsys.readouterr().out
    # Other weights.
    torch.manual_seed(1)
    model = Qwen3ForCausalLM.from_pretrained(weights)
    with torch.no_grad():
        model.model.norm.weight.mul_(0.5)
    model.save_pretrained(tmp_path / "other")
    assert run_replay([trace.path], force_tokens=True, weights=tmp_path / "other") == 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"log_probs": None}, "no llm_call in it"),
        ({"prompt": None}, "prompt's tokens were not kept"),
        ({"sampling": {"repetition_penalty": 1.2}}, "repetition_penalty=1.2"),
        ({"sampling": {"temperature": 0.0}}, "greedily"),
        ({"output": (1, 2, 3, 4, 5, 6, 7, 64)}, "token 64 is none of the model's 64"),
        ({"model": "nowhere"}, "nowhere is not the folder"),
    ],
)
def test_what_cannot_be_scored_says_why(tmp_path: Path, weights: Path, fields: dict[str, Any], reason: str) -> None:
    trace = played(tmp_path, weights, {})
    for number in range(2):
        trace = change(trace, number, **fields)
    with pytest.raises(UnreplayableError, match=reason):
        force_tokens(trace)


def test_weights_of_another_version_are_asked_for(tmp_path: Path, weights: Path) -> None:
    trace = played(tmp_path, weights, {})
    later = change(change(trace, 0, version=4), 1, version=4)
    with pytest.raises(UnreplayableError, match=r"of version 4 of the weights, and .* holds what the run began with"):
        force_tokens(later)
    assert force_tokens(later, weights).outcome is Outcome.MATCH
    for mixed in (change(trace, 1, version=4), change(later, 1, sampling={"last_version": 5})):
        with pytest.raises(UnreplayableError, match=r"several versions of the weights \((0, 4|4, 5)\)"):
            force_tokens(mixed, weights)


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--weights has no effect without --force-tokens"):
        run_replay([tmp_path], weights=tmp_path)
    with pytest.raises(UsageError, match="one at a time"):
        run_replay([tmp_path], force_tokens=True, reward_model="latest")
    with pytest.raises(UsageError, match="--tolerance must be at least 0"):
        run_replay([tmp_path], force_tokens=True, tolerance=-1.0)
