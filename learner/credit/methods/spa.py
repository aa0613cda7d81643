"""`spa`: stepwise progress attribution (Wang et al. 2025, arXiv 2505.20732, eq. 5): r_t + α ĉ_t, no turn left out.

With `conserve`, an episode's contributions sum to its outcome R exactly: what the estimator did not explain, R − Σ ĉ, is
paid on the last turn (return-equivalent redistribution; Arjona-Medina et al. 2019, RUDDER, arXiv 1806.07857, theorem 1).
An outcome that is not known (the environment broke) leaves them as they are.
"""

import numpy as np

from learner.credit.attribution import Attribution, CreditMethod, Floats, Turns


class SpaCredit(CreditMethod):
    needs_progress = True
    conserves = True
    rearranges = False

    def attribute(self, turns: Turns) -> Attribution:
        progress = self.rule.w_prog * contributions(turns, conserve=self.rule.conserve)
        return Attribution(turns.extrinsic, turns.intrinsic, progress, np.zeros_like(progress))


def contributions(turns: Turns, *, conserve: bool) -> Floats:
    """[K]: ĉ_t; with `conserve` they sum to R over each episode whose outcome is known."""
    if not conserve:
        return turns.progress
    left = turns.outcome - (turns.past.progress + turns.sums(turns.progress))
    known = turns.ended & np.isfinite(turns.outcome)
    found = turns.progress.copy()
    found[turns.last[known]] += left[known]
    return found


METHOD = SpaCredit
