# %% [markdown]
# # Exercise 3: greedy acceptance on ragged rows
#
# **Goal.** Given what was drafted and what the target would have said, decide how many drafted tokens stand and which token
# follows, so that the text is exactly the target's own.
#
# **Difficulty** easy · **Time** 15 minutes · **Before it** `notebooks/06_batched_verification.ipynb`

# %%
from specmoe.lab.exercises import check_acceptance

# %% [markdown]
# `target` has B rows of G + 1 tokens: `target[b][i]` is what the target says where `drafted[b][i]` stands; its last one comes
# after all drafted tokens. Only the first `num_drafted[b]` tokens of a row were drafted, the rest is padding.
# Return a list with one pair per row: (number of accepted tokens, the target's token after them).

# %% stub


def accept(target, drafted, num_drafted):
    # your code: one pair (accepted, token) per row
    return None


# %% solution


def accept(target, drafted, num_drafted):
    verdicts = []
    for row, guesses, length in zip(target, drafted, num_drafted):
        accepted = 0
        while accepted < length and row[accepted] == guesses[accepted]:
            accepted += 1
        verdicts.append((accepted, row[accepted]))
    return verdicts


# %%
check_acceptance(accept)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Walk along a row while drafted and target agree. Where you stop is both the number of accepted tokens and the place of the
# next one, whether you stopped at a rejection or at the end.
#
# </details>

# %% [markdown] solution
# The package does all rows at once, with a cumulative product over the agreement: `specmoe.speculate.sampling.accept_matching`.
