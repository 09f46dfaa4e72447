#!/usr/bin/env bash
# The zoo's commands with hddpg. All together take about ten minutes on two cores. docs/zoo.md has more commands.
set -euo pipefail

# Train and evaluate. The model, its replay buffer and all settings go to logs/hddpg/FetchReach-v2_1
python -m rl_zoo3.train --algo hddpg --env FetchReach-v2 --eval-freq 1000 --save-replay-buffer -P

# Train with two environments in separate processes, which step while the agent learns
python -m rl_zoo3.train --algo hddpg --env FetchReach-v2 --vec-env subproc -params n_envs:2 gradient_steps:2

# Train with other hyperparameters than those of hyperparams/hddpg.yml
python -m rl_zoo3.train --algo hddpg --env FetchReach-v2 -params gamma:0.98 low_kwargs:"dict(policy_delay=2)"

# Evaluate the agent. Without --no-render it is also shown, if there is a display; otherwise use record_video below
python -m rl_zoo3.enjoy --algo hddpg --env FetchReach-v2 -f logs --exp-id 1 --no-render -n 1000

# Continue with a saved agent and the replay buffer in the same folder
python -m rl_zoo3.train --algo hddpg --env FetchReach-v2 -i logs/hddpg/FetchReach-v2_1/FetchReach-v2.zip -n 2000

# Search for hyperparameters, then train with those of a trial. The search prints the number of the best trial: use it instead of 1
python -m rl_zoo3.train --algo hddpg --env FetchReach-v4 -optimize --n-trials 10 -n 2000 --storage sqlite:///study.db --study-name reach
python -m rl_zoo3.train --algo hddpg --env FetchReach-v4 --storage sqlite:///study.db --study-name reach --trial-id 1 -n 3000

# Plot the success rate in training, for all runs so far
python -m rl_zoo3.plots.plot_train -a hddpg -e FetchReach-v2 -f logs -y success

# Record a video without a display
MUJOCO_GL=egl python -m rl_zoo3.record_video --algo hddpg --env FetchReach-v2 -f logs --exp-id 1 -n 200
