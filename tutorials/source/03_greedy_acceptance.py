# %% [markdown]
# # Exercise 3: greedy acceptance on ragged rows
#
# **Goal.** Given what was drafted and what the target would have said, decide how many drafted tokens stand and which token
# follows, so that the text is exactly the target's own.
#
# **Difficulty** easy · **Time** 15 minutes · **Before it** [06_batched_verification](../../notebooks/06_batched_verification.ipynb)

# %%
from specmoe.lab.exercises import check_acceptance

hint = check_acceptance.hint

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

# %% stub
# Stuck? Take a # away. Hints cost tiers: excellent without one, good after 1 and 2, pass after 3.
# hint(1)  # a nudge
# hint(2)  # the idea
# hint(3)  # almost the code

# %% [markdown] solution
# Everything before the stop equals what the target says, and the token at the stop is the target's own: so the text is the target's,
# whatever was drafted. A rejection and the end of the draft need no separate cases, since `target` has one token more than `drafted`.
#
# The package does all rows at once, with a cumulative product over the agreement: `specmoe.speculate.sampling.accept_matching`.
