# %% [markdown]
# # Exercise 5: coalesced fetches
#
# **Goal.** Many tokens of a block ask for the same expert. Fetch it once, then let it compute all of them.
#
# **Difficulty** medium · **Time** 15 minutes · **Before it** `notebooks/06_batched_verification.ipynb`

# %%
from specmoe.lab.exercises import check_coalescing

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

# %% [markdown]
# <details><summary>Hint</summary>
#
# Build the dictionary first. Its keys are the needed experts, each once; what is not resident among them is the list.
#
# </details>

# %% [markdown] solution
# With more rows the gain grows, as the number of different experts grows more slowly than the number of tokens.
