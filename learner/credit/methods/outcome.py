"""`outcome`: all that the environment paid in an episode is paid on its last turn. Conserves the extrinsic return.

While an episode runs its turns are paid nothing extrinsic; what earlier parts of it earned is in `Turns.past`.
"""

import numpy as np

from learner.credit.attribution import Attribution, CreditMethod, Turns


class OutcomeCredit(CreditMethod):
    def attribute(self, turns: Turns) -> Attribution:
        extrinsic = np.zeros_like(turns.extrinsic)
        earned = turns.past.extrinsic + turns.sums(turns.extrinsic)
        extrinsic[turns.last[turns.ended]] = earned[turns.ended]
        nothing = np.zeros_like(extrinsic)
        return Attribution(extrinsic, turns.intrinsic, nothing, nothing)


METHOD = OutcomeCredit
