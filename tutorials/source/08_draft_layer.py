# %% [markdown]
# # Exercise 8: the MoE layer of the draft
#
# **Goal.** While drafting, run a MoE layer with the experts that are there. The router chooses and weighs as always; stand-ins
# compute for the missing.
#
# **Difficulty** medium · **Time** 20 minutes · **Before it** [05_self_draft](../../notebooks/05_self_draft.ipynb)

# %%
from specmoe.lab.exercises import check_draft_layer

hint = check_draft_layer.hint

# %% [markdown]
# `hidden` [T, D] and `router` [E, D] are tensors: a token's scores are `hidden @ router.T`, its `top_k` experts are those with the
# highest scores, and their weights are the softmax of those `top_k` scores. `experts` lists E functions, [D] or [n, D] to the same shape;
# one that is not resident raises an error when called. `stand_in` is the table of exercise 1: who computes in place of each expert, E for
# nobody. Return a tensor [T, D]: for each token the weighted sum of its experts' outputs. The part of "nobody" is zero.

# %% stub


def draft_layer(hidden, router, experts, stand_in, top_k):
    # your code: route, replace, weigh, add up
    return None


# %% solution
import torch


def draft_layer(hidden, router, experts, stand_in, top_k):
    scores, chosen = (hidden @ router.T).topk(top_k)
    weights = scores.softmax(dim=-1)
    out = torch.zeros_like(hidden)
    for t in range(len(hidden)):
        for k in range(top_k):
            expert = stand_in[chosen[t, k]]
            if expert < len(experts):
                out[t] += weights[t, k] * experts[expert](hidden[t])
    return out


# %%
check_draft_layer(draft_layer)

# %% stub
# Stuck? Take a # away. Hints cost tiers: excellent without one, good after 1 and 2, pass after 3.
# hint(1)  # a nudge
# hint(2)  # the idea
# hint(3)  # almost the code

# %% [markdown] solution
# The routing is the full model's own; only who computes changes. The weight stays with the choice, as it says how much of *that* expert
# the token wants. Two choices with one stand-in simply add their weights.
#
# What nobody computes is left out without sharing its weight out: then a draft without stand-ins differs from the full layer only by the
# missing terms. The engine groups the tokens by expert first: `specmoe.offload.experts.RunExperts._draft_layer`.
