"""The judge: prompts, engines, and the judge that joins them."""

from reward_server.judge.judge import PromptedJudge, build_judge, build_pair_judge, judge_key, pairs_beside, preflight

__all__ = ["PromptedJudge", "build_judge", "build_pair_judge", "judge_key", "pairs_beside", "preflight"]
