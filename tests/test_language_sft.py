"""Supervised fine-tuning: the loss against a slow reference, five games learnt by heart and then won, sources, errors."""

import asyncio
import dataclasses
import shutil
import types

import numpy as np
import pytest
import torch

from agents.language.engines.transformers_engine import TransformersGenerator
from agents.language.errors import LanguageModelError
from agents.language.rollout import LanguageRollout
from agents.language.scripted import RandomScript, Said, WalkthroughScript, play_scripts
from agents.language.template import ChatTemplate, load_tokenizer
from agents.settings import AgentSettings
from envs.text import SimpleTextEnv, TextEnvSpec
from learner.language.batch import pack
from learner.language.model import LanguageModel, load_model
from learner.language.settings import SFTSettings
from learner.language.sft import SFTTrainer, all_tokens, cross_entropy, demonstration_tokens
from learner.language.small import SmallModel, small_model, transcripts
from orchestration.language.sft import _answers
from orchestration.traces.schema import EnvStep, LlmCall
from tests.language_agents_support import tiny_model
from tests.language_learner_support import NoTokenizer, episode, network

CPU = torch.device("cpu")
SETTINGS = AgentSettings(answer="command", context=512, max_new_tokens=12, temperature=1.0)
_WAYS = ("left", "right", "up", "down")


class Ways(SimpleTextEnv):
    """Three turns, each with the one way that is lit; a wrong one loses."""

    def __init__(self, env_id="ways/test"):
        super().__init__(TextEnvSpec(env_id, 5, has_success=True))

    def begin(self, seed):
        rng = np.random.default_rng(seed)
        self.route = [f"go {_WAYS[rng.integers(4)]}" for _ in range(3)]
        self.at = 0
        return self._says()

    def respond(self, command):
        if command != self.route[self.at]:
            return "You fall.", 0.0, False
        self.at += 1
        return ("You are out.", 1.0, True) if self.at == 3 else (self._says(), 0.0, None)

    def objective(self):
        return "find the way out"

    def admissible(self):
        return tuple(f"go {way}" for way in _WAYS)

    def walkthrough(self):
        return tuple(self.route)

    def _says(self):
        return f"You are at {self.at}. A light is {self.route[self.at].removeprefix('go ')}."


def _template(folder):
    return ChatTemplate(load_tokenizer(str(folder)), "tiny")


def test_the_loss_is_the_mean_over_action_tokens_and_its_gradient_that_of_a_slow_reference():
    model = LanguageModel(network(), NoTokenizer(), device=CPU)
    items = [episode(seed, turns=seed + 1) for seed in range(3)]
    batch = pack([demonstration_tokens(item) for item in items])
    loss = cross_entropy(model, batch, 25, train=True)
    slow = network().eval()
    each = []
    for item in items:
        for s in item.sequences():
            log_prob = slow(input_ids=torch.from_numpy(s.tokens)[None]).logits[0].log_softmax(-1)
            each += [-log_prob[n - 1, s.tokens[n]] for n in np.flatnonzero(s.action)]
    expected = torch.stack(each).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for mine, other in zip(model.network.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=2e-4, rtol=1e-3)


def test_scripts_play_with_the_tokens_of_rl_and_a_world_without_a_walkthrough_is_named(tmp_path):
    template = _template(tiny_model(tmp_path / "tiny"))
    (won,) = play_scripts(Ways, template, SETTINGS, [(3, WalkthroughScript())])
    assert won.success and won.length == 3 and [t.command for t in won.turns] == _route(3)
    assert [template.decode(t.output.tolist()) for t in won.turns] == _route(3)
    assert all(t.output[-1] in template.stop_ids for t in won.turns)
    (again,) = play_scripts(Ways, template, SETTINGS, [(3, WalkthroughScript(_route(3)[:2]))])
    assert again.length == 2 and again.cut == "steps" and not again.success
    played = play_scripts(Ways, template, SETTINGS, [(s, RandomScript(s)) for s in range(20)])
    assert {t.command for e in played for t in e.turns} == {f"go {way}" for way in _WAYS}
    with pytest.raises(LanguageModelError, match=r"ways/test, seed 3: .*no walkthrough"):
        play_scripts(Ways, template, SETTINGS, [(3, WalkthroughScript(()))])


def test_what_was_said_is_said_again_token_by_token_where_it_can_be(tmp_path):
    template = _template(tiny_model(tmp_path / "tiny"))
    words = _route(3)
    # Other tokens than the tokenizer's for the same words: each character alone.
    spelt = tuple(i for char in words[0] for i in template.tokenizer(char, add_special_tokens=False)["input_ids"])
    odd = (*spelt, template.stop_ids[0])
    assert template.decode(odd) == words[0] and list(odd) != template.answer(words[0])
    said = [Said(words[0], output=odd), Said(words[1], output=odd), Said(words[2], output=spelt)]
    (played,) = play_scripts(Ways, template, SETTINGS, [(3, WalkthroughScript(said))])
    assert played.success and [t.command for t in played.turns] == words
    # The second's tokens say another command, and the third's have no end: those are written anew.
    assert [t.output.tolist() for t in played.turns] == [
        list(odd),
        template.answer(words[1]),
        template.answer(words[2]),
    ]
    thinking = dataclasses.replace(SETTINGS, answer="thought", max_new_tokens=80)
    (thought,) = play_scripts(
        Ways, template, thinking, [(3, WalkthroughScript([Said(words[0], "The door is there.")]))]
    )
    assert thought.turns[0].text == f"Thought: The door is there.\nAction: {words[0]}"


def test_traced_answers_are_learnt_from_whole_and_none_that_could_not_be_read(tmp_path):
    def traced(*failures):
        steps = [make(EnvStep, step=n, action_name="go left") for n in range(2)]
        calls = [
            make(
                LlmCall, step=n, output=(1, 2, n), output_ref=f"r{n}", sampling={"failure": failure} if failure else {}
            )
            for n, failure in enumerate(failures)
        ]
        texts = {"r0": "Thought: Left it is.\nAction: go left", "r1": "go left"}
        return types.SimpleNamespace(steps=steps, events=[*steps, *calls], texts=texts)

    def make(kind, **fields):
        record = object.__new__(kind)
        for name, value in fields.items():
            object.__setattr__(record, name, value)
        return record

    assert _answers(traced(None, None)) == (Said("go left", "Left it is.", (1, 2, 0)), Said("go left", "", (1, 2, 1)))
    assert _answers(traced(None, "its action is empty")) is None
    assert _answers(traced()) == (Said("go left"), Said("go left"))  # a person's, or a network's


def _route(seed):
    env = Ways()
    env.reset(seed=seed)
    return env.route


def test_five_walkthroughs_are_learnt_by_heart_and_the_games_then_won_greedily(tmp_path):
    source = tiny_model(tmp_path / "tiny")
    template = _template(source)
    shown = play_scripts(Ways, template, SETTINGS, [(seed, WalkthroughScript()) for seed in range(5)])
    model = load_model(str(source), device=CPU)
    settings = SFTSettings(epochs=120, batch_episodes=5, learning_rate=5e-3, warmup=0.1)
    steps = list(SFTTrainer(model, [demonstration_tokens(e) for e in shown], settings, seed=0).run())
    assert len(steps) == 120 and steps[-1].loss < 0.01 < steps[0].loss  # one wrong token would cost 0.015
    assert steps[11].learning_rate == pytest.approx(5e-3) and steps[-1].learning_rate < 6e-4
    model.save(tmp_path / "tuned")
    agent = AgentSettings(answer="command", context=512, max_new_tokens=12, temperature=0.0)
    generator = TransformersGenerator(str(tmp_path / "tuned"), stop_ids=template.stop_ids, context=512)
    rollout = LanguageRollout(Ways, generator, template, agent, seed_of=lambda group: group)

    async def play():
        results = await asyncio.gather(*(rollout.play_group(group) for group in range(5)))
        await generator.close()
        return [e for result in results for e in result.episodes]

    played = asyncio.run(play())
    assert all(e.success for e in played)
    before, after = (
        [t.tolist() for e in made for s in e.sequences() for t in (s.tokens, s.action)] for made in (shown, played)
    )
    assert before == after  # demonstrations have the very tokens and masks of an agent's episodes


def test_text_as_such_predicts_every_token_but_the_first():
    batch = pack([all_tokens(demonstration_tokens(episode(1)))])
    assert int((~batch.action).sum()) == batch.sequences
    with pytest.raises(ValueError, match="no demonstration"):
        SFTTrainer(LanguageModel(network(), NoTokenizer(), device=CPU), [], SFTSettings(), seed=0)


def test_a_small_model_is_made_once_and_the_same_again(tmp_path):
    spec = SmallModel(
        worlds=("textworld/w1-o1-q1",), games=2, episodes=2, steps=8, hidden_size=32, layers=2, heads=2,
        head_dim=16, intermediate_size=32, context=1024, batch_episodes=2, repeat_tokens=48, threads=1, drills=4,
        options={"cache_dir": ".cache/test-games"},
    )  # fmt: skip
    told = []
    first = small_model(spec, lambda what, done, total: told.append((what, done, total)), cache=tmp_path / "a")
    assert small_model(spec, cache=tmp_path / "a") == first and told
    assert list(dict.fromkeys(what for what, _, _ in told))[-2:] == ["text", "instructions"]
    listed = sum(t.listed[0] is not None for t in transcripts(spec, lambda *what: None))
    assert told[-1][2] == (6 * listed + 4) / 2 > 2, (
        "steps: pieces of the episodes with lists, and drills, two at a time"
    )
    # What it was before the instructions is kept, and another making goes on from there to the same bytes.
    told.clear()
    base = dataclasses.replace(spec, instructions=0, drills=0)
    uninstructed = small_model(base, lambda *what: told.append(what), cache=tmp_path / "a")
    assert uninstructed != first and not told
    weights = (first / "model.safetensors").read_bytes()
    assert weights != (uninstructed / "model.safetensors").read_bytes()
    assert (first / "tokenizer.json").read_bytes() == (uninstructed / "tokenizer.json").read_bytes()
    shutil.rmtree(first)
    remade = small_model(spec, lambda what, done, total: told.append((what, done, total)), cache=tmp_path / "a")
    assert remade == first and (remade / "model.safetensors").read_bytes() == weights
    assert "instructions" in {what for what, _, _ in told} and "text" not in {what for what, _, _ in told}
    faster = small_model(dataclasses.replace(spec, instruction_learning_rate=2e-3), cache=tmp_path / "a")
    assert faster != first and len([path for path in (tmp_path / "a").glob("**/small-*") if path.is_dir()]) == 3
    again = small_model(spec, cache=tmp_path / "b")
    assert first.name == again.name
    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert load_tokenizer(str(first)).chat_template
    said = transcripts(spec, lambda what, done, total: None)
    assert len(said) == 4 and all(len(t.observations) == len(t.commands) + 1 for t in said)
