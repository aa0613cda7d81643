"""`spa+grounding`: r_t + α ĉ_t + β g_t (arXiv 2505.20732, eq. 5), where g_t is 1 if the action could be executed."""

from dataclasses import replace

from learner.credit.attribution import Attribution, Turns
from learner.credit.methods.spa import SpaCredit


class SpaGroundingCredit(SpaCredit):
    grounds = True

    def attribute(self, turns: Turns) -> Attribution:
        return replace(super().attribute(turns), grounding=self.rule.w_ground * turns.grounded)


METHOD = SpaGroundingCredit
