"""Small models and episodes made by hand for the learner of language models."""

import random

import numpy as np
import torch

from agents.language.episode import LanguageEpisode, LanguageTurn

VOCABULARY = 61


class NoTokenizer:
    """For models that are never asked for text."""

    def save_pretrained(self, folder):
        del folder


def network(seed=0, layers=2, width=16, context=256, **changes):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=context,
        tie_word_embeddings=True, initializer_range=0.3, bos_token_id=None, eos_token_id=None, pad_token_id=None, **changes,
    )  # fmt: skip
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(config)


def perturb(module, seed, scale=0.05):
    """Moves all weights, so that a copy that was made before differs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += scale * torch.randn(p.shape, generator=generator)


def turn(rng, *, rewritten, reward=0.0, version=0, **changes):
    prompt, output = rng.randrange(2, 7), rng.randrange(1, 5)
    given = {
        "prompt": np.array([rng.randrange(VOCABULARY) for _ in range(prompt)], np.int32),
        "rewritten": rewritten,
        "output": np.array([rng.randrange(VOCABULARY) for _ in range(output)], np.int32),
        "log_prob": np.array([-2 * rng.random() - 3 for _ in range(output)], np.float32),
        "version": version,
        "last_version": version,
        "stop": "stop",
        "text": "look",
        "command": "look",
        "failure": None,
        "penalty": 0.0,
        "reward": reward,
        "grounded": True,
        "caption_id": 0,
        "caption_count": 0,
        "generate_s": 0.0,
        "env_s": 0.0,
    }
    return LanguageTurn(**{**given, **changes})


def episode(seed, *, turns=3, group=0, reward=None, terminated=True, version=0, temperature=1.0, penalty=0.0):
    """An episode with a reward at its last turn; the history was rewritten before the third turn."""
    rng = random.Random(seed)
    reward = float(rng.randrange(2)) if reward is None else reward
    made = [
        turn(
            rng,
            rewritten=k in (0, 2),
            reward=reward if k == turns - 1 else 0.0,
            version=version,
            penalty=penalty if k == 0 else 0.0,
        )
        for k in range(turns)
    ]
    return LanguageEpisode(
        episode_id=f"e{seed}", env_id="test/made", seed=group, group=group, member=seed, turns=tuple(made),
        final_prompt=np.array([] if terminated else [1, 2, 3], np.int32), terminated=terminated,
        truncated=not terminated, cut=None if terminated else "steps", success=reward > 0, metrics={},
        temperature=temperature, wall_s=0.0,
    )  # fmt: skip
