# %% [markdown]
# # Exercise 4: speculative sampling without bias
#
# **Goal.** A token was drawn from the draft's distribution `q`. Accept or replace it so that what comes out follows the
# target's distribution `p` exactly.
#
# **Difficulty** hard · **Time** 20 minutes · **Before it** [07_sampling_without_bias](../../notebooks/07_sampling_without_bias.ipynb)

# %%
from specmoe.lab.exercises import check_sampling

hint = check_sampling.hint

# %% [markdown]
# `p` and `q` are lists of V probabilities, `token` was drawn from `q`, `uniform` is one draw in [0, 1). Return `None` to accept
# the token, or the list of V probabilities from which its replacement is to be drawn.

# %% stub


def verify(p, q, token, uniform):
    # your code: None to accept, else the distribution of the replacement
    return None


# %% solution


def verify(p, q, token, uniform):
    if uniform < p[token] / q[token]:
        return None
    beyond = [max(0.0, a - b) for a, b in zip(p, q)]
    return [x / sum(beyond) for x in beyond]


# %%
check_sampling(verify)

# %% stub
# Stuck? Take a # away. Hints cost tiers: excellent without one, good after 1 and 2, pass after 3.
# hint(1)  # a nudge
# hint(2)  # the idea
# hint(3)  # almost the code

# %% [markdown] solution
# Token x comes out in two ways: drafted and accepted, with chance min(p, q), or as a replacement. All rejections together have the chance
# of sum(max(0, p − q)), so a replacement drawn from max(0, p − q) divided by its sum adds exactly what is missing: min(p, q) + max(0, p − q) = p.
#
# The rule is that of Leviathan et al. (arXiv:2211.17192) and Chen et al. (arXiv:2302.01318). Replacing from `p` looks harmless and is
# not: the table shows how far it is off.
