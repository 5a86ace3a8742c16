# %% [markdown]
# # Exercise 1: the nearest resident expert
#
# **Goal.** While drafting, nothing is fetched: an expert that is not resident is replaced by the resident expert with the
# nearest weights. Write the table that says who stands in for whom.
#
# **Difficulty** easy · **Time** 10 minutes · **Before it** `notebooks/05_self_draft.ipynb`

# %%
from specmoe.lab.exercises import check_nearest

# %% [markdown]
# `distances` is a list of E lists of E numbers: `distances[a][b]` is the L2 distance between the weights of the experts
# `a` and `b`. `residents` lists the resident experts, in any order. Return a list with E entries: entry `e` is the expert that
# computes in place of `e`. A resident stands for itself. With no resident at all, every entry is E ("no expert").

# %% stub


def table(distances, residents):
    # your code: for every expert, the nearest of the residents
    return None


# %% solution


def table(distances, residents):
    num_experts = len(distances)
    if not residents:
        return [num_experts] * num_experts
    nearest = [min(residents, key=lambda r: distances[e][r]) for e in range(num_experts)]
    return [e if e in residents else nearest[e] for e in range(num_experts)]


# %%
check_nearest(table)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `min(residents, key=...)` gives the number of an expert; `argmin` over some columns gives a position among those columns.
# Two experts may have equal weights: the last step puts the residents back in their own places.
#
# </details>

# %% [markdown] solution
# The engine makes this table when a layer's draft set changes: `specmoe.offload.affinity.nearest_resident`. Whether the nearest resident
# drafts better than a random one is a question for a measurement: `substitute="random"` in `engine.generate`.
