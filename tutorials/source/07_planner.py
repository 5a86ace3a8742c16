# %% [markdown]
# # Exercise 7: a planner of three lines
#
# **Goal.** Choose gamma, the number of drafted tokens per round, for a link of any speed.
#
# **Difficulty** medium · **Time** 15 minutes · **Before it** `notebooks/09_when_does_it_pay.ipynb`

# %%
from specmoe.lab.exercises import check_planner

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

# %% [markdown]
# <details><summary>Hint</summary>
#
# Neither the shortest round nor the one with the most tokens: a quotient. gamma = 0 is plain decoding, and a fair choice.
#
# </details>

# %% [markdown] solution
# `specmoe.speculate.planner.CostPlanner` does this while decoding, with costs that it measures itself.
