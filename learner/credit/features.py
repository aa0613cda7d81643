"""What a language model makes of each turn: its hidden state at the turn's last action token."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from learner.language.batch import MicroBatch, TokenBatch
from learner.language.model import micro_batches


class Reader(Protocol):
    """Reads whole sequences: the last hidden states [n, H] of a micro-batch's tokens [n]."""

    def __call__(self, batch: MicroBatch) -> Tensor: ...


def turn_features(read: Reader, batch: TokenBatch, limit: int) -> Tensor:
    """[K, H]: the hidden states at the last action token of each turn, read in passes of at most `limit` tokens."""
    actions = batch.actions()
    found: dict[int, Tensor] = {}
    for rows in micro_batches(batch.lengths.tolist(), limit):
        part = batch.take(torch.tensor(rows, device=batch.tokens.device))
        ends = actions.last_of_turn[part.rows]
        hidden = read(part)[part.predictor[ends] + 1]
        found.update(zip(actions.turn[part.rows][ends].tolist(), hidden, strict=True))
    return torch.stack([found[turn] for turn in range(batch.turns)])


def decoder_reader(network: nn.Module) -> Reader:
    """Reads with the decoder of a Hugging Face causal model, one sequence after the other."""
    model: Any = network

    def read(batch: MicroBatch) -> Tensor:
        parts = batch.tokens.split(batch.offsets.diff().tolist())
        return torch.cat(
            [model.get_decoder()(input_ids=part[None], use_cache=False).last_hidden_state[0] for part in parts]
        )

    return read
