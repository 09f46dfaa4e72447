"""Sets either all parameters of an agent, or none."""

import copy
from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import TensorDict


def set_all_or_none(set_parameters: Callable[[Any], None], model: BaseAlgorithm, params: TensorDict) -> None:
    """
    :param set_parameters: function that sets parameters; it may fail after some of them are set
    :param model: the model
    :param params: the new parameters
    :raises RuntimeError: if the parameters do not fit; the model is then unchanged
    """
    own = copy.deepcopy(model.get_parameters())
    try:
        set_parameters(params)
        _check_optimizers(model)
    except Exception as error:
        # torch copies the parameters that fit before it raises an error about the others
        set_parameters(own)
        # Not a ValueError: SB3's `load` would mistake it for that of an old DQN model
        raise RuntimeError(
            "The parameters do not fit this model, which keeps its own: create it with the spaces, `policy_kwargs`, `planner` "
            "and `net_arch` of the model that they come from, as `HierarchicalDDPG.load` does unless other ones are passed. "
            f"{error}"
        ) from error


def _check_optimizers(model: BaseAlgorithm) -> None:
    """Check the states of the optimizers, which torch does not check."""
    state_dicts = model.get_parameters()
    for name, optimizer in ((name, _attribute(model, name)) for name in state_dicts if name.endswith("optimizer")):
        for parameter, state in optimizer.state.items():
            if any(th.is_tensor(value) and value.shape not in ((), parameter.shape) for value in state.values()):
                raise ValueError(f"The state of `{name}` has another shape than the parameters.")


def _attribute(model: BaseAlgorithm, dotted: str) -> Any:
    value: Any = model
    for name in dotted.split("."):
        value = getattr(value, name)
    return value
