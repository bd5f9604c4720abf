"""Options and presets. One flat frozen dataclass: every field is an option of the command line and of ``reppo.Config``."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import reprlib
import sys
import types
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from reppo.duals import LIMITS
from reppo.errors import ConfigError
from reppo.images import ImageEncoderKind
from reppo.nets import NormKind

Precision = Literal["highest", "high", "default"]

LARGEST_COUNT = 2**31 - 1  #: of anything that a device counts: its integers have 32 bits
MOST_LAYERS = 100
MOST_SAMPLES = 10_000  #: of one expectation; the paper takes 64, and each is an evaluation of the critic at every state


@dataclasses.dataclass(frozen=True)
class Config:
    """A complete REPPO configuration. The defaults are the ``paper-large`` preset."""

    name = "reppo"  # of the algorithm

    # ---- budget and data
    total_steps: int = 50_000_000
    """Environment steps of the whole run, per seed."""
    num_envs: int = 1024
    """N: environments stepped in parallel."""
    num_steps: int = 128
    """T: steps of each environment per iteration."""
    num_minibatches: int = 64
    """Minibatches per epoch; must divide num_envs * num_steps."""
    num_epochs: int = 8
    """E: passes over each batch before it is discarded."""

    # ---- returns
    gamma: float = 0.99
    """Discount per environment step."""
    lambda_: float = 0.95
    """TD-lambda of the multi-step targets."""
    target_samples: int = 4
    """S: action samples that average each target's value and entropy."""

    # ---- policy and its constraint
    estimator: Literal["pathwise", "score_q", "score_gae"] = "pathwise"
    """Policy-gradient estimator; the last two are the paper's ablations."""
    estimator_samples: int = 16
    """Action samples per state of score_q."""
    kl_mode: Literal["gate", "penalty", "none"] = "gate"
    """gate: per state, objective or KL; penalty: objective + beta KL; none."""
    kl_bound: float = 0.1
    """Bound on KL between rollout policy and new policy, in nats, per state."""
    kl_estimator: Literal["closed_form", "sampled"] = "closed_form"
    """How that KL is computed; of discrete actions, the reverse one always in closed form."""
    kl_samples: int = 16
    """Samples per state of the sampled KL."""
    kl_direction: Literal["forward", "reverse"] = "forward"
    """forward: KL(old || new); reverse: KL(new || old)."""
    initial_alpha: float = 0.01
    """Entropy temperature at the start."""
    initial_beta: float = 0.01
    """KL multiplier at the start."""
    min_beta: float = 0.0
    """Beta never falls below it: a policy that hardly moves for a while keeps a constraint that works when it does."""
    learn_alpha: bool = True
    """Adapt alpha to the target entropy; otherwise it stays as it starts."""
    learn_beta: bool = True
    """Adapt beta to the KL bound; otherwise it stays as it starts."""
    target_entropy_per_action: float = -0.5
    """Target entropy divided by the number of action dimensions, in nats."""
    target_entropy_discrete: float = 0.5
    """Target entropy of discrete actions as a share of the largest, the log of their number."""

    # ---- critic
    hl_gauss: bool = True
    """Categorical critic with HL-Gauss targets; otherwise a scalar critic and squared error."""
    num_bins: int = 151
    """K: bins of the categorical critic."""
    v_min: float | None = None
    """Lower end of the value support; unset: the environment's suggestion."""
    v_max: float | None = None
    """Upper end of the value support; unset: the environment's suggestion."""
    aux_weight: float = 1.0
    """Weight of the auxiliary task: predict next embedding and reward."""

    # ---- networks
    actor_width: int = 512
    """Hidden width of the actor."""
    critic_width: int = 512
    """Hidden width of the critic."""
    actor_layers: int = 3
    """Linear layers of the actor."""
    critic_layers: int = 2
    """Linear layers of the critic's encoder, of its head and of its predictor."""
    norm: NormKind = "rms"
    """Normalisation after each hidden layer."""
    actor_output_scale: float = 1.0
    """Scale of the actor's last layer at the start; small: the first policy is the same everywhere."""
    min_std: float = 0.0
    """Added to the policy's standard deviation."""
    actor_obs: tuple[str, ...] = ()
    """Keys of a dict observation that the actor sees; unset: the environment's suggestion."""
    critic_obs: tuple[str, ...] = ()
    """Keys of a dict observation that the critic sees; unset: the environment's suggestion."""
    normalize_observations: bool = True
    """Running mean and variance per observation dimension, frozen within an iteration; never of an image's pixels."""
    image_encoder: ImageEncoderKind = "auto"
    """Convolutions that read an image, of each network; flat: none; auto: nature where both sides have 36 pixels, else
    minatar, else flat."""

    # ---- optimiser
    learning_rate: float = 3e-4
    """Adam's learning rate, of both networks."""
    dual_learning_rate: float = 3e-4
    """Adam's learning rate of log alpha and log beta."""
    anneal_learning_rate: bool = False
    """Decay both learning rates linearly to zero over the run."""
    max_grad_norm: float = 0.5
    """Gradients are clipped to this global norm."""

    # ---- environment
    episode_length: int | None = None
    """Time limit in steps; unset: the environment's own."""
    cut_probability: float = 0.0
    """Chance, at every step of the training, that an episode is cut there, as a truncation; 0: the time limit alone cuts."""
    action_low: float | None = None
    """Lower bound of actions, for an environment that does not bound them itself."""
    action_high: float | None = None
    """Upper bound of such actions."""
    stagger_episodes: bool = True
    """Start the environments at random points of their time limit, so that episodes do not end in step."""

    # ---- evaluation
    num_evals: int = 20
    """Evaluations, evenly over the run; the last one is at its end."""
    eval_episodes: int = 128
    """Fresh greedy episodes per evaluation."""
    actor_average: float = 0.0
    """Decay per iteration of a running mean of the actor's weights, which is evaluated and saved in place of the newest
    ones; 0: the newest."""

    # ---- checkpoints
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints; there is one after every evaluation, too."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept."""
    keep_best: bool = True
    """Also keep the checkpoint with the best evaluation."""

    # ---- numerics
    precision: Precision = "highest"
    """Matrix products: highest is float32; default lets a GPU use TF32."""

    def __post_init__(self) -> None:
        take_numbers(self)

    @property
    def batch_size(self) -> int:
        """Environment steps per iteration, ``N T``."""
        return self.num_envs * self.num_steps

    @property
    def num_updates(self) -> int:
        """Minibatches per iteration, ``E M``."""
        return self.num_epochs * self.num_minibatches

    @property
    def num_iterations(self) -> int:
        """Iterations of the run: enough to reach ``total_steps``."""
        return -(-self.total_steps // self.batch_size)

    @classmethod
    def from_json(cls, values: dict[str, Any], source: str) -> Config:
        """See `config_from_json`."""
        return config_from_json(cls, values, source)

    def validate(self) -> None:
        """Raise `ConfigError` at the first value that cannot be trained with."""
        check_types(self)
        positive = (
            "total_steps num_envs num_steps num_minibatches num_epochs target_samples estimator_samples kl_samples kl_bound "
            "initial_alpha initial_beta actor_width critic_width actor_layers learning_rate dual_learning_rate "
            "max_grad_norm episode_length eval_episodes num_evals checkpoint_minutes keep_checkpoints"
        )
        check_positive(self, positive)
        for name in ("aux_weight", "min_std", "min_beta", "actor_output_scale"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        check_limits(self)
        if self.batch_size % self.num_minibatches:
            raise ConfigError(
                f"num_minibatches ({self.num_minibatches}) must divide num_envs * num_steps "
                f"({self.num_envs} * {self.num_steps} = {self.batch_size})"
            )
        for name, low, high in (("gamma", 0, 1), ("lambda_", 0, 1), ("target_entropy_discrete", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must be between {low} and {high}, got {getattr(self, name)}")
        if not 0 <= self.cut_probability < 1:
            raise ConfigError(f"cut_probability must be at least 0 and below 1, got {self.cut_probability}")
        if not 0 <= self.actor_average < 1:
            raise ConfigError(f"actor_average must be at least 0 and below 1, got {self.actor_average}")
        if self.critic_layers < 2:
            raise ConfigError(f"critic_layers must be at least 2, got {self.critic_layers}")
        if self.num_bins < 2:
            raise ConfigError(
                f"num_bins must be at least 2, got {self.num_bins} (for a scalar critic set hl_gauss to false)"
            )
        if self.estimator == "score_q" and self.estimator_samples < 2:
            raise ConfigError(f"score_q needs estimator_samples >= 2 for its baseline, got {self.estimator_samples}")
        check_ranges(self)
        for name in ("initial_alpha", "initial_beta"):
            if not LIMITS[0] <= getattr(self, name) <= LIMITS[1]:
                raise ConfigError(f"{name} must be between {LIMITS[0]:g} and {LIMITS[1]:g}, got {getattr(self, name):g}")
        if self.initial_beta < self.min_beta:
            raise ConfigError(f"initial_beta ({self.initial_beta:g}) must not be below min_beta ({self.min_beta:g})")


class RunConfig(Protocol):
    """What the loop, the collectors and the environments read of any algorithm's configuration, a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def name(self) -> str: ...
    @property
    def total_steps(self) -> int: ...
    @property
    def num_envs(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def num_epochs(self) -> int: ...
    @property
    def num_bins(self) -> int: ...
    @property
    def v_min(self) -> float | None: ...
    @property
    def v_max(self) -> float | None: ...
    @property
    def actor_obs(self) -> tuple[str, ...]: ...
    @property
    def critic_obs(self) -> tuple[str, ...]: ...
    @property
    def episode_length(self) -> int | None: ...
    @property
    def action_low(self) -> float | None: ...
    @property
    def action_high(self) -> float | None: ...
    @property
    def stagger_episodes(self) -> bool: ...
    @property
    def cut_probability(self) -> float: ...
    @property
    def num_evals(self) -> int: ...
    @property
    def eval_episodes(self) -> int: ...
    @property
    def checkpoint_minutes(self) -> float: ...
    @property
    def keep_checkpoints(self) -> int: ...
    @property
    def keep_best(self) -> bool: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def num_iterations(self) -> int: ...
    def validate(self) -> None: ...


AnyConfig = TypeVar("AnyConfig", bound=RunConfig)


def config_from_json(cls: type[AnyConfig], values: dict[str, Any], source: str) -> AnyConfig:
    """The configuration that `dataclasses.asdict` and JSON made these values of.

    Raises:
        ConfigError: for unknown, missing or mistyped options; ``source`` names the file.
    """
    hints = get_type_hints(cls)
    values = with_later_options(values, hints)
    for name in values.keys() ^ hints.keys():
        raise ConfigError(f"{source}: {'option missing' if name in hints else 'unknown option'}: {name}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    config = cls(**values)
    try:
        config.validate()
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return config


#: Options that came after runs had been written, and what those runs did: they can still be resumed.
LATER_OPTIONS: Mapping[str, Any] = {"actor_average": 0.0, "cut_probability": 0.0}


def with_later_options(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """An older run's options with those that came later, of these names."""
    return {**{name: value for name, value in LATER_OPTIONS.items() if name in names}, **values}


type_hints = functools.cache(get_type_hints)


def take_numbers(config: Any) -> None:
    """Make NumPy's numbers Python's, and whole numbers that are floats integers where an option is one; in place."""
    for name, hint in type_hints(type(config)).items():
        value = getattr(config, name)
        if isinstance(value, np.generic):
            value = value.item()
        if hint in (int, int | None) and isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not getattr(config, name):
            object.__setattr__(config, name, value)


def check_types(config: Any) -> None:
    """Raise `ConfigError` at the first value that is not of its option's type."""
    for name, hint in type_hints(type(config)).items():
        if not _is_a(value := getattr(config, name), hint):
            if hint in (int, int | None):
                kind = "a whole number" if hint is int else "a whole number or None"
                raise ConfigError(f"{name} must be {kind}, got {value!r}")
            choices = f"; it is one of {', '.join(get_args(hint))}" if get_origin(hint) is Literal else ""
            raise ConfigError(f"{name} cannot be {value!r}{choices}")


def whole(name: str, value: Any) -> int:
    """An argument that counts something as a Python integer; raises `ConfigError` where it is no whole number."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    return value


def check_config(config: Any) -> None:
    """Refuse what is no configuration: people write a preset's name, or a dict."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type) and hasattr(config, "validate"):
        return
    name = config if isinstance(config, str) and config in PRESETS else "cpu"
    raise ConfigError(f"config must be a reppo.Config, such as reppo.preset({name!r}), got {reprlib.repr(config)}")


def check_positive(config: Any, names: str) -> None:
    """Raise `ConfigError` at the first of these options, words of a text, that is set and not positive."""
    for name in names.split():
        if getattr(config, name) is not None and not getattr(config, name) > 0:
            raise ConfigError(f"{name} must be positive, got {getattr(config, name)}")


def check_ranges(config: RunConfig) -> None:
    """Raise `ConfigError` for bounds of values or of actions that are none."""
    if config.v_min is not None and config.v_max is not None and not config.v_min < config.v_max:
        raise ConfigError(f"v_min must be below v_max, got [{config.v_min}, {config.v_max}]")
    if (config.action_low is None) != (config.action_high is None):
        raise ConfigError("action_low and action_high belong together: set both, or neither")
    if config.action_low is not None and config.action_high is not None and not config.action_low < config.action_high:
        raise ConfigError(f"action_low must be below action_high, got [{config.action_low}, {config.action_high}]")


def check_counts(config: Any) -> None:
    """Refuse counts that no run can have, before anything is allocated or looped over for them."""
    # Evaluations are a matter of the host, which counts further; the steps of a run are counted in iterations.
    for name, hint in get_type_hints(type(config)).items():
        value, kind = getattr(config, name), name.rpartition("_")[2]
        most = {"layers": MOST_LAYERS, "samples": MOST_SAMPLES}.get(kind, LARGEST_COUNT)
        counted = hint in (int, int | None) and name not in ("total_steps", "num_evals")
        if counted and value is not None and value > most:
            raise ConfigError(f"{name} must be at most {most:,}, got {shown_count(value)}")


def check_limits(config: RunConfig) -> None:
    """`check_counts`, and the same of what a run has in all."""
    check_counts(config)
    if config.batch_size > LARGEST_COUNT:
        raise ConfigError(
            f"num_envs * num_steps must be at most {LARGEST_COUNT:,}, got {config.num_envs:,} * {config.num_steps:,}"
        )
    if config.num_iterations > LARGEST_COUNT:
        raise ConfigError(
            f"total_steps must be at most {LARGEST_COUNT:,} iterations of num_envs * num_steps = {config.batch_size:,}, "
            f"got {shown_count(config.total_steps)}"
        )


def shown_count(value: int) -> str:
    """A whole number, however large, in a few characters."""
    return f"{value:,}" if abs(value) < 10**15 else f"about 10**{math.floor(math.log10(value))}"


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value has the type of an option: a class, a union of them, a Literal, or a tuple of one class."""
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(type(entry) is get_args(hint)[0] for entry in value)
    if isinstance(hint, types.UnionType):
        return any(_is_a(value, option) for option in get_args(hint))
    if hint is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max  # no NaN, no infinity, no larger int
    return type(value) is hint


PRESETS: dict[str, Config] = {
    "paper-large": Config(),
    "paper-medium": Config(num_steps=64, num_minibatches=32),
    "paper-small": Config(num_steps=32, num_minibatches=16),
    "paper-humanoid": Config(gamma=0.97, critic_width=1024, v_min=-10.0, v_max=10.0),
    "paper-maniskill": Config(total_steps=100_000_000, v_min=-15.0, v_max=15.0),
    "cpu": Config(
        total_steps=400_000,
        num_envs=64,
        num_steps=32,
        num_minibatches=16,
        num_epochs=6,
        num_bins=51,
        actor_width=64,
        critic_width=64,
        actor_output_scale=0.01,
        initial_alpha=0.1,
        initial_beta=0.2,
        min_beta=0.2,
        target_entropy_per_action=0.0,
        learning_rate=1e-3,
        dual_learning_rate=1e-3,
        actor_average=0.9,
        cut_probability=0.004,
        num_evals=10,
        eval_episodes=64,
    ),
}


def presets(env: str, algorithm: str) -> Mapping[str, Config]:
    """All of them, see `reppo.algorithms`; the same for every environment."""
    del env, algorithm
    return PRESETS


def preset(name: str) -> Config:
    """A named configuration: ``cpu``, or one of the paper's, see `PRESETS`."""
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}{nearest(name, PRESETS)}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def nearest(word: str, names: Collection[str]) -> str:
    """``; did you mean this or that?``, or nothing."""
    close = difflib.get_close_matches(word, names, n=2)
    return f"; did you mean {' or '.join(close)}?" if close else ""
