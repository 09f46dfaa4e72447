"""Hints for the user during training, each printed once (``verbose=1``)."""

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.subgoals import SegmentEnd

# Environment steps between two checks, and the minimum number of steps, episodes and segments for a hint
CHECK_INTERVAL = 1_000
N_STEPS = 5_000
N_EPISODES = 20
N_SEGMENTS = 200

NO_TIME_LIMIT = (
    "No episode has ended within {n} steps. Without a time limit the environment is never reset, and nothing is logged: pass "
    "`max_episode_steps` to `gym.make`, or wrap it in `gymnasium.wrappers.TimeLimit`."
)
NO_SUCCESS = (
    "{n} episodes have ended, but none of them reported success: `rollout/success_rate` is missing. Put `is_success` into "
    "the environment's `info`, or wrap it in `sb3_hrl.common.wrappers.add_success_info` if it has `success`."
)
ALL_MISSED = (
    "The low level has reached none of its last {n} subgoals. `python -m sb3_hrl doctor` checks the environment and the log; "
    '`subgoal_kwargs=dict(source="goal")` shows whether flat DDPG+HER learns it.'
)


class Hints:
    """Finds the hints to print, each of them once."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._next_check = N_STEPS

    def check(self, model: OffPolicyAlgorithm) -> list[str]:
        """
        :param model: the algorithm, during training
        :return: new hints
        """
        n_steps, n_episodes, buffer = model.num_timesteps, model._episode_num, model.replay_buffer
        if n_steps < self._next_check:
            return []
        assert isinstance(buffer, SharedMemoryReplayBuffer)
        self._next_check = n_steps + CHECK_INTERVAL
        ends = buffer.recent_segments(N_SEGMENTS).ends
        hints = (
            (NO_TIME_LIMIT, n_steps, n_episodes == 0 and n_steps >= N_STEPS * buffer.n_envs),
            (NO_SUCCESS, n_episodes, n_episodes >= N_EPISODES and not model.ep_success_buffer),
            (ALL_MISSED, len(ends), len(ends) >= N_SEGMENTS and not (ends == SegmentEnd.REACHED).any()),
        )
        new = [(text, n) for text, n, is_right in hints if is_right and text not in self._said]
        self._said.update(text for text, _ in new)
        return [text.format(n=f"{n:,}") for text, n in new]
