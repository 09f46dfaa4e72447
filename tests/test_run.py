"""Training runs with each option once, and their counters."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import PointEnv, UnjudgedEnv, point_vec_env
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_hrl import HierarchicalDDPG
from sb3_hrl.common.shards import spans as episode_spans
from sb3_hrl.hddpg.callbacks import HierarchicalEvalCallback


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(subgoal_kwargs=dict(radius=0.3)),
        dict(subgoal_kwargs=dict(radius=[0.3, 0.4], bounds=([-2.0, -2.0], [2.0, 2.0]))),
        dict(subgoal_kwargs=dict(threshold=0.05)),
        dict(subgoal_kwargs=dict(avoid_reached=False), hindsight_kwargs=dict(action_prob=1.0)),
        dict(subgoal_kwargs=dict(avoid_missed=False)),
        dict(subgoal_steps=None),
        dict(subgoal_steps=None, planner="landmarks", planner_kwargs=dict(n_landmarks=20, n_visited=50, update_interval=40)),
        dict(exploration_kwargs=dict(subgoal_test_prob=0.5, noise_hold_steps=3)),
        dict(hindsight_kwargs=dict(goal_selection_strategy="final", trivial_segment_prob=0.5)),
        dict(hindsight_kwargs=dict(goal_selection_strategy="episode", n_sampled_goal=1)),
        dict(hindsight_kwargs=dict(n_sampled_goal=0)),
        dict(max_grad_value=None, low_kwargs=dict(target_policy_noise=0.2), policy_kwargs=dict(net_arch=[16], n_critics=2)),
        dict(policy_kwargs=dict(net_arch=[8], activation_fn=th.nn.Tanh, optimizer_class=th.optim.RMSprop)),
        dict(policy_kwargs=dict(net_arch=[16], normalize_inputs=False)),
        dict(high_update_interval=1, high_kwargs=dict(gamma=0.9, learning_rate="lin_1e-3", net_arch=[8], batch_size=8)),
        dict(low_kwargs=dict(tau=0.1, n_critics=2, noise_std=0.3), learning_rate=lambda progress: 1e-3 * progress),
        dict(action_noise=NormalActionNoise(np.zeros(2), 0.1 * np.ones(2))),
        dict(train_freq=(1, "episode"), gradient_steps=-1),
        dict(subgoal_steps=1),
        dict(subgoal_steps=100),
    ],
)
def test_options(small, options):
    model = HierarchicalDDPG("MultiInputPolicy", PointEnv(), **(small | options))
    model.learn(150)
    assert model.num_timesteps >= 150
    assert model._n_updates > 0


@pytest.mark.parametrize("n_envs", [1, 3])
def test_accounting(small, n_envs):
    model = HierarchicalDDPG("MultiInputPolicy", point_vec_env(n_envs), gradient_steps=-1, train_freq=4, **small)
    model.learn(120, log_interval=1)
    assert model.num_timesteps == 120
    assert model.replay_buffer.size() == 120
    assert model.replay_buffer.n_added == 120
    n_rollouts = sum(steps > 20 for steps in range(4 * n_envs, 121, 4 * n_envs))
    assert model._n_updates == 4 * n_envs * n_rollouts
    assert model.logger.name_to_value["train/n_updates"] == model._n_updates


@pytest.mark.parametrize("ends_at_success", [True, False])
def test_every_step_belongs_to_one_segment(small, ends_at_success):
    model = HierarchicalDDPG("MultiInputPolicy", point_vec_env(2, ends_at_success=ends_at_success), **small)
    model.learn(400)
    buffer = model.replay_buffer
    for shard in range(2):
        spans = buffer.shards.segments[shard, : buffer.shards.segment_head[shard]]
        assert spans[0, 0] == 0
        np.testing.assert_array_equal(spans[1:, 0], spans[:-1, 1])
        assert (spans[:, 1] - spans[:, 0] <= 5).all()
        rows = buffer.shards.rows[shard]
        for start, end in spans:
            # One subgoal per segment, and the same episode from its first to its last step
            assert (rows[start:end, buffer.columns["subgoal"]] == rows[start, buffer.columns["subgoal"]]).all()
            assert len(np.unique(episode_spans(rows[start:end]), axis=0)) == 1


def test_segments_end_when_the_subgoal_is_reached(small):
    model = HierarchicalDDPG("MultiInputPolicy", PointEnv(), **small)
    model.learn(300)
    buffer, threshold = model.replay_buffer, model.policy.subgoal_threshold.item()
    rows = buffer.shards.rows[0]
    distance = np.linalg.norm(rows[:300, buffer.columns["next_achieved_goal"]] - rows[:300, buffer.columns["subgoal"]], axis=1)
    spans = buffer.shards.segments[0, : buffer.shards.segment_head[0]]
    last = spans[:, 1] - 1
    inner = np.setdiff1d(np.arange(spans[-1, 1]), last)
    assert (distance[inner] > threshold - 1e-5).all()
    early = (spans[:, 1] - spans[:, 0] < 5) & (spans[:, 1] % 20 != 0)
    assert early.any()
    assert (distance[last[early]] <= threshold + 1e-5).all()


def test_terminal_observations_are_stored(small):
    model = HierarchicalDDPG("MultiInputPolicy", PointEnv(), **small)
    model.learn(100)
    buffer = model.replay_buffer
    clock = buffer.shards.rows[0, :100, buffer.columns["next_observation"]][:, 2]
    np.testing.assert_allclose(clock, np.tile(np.arange(1, 21) / 20, 5), atol=1e-6)


LEVEL_KEYS = ("actor_loss", "critic_loss", "q_mean", "reward", "action_saturation")


def test_log_has_the_keys_of_both_levels(small):
    class Keys(BaseCallback):
        seen: set[str] = set()  # noqa: RUF012

        def _on_step(self) -> bool:
            self.seen |= set(self.logger.name_to_value)
            return True

    callback = Keys()
    HierarchicalDDPG("MultiInputPolicy", Monitor(PointEnv()), high_update_interval=1, **small).learn(200, callback)
    levels = {f"train/{level}_{key}" for level in ("high", "low") for key in LEVEL_KEYS}
    sb3 = {"train/actor_loss", "train/critic_loss", "train/learning_rate", "train/n_updates"}
    assert levels | sb3 <= callback.seen


@pytest.mark.parametrize(("bias", "expected"), [(50.0, 1.0), (-50.0, 1.0), (0.0, 0.0)])
@pytest.mark.parametrize("policy_delay", [1, 2])
def test_saturation_of_actions_is_logged(small, bias, expected, policy_delay):
    """Without weights, an actor's output depends on its last bias only; the delayed actor is updated every second time."""
    options = small | dict(learning_starts=0, learning_rate=1e-9, gradient_steps=2, low_kwargs=dict(policy_delay=policy_delay))
    model = HierarchicalDDPG("MultiInputPolicy", PointEnv(), **options)
    with th.no_grad():
        *weights, last_bias = model.policy.low.actor.mu.parameters()
        for parameter in weights:
            parameter.zero_()
        last_bias.fill_(bias)
    model.learn(4, log_interval=1_000)
    assert model.logger.name_to_value["train/low_action_saturation"] == expected


def test_rollout_log(small, tmp_path):
    from stable_baselines3.common.logger import configure

    model = HierarchicalDDPG("MultiInputPolicy", Monitor(PointEnv()), **small)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(400, log_interval=2)
    model.logger.close()
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    segments = {"subgoal_success_rate", "segment_length", "subgoal_reached_at_issue", "subgoal_replaced"}
    assert {f"rollout/{key}" for key in segments | {"ep_rew_mean", "ep_len_mean", "success_rate"}} <= set(header)


def test_callbacks_and_evaluation_work_unchanged(small):
    callback = EvalCallback(point_vec_env(2), n_eval_episodes=4, eval_freq=100, verbose=0, warn=False)
    model = HierarchicalDDPG("MultiInputPolicy", point_vec_env(1), **small)
    model.learn(200, callback, progress_bar=True)
    assert callback.evaluations_timesteps == [] or callback.n_calls == 200
    mean, _ = evaluate_policy(model, point_vec_env(3), n_eval_episodes=5, warn=False)
    assert -20.0 <= mean <= 0.0


def test_a_callback_stops_training_at_once(small):
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 33

    model = HierarchicalDDPG("MultiInputPolicy", PointEnv(), **small)
    model.learn(200, Stop())
    assert model.num_timesteps == 33


def test_environments_in_other_processes(small):
    env = SubprocVecEnv([lambda: gym.make("conftest:PointEnv-v0")] * 2, start_method="fork")
    try:
        model = HierarchicalDDPG("MultiInputPolicy", env, **small)
        model.learn(100)
        assert model.replay_buffer.size() == 100
    finally:
        env.close()


def test_normalised_rewards_change_nothing(small):
    model = HierarchicalDDPG("MultiInputPolicy", VecNormalize(point_vec_env(), norm_obs=False), **small)
    model.learn(100)
    plain = HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **small)
    plain.learn(100)
    for parameter, expected in zip(model.policy.parameters(), plain.policy.parameters(), strict=True):
        assert th.equal(parameter, expected)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
@pytest.mark.parametrize("buffer_size", [40, 1000])
def test_bit_flipping(small, n_envs, strategy, buffer_size):
    """SB3's environment for HER, also with a buffer that overflows: goals are MultiBinary, so subgoals are bits as well."""
    n_bits = 4
    env = make_vec_env(lambda: BitFlippingEnv(n_bits=n_bits, continuous=True), n_envs=n_envs)
    options = small | dict(hindsight_kwargs=dict(goal_selection_strategy=strategy), buffer_size=buffer_size)
    model = HierarchicalDDPG("MultiInputPolicy", env, **options)
    model.learn(200)
    assert model.replay_buffer.size() <= buffer_size
    samples = model.replay_buffer.sample_high(200, 4, 1)
    assert set(samples.goals.unique().tolist()) <= {0.0, 1.0}
    assert set(samples.subgoals.unique().tolist()) <= {0.0, 1.0}
    action, _ = model.predict(env.reset(), deterministic=True)
    assert action.shape == (n_envs, n_bits)


@pytest.mark.slow
def test_it_learns():
    model = HierarchicalDDPG(
        "MultiInputPolicy",
        point_vec_env(1, max_steps=40),
        learning_starts=200,
        batch_size=64,
        gamma=0.9,
        tau=0.05,
        subgoal_steps=8,
        high_update_interval=1,
        policy_kwargs=dict(net_arch=[32, 32]),
        seed=0,
    )
    model.learn(2500)
    successes: list[bool] = []
    evaluate_policy(
        model,
        point_vec_env(1, max_steps=40),
        n_eval_episodes=40,
        callback=lambda scope, _: successes.append(scope["info"]["is_success"]) if scope["done"] else None,
        warn=False,
    )
    assert np.mean(successes) >= 0.9


def test_bounds_and_radius_are_found_from_data(small):
    model = HierarchicalDDPG("MultiInputPolicy", PointEnv(), **small)
    model.learn(300)
    low, high, radius = (array.numpy() for array in model.policy.bounds)
    threshold = model.policy.subgoal_threshold.item()
    assert threshold == pytest.approx(PointEnv.threshold, rel=1e-3)
    assert (low < -0.5).all()
    assert (high > 0.5).all()
    # Five steps of at most 0.1 each
    assert (radius >= 2 * threshold - 1e-6).all()
    assert (radius <= 0.5 + 1e-6).all()


def test_what_the_user_gives_stays(small):
    bounds = ([-3.0, -4.0], [3.0, 4.0])
    model = HierarchicalDDPG("MultiInputPolicy", PointEnv(), subgoal_kwargs=dict(radius=0.7, bounds=bounds), **small)
    model.learn(1300)
    low, high, radius = model.policy.bounds
    assert low.tolist() == bounds[0]
    assert high.tolist() == bounds[1]
    assert radius.tolist() == pytest.approx([0.7, 0.7])


def test_dense_rewards_need_a_threshold(small):
    with pytest.raises(ValueError, match="`threshold` in `subgoal_kwargs`"):
        HierarchicalDDPG("MultiInputPolicy", UnjudgedEnv(), **small)
    HierarchicalDDPG("MultiInputPolicy", UnjudgedEnv(), subgoal_kwargs=dict(threshold=0.1), **small).learn(100)


def test_evaluation_logs_what_becomes_of_subgoals(small):
    """An oracle that moves 0.1 per step and dimension towards one subgoal, without ever reaching it."""

    def oracle(observation, achieved_goal, subgoal):
        return (subgoal - achieved_goal) / 0.1

    class FarGoalEnv(PointEnv):
        """No segment starts at the goal: such a segment does not count."""

        def reset(self, **kwargs):
            super().reset(**kwargs)
            self.goal = np.array([-1.4, -1.4])
            return self._obs(), {}

    env = Monitor(FarGoalEnv(max_steps=6))
    options = small | dict(low_kwargs=dict(oracle=oracle), subgoal_kwargs=dict(source=[9.0, 9.0], radius=1.0))
    model = HierarchicalDDPG("MultiInputPolicy", PointEnv(), **options)
    logged = {}

    class Spy(HierarchicalEvalCallback):
        def _record(self):
            super()._record()
            logged.update({key: value for key, value in self.logger.name_to_value.items() if key.startswith("eval/")})

    model.learn(40, callback=Spy(env, eval_freq=40, n_eval_episodes=3, verbose=0, warn=False))
    assert logged["eval/subgoal_success_rate"] == 0.0
    assert logged["eval/segment_length"] == pytest.approx(3.0), "5 steps, and 1 before the episode ends"
    assert logged["eval/subgoal_at_bounds"] == 1.0
    assert logged["eval/subgoal_distance"] > 5.0

    class OnlyTheFirstEntryCounts(BaseCallback):
        def _on_step(self):
            self.model.policy.goal_weights.copy_(th.tensor([1.0, 0.0]))
            return True

    model.subgoal_kwargs = dict(source=[0.0, 9.0], radius=1.0)
    model.learn(40, callback=[OnlyTheFirstEntryCounts(), Spy(env, eval_freq=40, n_eval_episodes=3, verbose=0, warn=False)])
    assert logged["eval/subgoal_distance"] < 2.0
    model.subgoal_kwargs = dict(source=[0.0, 0.0])
    model.learn(40, callback=Spy(Monitor(PointEnv(max_steps=60)), eval_freq=40, n_eval_episodes=3, verbose=0, warn=False))
    assert logged["eval/subgoal_success_rate"] > 0.9
    assert logged["eval/subgoal_reached_at_issue"] > 0.5, "it stays there"
