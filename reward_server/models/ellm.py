"""Similarity to goals: r(c) = max over goals g of cos(e(c), e(g)), or 0 where that is below a threshold.

Du et al. 2023 (arXiv 2302.06692, eq. 1) reward a transition by the cosine of the embeddings of its caption and of a goal that a
language model suggested, above a threshold, and each goal once in an episode. Here the goals are given, and a caption's
count in the episode takes the place of the latter. ONI's baseline embeds by bags of words, which is the default.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from inference.safe_loading import SAFE, SAFE_WEIGHTS, check_safe
from reward_server.models.base import Evaluation, RewardModel, RewardModelKind, RewardModelVersion
from reward_server.settings import EllmSettings, ModelSettings

if TYPE_CHECKING:
    from torch import Tensor

WORDS = "words"
_WORD = re.compile(r"[a-z0-9']+")
_CHUNK = 64


class Embedding(Protocol):
    """Compares texts with goals."""

    def similarity(self, captions: Sequence[str]) -> NDArray[np.float64]:
        """Cosines [N, G] of captions and goals."""
        ...


class EllmModel(RewardModel):
    """Rewards captions that come near to a goal. It is fixed: nothing is learnt."""

    name = "ellm"

    def __init__(self, settings: EllmSettings, device: str = "cpu") -> None:
        """Raises `JudgeError` where the encoder cannot be loaded, and `ValueError` where there is no goal."""
        self._threshold = settings.threshold
        goals = split_goals(settings.goals)
        self._embedding: Embedding = (
            WordBags(goals) if settings.embedding == WORDS else Encoder(settings.embedding, goals, device)
        )

    def evaluate(self, captions: Sequence[str]) -> Evaluation:
        if not captions:
            return Evaluation(np.zeros(0, np.float32), np.zeros(0, np.float32))
        near = self._embedding.similarity(captions).max(axis=1)
        reward = np.where(near >= self._threshold, near, 0.0).astype(np.float32)
        return Evaluation(reward, np.clip(near, 0.0, 1.0).astype(np.float32))

    def state_dict(self) -> "dict[str, Tensor]":
        return {}

    def load_state_dict(self, state: "Mapping[str, Tensor]") -> None:
        pass


def split_goals(goals: str) -> list[str]:
    """The goals in `ellm.goals`. Raises `ValueError` where there is none."""
    found = [goal.strip() for goal in goals.split(";") if goal.strip()]
    if not found:
        raise ValueError("ellm.goals names no goal")
    return found


class WordBags:
    """Bags of words: the cosine of the counts of words, case and punctuation aside."""

    def __init__(self, goals: Sequence[str]) -> None:
        self._goals = [Counter(_WORD.findall(goal.lower())) for goal in goals]

    def similarity(self, captions: Sequence[str]) -> NDArray[np.float64]:
        bags = [Counter(_WORD.findall(caption.lower())) for caption in captions]
        return np.array([[_cosine(bag, goal) for goal in self._goals] for bag in bags]).reshape(len(captions), -1)


def _cosine(a: Counter[str], b: Counter[str]) -> float:
    product = sum(count * b[word] for word, count in a.items())
    norms = sum(n * n for n in a.values()) * sum(n * n for n in b.values())
    return product / norms**0.5 if product else 0.0


class Encoder:
    """The mean of the last hidden states of a language model over a text's tokens, as sentence encoders have it."""

    def __init__(self, model: str, goals: Sequence[str], device: str) -> None:
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer

        from reward_server.judge.models import check_model
        from reward_server.types import JudgeError

        check_model(model)
        try:
            check_safe(model)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model, **SAFE)
            self._model: Any = AutoModel.from_pretrained(model, **SAFE_WEIGHTS).to(device).float().eval()
        except (OSError, ValueError, SafetensorError) as error:
            raise JudgeError(f"ellm.embedding={model} cannot be loaded: {str(error).splitlines()[0]}") from error
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._device = device
        self._goals_GH = self._embed(goals)

    def similarity(self, captions: Sequence[str]) -> NDArray[np.float64]:
        return self._embed(captions) @ self._goals_GH.T

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        import torch

        found: list[NDArray[np.float64]] = []
        for start in range(0, len(texts), _CHUNK):
            tokens = self._tokenizer(
                list(texts[start : start + _CHUNK]), padding=True, truncation=True, max_length=256, return_tensors="pt"
            ).to(self._device)
            mask_BN1 = tokens["attention_mask"].unsqueeze(2).float()
            with torch.inference_mode():
                hidden_BNH = self._model(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
                ).last_hidden_state
            mean_BH = (hidden_BNH * mask_BN1).sum(1) / mask_BN1.sum(1).clamp(min=1.0)
            found.append(torch.nn.functional.normalize(mean_BH, dim=1).double().cpu().numpy())
        return np.concatenate(found)


def _fixed(settings: ModelSettings) -> RewardModelVersion:
    from safetensors.torch import save

    return RewardModelVersion(1, EllmModel.name, save({}), None, 0.0)


KIND = RewardModelKind(model=lambda settings, device: EllmModel(settings.ellm, device), fixed=_fixed)
