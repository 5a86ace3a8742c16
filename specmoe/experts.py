"""The experts function: what runs in place of every MoE layer's experts, for every model on transformers' registry.

Comes in, after the model's own router: ``hidden`` [T, D], ``top_k_index`` [T, K], ``top_k_weights`` [T, K]. Goes out:
[T, D]. In *target* mode every distinct expert that a live token needs is fetched once and computed (coalesced); in
*draft* mode only the resident draft experts are computed, and a stand-in replaces what is not there. ``decoder`` runs the
model around it.

    T tokens of the block, K top_k, D hidden, E experts, L MoE layers
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from . import affinity
from .errors import UnsupportedModelError
from .eviction import KeepPolicy, RecentUse
from .kernels import ExpertKernel
from .opaque import experts_operator, number_of
from .resident_pool import ResidentPool
from .trace import Trace
from .transfers import ExpertKey

NAME = "specmoe"  # in the registry, and so in config._experts_implementation


def dispatch(index: torch.Tensor, num_experts: int, live: torch.Tensor | None) -> tuple[list[int], torch.Tensor]:
    """Sort token-expert pairs by expert: ``index`` [T, K] -> (tokens per expert [E], pair numbers in that order).

    Pair p is token p // K's choice p % K. Pairs of dead tokens (``live`` [T] False) and of expert E ("none") come last
    and are in no count. A model may hand in its pairs one by one (T * K, 1): each live flag then counts for K of them.
    """
    pairs = _living_pairs(index, num_experts, live)
    return _tokens_per_expert(pairs, num_experts), torch.argsort(pairs, stable=True)


def _living_pairs(index: torch.Tensor, num_experts: int, live: torch.Tensor | None) -> torch.Tensor:
    """The expert of every pair [T * K]; ``num_experts`` where the token is dead."""
    pairs = index.reshape(-1)
    if live is None:
        return pairs
    return pairs.masked_fill(~live.repeat_interleave(len(pairs) // len(live)), num_experts)


def _tokens_per_expert(pairs: torch.Tensor, num_experts: int) -> list[int]:
    return torch.bincount(pairs, minlength=num_experts + 1)[:num_experts].tolist()


def runs_of(counts: list[int]) -> dict[int, slice]:
    """Expert with tokens -> where its pairs stand in the sorted order."""
    runs, begin = {}, 0
    for expert, count in enumerate(counts):
        if count:
            runs[expert] = slice(begin, begin + count)
            begin += count
    return runs


def fewer_choices(index: torch.Tensor, weights: torch.Tensor, top_k) -> tuple[torch.Tensor, torch.Tensor]:
    """Only each token's ``top_k`` heaviest choices ("half" of them; None: all), which share the weight of all:
    [T, K] -> [T, top_k] twice."""
    top_k = -(-index.shape[1] // 2) if top_k == "half" else top_k
    if top_k is None or top_k >= index.shape[1]:
        return index, weights
    kept = weights.topk(top_k, dim=1)
    share = weights.sum(dim=1, keepdim=True) / kept.values.sum(dim=1, keepdim=True).clamp(min=1e-20)
    return index.gather(1, kept.indices), kept.values * share


def merge_choices(index: torch.Tensor, weights: torch.Tensor, none: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A token whose choices have the same stand-in needs it once: ``index``, ``weights`` [T, K] -> the same sum from fewer
    pairs (the later choice becomes ``none``, its weight goes to the earlier)."""
    if index.shape[1] == 1:
        return index, weights
    index, weights = index.clone(), weights.clone()
    for later in range(1, index.shape[1]):
        for earlier in range(later):
            same = (index[:, later] == index[:, earlier]) & (index[:, later] != none)
            weights[:, earlier] += weights[:, later] * same
            weights[:, later] *= ~same
            index[:, later] = torch.where(same, none, index[:, later])
    return index, weights


class OffloadedExperts:
    """All MoE layers of one model, served from one pool. ``target()`` and ``draft()`` switch the mode.

    State: the mode, the live tokens of the block, counts of the last step per layer and their totals, the votes of
    the draft's routers since the last verification. Nothing here outlives ``uninstall``.
    """

    def __init__(self, model: PreTrainedModel, modules: dict[str, nn.Module], kernel: ExpertKernel, distances=None,
                 num_encoder_layers: int = 0):  # fmt: skip
        self.model, self.modules, self.kernel = model, list(modules.values()), kernel
        self.num_layers, self.num_experts = len(self.modules), self.modules[0].num_experts
        self.draft_layers = range(num_encoder_layers, self.num_layers)  # an encoder's layers, which come first, never draft
        self.routers = [_router_of(model, name) for name in modules]
        self.distances = distances  # [L, E, E]
        self.router_logits: list[torch.Tensor | None] = [None] * self.num_layers
        self._hooks: list = []
        self.drafting = False
        self.live: torch.Tensor | None = None

    def install(self, opaque: bool = False) -> None:
        """Register the experts function and point this model at it; ``opaque``: as an operator, for torch.compile."""
        ALL_EXPERTS_FUNCTIONS.register(NAME, _experts_forward)
        forward = partial(experts_operator(), number_of(self)) if opaque else self.forward
        for layer, module in enumerate(self.modules):
            module._specmoe_forward = partial(forward, layer)
        for module in self.model.modules():
            if hasattr(module, "config"):
                module.config._experts_implementation = NAME

    def uninstall(self) -> None:
        self._listen(False)
        for module in self.modules:
            del module._specmoe_forward
        self.pool = self.kernel.remembered = None

    def begin_run(self, pool: ResidentPool, policy: KeepPolicy, trace: Trace, *, substitute: str = "affinity",
                  prefetch: bool = False, guess_next: bool = False, seed: int = 0,
                  draft_top_k: int | str | None = None) -> None:  # fmt: skip
        """A new run: everything remembered about earlier ones is forgotten."""
        if (substitute == "router" or guess_next) and None in self.routers:
            what = "substitute='router'" if substitute == "router" else "method='overlapped'"
            raise UnsupportedModelError(f"{what} needs the router's scores, and {self.model.config.model_type} hides them")
        self.pool, self.policy, self.trace = pool, policy, trace
        self.substitute, self.prefetch, self.guess_next = substitute, prefetch, guess_next
        self.draft_top_k = draft_top_k
        self._listen(substitute == "router")
        self.generator = torch.Generator().manual_seed(seed)
        self.recent = RecentUse(self.num_layers, self.num_experts)
        self.votes = [[0] * self.num_experts for _ in range(self.num_layers)]
        self.quorum = 1  # votes that an expert needs
        pool.value = self._worth
        self.kernel.remembered = {} if pool.never_evicts else None
        self.counts = [[0] * self.num_experts for _ in range(self.num_layers)]
        self.totals = [[0] * self.num_experts for _ in range(self.num_layers)]
        self.draft_residents: list[list[int]] = [[] for _ in range(self.num_layers)]
        self.started = self.keep_as_is = False
        self.target(None)

    def _listen(self, to_routers: bool) -> None:
        """Remember the routers' scores, or no longer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = [
            router.register_forward_hook(partial(self._remember_logits, layer))
            for layer, router in enumerate(self.routers) if to_routers
        ]  # fmt: skip

    # ---- modes -------------------------------------------------------------------------------------------------

    def target(self, live: torch.Tensor | None) -> None:
        """The next forward pass is the full model's; only ``live`` tokens (bool, any shape of T) fetch and count."""
        self.drafting = False
        self._set_live(live)

    def draft(self, live: torch.Tensor | None) -> None:
        """The next forward passes are the draft's: resident experts only, no fetch."""
        self.drafting = True
        self._set_live(live)

    def prefill(self, run):
        """Run ``run(target)`` as the full model over prompt tokens: it calls ``target(live)`` before each forward pass. The
        first prefill finds the first residents; later ones
        (refills while decoding) leave every layer's kept set as the last verification chose it."""
        self.keep_as_is = self.started
        self.started = True
        result = run(self.target)
        self.keep_as_is = False
        return result

    def _set_live(self, live: torch.Tensor | None) -> None:
        self.live = None if live is None else live.reshape(-1).to(self.model.device)

    def prepare_draft(self) -> bool:
        """Before a round drafts: the draft set is what every layer keeps. Fetches what a fixed or own set names and is
        not here; builds the stand-in tables. False when a layer has no draft expert yet (a cold start)."""
        for layer in self.draft_layers:
            missing = self.pool.kept[layer] - self.pool.resident_experts(layer)
            if missing:
                self.pool.fetch(layer, self.pool.kept[layer])
        self.draft_residents = [sorted(kept) for kept in self.pool.kept]
        if not all(self.draft_residents[layer] for layer in self.draft_layers):
            return False
        self.stand_ins = {layer: self._stand_ins(layer).to(self.model.device) for layer in self.draft_layers}
        self.votes = [[0] * self.num_experts for _ in range(self.num_layers)]
        return True

    def _stand_ins(self, layer: int) -> torch.Tensor:
        residents = self.draft_residents[layer]
        if self.substitute == "random":
            return affinity.random_resident(self.num_experts, residents, self.generator)
        if self.substitute == "affinity":
            return affinity.nearest_resident(self.distances[layer], residents)
        return affinity.no_substitute(self.num_experts, residents)

    # ---- the experts function ------------------------------------------------------------------------------------

    def forward(self, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """One MoE layer in the mode of the moment: [T, D], [T, K], [T, K] -> [T, D]."""
        if weights.shape != index.shape:
            raise UnsupportedModelError(
                f"the router of {self.model.config.model_type} in transformers {transformers.__version__} gives weights"
                f" {list(weights.shape)} for experts {list(index.shape)}: a newer transformers may give one for each"
            )
        run = self._draft_layer if self.drafting else self._target_layer
        return run(layer, hidden, index, weights).to(hidden.dtype)

    def _target_layer(self, layer, hidden, index, weights):
        counts, order = dispatch(index, self.num_experts, self.live)
        runs = runs_of(counts)
        self._count(layer, counts)
        if layer < self.pool.first_kept:
            keep = set()
        elif self.keep_as_is:
            keep = self.pool.kept[layer]
        else:
            keep = self.policy.keep(layer, counts, self.pool.resident_experts(layer))
        arrivals = self.pool.request(layer, runs, keep, self._named_after(layer))
        self._guess_next_layer(layer, hidden, index.shape[1])
        return self._compute(layer, hidden, weights, order, runs, arrivals, self.kernel.target)

    def _draft_layer(self, layer, hidden, index, weights):
        if self.prefetch:
            self._vote(layer, index)
        if self.substitute == "no_experts":
            return torch.zeros_like(hidden)
        index, weights = fewer_choices(index, weights, self.draft_top_k)
        mapped = self.stand_ins[layer][index]  # [T, K]
        if self.substitute == "router":
            mapped = self._route_among_residents(layer, index, mapped)
        mapped, weights = merge_choices(mapped, weights, self.num_experts)
        counts, order = dispatch(mapped, self.num_experts, self.live)
        runs = runs_of(counts)
        residents = ((expert, self.pool.record(ExpertKey(layer, expert))) for expert in runs)
        return self._compute(layer, hidden, weights, order, runs, residents, self.kernel.draft)

    def _compute(self, layer: int, hidden: torch.Tensor, weights: torch.Tensor, order: torch.Tensor, runs: dict[int, slice],
                 records: Iterator, kernel) -> torch.Tensor:  # fmt: skip
        """Every pair's output into its own row, then one weighted sum: the result cannot depend on arrival order."""
        num_tokens, top_k = weights.shape
        order = order[: sum(run.stop - run.start for run in runs.values())]  # P pairs that count
        inputs = hidden.index_select(0, order // top_k)  # [P, D], each expert's together
        outputs = torch.empty_like(inputs)
        for expert, record in records:
            outputs[runs[expert]] = kernel(self.modules[layer], record, inputs[runs[expert]])
        pairs = hidden.new_zeros(num_tokens * top_k, hidden.shape[1]).index_copy_(0, order, outputs)  # [T * K, D]
        return (pairs.view(num_tokens, top_k, -1) * weights[..., None]).sum(dim=1)  # [T, D]

    def _worth(self, key: ExpertKey) -> tuple[float, ...]:
        """What keeping an expert that nobody chose to keep is worth: the draft's routers have named it for the verification
        to come, or else it was much used lately. An encoder's is not worth anything: it ran once, for a prompt."""
        if key.layer not in self.draft_layers:
            return -1, 0.0
        return self.votes[key.layer][key.expert], self.recent.use[key.layer][key.expert]

    def _count(self, layer: int, counts: list[int]) -> None:
        self.counts[layer] = counts
        self.votes[layer] = [0] * self.num_experts  # they were for this pass
        if not self.keep_as_is:
            self.recent.observe(layer, counts)
        totals = self.totals[layer]
        for expert, count in enumerate(counts):
            if count:
                totals[expert] += count
                self.trace.add("route", layer, expert, count=count)

    # ---- reading ahead -------------------------------------------------------------------------------------------

    def _vote(self, layer: int, index: torch.Tensor) -> None:
        """The draft's router names experts, before substitution: read those it asks for often enough."""
        counts = _tokens_per_expert(_living_pairs(index, self.num_experts, self.live), self.num_experts)
        self.quorum = 1 if index.shape[0] == 1 else 2
        votes = self.votes[layer]
        for expert, count in enumerate(counts):
            if count:
                votes[expert] += count
                if votes[expert] >= self.quorum:
                    self.pool.prefetch(ExpertKey(layer, expert))

    def _named_after(self, layer: int) -> Iterator[ExpertKey]:
        """What the draft's routers have named for the layers after this one, the next layer's first, the surest first."""
        for later in range(layer + 1, self.num_layers):  # lazily: the pool takes no more than it has room for
            votes = self.votes[later]
            named = [expert for expert in range(self.num_experts) if votes[expert] >= self.quorum]
            yield from (ExpertKey(later, expert) for expert in sorted(named, key=lambda expert: -votes[expert]))

    def _guess_next_layer(self, layer: int, hidden: torch.Tensor, top_k: int) -> None:
        """Overlapped: the next layer's router, asked about this layer's input, names what to read meanwhile."""
        if not self.guess_next or layer + 1 in (self.num_layers, self.draft_layers.start):
            return
        tokens = hidden if self.live is None else hidden[self.live.repeat_interleave(len(hidden) // len(self.live))]
        if len(tokens):
            logits = _logits_of(self.routers[layer + 1](tokens), self.num_experts)
            for expert in logits.topk(top_k, dim=-1).indices.unique().tolist():
                self.pool.prefetch(ExpertKey(layer + 1, expert))

    def _remember_logits(self, layer: int, router: nn.Module, args, output) -> None:
        self.router_logits[layer] = _logits_of(output, self.num_experts)

    def _route_among_residents(self, layer: int, index: torch.Tensor, mapped: torch.Tensor) -> torch.Tensor:
        """substitute="router": a choice that is not here goes to the resident the router likes best and has not used."""
        scores = self.router_logits[layer].float()  # [T, E]
        here = torch.zeros(self.num_experts, dtype=torch.bool, device=scores.device)
        here[self.draft_residents[layer]] = True
        scores = scores.masked_fill(~here, float("-inf")).scatter(1, index, float("-inf"))
        mapped = mapped.clone()
        for k in range(index.shape[1]):
            best = scores.max(dim=1)
            missing = (mapped[:, k] == self.num_experts) & (best.values > float("-inf"))
            mapped[missing, k] = best.indices[missing]
            taken = torch.where(missing, float("-inf"), best.values)
            scores = scores.scatter(1, best.indices[:, None], taken[:, None])
        return mapped


def _experts_forward(module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor,
                     top_k_weights: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """What transformers' registry calls: [T, D], [T, K], [T, K] -> [T, D]."""
    return module._specmoe_forward(hidden_states, top_k_index, top_k_weights)


def _logits_of(output, num_experts: int) -> torch.Tensor:
    """A router returns its logits [T, E] alone or in a tuple: first, or (some models of older transformers) last."""
    outputs = output if isinstance(output, tuple) else (output,)
    tensors = [x for x in outputs if isinstance(x, torch.Tensor) and x.is_floating_point()]
    logits = next((x for x in tensors if x.shape[-1] == num_experts), outputs[0])
    return logits.reshape(-1, logits.shape[-1])


def _router_of(model: PreTrainedModel, experts_name: str) -> nn.Module | None:
    """The router beside an experts module: the class the model records router logits from, or a child so named."""
    block = model.get_submodule(experts_name.rpartition(".")[0])
    for name, child in block.named_children():
        recorder = (getattr(model, "_can_record_outputs", None) or {}).get("router_logits")
        target = getattr(recorder, "target_class", recorder)
        if (isinstance(target, type) and isinstance(child, target)) or name in ("gate", "router"):
            return child
    return None
