"""From logits to tokens, and which drafted tokens survive.

Comes in: logits [B, T, V] of the draft and of the target. Goes out: drafted tokens, and per row how
many were accepted and the one token of the target's own that follows. ``speculate.loop`` calls
next.

Words: *accepted*, a drafted token that stands; *recovered*, the target's token at the first
rejection; *bonus*, its token after all were accepted.

Three rules keep the target's distribution when sampling:

- ``coupled`` (default): every (seed, prompt, position) has its own noise, and both models take
  argmax(p / noise) with the same noise (the exponential race, equal to Gumbel-max). A drafted token
  is accepted when the target picks the same one. What comes out is what plain sampling with that
  seed gives: no batch size, method or gamma can change a text. (Shared-randomness speculative
  decoding: Daliri, Musco, Suresh 2024, arXiv:2408.07978.)
- ``rejection`` (the paper's): accept with probability min(1, p / q), else draw from the normalised
  residual max(0, p - q). It accepts more often. The text then depends on the draft, though its
  distribution does not. (Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023,
  arXiv:2302.01318.)
- ``block``: as ``rejection``, but the block is judged whole: a token may stand although its own
  ratio p / q is small, if those before it left some over. Of all rules that know no more than p and
  q it accepts the most tokens. (Sun et al. 2024, arXiv:2403.10444.)

    B rows, T tokens, G drafted tokens, V vocabulary
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ..options import GenerateOptions


class Verdict(NamedTuple):
    """What became of one row's drafted tokens."""

    accepted: int  # drafted tokens that stand
    token: int  # recovered or bonus: the target's own


class Sampler:
    """Picks tokens as ``options`` say. Stateless but for a scratch generator: noise depends on
    (seed, prompt, position, purpose) only, so rows can be drawn in any order."""

    def __init__(self, options: GenerateOptions, warped: bool = False):
        # warped: the logits that come in have been through the rows' own processors
        self.greedy = not options.do_sample
        self.rule = options.accept_rule
        self.seed = options.seed if options.seed is not None else secrets.randbits(31)
        self._generator = torch.Generator()
        self._warpers = [] if self.greedy or warped else _warpers(options)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """logits [..., V] -> the distribution that is sampled from, float [..., V]."""
        scores = logits.float().reshape(-1, logits.shape[-1])
        for warp in self._warpers:
            scores = warp(None, scores)
        return scores.softmax(dim=-1).view(logits.shape)

    def draft(self, logits: torch.Tensor, prompts: Sequence[int], positions: Sequence[int]):
        """Draft logits [B, V] for the tokens at ``positions`` of ``prompts`` -> (tokens [B], q [B,
        V] or None)."""
        if self.greedy:
            return logits.argmax(dim=-1), None
        q = self.probabilities(logits)
        stream = "token" if self.rule == "coupled" else "draft"
        noise = self._noise(prompts, positions, q, stream)
        return (q / noise).argmax(dim=-1), q

    def places(self, firsts: Sequence[int], positions: Sequence[int]) -> Sequence:
        """What the noise of tokens at ``positions`` depends on; ``firsts``: where each one's block
        begins. The rule "block" judges a token by those behind it, which the next block drafts
        anew: that one needs noise of its own."""
        return list(zip(firsts, positions)) if self.rule == "block" else positions

    def confidence(self, logits: torch.Tensor) -> torch.Tensor | None:
        """Greedy: the probability that the draft gives its own choice, float64 [B] on the CPU; else
        None: how likely a sampled token is says little about whether the target draws it too."""
        if not self.greedy:
            return None
        logits = logits.float()
        return (logits.amax(dim=-1) - logits.logsumexp(dim=-1)).exp().cpu().double()

    def verify(
        self,
        logits: torch.Tensor,
        drafted: torch.Tensor,
        num_drafted: Sequence[int],
        q: torch.Tensor | None,
        prompts: Sequence[int],
        positions: Sequence[int],
    ) -> list[Verdict]:
        """Target logits [B, G + 1, V] and drafted tokens [B, G] -> one verdict per row.

        ``num_drafted`` [B] of a row's drafted tokens count; ``positions`` [B] is where its first
        drafted token stands.
        """
        if self.greedy:
            return accept_matching(logits.argmax(dim=-1), drafted, num_drafted)
        p = self.probabilities(logits)
        if self.rule == "coupled":
            return accept_matching(self._race(p, prompts, positions), drafted, num_drafted)
        return self._accept_by_rejection(p, drafted, num_drafted, q, prompts, positions)

    def _race(
        self, p: torch.Tensor, prompts: Sequence[int], positions: Sequence[int]
    ) -> torch.Tensor:
        """The target's own token at every position of the block: p [B, T, V] -> [B, T]."""
        tokens = []
        for offset in range(p.shape[1]):
            noise = self._noise(prompts, [position + offset for position in positions], p, "token")
            tokens.append((p[:, offset] / noise).argmax(dim=-1))
        return torch.stack(tokens, dim=1)

    def reject(self, p, drafted, q, uniform: Sequence[float]) -> tuple[int, torch.Tensor]:
        """One row by the rule "rejection" or "block". What a variant of them overrides."""
        accept = accept_block if self.rule == "block" else accept_by_rejection
        return accept(p, drafted, q, uniform)

    def _accept_by_rejection(self, p, drafted, num_drafted, q, prompts, positions) -> list[Verdict]:
        verdicts = []
        for row, (prompt, position) in enumerate(zip(prompts, positions, strict=True)):
            num = num_drafted[row]
            places = self.places([position] * num, range(position, position + num))
            uniform = [self._uniform(prompt, place) for place in places]
            q_row = None if q is None else q[row]
            accepted, residual = self.reject(p[row], drafted[row], q_row, uniform)
            noise = self._noise([prompt], [position + accepted], residual, "residual")[0]
            verdicts.append(Verdict(accepted, int((residual / noise).argmax())))
        return verdicts

    def _seeded(self, prompt: int, position: int, stream: str) -> torch.Generator:
        """One generator per (seed, prompt, position, purpose); the digest is the same on every
        Python."""
        key = f"{self.seed}/{prompt}/{position}/{stream}".encode()
        return self._generator.manual_seed(
            int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")
        )

    def _noise(self, prompts, positions, like: torch.Tensor, stream: str) -> torch.Tensor:
        """Exponential noise, [B, V], drawn on the CPU so that it is the same on every device."""
        noise = torch.empty(len(prompts), like.shape[-1])
        for row, (prompt, position) in enumerate(zip(prompts, positions, strict=True)):
            noise[row].exponential_(generator=self._seeded(prompt, position, stream))
        return noise.to(like.device)

    def _uniform(self, prompt: int, position: int) -> float:
        return torch.rand((), generator=self._seeded(prompt, position, "accept")).item()


def _warpers(options: GenerateOptions) -> list:
    """transformers' own warpers, in transformers' order."""
    warpers: list = []
    if options.temperature not in (None, 1):
        warpers.append(TemperatureLogitsWarper(float(options.temperature)))
    if options.top_k:
        warpers.append(TopKLogitsWarper(options.top_k))
    if options.top_p is not None and options.top_p < 1:
        warpers.append(TopPLogitsWarper(float(options.top_p)))
    return warpers


def accept_matching(
    target: torch.Tensor, drafted: torch.Tensor, num_drafted: Sequence[int]
) -> list[Verdict]:
    """The longest drafted prefix that equals the target's own choice, then that choice (paper, step
    2).

    ``target`` [B, G + 1] the target's token at each position, ``drafted`` [B, G], ``num_drafted``
    [B].
    """
    agree = target[:, :-1] == drafted  # [B, G]
    num_drafted = torch.as_tensor(num_drafted, device=drafted.device)  # [B]
    within = torch.arange(drafted.shape[1], device=drafted.device) < num_drafted[:, None]
    accepted = (agree & within).long().cumprod(dim=1).sum(dim=1)  # [B]
    tokens = target.gather(1, accepted[:, None]).squeeze(1)
    return [Verdict(*pair) for pair in zip(accepted.tolist(), tokens.tolist(), strict=True)]


def accept_by_rejection(
    p: torch.Tensor, drafted: torch.Tensor, q: torch.Tensor | None, uniform: Sequence[float]
) -> tuple[int, torch.Tensor]:
    """Speculative sampling of one row -> (accepted tokens, the distribution [V] of the token that
    follows).

    ``p`` [G + 1, V] target, ``drafted`` [G] drawn from ``q`` [G, V] (None: certain); ``uniform``
    one draw in [0, 1) per drafted token.
    """
    for i, draw in enumerate(uniform):
        token = int(drafted[i])
        given = certain(token, p[i]) if q is None else q[i]  # [V]
        if draw >= float(p[i, token] / given[token]):  # accept with min(1, p / q)
            residual = (p[i] - given).clamp(min=0)
            return i, residual / residual.sum() if residual.sum() > 0 else p[i]
    return len(uniform), p[len(uniform)]


def accept_block(
    p: torch.Tensor, drafted: torch.Tensor, q: torch.Tensor | None, uniform: Sequence[float]
) -> tuple[int, torch.Tensor]:
    """Block verification of one row; arguments and result are ``accept_by_rejection``'s."""
    judged = block_chances(p, drafted[: len(uniform)], q)
    passed = [draw < chance for draw, (chance, _) in zip(uniform, judged[1:], strict=True)]
    accepted = max((place + 1 for place, passes in enumerate(passed) if passes), default=0)
    return accepted, judged[accepted][1]


def block_chances(
    p: torch.Tensor, drafted: torch.Tensor, q: torch.Tensor | None
) -> list[tuple[float, torch.Tensor]]:
    """For 0 .. G accepted tokens: the chance that this many stand at least, if not more do, and the
    distribution [V] of the token that follows. (Sun et al. 2024, algorithm 2; ``share`` is its
    p_i.)"""
    judged, share = [], 1.0
    for place, token in enumerate(drafted.tolist()):
        given = certain(token, p[place]) if q is None else q[place]
        residual = (share * p[place] - given).clamp(min=0)
        left = float(residual.sum())
        chance = left / (left + 1 - share) if left + 1 - share > 0 else 1.0
        judged.append((chance, residual / left if left > 0 else p[place]))
        share = min(share * float(p[place, token] / given[token]), 1.0)
    return [*judged, (share, p[len(drafted)])]


def certain(token: int, like: torch.Tensor) -> torch.Tensor:
    """All weight on ``token``: [V]."""
    weights = torch.zeros_like(like)
    weights[token] = 1
    return weights
