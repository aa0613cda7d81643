"""The network of a language-model agent as the learner sees it: packed tokens in, scores of the action tokens out.

The whole model or low-rank adapters are trained; the reference policy is a frozen copy, or the model with its adapters
switched off; the critic is a linear head on the last hidden state. Trained weights are float32 whatever the products
are computed in: at a learning rate of 1e-6 a step is far below what bfloat16 can tell apart.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from agents.language.errors import LanguageModelError
from agents.language.template import load_tokenizer
from agents.precision import products_in
from learner.language.attention import PACKED, PackingError, may_pack, packing
from learner.language.batch import MicroBatch, filled, filler, position_ids
from learner.language.loading import add_lora, load_network
from learner.language.log_probs import TokenScores, scores_from_hidden, scores_from_logits

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adapters instead of the whole model."""

    rank: int
    alpha: int
    targets: str = "all-linear"
    """Names of linear layers, separated by commas, or `all-linear`."""


@dataclass(frozen=True, slots=True, eq=False)
class ActionScores:
    """Of a micro-batch's m action tokens in s sequences; float32."""

    log_prob: Tensor
    """[m]"""
    entropy: Tensor
    """[m]"""
    value: Tensor | None
    """[m]: V of the state before each action token; None without a critic."""
    final_value: Tensor | None
    """[s]: V at the last token of each sequence."""


class LanguageModel:
    """A causal language model that can be trained, its tokenizer, its reference and its critic."""

    def __init__(
        self,
        network: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        lora: Lora | None = None,
        critic: bool = False,
        reference: bool = False,
        checkpointing: bool = False,
    ) -> None:
        """dtype: of the products (`agents.precision`); weights that are not trained are kept in it.

        reference: keep the policy as it is now for `reference_log_prob`. checkpointing: compute activations again in
        the backward pass instead of keeping them. Raises `LanguageModelError` for LoRA targets that are not there.
        """
        self.device, self.dtype = device, dtype
        self.tokenizer = tokenizer
        self.network = network
        self.adapted: PeftModel | None = None
        _without_dropout(network)
        self._packed = may_pack(network)
        self._linear_head = self._probe(network.eval())
        self._reference: PreTrainedModel | None = None
        if lora is not None:
            network.to(dtype)  # pyright: ignore[reportArgumentType]
            self.adapted = add_lora(network, lora.rank, lora.alpha, lora.targets)
            head: Any = network.get_output_embeddings()
            self._linear_head = self._linear_head and type(head) is torch.nn.Linear
        elif reference:
            self._reference = copy.deepcopy(network).to(dtype).to(device).requires_grad_(False)  # pyright: ignore
        if checkpointing:
            if self.adapted is not None:
                network.enable_input_require_grads()
            _checkpoint_activations(network)
        (self.adapted or network).to(device).train()  # pyright: ignore[reportArgumentType]
        self.critic: torch.nn.Linear | None = None
        if critic:
            self.critic = torch.nn.Linear(width_of(network), 1).to(device)
            torch.nn.init.zeros_(self.critic.weight)
            torch.nn.init.zeros_(self.critic.bias)

    @property
    def packed(self) -> bool:
        """Whether sequences are read side by side; otherwise, for architectures that allow no other way, one by one."""
        return self._packed

    @property
    def context(self) -> int | None:
        """Tokens of the longest sequence that the model reads; None where its configuration does not say."""
        return getattr(self.network.config.get_text_config(), "max_position_embeddings", None)

    def policy_parameters(self) -> list[torch.nn.Parameter]:
        """What is trained of the policy."""
        return [p for p in self.network.parameters() if p.requires_grad]

    def critic_parameters(self) -> list[torch.nn.Parameter]:
        return [] if self.critic is None else list(self.critic.parameters())

    def score(self, batch: MicroBatch, temperature: float = 1.0) -> ActionScores:
        """Scores of the action tokens, with gradient where autograd is on; behaviour at `temperature`."""
        hidden = self._hidden(self.network, batch)
        with torch.autocast(self.device.type, enabled=False):
            scores = self._token_scores(self.network, hidden, batch, temperature)
            value = final = None
            if self.critic is not None:
                wide = hidden.float()
                value = self.critic(wide[batch.predictor]).squeeze(1)
                final = self.critic(wide[batch.offsets[1:] - 1]).squeeze(1)
        return ActionScores(scores.log_prob, scores.entropy, value, final)

    def hidden(self, batch: MicroBatch) -> Tensor:
        """[n, H]: the last hidden states, with gradient where autograd is on."""
        return self._hidden(self.network, batch)

    @torch.no_grad()
    def reference_log_prob(self, batch: MicroBatch, temperature: float = 1.0) -> Tensor:
        """[m]: log π_ref of the action tokens. Raises RuntimeError where no reference was kept."""
        network = self._reference or self.network
        if self._reference is None and self.adapted is None:
            raise RuntimeError("the model was made without a reference policy")
        with nullcontext() if self.adapted is None else self.adapted.disable_adapter():
            hidden = self._hidden(network, batch)
            return self._token_scores(network, hidden, batch, temperature).log_prob

    def _hidden(self, network: "PreTrainedModel", batch: MicroBatch) -> Tensor:
        """[n, H]: the last hidden states."""
        decoder: Any = network.get_decoder()
        with products_in(self.dtype, self.device):
            if self._packed:
                tokens, offsets = filled(batch.tokens, batch.offsets)
                return _read(decoder, tokens, position_ids(offsets), offsets)[: len(batch.tokens)]
            return torch.cat([_read(decoder, part) for part in batch.tokens.split(batch.offsets.diff().tolist())])

    def _token_scores(
        self, network: "PreTrainedModel", hidden: Tensor, batch: MicroBatch, temperature: float
    ) -> TokenScores:  # fmt: skip
        count = len(batch.target)
        predictor, target = (pad(x, (0, filler(count, x.device))) for x in (batch.predictor, batch.target))
        rows = hidden[predictor]
        head: Any = network.get_output_embeddings()
        if self._linear_head:
            weight, bias = head.weight.to(self.dtype), None if head.bias is None else head.bias.to(self.dtype)
            scores = scores_from_hidden(rows.to(self.dtype), weight, target, bias=bias, temperature=temperature)
        else:
            with products_in(self.dtype, self.device):
                logits = self._logits(network, rows)
            scores = scores_from_logits(logits, target, temperature=temperature)
        return TokenScores(scores.log_prob[:count], scores.entropy[:count])

    def _logits(self, network: "PreTrainedModel", rows: Tensor) -> Tensor:
        """[m, V]: what the model makes of hidden states after its head: a soft cap, a scale."""
        head: Any = network.get_output_embeddings()
        logits: Tensor = head(rows)
        config = network.config.get_text_config()
        for name, change in _AFTER_HEAD.items():
            factor = getattr(config, name, None)
            if factor is not None:
                logits = change(logits, factor)
        return logits

    @torch.no_grad()
    def _probe(self, network: "PreTrainedModel") -> bool:
        """Whether the head alone makes logits of hidden states. Compares two packed sequences with the model's own way.

        Raises `LanguageModelError` where neither is so: training would then be on other numbers than acting.
        """
        native: Any = network.config._attn_implementation  # pyright: ignore[reportPrivateUsage]  (there is no other way)
        tokens = torch.arange(7) % network.config.get_text_config().vocab_size
        offsets = torch.tensor([0, 4, 7])
        position = torch.tensor([0, 1, 2, 3, 0, 1, 2])
        decoder, whole, parts = network.get_decoder(), network, tokens.split([4, 3])
        own = torch.cat([_called(whole, part).logits[0] for part in parts])
        hidden = torch.cat([_read(decoder, part) for part in parts])
        if self._packed:
            network.set_attn_implementation(PACKED)
            try:
                hidden = _read(decoder, tokens, position, offsets)
            except PackingError:
                network.set_attn_implementation(native)
                self._packed = False
        head: Any = network.get_output_embeddings()
        for linear, logits in ((True, head(hidden)), (False, self._logits(network, hidden))):
            if _close(logits, own):
                return linear
        raise LanguageModelError(
            f"{type(network).__name__}: its logits are no function of its last hidden states that is known here, so it "
            "cannot be trained; take another architecture"
        )

    def save(self, folder: Path) -> None:
        """Writes a Hugging Face folder that `from_pretrained` and vLLM open, adapters merged into the weights."""
        from transformers import PreTrainedModel

        plain: Any = PreTrainedModel
        plain.save_pretrained(self.network, folder, state_dict=dict(self.merged()))
        self.tokenizer.save_pretrained(folder)

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """Names and weights as the plain model has them, adapters added; made one after the other, float32 for LoRA."""
        layers = {f"{name}.": module for name, module in self.network.named_modules() if hasattr(module, "lora_A")}
        for name, weight in self.network.state_dict().items():
            if "lora_" in name:
                continue
            owner: Any = next(
                (layer for prefix, layer in layers.items() if name.startswith(f"{prefix}base_layer.")), None
            )
            if owner is not None and name.endswith(".weight"):
                weight = weight.float() + owner.get_delta_weight("default").float()
            yield name.replace(".base_layer.", "."), weight.detach()

    def trained_state(self) -> dict[str, Any]:
        """What training changes besides the merged weights: adapters and critic, on the CPU."""
        trained = {name: p for name, p in self.network.named_parameters() if "lora_" in name}
        return {
            "adapters": {name: p.detach().cpu().clone() for name, p in trained.items()},
            "critic": None
            if self.critic is None
            else {k: v.cpu().clone() for k, v in self.critic.state_dict().items()},
        }

    def restore(self, folder: Path, state: dict[str, Any]) -> None:
        """Takes back what `save` and `trained_state` gave; the reference stays what the model was made with."""
        if self.adapted is None:
            self.network.load_state_dict(load_network(str(folder), torch.float32).state_dict())
        else:
            self.network.load_state_dict(state["adapters"], strict=False)
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])


def load_model(
    model: str,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    lora: Lora | None = None,
    critic: bool = False,
    reference: bool = False,
    checkpointing: bool = False,
) -> LanguageModel:
    """The model that `agent.model` names (a folder in Hugging Face format, an id), ready to be trained.

    Raises `LanguageModelError`, with what to do, for a model that is none or has no chat template.
    """
    tokenizer = load_tokenizer(model)
    return LanguageModel(
        load_network(model, torch.float32), tokenizer, device=device, dtype=dtype, lora=lora, critic=critic,
        reference=reference, checkpointing=checkpointing,
    )  # fmt: skip


def width_of(network: "PreTrainedModel") -> int:
    """Width of the hidden states."""
    return int(network.config.get_text_config().hidden_size)


def micro_batches(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Sequences of these lengths in as few passes as is easily found, each of at most `limit` tokens (or one sequence).

    First fit decreasing; within a pass in rising order.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = next((b for b, left in enumerate(room) if lengths[row] <= left), None)
        if place is None:
            bins.append([row])
            room.append(limit - lengths[row])
        else:
            bins[place].append(row)
            room[place] -= lengths[row]
    return [sorted(rows) for rows in bins]


def _soft_cap(logits: Tensor, cap: float) -> Tensor:
    return torch.tanh(logits / cap) * cap


_AFTER_HEAD: dict[str, Callable[[Tensor, float], Tensor]] = {
    "final_logit_softcapping": _soft_cap,  # Gemma 2
    "logit_scale": torch.mul,  # Cohere
    "logits_scaling": torch.div,  # Granite
}
"""What some architectures do to logits, by the name of its setting."""


def _read(decoder: Any, tokens: Tensor, position: Tensor | None = None, offsets: Tensor | None = None) -> Tensor:
    """[n, H] of one sequence, or with `offsets` of several packed ones."""
    if offsets is None or position is None:
        return decoder(input_ids=tokens[None], use_cache=False).last_hidden_state[0]
    lengths: list[int] = offsets.diff().tolist()
    out = decoder(
        input_ids=tokens[None], position_ids=position[None], use_cache=False, **packing(offsets, lengths)
    )  # fmt: skip
    return out.last_hidden_state[0]


def _checkpoint_activations(network: Any) -> None:
    if hasattr(network, "activation_checkpointing_enable"):  # its name from transformers 5.20 on
        network.activation_checkpointing_enable({"use_reentrant": False})
    else:
        network.gradient_checkpointing_enable({"use_reentrant": False})


def _called(network: Any, tokens: Tensor) -> Any:
    return network(input_ids=tokens[None], use_cache=False)


def _without_dropout(network: torch.nn.Module) -> None:
    """A ratio of two passes must not depend on which units were dropped."""
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010  (no attribute that torch declares)


def _close(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and torch.allclose(x, y, rtol=1e-3, atol=1e-3)
