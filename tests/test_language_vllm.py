"""The vLLM engine: what it samples has the log-probabilities of the weights in force, before and after an update."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.language.engines.base import Generation, Sampling
from agents.language.engines.vllm_engine import VllmGenerator
from agents.language.episode import Ids
from agents.language.errors import LanguageModelError
from agents.language.template import ChatTemplate, load_tokenizer
from tests.language_agents_support import tiny_model


def check(folder: Path, prompt: Ids, generation: Generation, temperature: float, atol: float = 2e-4) -> None:
    """Compares with one pass of `transformers` over the whole sequence; greedy answers must be its own."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([*prompt.tolist(), *generation.ids.tolist()])[None]
    with torch.inference_mode():
        logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
    log_prob = (logits / (temperature or 1.0)).log_softmax(-1)
    chosen = log_prob.gather(1, ids[0, len(prompt) :, None]).squeeze(1).numpy()
    np.testing.assert_allclose(generation.log_prob, chosen, atol=atol)
    if temperature == 0:
        assert generation.ids.tolist() == log_prob.argmax(1).tolist()


async def more_than_one_batch_reads(engine: VllmGenerator, folder: Path) -> None:
    """An engine that reads a prompt in parts would turn its seed's generator back, which a CPU's cannot do."""
    prompts = [np.arange(n, n + 600, dtype=np.int32) % 250 for n in range(24)]
    answers = [engine.generate(prompt, Sampling(4, 1.0, n)) for n, prompt in enumerate(prompts)]
    for prompt, generation in zip(prompts, await asyncio.gather(*answers), strict=True):
        check(folder, prompt, generation, 1.0)


@pytest.mark.slow
def test_after_an_update_tokens_and_log_probabilities_are_the_new_weights(tmp_path: Path) -> None:
    one, two = tiny_model(tmp_path / "one", 1), tiny_model(tmp_path / "two", 2)
    chat = ChatTemplate(load_tokenizer(str(one)), "one")
    prompts = [np.array(chat.begin("s", "go left " * n), np.int32) for n in (30, 7, 30)]
    long = Sampling(400, 1.0, 7)

    async def run() -> None:
        # No stop ids that are ever sampled: answers have their full length.
        engine = VllmGenerator(str(one), stop_ids=(), context=700, sequences=24, version=5)
        await engine.start()
        await more_than_one_batch_reads(engine, one)
        greedy = {}
        for version, folder in ((5, one), (6, two)):
            if version == 6:
                running = asyncio.ensure_future(engine.generate(prompts[0], long))
                await asyncio.sleep(0.3)
                assert not running.done()
                await engine.update(folder, version)
                crossed = await running
                assert (crossed.version, crossed.last_version) == (5, 6)
            for temperature in (0.0, 0.7):
                # The prompts have been asked before: stale keys and values of theirs would show.
                answers = [engine.generate(p, Sampling(12, temperature, 3)) for p in prompts]
                for prompt, generation in zip(prompts, await asyncio.gather(*answers), strict=True):
                    assert (generation.version, generation.last_version) == (version, version)
                    check(folder, prompt, generation, temperature)
                    if temperature == 0:
                        greedy[version] = generation.ids.tolist()
        assert greedy[5] != greedy[6]
        # What ran during the update: its beginning is the old weights', its end the new ones' on the whole past.
        head, tail = crossed.log_prob[:3], crossed.log_prob[-3:]
        for folder, part in ((one, slice(0, 3)), (two, slice(-3, None))):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            ids = torch.tensor([*prompts[0].tolist(), *crossed.ids.tolist()])[None]
            with torch.inference_mode():
                log_prob = model(ids).logits[0, len(prompts[0]) - 1 : -1].log_softmax(-1)
            chosen = log_prob.gather(1, ids[0, len(prompts[0]) :, None]).squeeze(1).numpy()
            np.testing.assert_allclose(head if folder == one else tail, chosen[part], atol=2e-4)
        with pytest.raises(LanguageModelError, match=r"agent\.context=700"):
            await engine.generate(prompts[0], Sampling(700, 1.0))
        await engine.close()

    asyncio.run(run())
