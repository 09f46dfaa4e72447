"""
rl_zoo3 knows ``hddpg``: registration, environments, hyperparameter search, command line.

Imports run one way: this, then the start-up hook, then ``registration`` with what each module of the zoo needs.
"""

import os
import sys

from sb3_hrl.zoo.envs import register_aliases

__all__ = ["register"]


def register(force: bool = False) -> None:
    """
    Register environment aliases, and let rl_zoo3 know ``hddpg``: patch those of its modules that are imported already, and
    the others when they are. Called by ``import sb3_hrl``, so that it also works where the start-up hook does not run.

    :param force: also if ``SB3_HRL_NO_ZOO`` is set
    """
    register_aliases()
    if os.environ.get("SB3_HRL_NO_ZOO") and not force:
        return
    try:
        import _sb3_hrl_hook as hook
    except ImportError:
        from sb3_hrl._startup import _sb3_hrl_hook as hook
    hook.install(force)
    for name in sorted(hook.MODULES):
        module = sys.modules.get(name)
        # A module that is being imported right now is patched when that is done
        if module is not None and not getattr(module.__spec__, "_initializing", False):
            hook.patch(name, module)
