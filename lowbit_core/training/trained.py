"""What a run takes from runs that were trained before it: its teachers, and a start.

Sources and readings of both options: docs/options.md.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowbit_core import models
from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.conversion.policy import QuantPolicy
from lowbit_core.conversion.swap import convert
from lowbit_core.datasets.catalog import dataset
from lowbit_core.quantizers.bits import FLOAT_BITS
from lowbit_core.quantizers.interface import Method, WeightQuantizer
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.run_folder import WEIGHTS, RunFolder, load_tensors
from lowbit_core.training.divergence import first_layer_with_bad_state

MIXTURE_LR_SCALE = 0.1  # of the weights of several teachers (CMT-KD)


def load_weights(model: nn.Module, path: Path, config: dict) -> None:
    """Load the weights in `path` into the network of the run `config`.

    Raises InputError if they are missing or damaged, do not fit, or are not finite.
    """
    try:
        model.load_state_dict(load_tensors(path))
    except RuntimeError as error:
        raise InputError(
            f"checkpoint {path} does not fit arch {config['arch']!r} with options "
            f"{config['arch_options']}"
        ) from error
    if first_layer_with_bad_state(model) is not None:
        raise InputError(f"checkpoint {path} diverged: lower the lr of its recipe and rerun")


def trained_network(folder: Path, method: Method) -> nn.Module:
    """The network that the run in `folder` trained, on the CPU.

    That run is of full precision or of `method`. Raises InputError as `load_weights` does.
    """
    if not (folder / "config.json").exists():
        raise InputError(f"{folder / 'config.json'} is missing: rerun the job that trains this run")
    config = RunFolder(folder).read_json("config.json")
    info = dataset(config["dataset"])
    with torch.random.fork_rng(devices=[]):  # random numbers of this run: those without teachers
        model = models.build(config["arch"], info.classes, info.channels, **config["arch_options"])
        if min(config["w_bits"], config["a_bits"]) < FLOAT_BITS:
            policy = QuantPolicy(method, config["w_bits"], config["a_bits"], **config["policy"])
            convert(model, policy, torch.zeros(1, info.channels, info.side, info.side))
    load_weights(model, folder / WEIGHTS, config)
    return model


# -- start_from -------------------------------------------------------------------------------


def start_from(model: nn.Module, trained: nn.Module) -> None:
    """Give the full-precision `model` what a quantized network of its kind has learned.

    That is the full-precision weight behind every quantized one, and as they are: the layers that
    were not quantized, biases, and batch norm. Levels, ranges and codes begin anew.
    """
    state = trained.state_dict()
    for name, layer in trained.named_modules():
        if isinstance(layer, QuantLayer) and layer.weight_quantizer is not None:
            quantizer = layer.weight_quantizer
            state[f"{name}.weight"] = float_weight(quantizer).detach().view(quantizer.shape)
    model.load_state_dict({name: state[name] for name in model.state_dict()})


def float_weight(quantizer: WeightQuantizer) -> Tensor:
    """The full-precision weight (O, N) from which a quantizer of another width can start.

    The shadow weight, where there is one: its `latent()` may be normalised, as DoReFa's is by tanh.
    """
    shadow = dict(quantizer.named_parameters(recurse=False)).get("weight")
    return quantizer.latent() if shadow is None else shadow


# -- distill ----------------------------------------------------------------------------------


def distillation_loss(scores: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(t / T) || softmax(s / T)), the mean over a batch.

    scores, taught: s and t (B, classes), of the student and of the teacher. T^2 keeps the size of
    the gradient where T changes (Hinton et al. 2015, section 2).
    """
    student, teacher = (functional.log_softmax(x / temperature, 1) for x in (scores, taught))
    divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


class Teachers:
    """Frozen networks that a run learns from; of several, the scores are mixed by learned weights.

    The mixture is the sum of softmax(pi)_i t_i over teachers i with scores t_i; pi starts at 0.
    """

    def __init__(self, networks: list[nn.Module], option: dict, device: torch.device) -> None:
        """`option`: the recipe's `distill`, of which `weight` and `temperature` are read."""
        self.weight, self.temperature = option["weight"], option["temperature"]
        self.networks = [
            network.to(device, memory_format=torch.channels_last).requires_grad_(False).eval()
            for network in networks
        ]
        self.pi = nn.Parameter(torch.zeros(len(networks), device=device))

    def parameters(self) -> list[nn.Parameter]:
        """What is learned of the teachers: pi, if there are several."""
        return [self.pi] if len(self.networks) > 1 else []

    def groups(self) -> list[dict]:
        """The optimizer's groups of these parameters."""
        group = {"lr_scale": MIXTURE_LR_SCALE, "weight_decay": 0.0}
        return [{"params": [p], "name": "teachers", **group} for p in self.parameters()]

    def loss(self, hard: Tensor, scores: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """(1 - a) CE + a T^2 KL, for the cross-entropy `hard` and the student's scores (B, C).

        Of several teachers, pi also gets its gradient here: that of the mixture's cross-entropy.
        The student's loss gives it none, or pi would prefer the teacher that the student is like.
        """
        with torch.no_grad():
            each = torch.stack([network(images).float() for network in self.networks])
        taught = each[0]
        if len(self.networks) > 1:
            taught = torch.einsum("t,tbc->bc", self.pi.softmax(0), each)
            (self.pi.grad,) = torch.autograd.grad(functional.cross_entropy(taught, labels), self.pi)
            taught = taught.detach()
        soft = distillation_loss(scores.float(), taught, self.temperature)
        return (1 - self.weight) * hard + self.weight * soft

    def shares(self) -> list[float]:
        """The weights of the teachers' scores, softmax(pi)."""
        return self.pi.detach().softmax(0).tolist()
