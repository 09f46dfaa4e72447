#!/usr/bin/env bash
# What the zoo does with hddpg, one command after the other: about ten minutes on two cores. docs/zoo.md has more.
set -euo pipefail

# Train, with evaluations on the way, the model, its replay buffer and all settings in logs/hddpg/FetchReach-v2_1
python -m rl_zoo3.train --algo hddpg --env FetchReach-v2 --eval-freq 1000 --save-replay-buffer -P

# Two environments in processes of their own, which collect while the agent learns
python -m rl_zoo3.train --algo hddpg --env FetchReach-v2 --vec-env subproc -params n_envs:2 gradient_steps:2

# Other settings than those of hyperparams/hddpg.yml
python -m rl_zoo3.train --algo hddpg --env FetchReach-v2 -params gamma:0.98 low_kwargs:"dict(policy_delay=2)"

# How good is it? And what does it look like? (on a machine with a screen; without one see record_video below)
python -m rl_zoo3.enjoy --algo hddpg --env FetchReach-v2 -f logs --exp-id 1 --no-render -n 1000

# Go on with a saved agent, and its replay buffer beside it
python -m rl_zoo3.train --algo hddpg --env FetchReach-v2 -i logs/hddpg/FetchReach-v2_1/FetchReach-v2.zip -n 2000

# Search hyperparameters, then train with those of a trial (put the best one's number, which the search prints, for 1)
python -m rl_zoo3.train --algo hddpg --env FetchReach-v4 -optimize --n-trials 10 -n 2000 --storage sqlite:///study.db --study-name reach
python -m rl_zoo3.train --algo hddpg --env FetchReach-v4 --storage sqlite:///study.db --study-name reach --trial-id 1 -n 3000

# The success rate in training, in all runs so far
python -m rl_zoo3.plots.plot_train -a hddpg -e FetchReach-v2 -f logs -y success

# A video, rendered without a screen
MUJOCO_GL=egl python -m rl_zoo3.record_video --algo hddpg --env FetchReach-v2 -f logs --exp-id 1 -n 200
