"""The rollout loop of language models, with an engine that says what it is told to and with a real one."""

import asyncio
import time

import numpy as np
import pytest

from agents.language.engines.base import Sampling
from agents.language.engines.transformers_engine import TransformersGenerator
from agents.language.rollout import FAILURES_IN_A_ROW, LanguageRollout
from agents.language.template import ChatTemplate, load_tokenizer
from envs.captions import caption_id
from tests.language_agents_support import Corridor, Scripted, settings, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def template():
    return ChatTemplate(tiny_tokenizer(), "tiny")


def play(template, script, *, env=Corridor, group=1, delay=None, threads=0, **values):
    generator = Scripted(template, script, delay)
    rollout = LanguageRollout(
        env, generator, template, settings(**values), seed_of=lambda group: group + 10, threads=threads
    )
    result = asyncio.run(rollout.play_group(group))
    rollout.close()
    return result, generator


def test_an_episode_is_what_the_engine_read_and_said(template):
    result, generator = play(template, ["go right", "go right"])
    (episode,) = result.episodes
    assert (episode.success, episode.terminated, episode.cut, episode.episode_return) == (True, True, None, 1.0)
    assert [t.command for t in episode.turns] == ["go right", "go right"]
    assert [t.version for t in episode.turns] == [3, 3]
    for k in range(2):
        assert episode.prompt_of(k).tolist() == generator.prompts[k]
    (sequence,) = episode.sequences()
    expected = [*generator.prompts[1], *template.answer("go right")]
    assert sequence.tokens.tolist() == expected
    assert sequence.action.sum() == 2 * len(template.answer("go right"))
    assert np.all(sequence.log_prob[sequence.action] == -0.5) and np.all(sequence.log_prob[~sequence.action] == 0)
    assert len(episode.final_prompt) == 0
    assert (episode.turns[0].caption_id, episode.turns[0].caption_count) == (caption_id("You go right."), 1)
    assert result.new_captions[0] == (caption_id("You go right."), "You go right.")


def test_garbage_costs_a_turn_and_a_penalty_and_is_told_of(template):
    result, _ = play(template, ["what\nnow", "go right", "dance", "go right"], failure_penalty=0.25)
    (episode,) = result.episodes
    assert episode.success and episode.failures == 1
    assert [t.penalty for t in episode.turns] == [-0.25, 0, 0, 0]
    assert [t.grounded for t in episode.turns] == [False, True, False, True]
    assert episode.turns[0].command == "" and "2 lines" in (episode.turns[0].failure or "")
    assert "could not be read" in template.decode(episode.prompt_of(1).tolist())


def test_a_command_that_is_not_possible_costs_a_penalty_of_its_own(template):
    result, _ = play(
        template, ["what\nnow", "dance", "go right", "go right"], failure_penalty=0.25, ungrounded_penalty=0.125
    )
    (episode,) = result.episodes
    assert [t.penalty for t in episode.turns] == [-0.25, -0.125, 0, 0]
    assert [t.failure is None for t in episode.turns] == [False, True, True, True]


def test_cut_episodes_say_by_what_and_keep_their_last_state(template):
    (late,) = play(template, ["go right", "go left"] * 3)[0].episodes
    assert (late.cut, late.terminated, late.truncated, late.length, late.success) == ("steps", False, True, 6, False)
    assert "go left" in template.decode(late.final_prompt.tolist())
    (full,) = play(template, ["go right", "go left"] * 3, context=150)[0].episodes
    assert full.cut == "context" and full.length < 6 and not full.success
    (window,) = play(template, ["go right", "go left"] * 3, context=150, history="window")[0].episodes
    assert window.cut == "steps" and len(window.sequences()) > 1


def test_the_prompt_lists_commands_on_demand(template):
    for admissible in (False, True):
        _, generator = play(template, ["go left", "go left"], admissible=admissible)
        assert ("Possible commands: go left; go right" in template.decode(generator.prompts[0])) == admissible


def test_a_world_that_raises_is_replaced_and_counted(template):
    worlds = []

    def make():
        worlds.append(Corridor(fail_at=2 if not worlds else None))
        return worlds[-1]

    result, _ = play(template, ["go right", "go right"], env=make, group_size=3)
    assert [e.member for e in result.episodes] == [0, 1, 2] and all(e.success for e in result.episodes)
    (failure,) = result.failures
    assert failure.error == "RuntimeError: the corridor fell in"
    with pytest.raises(RuntimeError, match="fell in"):
        play(template, ["go right"] * 9, env=lambda: Corridor(fail_at=1), group_size=FAILURES_IN_A_ROW)


def test_a_slow_world_holds_up_nobody(template):
    class Slow(Corridor):
        def respond(self, command):
            time.sleep(0.1)
            return super().respond(command)

    began = time.perf_counter()
    result, _ = play(template, ["go right", "go right"], env=Slow, group_size=8, threads=8)
    assert len(result.episodes) == 8
    assert time.perf_counter() - began < 8 * 2 * 0.1 * 0.7


def test_the_transformers_engine_samples_what_it_says_and_repeats_itself(tmp_path):
    """Log-probabilities against a forward pass of the whole sequence; after an update those of the new weights."""
    import torch
    from transformers import AutoModelForCausalLM

    one, two = tiny_model(tmp_path / "one", 1), tiny_model(tmp_path / "two", 2)
    chat = ChatTemplate(load_tokenizer(str(one)), "one")
    prompts = [np.array(chat.begin("s", "go " * n), np.int32) for n in (1, 7, 3)]

    async def generate(engine, temperature):
        seeds = range(len(prompts))
        return await asyncio.gather(
            *(engine.generate(p, Sampling(12, temperature, s)) for p, s in zip(prompts, seeds, strict=True))
        )

    async def run():
        engine = TransformersGenerator(str(one), stop_ids=chat.stop_ids, context=256, sequences=2)
        found = {}
        for version, folder in ((0, one), (1, two)):
            if version:
                await engine.update(folder, version)
            for temperature in (0.0, 0.7):
                found[version, temperature] = (await generate(engine, temperature), await generate(engine, temperature))
        await engine.close()
        return found

    found = asyncio.run(run())
    for (version, temperature), (first, again) in found.items():
        model = AutoModelForCausalLM.from_pretrained(one if version == 0 else two, dtype=torch.float32).eval()
        for prompt, generation, repeated in zip(prompts, first, again, strict=True):
            assert generation.version == version
            assert generation.ids.tolist() == repeated.ids.tolist()
            assert np.array_equal(generation.log_prob, repeated.log_prob)
            ids = torch.tensor([*prompt.tolist(), *generation.ids.tolist()])[None]
            with torch.inference_mode():
                logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
            log_prob = (logits / (temperature or 1.0)).log_softmax(-1)
            chosen = log_prob.gather(1, ids[0, len(prompt) :, None]).squeeze(1).numpy()
            np.testing.assert_allclose(generation.log_prob, chosen, atol=2e-5)
            if temperature == 0:
                assert generation.ids.tolist() == log_prob.argmax(1).tolist()
    assert [g.ids.tolist() for g in found[0, 0.0][0]] != [g.ids.tolist() for g in found[1, 0.0][0]]
