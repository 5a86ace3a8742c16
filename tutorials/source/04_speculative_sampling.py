# %% [markdown]
# # Exercise 4: speculative sampling without bias
#
# **Goal.** A token was drawn from the draft's distribution `q`. Accept or replace it so that what comes out follows the
# target's distribution `p` exactly.
#
# **Difficulty** hard · **Time** 20 minutes · **Before it** `notebooks/07_sampling_without_bias.ipynb`

# %%
from specmoe.lab.exercises import check_sampling

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

# %% [markdown]
# <details><summary>Hint</summary>
#
# Token x comes out accepted with chance q(x) · min(1, p(x)/q(x)) = min(p(x), q(x)). What is missing to p(x) is max(0, p(x) − q(x)):
# the replacement has to supply that, and nothing else.
#
# </details>

# %% [markdown] solution
# The rule is that of Leviathan et al. (arXiv:2211.17192) and Chen et al. (arXiv:2302.01318). Replacing from `p` looks harmless and is
# not: the table shows how far it is off.
