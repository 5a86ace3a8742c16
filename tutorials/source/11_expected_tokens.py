# %% [markdown]
# # Exercise 11: expected tokens per round
#
# **Goal.** Write how many tokens a round gives on average, from the chance that a drafted token stands.
#
# **Difficulty** easy · **Time** 10 minutes · **Before it** [09_when_does_it_pay](../../notebooks/09_when_does_it_pay.ipynb)

# %%
from specmoe.lab.exercises import check_expected_tokens

hint = check_expected_tokens.hint

# %% [markdown]
# A round drafts `gamma` tokens. Each stands with chance `alpha`, given that all before it stood; the first rejection ends the round. The
# target's own token always comes on top. Return the expected number of tokens (Leviathan et al., arXiv:2211.17192, equation 1).
# `alpha` may be 0 or 1, and `gamma` 0.

# %% stub


def expected_tokens(alpha, gamma):
    # your code: one number
    return None


# %% solution


def expected_tokens(alpha, gamma):
    return sum(alpha**i for i in range(gamma + 1))


# %%
check_expected_tokens(expected_tokens)

# %% stub
# Stuck? Take a # away. Hints cost tiers: excellent without one, good after 1 and 2, pass after 3.
# hint(1)  # a nudge
# hint(2)  # the idea
# hint(3)  # almost the code

# %% [markdown] solution
# The token at i stands only if all before it do, with chance alpha^i. Adding these chances gives the expected number that stand, and the
# term alpha^0 = 1 is the target's own token. The closed form (1 − alpha^(gamma+1)) / (1 − alpha) divides by zero at alpha = 1.
#
# The formula takes every token for equally likely to stand. The table's last column is counted on recorded rounds: look where the two part.
