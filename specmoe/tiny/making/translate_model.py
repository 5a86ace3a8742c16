"""Building and saving the translation model: config, tokenizer, correct and
differentiable top-2 routing.

Comes in: a ``TranslationShape`` or a loaded checkpoint. Goes out:
``NllbMoeForConditionalGeneration`` whose sparse layers are ``SortedMoe``. The experts function of
transformers 5.23 runs the wrong experts (the top-1 pick goes through expert 1, the top-2 pick
through expert 0), so neither training nor evaluation may use it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import NllbMoeConfig, NllbMoeForConditionalGeneration, NllbTokenizer

from .model import run_sorted
from .recipe import SOURCE, TARGET, TranslationShape

BOS, PAD, EOS = 0, 1, 2
_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", SOURCE, TARGET, "<mask>"]


def translation_config(shape: TranslationShape, sparse: bool = True) -> NllbMoeConfig:
    """The config; nothing in it makes the routing of a token depend on the tokens that run beside
    it."""
    step = shape.sparse_step if sparse else 0
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (
            ("layers", shape.num_layers),
            ("ffn_dim", shape.ffn_size),
            ("attention_heads", shape.num_heads),
            ("layerdrop", 0.0),
            ("sparse_step", step),
        )
    }
    return NllbMoeConfig(
        **sides,
        d_model=shape.hidden_size,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_positions,
        num_experts=shape.num_experts,
        dropout=0.0,
        attention_dropout=0.0,
        moe_token_dropout=0.0,  # would scale the evaluation output
        second_expert_policy="all",
        # as many places per expert as tokens: no pick is ever dropped
        moe_eval_capacity_token_fraction=1.0,
        # the gates of a token sum to 1; the same after, nothing is dropped
        normalize_router_prob_before_dropping=True,
        router_ignore_padding_tokens=False,  # False means that padding goes to no expert
        router_bias=False,
        decoder_start_token_id=EOS,
    )


class TopTwoRouter(nn.Module):
    """[T, D] -> (logits [T, E], gates [T, 2] that sum to 1, picks [T, 2], best first)."""

    def __init__(self, hidden_size: int, num_experts: int):
        super().__init__()
        self.classifier = nn.Linear(hidden_size, num_experts, bias=False)

    def forward(self, hidden: torch.Tensor):
        logits = self.classifier(hidden)
        gates, picks = logits.softmax(-1).topk(2, dim=-1)
        return (
            logits,
            gates / gates.sum(-1, keepdim=True).clamp(min=torch.finfo(gates.dtype).eps),
            picks,
        )


def live_tokens(mask: torch.Tensor | None, num_tokens: int) -> torch.Tensor | None:
    """[B*T] True where a token is not padding, from the attention mask [B, 1, T, S], boolean or
    additive."""
    if mask is None:
        return None
    last = mask[:, 0, -1, :].reshape(-1)
    live = last if last.dtype == torch.bool else last == 0
    return live if len(live) == num_tokens else None  # one step of decoding has no padding


class SortedMoe(nn.Module):
    """A sparse layer with its experts stacked: picks are sorted by expert, each used expert runs
    once."""

    def __init__(self, shape: TranslationShape):
        super().__init__()
        e, d, f = shape.num_experts, shape.hidden_size, shape.ffn_size
        self.router = TopTwoRouter(d, e)
        self.fc1_weight = nn.Parameter(torch.zeros(e, f, d))
        self.fc1_bias = nn.Parameter(torch.zeros(e, f))
        self.fc2_weight = nn.Parameter(torch.zeros(e, d, f))
        self.fc2_bias = nn.Parameter(torch.zeros(e, d))

    def forward(
        self, hidden: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        live = live_tokens(padding_mask, len(flat))
        rows = torch.arange(len(flat)) if live is None else live.nonzero()[:, 0]
        routed = flat[rows]
        _, gates, picks = self.router(routed)
        mixed = self.experts(routed, picks, gates)
        return torch.zeros_like(flat).index_copy(0, rows, mixed).view_as(hidden)

    def experts(
        self, hidden: torch.Tensor, picks: torch.Tensor, gates: torch.Tensor
    ) -> torch.Tensor:
        """[T, D] of tokens by their [T, 2] picks: gate 1 times the first's output plus gate 2 times
        the second's."""
        w1, b1 = self.fc1_weight.unbind(0), self.fc1_bias.unbind(0)
        w2, b2 = self.fc2_weight.unbind(0), self.fc2_bias.unbind(0)

        def run(e: int, rows: torch.Tensor) -> torch.Tensor:
            return torch.addmm(b2[e], torch.addmm(b1[e], rows, w1[e].T).relu(), w2[e].T)

        return run_sorted(hidden, picks, gates, len(w1), run)


def sparse_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The sparse FFNs by their name in the checkpoint, encoder first."""
    found = {}
    for side in ("encoder", "decoder"):
        for index, layer in enumerate(getattr(model.model, side).layers):
            if layer.is_sparse:
                found[f"model.{side}.layers.{index}.ffn"] = layer.ffn
    return found


def use_sorted_experts(model: NllbMoeForConditionalGeneration, shape: TranslationShape):
    """Replace the sparse FFNs of a real model by ``SortedMoe`` with the same weights."""
    for name, old in sparse_layers(model).items():
        new = SortedMoe(shape)
        experts = [old.experts[f"expert_{e}"] for e in range(shape.num_experts)]
        with torch.no_grad():
            new.router.classifier.weight.copy_(old.router.classifier.weight)
            for part in ("fc1", "fc2"):
                for kind in ("weight", "bias"):
                    each = [getattr(getattr(expert, part), kind) for expert in experts]
                    getattr(new, f"{part}_{kind}").copy_(torch.stack(each))
        model.get_submodule(name.rpartition(".")[0]).ffn = new
    return model


def new_translator(shape: TranslationShape, sparse: bool) -> NllbMoeForConditionalGeneration:
    """A fresh float32 model; without sparse layers it is the dense model of the first phase."""
    config = translation_config(shape, sparse)
    config._attn_implementation = "eager"
    return use_sorted_experts(NllbMoeForConditionalGeneration(config), shape)


def published_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights under the names of published NLLB-MoE checkpoints:
    ``...ffn.experts.expert_3.fc1.weight``."""
    state = {}
    for name, value in model.state_dict().items():
        stem, _, part = name.rpartition(".")
        if part[:4] in ("fc1_", "fc2_"):
            inner = part.replace("_", ".")
            state |= {
                f"{stem}.experts.expert_{e}.{inner}": one.clone() for e, one in enumerate(value)
            }
        else:
            state[name] = value
    return state


def new_translation_tokenizer(texts: Iterable[str], shape: TranslationShape) -> NllbTokenizer:
    """NLLB's tokenizer class over a small BPE in which digits and punctuation stand alone."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True),
            pre_tokenizers.Split(Regex("[0-9.,:'-]"), behavior="isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocab_size, special_tokens=_SPECIALS, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    state = json.loads(core.to_str())["model"]
    return NllbTokenizer(
        vocab=state["vocab"],
        merges=[tuple(merge) for merge in state["merges"]],
        src_lang=SOURCE,
        tgt_lang=TARGET,
        extra_special_tokens=[SOURCE, TARGET],
        model_max_length=shape.max_positions,
        clean_up_tokenization_spaces=False,
    )
