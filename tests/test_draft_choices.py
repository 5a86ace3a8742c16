"""Fewer pairs to compute while drafting: choices that share a stand-in, and top_k less than the
model's. And what is read ahead: votes of the draft, guesses about the next layer."""

from types import SimpleNamespace

import pytest
import torch

from specmoe.offload.dispatch import keep_top_k, merge_duplicates
from specmoe.offload.experts import RunExperts
from specmoe.offload.votes import Votes


def test_choices_with_one_stand_in_become_one_pair_with_the_sum_of_their_weights():
    index, weights = (
        torch.tensor([[3, 3], [1, 2], [8, 8]]),
        torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.5, 0.5]]),
    )
    merged, shares = merge_duplicates(index, weights, none=8)
    assert merged.tolist() == [[3, 8], [1, 2], [8, 8]], "8 means no expert"
    torch.testing.assert_close(shares, torch.tensor([[1.0, 0.0], [0.7, 0.3], [0.5, 0.5]]))
    assert index.tolist()[0] == [3, 3], "what came in stays as it was"


def test_merging_never_changes_the_weighted_sum():
    torch.manual_seed(0)
    experts = torch.randn(5, 7)
    index, weights = torch.randint(0, 5, (20, 4)), torch.rand(20, 4)
    table = torch.cat([experts, torch.zeros(1, 7)])
    merged, shares = merge_duplicates(index, weights, none=5)
    expected = (table[index] * weights[..., None]).sum(1)
    torch.testing.assert_close((table[merged] * shares[..., None]).sum(1), expected)


def test_the_heaviest_choices_share_the_weight_of_all():
    index, weights = torch.tensor([[4, 7]]), torch.tensor([[0.2, 0.6]])
    chosen, shares = keep_top_k(index, weights, 1)
    assert chosen.tolist() == [[7]]
    torch.testing.assert_close(shares, torch.tensor([[0.8]]))
    assert keep_top_k(index, weights, "half")[0].tolist() == [[7]]
    assert (
        keep_top_k(index, weights, None)[0] is index and keep_top_k(index, weights, 2)[0] is index
    )


def test_a_row_that_no_longer_drafts_has_no_vote():
    asked = []
    pool = SimpleNamespace(prefetch=lambda key: asked.append(key.expert))
    live, votes = torch.tensor([True, True, False, False]), Votes(1, 4)
    experts = SimpleNamespace(
        installed=SimpleNamespace(num_experts=4),
        live=live,
        policy=SimpleNamespace(votes=votes),
        pool=pool,
    )
    RunExperts._vote(experts, 0, torch.tensor([[1], [1], [2], [2]]))
    assert asked == [1] and votes.counts == [[0, 2, 0, 0]]


def test_each_token_shares_the_weight_of_its_own_choices():
    index, weights = (
        torch.tensor([[0, 1, 2], [3, 4, 5]]),
        torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 1.3]]),
    )
    kept, shares = keep_top_k(index, weights, 1)
    assert kept.tolist() == [[0], [5]]
    assert torch.allclose(shares, torch.tensor([[1.0], [2.0]]))


def test_two_votes_are_needed_where_there_is_more_than_one_token():
    alone = Votes(2, 3)
    assert alone.add(1, [1, 0, 0], 1) == [0] and list(alone.after(0)) == [(1, 0)]
    several = Votes(2, 3)
    assert several.add(1, [1, 1, 0], 2) == []
    assert several.add(1, [0, 1, 2], 3) == [1, 2] and list(several.after(0)) == [(1, 1), (1, 2)]


# ---- the guess about the next layer (overlapped)

HIDDEN = torch.arange(8.0).view(4, 2)


def guesses(layer=1, live=None, guess_next=True, hidden=HIDDEN):
    """-> what the router of the next layer was asked, and what was read ahead for its answer."""
    asked, read = [], []

    def ask(layer, tokens, top_k):
        asked.append((layer, tokens.tolist(), top_k))
        return [2, 5]

    experts = SimpleNamespace(
        how=SimpleNamespace(guess_next=guess_next),
        # an encoder's two layers before a decoder's two
        installed=SimpleNamespace(
            num_layers=4, draft_layers=range(2, 4), routers=SimpleNamespace(ask=ask)
        ),
        live=None if live is None else torch.tensor(live),
        pool=SimpleNamespace(prefetch=lambda key: read.append(tuple(key))),
    )
    RunExperts._guess_next_layer(experts, layer, hidden, 3)
    return asked, read


def test_the_next_layers_router_is_asked_about_this_layers_input():
    assert guesses(layer=2) == ([(3, HIDDEN.tolist(), 3)], [(3, 2), (3, 5)])
    assert guesses(layer=0) == ([(1, HIDDEN.tolist(), 3)], [(1, 2), (1, 5)])


def test_only_tokens_that_count_are_asked_about():
    asked, _ = guesses(layer=2, live=[True, False, False, True])
    assert asked == [(3, [[0, 1], [6, 7]], 3)]
    # one word for two tokens, where the model repeats each
    asked, _ = guesses(layer=2, live=[False, True])
    assert asked == [(3, [[4, 5], [6, 7]], 3)]
    assert guesses(layer=2, live=[False] * 4) == ([], [])


@pytest.mark.parametrize(
    "case", [{"layer": 3}, {"layer": 1}, {"guess_next": False}], ids=["last", "border", "not asked"]
)
def test_there_is_no_guess_past_the_last_layer_or_from_encoder_to_decoder(case):
    assert guesses(**case) == ([], [])
