# %% [markdown]
# # Exercise 5: coalesced fetches
#
# **Goal.** Many tokens of a block ask for the same expert. Fetch it once, then let it compute all of them.
#
# **Difficulty** medium · **Time** 15 minutes · **Before it** [06_batched_verification](../../notebooks/06_batched_verification.ipynb)

# %%
from specmoe.lab.exercises import check_coalescing

hint = check_coalescing.hint

# %% [markdown]
# `routing[b][t]` lists the K experts that the router named for token t of row b; only the first `num_tokens[b]` tokens of a row
# count. `resident` is a set. Return a pair: the list of experts to fetch, and a dictionary that maps every expert that is
# needed (fetched or resident) to its tokens, a list of (b, t).

# %% stub


def coalesce(routing, num_tokens, resident):
    # your code: what to fetch, and who computes which tokens
    return None


# %% solution


def coalesce(routing, num_tokens, resident):
    tokens = {}
    for b, length in enumerate(num_tokens):
        for t in range(length):
            for expert in routing[b][t]:
                tokens.setdefault(expert, []).append((b, t))
    return [expert for expert in tokens if expert not in resident], tokens


# %%
check_coalescing(coalesce)

# %% stub
# Stuck? Take a # away. Hints cost tiers: excellent without one, good after 1 and 2, pass after 3.
# hint(1)  # a nudge
# hint(2)  # the idea
# hint(3)  # almost the code

# %% [markdown] solution
# One pass over the tokens that count builds the dictionary; every needed expert is one key, however many tokens ask for it. Residents stay
# in the dictionary, as their tokens have to be computed too. Only the fetch list leaves them out.
#
# With more rows the gain grows, as the number of different experts grows more slowly than the number of tokens.
