"""A tiny environment whose observations have the arrays that the networks read, and whose truth is known.

The number at `blstats[0]` counts up from 0; action 1 at an even number is rewarded, any other action is not. Episodes
end by themselves at `length`, or are cut at `limit`.
"""

import numpy as np

from envs.base import ArraySpec, EnvSpec, View, YendorEnv


class CountingEnv(YendorEnv):
    def __init__(
        self, length: int = 7, limit: int = 1000, view: View | None = None, fail_at: int | None = None
    ) -> None:
        view = view or View(crop_height=15, crop_width=15)
        crop = (view.crop_height, view.crop_width)
        self.env_spec = EnvSpec(
            id="toy/Counting",
            observation={
                "chars": ArraySpec(crop, "uint8"),
                "colors": ArraySpec(crop, "uint8"),
                "blstats": ArraySpec((27,), "int32"),
                "message": ArraySpec((view.message_bytes,), "uint8"),
            },
            action_names=("wait", "press"),
            max_episode_steps=min(length, limit),
            has_success=True,
        )
        self.length, self.limit, self.fail_at = length, limit, fail_at
        self.offset = 0
        self.count = 0

    @property
    def seeds(self):
        return {"core": str(self.offset)}

    def screen(self):
        return f"count {self.count}"

    def _observe(self):
        spec = self.env_spec.observation
        observation = {k: np.zeros(s.shape, s.dtype) for k, s in spec.items()}
        observation["chars"][:] = 32
        observation["chars"][0, 0] = 64 + self.count % 32
        observation["blstats"][0] = self.count + self.offset
        return observation

    def reset(self, *, seed=None, options=None):
        self.offset = 0 if seed is None else seed % 5
        self.count = 0
        return self._observe(), {"caption": ""}

    def step(self, action):
        if self.fail_at is not None and self.count == self.fail_at:
            self.fail_at = None
            raise RuntimeError("the toy broke")
        reward = float(action == 1 and self.count % 2 == 0)
        self.count += 1
        terminated = self.count >= self.length
        truncated = not terminated and self.count >= self.limit
        info = {"caption": "You press." if action == 1 else "", "grounded": True}
        if terminated or truncated:
            info |= {"success": terminated, "metrics": {"count": float(self.count)}}
        return self._observe(), reward, terminated, truncated, info
