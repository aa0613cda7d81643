"""`leave_one_out`: every turn of an episode has the advantage R_i − mean of the *other* episodes of its group.

Kool et al. 2019; Ahmadian et al. 2024 (arXiv 2402.14740), section 2.3. The baseline does not depend on the episode's own
actions, so the policy gradient is unbiased. Linear in the rewards, so each component has its own.
"""

import numpy as np
from numpy.typing import NDArray

from learner.credit.attribution import Attribution, CreditMethod, Floats, Turns


class LeaveOneOutCredit(CreditMethod):
    whole_episodes = True
    is_advantage = True

    def attribute(self, turns: Turns) -> Attribution:
        """Raises ValueError where groups are not given, and for a group of one or an episode that still runs."""
        if turns.group is None:
            raise ValueError("leave_one_out compares the episodes of a group, and Turns.group is missing")
        if not bool(turns.ended.all()):
            raise ValueError("leave_one_out compares finished episodes, and one still runs")
        nothing = np.zeros_like(turns.extrinsic)
        extrinsic, intrinsic = (
            leave_one_out(turns.sums(x), turns.group)[turns.episode] for x in (turns.extrinsic, turns.intrinsic)
        )
        return Attribution(extrinsic, intrinsic, nothing, nothing)


def leave_one_out(score: Floats, group: NDArray[np.int64]) -> Floats:
    """[E]: score less the mean of the other scores of the group; score, group [E]."""
    ids, row, size = np.unique(group, return_inverse=True, return_counts=True)
    if bool((size < 2).any()):
        raise ValueError(
            f"leave_one_out: group {ids[size < 2][0]} has only one episode; play at least 2 of each task, or take another"
        )
    total = np.zeros(len(ids))
    np.add.at(total, row, score)
    return score - (total[row] - score) / (size[row] - 1)


METHOD = LeaveOneOutCredit
