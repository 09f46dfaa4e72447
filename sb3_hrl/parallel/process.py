"""The worker process: it answers SB3's commands for its environments, and collects in between."""

import contextlib
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import gymnasium as gym
import threadpoolctl
import torch as th
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env.patch_gym import _patch_env

from sb3_hrl.common.notices import WorkerPickle, drop_notice
from sb3_hrl.common.shards import make_writers
from sb3_hrl.common.shared_memory import SharedArrays
from sb3_hrl.common.weight_sync import WeightSubscriber
from sb3_hrl.parallel.monitor_files import continue_monitor_files
from sb3_hrl.parallel.observation_slots import ObservationSlots
from sb3_hrl.parallel.remote import Raised, Readiness, dumps
from sb3_hrl.parallel.worker import Report, Worker, WorkerConfig

# Columns of a worker's row in the control block. The learner writes ALLOWED, the worker writes the others. SENT counts
# messages, the others count rounds; a round is one step in each of its environments
ALLOWED, BEGUN, WRITTEN, SENT = 0, 8, 9, 10
N_CONTROLS = 16

# Seconds between checks of the pipes while collecting; to sleep when no step is allowed; between checks of the learner
_SERVE_INTERVAL, _NAP, _ALIVE_INTERVAL = 0.01, 0.0005, 0.5


class ParentWatch:
    """Checks in a child process whether the learner, its parent, is alive: a killed learner cannot notify its children."""

    def __init__(self) -> None:
        self._parent_id = os.getppid()
        self._next_check = 0.0

    def learner_lives(self) -> bool:
        """:return: whether it is alive, or was at most half a second ago"""
        now = time.monotonic()
        if now < self._next_check:
            return True
        self._next_check = now + _ALIVE_INTERVAL
        # If the learner dies, a forked process gets another parent; the others notice it by a pipe
        parent = parent_process()
        return os.getppid() == self._parent_id and (parent is None or parent.is_alive())


class EnvServer:
    """
    A few environments that answer the commands of SB3's ``SubprocVecEnv``.

    :param env_fns: the environments
    :param attributes: attributes to set, for each environment
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]], attributes: Sequence[dict[str, Any]] = ()):
        self.envs = [_patch_env(env_fn()) for env_fn in env_fns]
        for env, values in zip(self.envs, attributes):  # noqa: B905
            for name, value in values.items():
                setattr(env, name, value)
        self.observations: list[dict[str, Any] | None] = [None] * len(self.envs)
        self._reset_infos: list[dict[str, Any]] = [{} for _ in self.envs]
        # Shared memory for the observations of steps
        self.slots: ObservationSlots | None = None

    def answer(self, i: int, command: str, data: Any) -> Any:
        """
        :param i: number of the environment, among those of this worker
        :param command: a command of SB3's worker
        :param data: its arguments
        :return: the answer of SB3's worker
        """
        env = self.envs[i]
        if command == "step":
            return self._step(i, data)
        if command == "reset":
            seed, options = data
            # If `reset` raises an exception, the state is unknown: the environment is reset again before it collects
            self.observations[i] = None
            self.observations[i], self._reset_infos[i] = env.reset(seed=seed, **({"options": options} if options else {}))
            return self.observations[i], self._reset_infos[i]
        if command == "render":
            return env.render()
        if command == "get_spaces":
            return env.observation_space, env.action_space
        if command == "env_method":
            name, args, kwargs = data
            return env.get_wrapper_attr(name)(*args, **kwargs)
        if command == "get_attr":
            return env.get_wrapper_attr(data)
        if command == "has_attr":
            return env.has_wrapper_attr(data)
        if command == "set_attr":
            return setattr(env, *data)
        if command == "is_wrapped":
            return is_wrapped(env, data)
        raise NotImplementedError(f"`{command}` is not implemented in the worker")

    def _step(self, i: int, action: Any) -> tuple[Any, ...]:
        env, self.observations[i] = self.envs[i], None
        observation, reward, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        info["TimeLimit.truncated"] = truncated and not terminated
        if done:
            info["terminal_observation"] = observation
            observation, self._reset_infos[i] = env.reset()
        self.observations[i] = observation
        if self.slots is not None:
            observation = self.slots.write(i, observation)
        return observation, reward, done, info, self._reset_infos[i]


class WorkerProcess:
    """
    The main loop of a worker process.

    :param remotes: pipe for the commands of each environment
    :param messages: pipe for reports and failures
    :param env_fns: the environments
    :param attributes: attributes to set, for each environment
    """

    def __init__(
        self,
        remotes: Sequence[Connection],
        messages: Connection,
        env_fns: Sequence[Callable[[], gym.Env]],
        attributes: Sequence[dict[str, Any]],
    ):
        self._remotes, self._messages = remotes, messages
        self._server = EnvServer(env_fns, attributes)
        self._readiness = Readiness(remotes)
        self._worker: Worker | None = None
        self._closed = self._is_nice = False
        # The collector's own commands, which have no answer; if one of them fails, the worker fails
        self._controls: dict[str, Callable[..., None]] = {
            "share": self._share,
            "collect": self._start,
            "stop": self._stop,
            "close": self._close,
        }
        self._watch = ParentWatch()

    def run(self) -> None:
        """Serve until the worker is closed, or the learner has ended."""
        while not self._closed and self._watch.learner_lives():
            if self._worker is None:
                self._serve(_ALIVE_INTERVAL)
            else:
                self._collect(self._worker)
                self._serve(0.0)
        for env in self._server.envs:
            try:
                env.close()
            except Exception:
                # The learner no longer listens, and the other environments must be closed as well
                traceback.print_exc()

    # --------------------------------------------------------------- collecting

    def _start(self, first_env: int, n_envs: int, task: bytes, config: WorkerConfig, index: int, trim: int) -> None:
        """Start to collect; four blocks of shared memory follow the command."""
        control, counters, storage, weights = (SharedArrays.receive(self._remotes[0]) for _ in range(4))
        if not self._is_nice:
            # The learner must not wait: slow workers run while it sleeps. A process without privileges cannot raise its
            # priority again, so this is only done when it is needed
            os.nice(10)
            self._is_nice = True
        self._control = control["control"][index]
        self._worker = Worker(
            self._server.envs,
            self._server.observations,
            first_env,
            n_envs,
            pickle.loads(task).var,
            config,
            make_writers((counters, storage), range(first_env, first_env + len(self._server.envs)), trim),
            WeightSubscriber(weights),
            rounds=int(self._control[WRITTEN]),
        )

    def _collect(self, worker: Worker) -> None:
        """Step for a short time, within the allowed number of rounds."""
        control = self._control
        until = time.perf_counter() + _SERVE_INTERVAL
        while time.perf_counter() < until:
            if worker.rounds < control[ALLOWED]:
                control[BEGUN] = worker.rounds + 1
                worker.round()
                if worker.is_full:
                    self._flush(worker)
            elif worker.n_staged > 0:
                self._flush(worker)
            else:
                time.sleep(_NAP)

    def _flush(self, worker: Worker) -> None:
        report: Report = worker.flush()
        # The report is sent before its steps are counted
        self._send(("report", report))
        self._control[WRITTEN] = worker.rounds

    def _send(self, message: tuple[str, Any]) -> None:
        self._messages.send(message)
        self._control[SENT] += 1

    def _stop(self) -> None:
        worker = self._worker
        assert worker is not None
        if worker.n_staged > 0:
            self._flush(worker)
        self._server.observations = list(worker.observations)
        self._send(("stopped", worker.observations))
        self._worker = None

    # ----------------------------------------------------------------- commands

    def _serve(self, timeout: float) -> None:
        """Handle the commands that are available, or that arrive within the timeout (in seconds)."""
        for i in self._readiness.wait(timeout):
            try:
                message = self._remotes[i].recv_bytes()
            except (EOFError, OSError):
                self._closed = True
                return
            self._handle(i, message)

    def _handle(self, i: int, message: bytes) -> None:
        """Execute a command. An exception is sent as the answer, including the one for an answer that cannot be pickled."""
        try:
            command, data = pickle.loads(message)
            if command not in self._controls:
                answer = dumps(command, self._server.answer(i, command, data))
        except Exception as error:
            command, answer = None, ForkingPickler.dumps(Raised.of(error))
        if command in self._controls:
            self._controls[command](*data)
        else:
            self._remotes[i].send_bytes(answer)

    def _share(self) -> None:
        self._server.slots = ObservationSlots.receive(self._remotes[0])

    def _close(self) -> None:
        self._closed = True


def main(
    remotes: Sequence[Connection],
    parent_remotes: Sequence[Connection],
    messages: Connection,
    env_fns: Sequence[WorkerPickle],
    attributes: WorkerPickle,
    is_replacement: bool,
) -> None:
    """
    Target of a worker's process.

    :param remotes: pipe for the commands of each environment
    :param parent_remotes: the other ends of these pipes, which a forked process inherits
    :param messages: pipe for reports and failures
    :param env_fns: the environments
    :param attributes: attributes to set, for each environment
    :param is_replacement: whether it replaces another worker
    """
    # Ctrl-C reaches all processes of a terminal, but the learner decides what to do
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A forked process imports nothing, so it has to drop the notice here
    drop_notice()
    # There are already as many workers as cores
    th.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)
    for parent_remote in parent_remotes:
        parent_remote.close()
    try:
        if is_replacement:
            continue_monitor_files()
        WorkerProcess(remotes, messages, [env_fn.var for env_fn in env_fns], attributes.var).run()
    except Exception as error:
        # The learner may have ended
        with contextlib.suppress(OSError):
            messages.send(("failed", Raised.of(error)))
        raise SystemExit(1) from None
