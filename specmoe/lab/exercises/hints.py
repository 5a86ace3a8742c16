"""Three hints for every exercise: a nudge, the idea, almost the code.

Comes in: the name of an exercise and a level. Goes out: the text. ``exercise`` calls this.
"""

from __future__ import annotations

HINTS = {
    "nearest": (
        "Write it for one expert first. Which numbers of its row of distances may you look at?",
        "`min(residents, key=...)` gives the number of an expert; argmin over some columns gives a "
        "position among those columns. Two experts may have equal weights, so put the residents "
        "back in their own places last. Ask yourself what min does with an empty list.",
        "if not residents: return [E] * E\n"
        "nearest = [min(residents, key=lambda r: distances[e][r]) for e in range(E)]\n"
        "then entry e is e itself where e is resident, else nearest[e]",
    ),
    "eviction": (
        "LRU looks only at the last use, LFU only at the number of uses. What would hold both?",
        "Keep a number per expert in memory. In each step it shrinks a little and grows with each "
        "use. Candidates to keep are the experts of this step *and* the residents.",
        "heat = memory.setdefault('heat', [0.0] * len(counts))\n"
        "heat[e] = SHRINK * heat[e] + counts[e]      for every e, SHRINK between 0.5 and 1\n"
        "keep the num_kept candidates with the most heat",
    ),
    "acceptance": (
        "Do one row by hand: target 5 8 6 4, drafted 5 7 6. How many stand, and what comes next?",
        "Walk along a row while drafted and target agree. Where you stop is both the number of "
        "accepted tokens and the place of the next one, whether you stopped at a rejection or at "
        "the end.",
        "accepted = 0\n"
        "while accepted < num_drafted[b] and drafted[b][accepted] == target[b][accepted]:\n"
        "    accepted += 1\n"
        "the pair is (accepted, target[b][accepted])",
    ),
    "sampling": (
        "The draft gives a token too often exactly where q is above p. How often must it go?",
        "Token x comes out accepted with chance q(x) * min(1, p(x) / q(x)) = min(p(x), q(x)). What "
        "is missing to p(x) is max(0, p(x) - q(x)): the replacement has to supply that, and "
        "nothing else.",
        "if uniform < p[token] / q[token]: return None\n"
        "beyond = [max(0, a - b) for a, b in zip(p, q)]\n"
        "return beyond, divided by its sum",
    ),
    "coalescing": (
        "What does an expert need to know to compute all its tokens in one go?",
        "Build the dictionary first. Its keys are the needed experts, each once; what is not "
        "resident among them is the list to fetch.",
        "for b, length in enumerate(num_tokens):\n"
        "    for t in range(length):\n"
        "        for expert in routing[b][t]:\n"
        "            tokens.setdefault(expert, []).append((b, t))\n"
        "fetch what is in tokens and not in resident",
    ),
    "draft_set": (
        "With one row a verification sees few tokens. Where else is there something to count?",
        "Let older verifications count too, but less and less; and keep one such record for each "
        "layer.",
        "heat = memory.setdefault(layer, [0.0] * len(counts))\n"
        "heat[e] = SHRINK * heat[e] + counts[e]      for every e\n"
        "name the num_draft experts with the most heat",
    ),
    "planner": (
        "Neither the shortest round nor the one with the most tokens. What does one token cost?",
        "Seconds per token: the seconds of the round divided by its tokens. The seconds are the "
        "link's and the processor's, one after the other. gamma = 0 is plain decoding, and a fair "
        "choice.",
        "cost = (one['bytes'] / link_bytes_per_s + one['compute_s']) / one['tokens']\n"
        "return the gamma of the round with the smallest cost",
    ),
    "draft_layer": (
        "Start from a plain MoE layer: scores, topk, softmax, weighted sum. Only one name changes.",
        "The router chooses and weighs as if all experts were there. stand_in[expert] then says who "
        "computes, with the chosen expert's weight; E computes nothing, and its weight is lost.",
        "scores, chosen = (hidden @ router.T).topk(top_k)\n"
        "weights = scores.softmax(dim=-1)\n"
        "for every token t and choice k: who = stand_in[chosen[t, k]]\n"
        "if who < len(experts): out[t] += weights[t, k] * experts[who](hidden[t])",
    ),
    "rollback": (
        "Draw one row: which positions did the last block write, and which of them are still true?",
        "The block began with the row's last token at `start`, and `accepted` tokens behind it "
        "stand. The target's own token after them has no keys yet: it begins the next block. What "
        "lies behind a query is stale or not written, so the query must not see it.",
        "begin = start + 1 + accepted\n"
        "the token t of the block stands at begin + t\n"
        "it may see key k where k <= begin + t",
    ),
    "coupling": (
        "Where p and q are equal, what would make both draw the same token?",
        "At each position both models take the token with the largest chance / noise, with the "
        "same noise. Then it is exercise 3: the drafted prefix that equals the target's stands.",
        "race = lambda chances, waits: argmax over x of chances[x] / waits[x]\n"
        "drafted[i] = race(q[i], noise[i]);  target[i] = race(p[i], noise[i])\n"
        "accepted = length of the common prefix;  token = target[accepted]",
    ),
    "expectation": (
        "What is the chance that at least one drafted token stands? At least two? At least i?",
        "A token stands only if all before it do: the one at i with chance alpha^i. The expected "
        "number is the sum of those chances, and the target's own token comes always.",
        "1 + alpha + alpha^2 + ... + alpha^gamma\n"
        "= (1 - alpha^(gamma + 1)) / (1 - alpha), and gamma + 1 where alpha is 1",
    ),
    "capstone": (
        "Make it exact first with gamma = 0: prefill, then one token per round. Then draft.",
        "A round: draft with draft_layer (residents only), verify the whole block with your full "
        "layer (coalesce, fetch each once), accept, next_block. After each verified layer drop "
        "everybody but the next draft set: what was just fetched is what drafts next.",
        "full layer: count tokens per expert, coalesce, compute what is resident, then fetch, "
        "compute and drop one after the other; keep draft_set(...) resident\n"
        "round: block = [last token, drafted...]; logits = forward(block, begins, mask, full)\n"
        "accept(argmax of logits, drafted, lengths) -> append drafted[:accepted] and the token",
    ),
    "read_ahead": (
        "Which layer of the verification waits first, and for whom?",
        "Go through the layers in order. In each, keep what has votes enough and is not held, and "
        "sort that by votes from the most down. Cut to room at the very end.",
        "named = [e for e in range(E) if votes[layer][e] >= quorum and (layer, e) not in held]\n"
        "reads += [(layer, e) for e in sorted(named, key=lambda e: -votes[layer][e])]\n"
        "return reads[:room]          after the last layer",
    ),
    "repair": (
        "Play one round by hand: gamma 3, the second drafted token is rejected, the third agrees.",
        "Ask four lines the same question, what is this number after a rejection: what draft is "
        "given, how many are drafted when one token is missing, what accepted counts, what is "
        "forgotten.",
        "model.draft(text + drafted)\n"
        "for _ in range(min(gamma, len(prompt) + num_new - len(text) - 1))\n"
        "accepted: the length of the common prefix of drafted and target\n"
        "model.forget(len(drafted) - accepted)",
    ),
}
