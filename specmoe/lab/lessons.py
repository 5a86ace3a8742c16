"""Small experiments that the notebooks run: one call each, so that a notebook holds calls and no
logic of its own. (One builds the method in its cells, and proves it equal: ``scratch`` has its
checks.)

Comes in: a sampler, given costs, an engine or a run's routing. Goes out: small frames and numbers,
and two figures of them. Nothing else in the package stands on this file.

    V vocabulary, N samples, E experts, G gamma
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from ..errors import OptionError, check_choice
from ..speculate.planner import CANDIDATES, CostPlanner
from ..speculate.sampling import Sampler
from ..trace import Round
from .figures.base import COLORS, styled

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from .routing import Routing

FEWEST_EXPECTED = 5  # a chi-square cell with fewer expected counts is put together with others
ARCHITECTURES = {  # names of the sizes in each family's configuration
    "mixtral": {"intermediate_size": 48, "num_local_experts": 8},
    "qwen3_moe": {"moe_intermediate_size": 48, "num_experts": 8, "norm_topk_prob": True},
    "olmoe": {"intermediate_size": 48, "num_experts": 8},
}


# ---- sampling without bias ----


class NoResidual(Sampler):
    """Wrong on purpose: after a rejection it draws from p, not from the residual max(0, p - q), so
    tokens that the draft favours come out too often."""

    def reject(self, p, drafted, q, uniform):
        accepted, _ = super().reject(p, drafted, q, uniform)
        return accepted, p[accepted]


def sample_first(
    sampler: Sampler, target: torch.Tensor, draft: torch.Tensor, num_samples: int = 4000
) -> pd.DataFrame:
    """First tokens of ``num_samples`` blocks of one drafted token, against what the target says.

    ``target``, ``draft``: logits [V]. Returns a row per token: p (target), q (draft), observed and
    expected counts; ``.attrs`` holds accepted_share and p_value.
    """
    if target.shape != draft.shape or target.dim() != 1:
        raise OptionError(
            f"target {tuple(target.shape)} and draft {tuple(draft.shape)} must be logits of one "
            "vocabulary, [V]"
        )
    rows, vocabulary = list(range(num_samples)), len(target)
    drafted, q = sampler.draft(draft.expand(num_samples, vocabulary), rows, [1] * num_samples)
    # the token after an accepted one does not matter here
    both = target.expand(num_samples, 2, vocabulary)
    q_block = None if q is None else q[:, None]
    verdicts = sampler.verify(
        both, drafted[:, None], [1] * num_samples, q_block, rows, [1] * num_samples
    )
    first = [
        int(token) if verdict.accepted else verdict.token
        for token, verdict in zip(drafted, verdicts, strict=True)
    ]
    observed = torch.bincount(torch.tensor(first), minlength=vocabulary)
    p = sampler.probabilities(target)
    table = pd.DataFrame(
        {"p": p.numpy(), "q": sampler.probabilities(draft).numpy(), "observed": observed.numpy()}
    )
    table["expected"] = table["p"] * num_samples
    accepted = sum(verdict.accepted for verdict in verdicts) / num_samples
    table.attrs = {"accepted_share": accepted, "p_value": chi_square_p(observed, p)}
    return table.rename_axis("token")


def chi_square_p(observed: torch.Tensor, probabilities: torch.Tensor) -> float:
    """p-value of counts [V] against a distribution [V] (Pearson's chi-square); rare cells are put
    together. 0.0 if something impossible was observed."""
    observed, probabilities = observed.double(), probabilities.double()
    if observed[probabilities == 0].sum() > 0:
        return 0.0
    expected = probabilities / probabilities.sum() * observed.sum()
    rare = expected < FEWEST_EXPECTED
    cells = [
        torch.cat([counts[~rare], counts[rare].sum()[None]]) for counts in (observed, expected)
    ]
    if cells[1][-1] < FEWEST_EXPECTED:  # still rare together: it joins the smallest cell
        smallest = int(cells[1][:-1].argmin())
        cells = [_join(counts, smallest) for counts in cells]
    if len(cells[0]) < 2:
        return 1.0
    statistic = ((cells[0] - cells[1]) ** 2 / cells[1]).sum()
    return float(
        torch.special.gammaincc(torch.tensor((len(cells[0]) - 1) / 2).double(), statistic / 2)
    )


def _join(counts: torch.Tensor, cell: int) -> torch.Tensor:
    """The last cell added to ``cell``."""
    joined = counts[:-1].clone()
    joined[cell] += counts[-1]
    return joined


@styled
def draw_samples(tables: dict[str, pd.DataFrame]):
    """Observed against expected counts by token, one panel per sampler. Returns the ``Axes``."""
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(
        1,
        len(tables),
        figsize=(4.4 * len(tables), 3.8),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for ax, (name, table) in zip(axes[0], tables.items(), strict=True):
        ax.bar(table.index, table["observed"], color=COLORS[0], label="observed")
        ax.plot(
            table.index,
            table["expected"],
            "_",
            ms=22,
            mew=3,
            color=COLORS[3],
            label="expected from the target",
        )
        ax.set_title(f"{name}: p = {table.attrs['p_value']:.1e}", loc="left")
        ax.set(xlabel="token", ylabel="tokens that came out" if ax is axes[0][0] else "")
    axes[0][0].legend(fontsize="small")
    return axes[0]


# ---- the draft's routers as an oracle ----


def draft_foresight(routing: Routing) -> pd.DataFrame:
    """How well the draft's routers foretell the full model's experts, by layer: named (expert,
    round) pairs, needed ones, both, recall = both / needed, precision = both / named. Only tokens
    of the final text, see ``Routing``.
    """
    picks = routing.picks
    drafted = picks[picks["step"] == "draft"]
    verified = picks[(picks["step"] == "target") & picks["round"].isin(drafted["round"].unique())]
    rows = []
    for layer in range(routing.num_layers):
        named, needed = (
            {*zip(part["round"], part["expert"])}
            for part in (drafted[drafted["layer"] == layer], verified[verified["layer"] == layer])
        )
        both = len(named & needed)
        rows.append(
            (
                layer,
                len(named),
                len(needed),
                both,
                both / max(1, len(needed)),
                both / max(1, len(named)),
            )
        )
    return pd.DataFrame(
        rows, columns=["layer", "named", "needed", "both", "recall", "precision"]
    ).set_index("layer")


# ---- the planner on given costs ----


def plan_on(
    draft_step_s: float,
    verify_s: float,
    verify_slope_s: float = 0.0,
    acceptance: float = 0.8,
    num_rounds: int = 200,
    rows: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """What ``CostPlanner`` believes after ``num_rounds`` on a machine of given costs (imagined,
    nothing is measured).

    A draft step takes ``draft_step_s``, a verification ``verify_s + verify_slope_s * gamma``.
    Returns a row per gamma: tokens (per row and round), seconds, seconds_per_token, times_chosen
    (of the last half of the rounds).
    """
    planner, chance, chosen = CostPlanner(), random.Random(seed), []
    for _ in range(num_rounds):
        gamma = planner.next_gamma()
        accepted = [_run_of_luck(chance, acceptance, gamma) for _ in range(rows)]
        cost = Round(
            gamma, gamma * draft_step_s, verify_s + verify_slope_s * gamma, [gamma] * rows, accepted
        )
        planner.observe(cost)
        chosen.append(gamma)
    late = chosen[num_rounds // 2 :]
    figures = [
        (g, planner.tokens(g), planner.seconds(g), planner.seconds_per_token(g), late.count(g))
        for g in CANDIDATES
    ]
    columns = ["gamma", "tokens", "seconds", "seconds_per_token", "times_chosen"]
    return pd.DataFrame(figures, columns=columns).set_index("gamma")


def _run_of_luck(chance: random.Random, acceptance: float, most: int) -> int:
    run = 0
    while run < most and chance.random() < acceptance:
        run += 1
    return run


@styled
def draw_plans(plans: dict[str, pd.DataFrame]):
    """Expected milliseconds per token by gamma, one line per imagined machine; a dot marks the
    planner's choice."""
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(8, 4.4), layout="constrained")
    for color, (name, plan) in zip(COLORS, plans.items()):
        relative = plan["seconds_per_token"] / plan["seconds_per_token"].loc[0]
        best = plan["times_chosen"].idxmax()
        ax.plot(plan.index, relative, "-o", ms=4, color=color, label=f"{name}: chooses {best}")
        ax.plot([best], [relative.loc[best]], "o", ms=13, mfc="none", mew=3, color=color)
    ax.axhline(1, color="#505050", ls="--", lw=1)
    ax.set_title("Time per token as the planner sees it (imagined machines)", loc="left")
    ax.set(xlabel="drafted tokens per round (gamma)", ylabel="relative to no drafting")
    ax.legend(fontsize="small")
    return ax


# ---- what one draft step does ----


class _Profiled:
    """A decoder that profiles draft step number ``step``."""

    def __init__(self, decoder, trace, step: int):
        self.decoder = decoder
        self.trace = trace
        self.step = step
        self.seen = 0
        self.profile = None

    def __getattr__(self, name: str):
        return getattr(self.decoder, name)

    def forward(self, tokens: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        self.seen += self.trace.phase == "draft"
        if self.trace.phase != "draft" or self.seen != self.step:
            return self.decoder.forward(tokens, starts)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            logits = self.decoder.forward(tokens, starts)
        self.profile = profile
        return logits


def profile_draft_step(engine: Engine, prompts, step: int = 8, **options) -> pd.DataFrame:
    """torch.profiler over one draft step: a row per operator, calls, own milliseconds on the CPU,
    share of the step.

    ``step``: which one (the first ones warm up). ``options`` are those of ``Engine.generate``,
    method specmoe. Raises ``OptionError`` if fewer steps were drafted.
    """
    with engine.start(prompts, method="specmoe", **options) as run:
        run.batch.decoder = watched = _Profiled(run.batch.decoder, run.batch.trace, step)
        for _ in run:
            if watched.profile is not None:
                break
    if watched.profile is None:
        raise OptionError(f"step={step} was not reached: {watched.seen} draft steps ran")
    rows = [
        (event.key, event.count, event.self_cpu_time_total / 1e3)
        for event in watched.profile.key_averages()
    ]
    table = pd.DataFrame(rows, columns=["operator", "calls", "own_ms"]).sort_values(
        "own_ms", ascending=False
    )
    table["share"] = table["own_ms"] / table["own_ms"].sum()
    return table.set_index("operator")


# ---- a checkpoint of your own ----


def random_checkpoint(
    folder, architecture: str = "mixtral", num_experts: int = 8, num_layers: int = 2, seed: int = 0
) -> Path:
    """Save a small random transformers MoE model to ``folder`` as ``save_pretrained`` does; no
    tokenizer, 97 token ids.

    ``architecture``: mixtral, qwen3_moe or olmoe. Returns the folder. Its weights are noise:
    exactness can be tried on it, acceptance and skew mean nothing.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    check_choice("architecture", architecture, ARCHITECTURES)
    sizes = dict(ARCHITECTURES[architecture])
    sizes["num_local_experts" if "num_local_experts" in sizes else "num_experts"] = num_experts
    config = AutoConfig.for_model(
        architecture,
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        num_experts_per_tok=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        initializer_range=0.15,
        **sizes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    with _no_progress_bar():
        model.save_pretrained(folder)
    return Path(folder)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers shows none meanwhile: a bar of one step only clutters a notebook."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
