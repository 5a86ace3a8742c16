# %% [markdown]
# # Exercise 6: your own draft set
#
# **Goal.** Choose the experts that draft in the next round, so that the engine fetches fewer bytes per token than with the
# paper's HotTemporal.
#
# **Difficulty** hard · **Time** 25 minutes · **Before it** [04_hot_experts](../../notebooks/04_hot_experts.ipynb)

# %%
from specmoe.lab.exercises import check_draft_set

hint = check_draft_set.hint

# %% [markdown]
# After each verification the engine calls you for each layer with `counts` (tokens per expert, a list with E entries), `num_draft`,
# and `memory`, one dictionary for all layers of a run. Return `num_draft` experts. HotTemporal takes the most used of this verification;
# of experts used equally often it takes those used more before. The score is bytes per token of a real run: one row at a time,
# 4 draft experts, gamma 5. Any gain on HotTemporal passes; 2 % is good, 3 % is excellent.

# %% stub


def draft_set(layer, counts, num_draft, memory):
    # your code: who drafts next?
    return None


# %% solution


def draft_set(layer, counts, num_draft, memory):
    heat = memory.setdefault(layer, [0.0] * len(counts))
    for expert, count in enumerate(counts):
        heat[expert] = 0.5 * heat[expert] + count
    return sorted(range(len(counts)), key=lambda e: -heat[e])[:num_draft]


# %%
check_draft_set(draft_set)

# %% stub
# Stuck? Take a # away. The tier is given by bytes, so hints cost nothing.
# hint(1)  # a nudge
# hint(2)  # the idea
# hint(3)  # almost the code

# %% [markdown] solution
# With one row a verification sees six tokens, most experts are used once or not at all, and the past breaks the ties. Each layer has its
# own router, so each has its own record. HotTemporal uses the past for ties only; here half of every use is carried on.
#
# With many rows a verification sees hundreds of tokens, and there is little left to gain: try `batch_size=4` in `engine.generate`. One run on
# four prompts is a score for a game, not a finding.
