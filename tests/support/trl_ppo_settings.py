"""How both sides of the comparison with TRL's last PPO trainer are set; imports nothing."""

from typing import Any

ROWS, RESPONSE_TOKENS = 8, 12
#: By their names in TRL's `PPOConfig`.
SETTINGS: dict[str, Any] = {
    "learning_rate": 3e-4,
    "num_ppo_epochs": 3,
    "num_mini_batches": 2,
    "kl_coef": 0.2,
    "cliprange": 0.2,
    "cliprange_value": 0.1,
    "vf_coef": 0.5,
    "gamma": 0.99,
    "lam": 0.9,
    "missing_eos_penalty": 1.0,
}
#: Those that `policy_update` has under the same name.
SAME = (
    *("learning_rate", "kl_coef", "cliprange_value", "vf_coef"),
    *("gamma", "lam", "missing_eos_penalty"),
)
