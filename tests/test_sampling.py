"""Sampled text has exactly the target's distribution, and hangs on (seed, prompt index) alone.

The chi-square tests draw thousands of tokens and refuse at p < 1e-6. Seeds are fixed, so a test
that passes keeps passing; with a fresh seed a correct sampler would fail one of the about 30 tests
once in 30,000 runs. Samplers that are broken on purpose must fail the same tests by far (p <
1e-12), which shows that the tests can see.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from conftest import reference_model, tokens_of
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import specmoe
from specmoe.engine import prepare
from specmoe.options import GenerateOptions
from specmoe.speculate.sampling import (
    Sampler,
    Verdict,
    accept_block,
    accept_by_rejection,
    accept_matching,
    block_chances,
)

ODDS = 1e-6
V, NUM_SAMPLES = 8, 6000
WARPS = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 4},
    "top_p": {"top_p": 0.75},
    "all_three": {"temperature": 1.4, "top_k": 5, "top_p": 0.9},
}


def chi_square_p(observed: torch.Tensor, probabilities: torch.Tensor) -> float:
    """p-value of counts against a distribution; rare cells are put together so that every cell
    expects at least 5."""
    observed, probabilities = observed.double().flatten(), probabilities.double().flatten()
    if observed[probabilities == 0].sum() > 0:
        return 0.0  # something impossible happened
    expected = probabilities / probabilities.sum() * observed.sum()
    order = expected.argsort(descending=True)
    rare = expected[order] < 5
    cells = [torch.cat([x[order][~rare], x[order][rare].sum()[None]]) for x in (observed, expected)]
    if cells[1][-1] < 5:  # the rest is rare even together: it joins the last cell
        cells = [torch.cat([x[:-2], x[-2:].sum()[None]]) for x in cells]
    observed, expected = cells
    if len(observed) < 2:
        return 1.0
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(
        torch.special.gammaincc(torch.tensor((len(observed) - 1) / 2.0).double(), statistic / 2)
    )


def test_the_chi_square_itself_is_right():
    """Known values: 10.83 at one degree of freedom is p = 0.001; 18.47 at four too."""
    shift = math.sqrt(10.83 / 2 * 50)
    assert chi_square_p(
        torch.tensor([50 + shift, 50 - shift]), torch.tensor([0.5, 0.5])
    ) == pytest.approx(0.001, rel=0.02)
    observed = torch.tensor([100.0] * 5) + torch.tensor([1.0, -1, 0, 0, 0]) * math.sqrt(
        18.47 / 2 * 100
    )
    assert chi_square_p(observed, torch.full((5,), 0.2)) == pytest.approx(0.001, rel=0.02)
    assert chi_square_p(torch.tensor([500, 1]), torch.tensor([1.0, 0.0])) == 0.0


# ---- the accept functions ----


class EqualOrAgain(Sampler):
    """Broken: independent draws of draft and target; equal ones are accepted, for the others the
    target draws again."""

    def draft(self, logits, prompts, positions):
        q = self.probabilities(logits)
        return (q / self._noise(prompts, positions, q, "draft")).argmax(dim=-1), q

    def verify(self, logits, drafted, num_drafted, q, prompts, positions):
        p = self.probabilities(logits)
        verdicts = accept_matching(self._race(p, prompts, positions), drafted, num_drafted)
        fixed = []
        for row, verdict in enumerate(verdicts):
            place = positions[row] + verdict.accepted
            noise = self._noise([prompts[row]], [place], p, "residual")[0]
            fixed.append(
                Verdict(verdict.accepted, int((p[row, verdict.accepted] / noise).argmax()))
            )
        return fixed


class OtherQ(Sampler):
    """Broken: rejection sampling with a q that the drafted tokens were not drawn from (they are the
    draft's argmax)."""

    def draft(self, logits, prompts, positions):
        return logits.argmax(dim=-1), self.probabilities(logits)


class UnwarpedQ(Sampler):
    """Broken: draws from the warped q, but accepts with the unwarped one."""

    def draft(self, logits, prompts, positions):
        return super().draft(logits, prompts, positions)[0], logits.float().softmax(dim=-1)


class NoResidual(Sampler):
    """Broken: after a rejection it draws from p instead of the residual max(0, p - q)."""

    def reject(self, p, drafted, q, uniform):
        accepted, _ = super().reject(p, drafted, q, uniform)
        return accepted, p[accepted]


BROKEN = [
    (EqualOrAgain, "coupled"),
    (OtherQ, "rejection"),
    (UnwarpedQ, "rejection"),
    (NoResidual, "rejection"),
]


def two_positions(sampler_class, **options) -> tuple[float, float, float]:
    """p-values of the first two tokens of many blocks (G = 2) and the share of accepted tokens."""
    options = GenerateOptions(do_sample=True, seed=5, **options)
    sampler, generator = sampler_class(options), torch.Generator().manual_seed(1)
    target = torch.randn(3, V, generator=generator) * 1.5  # [G + 1, V]
    draft = target[:2] + torch.randn(2, V, generator=generator)
    prompts, first = list(range(NUM_SAMPLES)), [4] * NUM_SAMPLES
    drafted, distributions = zip(
        *(
            sampler.draft(draft[i].expand(NUM_SAMPLES, V), prompts, [4 + i] * NUM_SAMPLES)
            for i in range(2)
        )
    )
    drafted, q = torch.stack(drafted, dim=1), torch.stack(distributions, dim=1)
    logits = target.expand(NUM_SAMPLES, 3, V)
    verdicts = sampler.verify(logits, drafted, [2] * NUM_SAMPLES, q, prompts, first)
    texts = [[*row[: v.accepted], v.token] for row, v in zip(drafted.tolist(), verdicts)]
    p = sampler.probabilities(target)
    p_values = [
        chi_square_p(
            torch.bincount(torch.tensor([t[i] for t in texts if len(t) > i]), minlength=V), p[i]
        )
        for i in (0, 1)
    ]
    return *p_values, sum(v.accepted for v in verdicts) / (2 * NUM_SAMPLES)


@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("rule", ["coupled", "rejection", "block"])
def test_tokens_that_come_out_have_the_targets_distribution(rule, warp):
    first, second, accepted = two_positions(Sampler, accept_rule=rule, **WARPS[warp])
    assert first > ODDS and second > ODDS
    assert 0.2 < accepted < 0.95, (
        "drafts are sometimes accepted and sometimes not, so both ways out were tested"
    )


@pytest.mark.parametrize("sampler, rule", BROKEN)
def test_a_broken_sampler_fails_the_same_test(sampler, rule):
    first, _, _ = two_positions(sampler, accept_rule=rule, temperature=0.6)
    assert first < 1e-12


def test_without_sampling_the_likeliest_token_is_drafted_and_the_target_s_stands():
    sampler = Sampler(GenerateOptions())
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])  # [B, V]
    tokens, q = sampler.draft(logits, [0, 1], [4, 4])
    assert tokens.tolist() == [1, 0] and q is None
    sure = torch.softmax(logits.double(), dim=-1).amax(dim=-1)
    torch.testing.assert_close(sampler.confidence(logits), sure, rtol=1e-6, atol=0)
    target = torch.stack([logits, logits.flip(-1)], dim=1)  # [B, G + 1, V]
    drafted = torch.tensor([[1], [2]])
    verdicts = sampler.verify(target, drafted, [1, 1], None, [0, 1], [4, 4])
    assert [tuple(verdict) for verdict in verdicts] == [(1, 1), (0, 0)]


def test_rejection_accepts_more_often_than_coupling():
    assert (
        two_positions(Sampler, accept_rule="rejection")[2]
        > two_positions(Sampler, accept_rule="coupled")[2]
    )


def test_equal_distributions_are_always_accepted():
    p = torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.1, 0.9]])
    for draw in (0.0, 0.5, 0.999):
        assert accept_by_rejection(p, torch.tensor([0, 1]), p[:2], [draw, draw])[0] == 2


def test_the_residual_is_what_the_draft_gave_too_little_of():
    p, q = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0, 0]]), torch.tensor([[0.1, 0.9, 0.0]])
    accepted, residual = accept_by_rejection(p, torch.tensor([1]), q, [0.5])  # 0.5 >= 0.3 / 0.9
    assert accepted == 0
    torch.testing.assert_close(residual, torch.tensor([0.4, 0.0, 0.2]) / 0.6)
    assert accept_by_rejection(p, torch.tensor([1]), q, [0.3])[0] == 1


def test_only_tokens_that_count_are_accepted():
    target = torch.tensor([[3, 4, 5], [3, 4, 5], [9, 4, 5]])
    drafted = torch.tensor([[3, 4], [3, 4], [3, 4]])
    assert accept_matching(target, drafted, [2, 1, 2]) == [(2, 5), (1, 4), (0, 9)]


def test_without_drafts_the_target_decides_alone():
    assert accept_matching(torch.tensor([[7]]), torch.zeros(1, 0, dtype=torch.long), [0]) == [
        (0, 7)
    ]


@pytest.mark.parametrize("warp", WARPS)
def test_probabilities_are_those_of_transformers_warpers(warp):
    options, logits = WARPS[warp], torch.randn(3, 20)
    scores = logits
    for name, warper in (
        ("temperature", TemperatureLogitsWarper),
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
    ):
        if name in options:
            scores = warper(options[name])(None, scores)
    got = Sampler(GenerateOptions(do_sample=True, **options)).probabilities(logits.view(3, 1, 20))
    torch.testing.assert_close(got[:, 0], scores.softmax(dim=-1))


# ---- end to end ----

SMALL_VOCAB, PROMPT, SAMPLES = 7, [5, 3, 6], 2500


@pytest.fixture(scope="module")
def small_engine(tiny):
    """Seven tokens, so that three positions have 343 texts; one draft expert and no stand-ins: a
    poor draft."""
    with specmoe.load(
        tiny("mixtral", vocab_size=SMALL_VOCAB), dtype="float64", draft_experts=1, trace=False
    ) as engine:
        yield engine


@pytest.fixture(scope="module")
def text_probabilities(tiny):
    """``text_probabilities(**warp)``: exact probability of every text of three tokens, [V, V,
    V]."""
    model = reference_model(tiny("mixtral", vocab_size=SMALL_VOCAB))
    texts = [[*PROMPT, *pair] for pair in itertools.product(range(SMALL_VOCAB), repeat=2)]
    with torch.inference_mode():
        logits = (
            model(torch.tensor(texts))
            .logits[:, len(PROMPT) - 1 :]
            .view(SMALL_VOCAB, SMALL_VOCAB, 3, SMALL_VOCAB)
        )

    def get(**warp):
        p = Sampler(GenerateOptions(do_sample=True, **warp)).probabilities(logits)
        return p[0, 0, 0][:, None, None] * p[:, 0, 1][:, :, None] * p[:, :, 2]

    return get


def sampled_texts(engine, seed: int = 11, **options) -> torch.Tensor:
    """How often every text of three tokens came out, [V, V, V]."""
    options = {
        "substitute": "drop",
        "prefetch": False,
        "do_sample": True,
        "seed": seed,
        "eos_token_id": [],
        **options,
    }
    output = engine.generate(
        [PROMPT] * SAMPLES, method="specmoe", gamma=2, max_new_tokens=3, batch_size=500, **options
    )
    new = torch.stack(output.sequences)[:, -3:]
    cells = (new * torch.tensor([SMALL_VOCAB**2, SMALL_VOCAB, 1])).sum(dim=1)
    return torch.bincount(cells, minlength=SMALL_VOCAB**3).view(*[SMALL_VOCAB] * 3)


@pytest.mark.parametrize(
    "rule, warp",
    [
        *itertools.product(["coupled", "rejection"], ["plain", "all_three", "top_p"]),
        ("block", "top_p"),
    ],
)
def test_texts_of_a_model_have_the_targets_distribution(
    rule, warp, small_engine, text_probabilities
):
    observed, p = (
        sampled_texts(small_engine, accept_rule=rule, **WARPS[warp]),
        text_probabilities(**WARPS[warp]),
    )
    assert chi_square_p(observed, p) > ODDS
    for position in range(3):
        others = [d for d in range(3) if d != position]
        assert chi_square_p(observed.sum(dim=others), p.sum(dim=others)) > ODDS


@pytest.mark.parametrize("sampler, rule", BROKEN)
def test_a_broken_sampler_fails_end_to_end(
    sampler, rule, small_engine, text_probabilities, monkeypatch
):
    monkeypatch.setattr(prepare, "Sampler", sampler)
    observed = sampled_texts(small_engine, accept_rule=rule, temperature=0.6)
    assert chi_square_p(observed, text_probabilities(temperature=0.6)) < 1e-12


# ---- block verification, counted out ----

DEPTH, LETTERS = 3, 3


@pytest.fixture(scope="module", params=[0, 1, 2, 3])
def trees(request):
    """Random p and q after every prefix of up to three letters: {prefix: [V]}."""
    generator = torch.Generator().manual_seed(request.param)
    prefixes = [c for n in range(DEPTH + 1) for c in itertools.product(range(LETTERS), repeat=n)]
    sharpness = 0.3 + request.param

    def draw():
        logits = torch.randn(len(prefixes), LETTERS, generator=generator, dtype=torch.float64)
        return dict(zip(prefixes, (sharpness * logits).softmax(dim=-1)))

    return draw(), draw()


def judged_paths(trees):
    """Every drafted path: (its letters, its chance, what ``block_chances`` says of it)."""
    p, q = trees
    for path in itertools.product(range(LETTERS), repeat=DEPTH):
        rows = [path[:n] for n in range(DEPTH + 1)]
        of_q = torch.stack([q[row] for row in rows[:-1]])
        chance = math.prod(float(q[path[:n]][path[n]]) for n in range(DEPTH))
        given = torch.stack([p[row] for row in rows]), torch.tensor(path), of_q
        yield path, chance, block_chances(*given)


def of_each_length(judged) -> list[float]:
    """The chance that exactly n tokens stand."""
    later = 1.0
    exactly = []
    for chance, _ in judged[:0:-1]:
        exactly.append(later * chance)
        later *= 1 - chance
    return [later, *exactly[::-1]]


def test_block_verification_gives_the_target_exactly(trees):
    """Not by chance: the law of four letters, summed over every draft, is the product of p."""
    p, _ = trees
    for text in itertools.product(range(LETTERS), repeat=DEPTH + 1):
        got = 0.0
        for path, chance, judged in judged_paths(trees):
            for n, stands in enumerate(of_each_length(judged)):
                if path[:n] == text[:n]:
                    rest = (float(p[text[:k]][text[k]]) for k in range(n + 1, DEPTH + 1))
                    got += chance * stands * float(judged[n][1][text[n]]) * math.prod(rest)
        want = math.prod(float(p[text[:k]][text[k]]) for k in range(DEPTH + 1))
        assert got == pytest.approx(want, rel=1e-9)


def test_block_verification_accepts_no_fewer_tokens_than_rejection(trees):
    p, q = trees
    by_block = by_rejection = 0.0
    for path, chance, judged in judged_paths(trees):
        by_block += chance * sum(n * c for n, c in enumerate(of_each_length(judged)))
        ratios = [
            min(1.0, float(p[path[:n]][path[n]] / q[path[:n]][path[n]])) for n in range(DEPTH)
        ]
        by_rejection += chance * sum(math.prod(ratios[: n + 1]) for n in range(DEPTH))
    assert by_block > by_rejection + 0.001, "more, where one ratio may make up for another"


def test_a_block_of_one_token_is_rejection(trees):
    p, q = trees
    for token in range(LETTERS):
        given = torch.stack([p[()], p[token,]]), torch.tensor([token]), q[()][None]
        chance, _ = block_chances(*given)[1]
        assert chance == pytest.approx(min(1.0, float(p[()][token] / q[()][token])))
        for draw in (chance - 1e-6, min(chance + 1e-6, 1 - 1e-9)):
            ours, theirs = accept_block(*given, [draw]), accept_by_rejection(*given, [draw])
            assert ours[0] == theirs[0] and torch.allclose(ours[1], theirs[1])


def test_a_draft_of_the_target_itself_is_accepted_whole():
    p = torch.full((4, 5), 0.2)
    assert accept_block(p, torch.tensor([1, 2, 3]), p[:3], [0.999] * 3)[0] == 3


def test_each_block_of_the_block_rule_has_noise_of_its_own():
    """It looks at draws behind the first rejection, which the next block must not use again."""
    draws = []

    class Watched(Sampler):
        def reject(self, p, drafted, q, uniform):
            draws.append(list(uniform))
            return super().reject(p, drafted, q, uniform)

    sampler = Watched(GenerateOptions(do_sample=True, seed=3, accept_rule="block"))
    logits, drafted = torch.zeros(1, 5, 7), torch.zeros(1, 4, dtype=torch.long)
    for position in (10, 12):
        sampler.verify(logits, drafted, [4], torch.full((1, 4, 7), 1 / 7), [0], [position])
    assert len({*draws[0], *draws[1]}) == 8
    assert sampler.places([10], [12]) != sampler.places([11], [12])


def test_prompts_and_positions_draw_independently(small_engine, text_probabilities):
    """Neighbouring prompts with neighbouring seeds: pairs of first tokens are independent."""
    texts = [
        small_engine.generate(
            [PROMPT] * SAMPLES,
            method="on_demand",
            max_new_tokens=1,
            batch_size=500,
            do_sample=True,
            seed=seed,
            eos_token_id=[],
        ).sequences
        for seed in (3, 4)
    ]
    first = [torch.stack(t)[:, -1] for t in texts]
    p = text_probabilities().sum(dim=(1, 2))
    for a, b in ((first[0][:-1], first[0][1:]), (first[0], first[1])):
        pairs = torch.bincount(a * SMALL_VOCAB + b, minlength=SMALL_VOCAB**2)
        assert chi_square_p(pairs, p[:, None] * p[None, :]) > ODDS


# ---- what a sampled text hangs on ----

JOB = [[5, 6, 7, 8], [3], [20, 21, 22], [1, 2, 3, 4, 5], [9, 9]]


def sample(engine, prompts=JOB, **options) -> list[list[int]]:
    options = {
        "method": "specmoe",
        "gamma": 3,
        "batch_size": 2,
        "seed": 1,
        "temperature": 1.2,
        "top_k": 30,
        **options,
    }
    if options["method"] not in ("specmoe", "auto"):
        options.pop("gamma")
    return tokens_of(
        engine.generate(prompts, max_new_tokens=12, do_sample=True, eos_token_id=[], **options)
    )


@pytest.mark.parametrize(
    "options",
    [
        *(
            {"method": method}
            for method in ("on_demand", "cached", "overlapped", "resident", "auto")
        ),
        *({"batch_size": size} for size in (1, 3, 5)),
        *({"gamma": gamma} for gamma in (0, 1, 7, None)),
        *({"draft_set": name} for name in ("random", "hot_global")),
        {"substitute": "drop"},
        {"prefetch": False},
    ],
    ids=str,
)
def test_no_option_but_the_seed_changes_a_sampled_text(options, open_engine):
    engine = open_engine("mixtral")
    assert sample(engine, **options) == sample(engine)


def test_seeds_differ_and_repeat(open_engine):
    engine = open_engine("mixtral")
    assert sample(engine, seed=1) == sample(engine, seed=1)
    assert all(a != b for a, b in zip(sample(engine, seed=1), sample(engine, seed=2)))
    assert sample(engine, seed=None) != sample(engine, seed=None)


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_every_prompt_has_its_own_generator(rule, open_engine):
    engine = open_engine("mixtral")
    alike = sample(engine, [[5, 6, 7]] * 4, accept_rule=rule)
    assert len({tuple(text) for text in alike}) == 4
    others = sample(engine, [[5, 6, 7], [30, 31], [40]], accept_rule=rule, batch_size=1)
    assert rule == "rejection" or others[0] == alike[0], "a text does not hang on its neighbours"


def test_one_allowed_token_is_greedy(open_engine, plain):
    engine = open_engine("mixtral")
    greedy = tokens_of(engine.generate(JOB, method="on_demand", max_new_tokens=12, eos_token_id=[]))
    assert sample(engine, top_k=1) == greedy
    assert sample(engine, top_k=1, accept_rule="rejection") == greedy


def test_a_draw_of_the_rejection_rule_belongs_to_its_position_whatever_the_block(monkeypatch):
    """Else a later block would draw again what an earlier one has drawn."""
    draws = []

    class Watched(Sampler):
        def reject(self, p, drafted, q, uniform):
            draws.append(list(uniform))
            return super().reject(p, drafted, q, uniform)

    sampler = Watched(GenerateOptions(do_sample=True, seed=3, accept_rule="rejection"))
    logits, drafted = torch.zeros(1, 5, 7), torch.zeros(1, 4, dtype=torch.long)
    for position in (10, 12):  # two blocks that overlap by two positions
        q = torch.full((1, 4, 7), 1 / 7)
        sampler.verify(logits, drafted, [4], q, [0], [position])
    first, second = draws
    assert len({*first, *second}) == 6, "six positions, six draws"
    assert first[2:] == second[:2]
