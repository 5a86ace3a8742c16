# %% [markdown]
# # Exercise 7: a planner of three lines
#
# **Goal.** Choose gamma, the number of drafted tokens per round, for a link of any speed.
#
# **Difficulty** medium · **Time** 15 minutes · **Before it** [09_when_does_it_pay](../../notebooks/09_when_does_it_pay.ipynb)

# %%
from specmoe.lab.exercises import check_planner

hint = check_planner.hint

# %% [markdown]
# `rounds` is a list of dictionaries, one per gamma that was tried: `gamma`, `tokens` (that a row gains per round), `bytes` (fetched
# per round) and `compute_s` (seconds of drafting and verifying). Return the gamma with the fewest seconds per token, as if reads and
# compute followed each other. Tokens and fetches are recorded; `specmoe.lab.simulate` **simulates** the score on three links (and lets
# reads overlap with compute, so within five percent of the best counts as right).

# %% stub


def plan(rounds, link_bytes_per_s):
    # your code: which gamma?
    return None


# %% solution


def plan(rounds, link_bytes_per_s):
    def seconds_per_token(one):
        return (one["bytes"] / link_bytes_per_s + one["compute_s"]) / one["tokens"]

    return min(rounds, key=seconds_per_token)["gamma"]


# %%
check_planner(plan)

# %% stub
# Stuck? Take a # away. Hints cost tiers: excellent without one, good after 1 and 2, pass after 3.
# hint(1)  # a nudge
# hint(2)  # the idea
# hint(3)  # almost the code

# %% [markdown] solution
# A round costs its reads and its compute, and pays in tokens: the quotient decides. On a slow link bytes per token rule, on a fast one
# seconds of compute per token, and gamma = 0 wins where drafting costs more than it brings.
#
# `specmoe.speculate.planner.CostPlanner` does this while decoding, with costs that it measures itself.
