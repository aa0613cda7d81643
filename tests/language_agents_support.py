"""A tiny language model made on the spot, and text worlds whose truth is known."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np

from agents.language.engines.base import Generation
from agents.settings import AgentSettings
from envs.text import SimpleTextEnv, TextEnvSpec

_WORDS = [
    "You are in a corridor. Task: find the door. Possible commands: go left; go right",
    "Thought: I go left.\nAction: go left",
    "Answer with one command and nothing else. Nothing was done, as your answer could not be read.",
]


def tiny_tokenizer() -> Any:
    from reward_server.embedded import tokenizer

    return tokenizer.train(_WORDS * 4, [])


def tiny_model(folder: Path, seed: int = 0, vocabulary: int | None = None) -> Path:
    """Saves a randomly initialised Qwen3 of a few thousand parameters with its tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = tiny_tokenizer()
    config = Qwen3Config(
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Corridor(SimpleTextEnv):
    """Left or right, three steps; the seed's parity says where the door is."""

    def __init__(self, limit: int = 6, fail_at: int | None = None) -> None:
        super().__init__(TextEnvSpec("corridor/test", limit, has_success=True))
        self.fail_at = fail_at
        self.steps = 0

    def begin(self, seed: int) -> str:
        self.place, self.door = 0, 2 if seed % 2 else -2
        return f"You stand in a corridor, {'right' if self.door > 0 else 'left'} is a draught."

    def respond(self, command: str) -> tuple[str, float, bool | None]:
        self.steps += 1
        if self.fail_at is not None and self.steps == self.fail_at:
            self.fail_at = None
            raise RuntimeError("the corridor fell in")
        if command not in self.admissible():
            return "You can go left or right.", 0.0, None
        self.place += -1 if command == "go left" else 1
        if self.place == self.door:
            return "You leave through the door.", 1.0, True
        return ("You fall into a pit.", 0.0, False) if self.place == -self.door else (f"You {command}.", 0.0, None)

    def objective(self) -> str:
        return "Find the door."

    def admissible(self) -> tuple[str, ...]:
        return ("go left", "go right")


class Scripted:
    """Answers with the commands of a script, by how many answers the prompt holds already."""

    def __init__(self, template, script, delay=None):
        self.template, self.script, self.delay = template, script, delay
        self.version = 3
        self.prompts = []

    async def start(self): ...

    async def generate(self, prompt, sampling):
        self.prompts.append(prompt.tolist())
        if self.delay is not None:
            await asyncio.sleep(self.delay(len(self.prompts)))
        number = prompt.tolist().count(self.template.stop_ids[0]) // 2 - 1
        ids = np.array(self.template.answer(self.script[number]), np.int32)
        return Generation(ids, np.full(len(ids), -0.5, np.float32), self.version, self.version, "stop")

    async def update(self, folder, version): ...

    async def close(self): ...


def settings(**values):
    return AgentSettings(**{"model": "tiny", "answer": "command", "context": 512, "max_new_tokens": 16, **values})
