# %% [markdown]
# # Exercise 10: the coupled sampler
#
# **Goal.** Let draft and target draw with the same noise, so that the text is what the target alone would have drawn with it.
# This is the package's default rule.
#
# **Difficulty** medium · **Time** 20 minutes · **Before it** [07_sampling_without_bias](../../notebooks/07_sampling_without_bias.ipynb)

# %%
from specmoe.lab.exercises import check_coupling

hint = check_coupling.hint

# %% [markdown]
# At every position there is exponential noise, one positive number per token: `noise[i]` has V of them. A model draws the token with the
# largest probability / noise; so each token comes with exactly its probability. `p` has G + 1 rows, the target's distributions; `q` has G,
# the draft's. Both use `noise[i]` at position i. A drafted token stands if the target draws the same, and all before it stood.
# Return a triple: the list of G drafted tokens, how many stand, and the target's token behind them.

# %% stub


def coupled(p, q, noise):
    # your code: draw, compare, end with the target's own token
    return None


# %% solution


def coupled(p, q, noise):
    def draw(chances, waits):
        return max(range(len(chances)), key=lambda x: chances[x] / waits[x])

    drafted = [draw(row, waits) for row, waits in zip(q, noise)]
    target = [draw(row, waits) for row, waits in zip(p, noise)]
    accepted = 0
    while accepted < len(drafted) and drafted[accepted] == target[accepted]:
        accepted += 1
    return drafted, accepted, target[accepted]


# %%
check_coupling(coupled)

# %% stub
# Stuck? Take a # away. Hints cost tiers: excellent without one, good after 1 and 2, pass after 3.
# hint(1)  # a nudge
# hint(2)  # the idea
# hint(3)  # almost the code

# %% [markdown] solution
# Think of a race: token x arrives after noise / p(x), and the first wins, with chance p(x). Draft and target run the same race with nearly
# the same speeds, so mostly the same token wins. Whatever the draft says, each token of the text is the target's own draw with that noise:
# no batch size and no gamma can change a text.
#
# The price is in the table: the rejection rule of exercise 4 accepts a little more often, with chance sum(min(p, q)). Its text depends on
# the draft. In the package: `specmoe.speculate.sampling.Sampler._race`.
