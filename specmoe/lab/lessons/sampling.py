"""Does a sampler leave the target's distribution as it is? Many first tokens, counted.

Comes in: a sampler, logits of target and draft. Goes out: counts beside what was expected, their
p-value, and a figure of them.

    V vocabulary, N samples
"""

from __future__ import annotations

import pandas as pd
import torch

from ...errors import OptionError
from ...speculate.sampling import Sampler
from ..figures.base import COLORS, styled

FEWEST_EXPECTED = 5  # a chi-square cell with fewer expected counts is put together with others


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
