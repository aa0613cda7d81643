"""What a language model makes of each turn: its hidden state at the turn's last action token."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from learner.language.batch import MicroBatch, TokenBatch
from learner.language.model import micro_batches


class Reader(Protocol):
    """Reads whole sequences: the last hidden states [n, H] of a micro-batch's tokens [n]."""

    def __call__(self, batch: MicroBatch) -> Tensor: ...


def read_turns(read: Reader, batch: TokenBatch, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows [k] of the turns that end in these sequences of a batch, and the hidden states [k, H] at their last action tokens."""
    part = batch.take(torch.tensor(list(rows), device=batch.tokens.device))
    actions = batch.actions()
    ends = actions.last_of_turn[part.rows]
    return actions.turn[part.rows][ends], read(part)[part.predictor[ends] + 1]


def turn_features(read: Reader, batch: TokenBatch, limit: int) -> Tensor:
    """[K, H]: the hidden states at the last action token of each turn, read in passes of at most `limit` tokens."""
    found: dict[int, Tensor] = {}
    for rows in micro_batches(batch.lengths.tolist(), limit):
        turn, hidden = read_turns(read, batch, rows)
        found.update(zip(turn.tolist(), hidden, strict=True))
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
