"""`potential`: r_t + α (γ Φ(s_{t+1}) − Φ(s_t)), which leaves the optimal policy as it is (Ng, Harada and Russell 1999).

Φ is 0 after a terminated turn (Grzes 2017: else the policy may change). Without a scorer Φ is the progress so far,
Σ_{k < t} ĉ_k: of a history, and the theorem holds for those. It also holds for a Φ that changes with time, as that of an
estimator which learns (Devlin and Kudenko 2012), as long as what is taken off is what was given: `Past.progress` is that.

Conserves: Σ γ^t F_t of an episode is γ^T Φ(s_T) − Φ(s_0); with the progress so far and an end by rule, 0.
"""

import numpy as np

from learner.credit.attribution import Attribution, CreditMethod, Floats, Turns


class PotentialCredit(CreditMethod):
    needs_progress = True
    rearranges = False

    def attribute(self, turns: Turns) -> Attribution:
        now, after = progress_so_far(turns) if turns.potential is None else (turns.potential, turns.potential_after)
        assert after is not None  # `Turns` saw to it
        following = np.append(now[1:], 0.0)
        following[turns.last] = np.where(turns.terminated, 0.0, after)
        shaping = self.rule.w_prog * (self.rule.discount * following - now)
        return Attribution(turns.extrinsic, turns.intrinsic, shaping, np.zeros_like(shaping))


def progress_so_far(turns: Turns) -> tuple[Floats, Floats]:
    """Φ [K] of the state in which each turn begins, and [E] of that after the last: sums of the contributions before."""
    running = np.cumsum(turns.progress)
    start = turns.past.progress - (running - turns.progress)[turns.offsets[:-1]]
    after = running + start[turns.episode]
    return after - turns.progress, after[turns.last]


METHOD = PotentialCredit
