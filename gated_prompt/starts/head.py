# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Start the head of an adapted model where a linear probe ends: `initialize_head`."""

import copy
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import is_parametrized
from tqdm import tqdm

from ..architecture import find_head_names
from ..errors import GatedPromptError
from ..inspect.readouts import has_prompts
from ..training.processes import combine, rank_and_world
from .hooked_base import Batch, model_inputs, seeded
from .linear_probe import PROBLEMS, Fit, fit_linear, problem_of

HEAD = re.compile("classifier|head")  # in a name. A norm beside it may be saved with the adapter as well


def initialize_head(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    problem_type: str | None = None,
    l2: float = 1.0,
    class_weights: Sequence[float] | None = None,
    seed: int = 0,
) -> None:
    """Fit the head that is trained to the features that it will see. Call it before training.

    Labelled images pass through the model in eval mode, with everything in place that the active adapter brings:
    prompts, gates, temperatures and pooling. What enters the head's last Linear is standardised and fitted by logistic
    regression (L-BFGS, to the optimum), by one logistic regression for each of several labels, or by ridge regression
    for numbers. The result replaces weight and bias of this Linear. Nothing else changes. A linear probe of the bare
    backbone would not do, because the prompts shift the features, and the head would have to unlearn the difference.

    With torch.distributed, give each process its own share of the images. The head is fitted to all of them, and all
    processes get the same. Features are kept in memory, 8 bytes for each of an image's values.

    Args:
        model: what `get_peft_model` returned, for prompts, LoRA and others, or a model whose head is trained.
        batches: pairs (pixels (B, 3, H, W), labels) or dicts with `pixel_values` and `labels`, for example a
            DataLoader of training images without augmentation. Labels are classes (B,), zeros and ones (B, K) or
            numbers (B,) or (B, K). One pass is made over all of it.
        problem_type: transformers' name of the problem. None means that the labels decide.
        l2: strength of the L2 penalty, which is 1 / C of scikit-learn's LogisticRegression, and alpha of its Ridge.
        class_weights: (K,), factors on the losses of the images of each class.
        seed: of the random numbers while `batches` is read. The same images in the same order give the same head.

    Warns:
        UserWarning: the head's precision, such as bfloat16 under autocast, rounds away what was fitted.

    Raises:
        GatedPromptError: no head is trained, the head does not end in a Linear, an option is wrong, a batch lacks
            pixels or labels, the labels do not fit the head, the head's weight is computed from parameters that cannot
            express the fitted one, or features are not finite. The model is then as before.

    Example:
        ```python
        model = get_peft_model(vit, GatedPromptConfig(num_virtual_tokens=10))
        gated_prompt.initialize_head(model, train_loader)
        ```
    """
    root = model.module if isinstance(model, DistributedDataParallel) else model
    heads = _trained_heads(root)
    _check_options(problem_type, l2, class_weights, heads)
    weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
    precisions: dict[str, torch.dtype] = {}

    def look_at_images() -> tuple[dict[str, Tensor], Tensor] | None:
        watched = [_LastLinear(name, head) for name, head in heads.items()]
        labels: list[Tensor] = []
        anchor = next(parameter for parameter in root.parameters() if parameter.is_floating_point())
        try:
            with seeded(root, anchor.device, seed):
                for batch in tqdm(batches, desc="initialize head", leave=False, disable=rank_and_world()[0] != 0):
                    labels.append(_labels(batch))
                    root(**{name: _placed(value, anchor) for name, value in model_inputs(batch).items()})
        finally:
            for linear in watched:
                linear.close()
        precisions.update({linear.name: linear.precision for linear in watched if linear.seen})
        return ({linear.name: torch.cat(linear.seen) for linear in watched}, torch.cat(labels)) if labels else None

    def finish(parts: list[tuple[dict[str, Tensor], Tensor] | None]) -> dict[str, Fit]:
        found = [part for part in parts if part is not None]
        if not found:
            raise GatedPromptError("initialize_head: there are no batches. Give labelled images.")
        labels = torch.cat([part[1] for part in found])
        fits = {}
        for name, head in heads.items():
            linear, features = last_linear(head), torch.cat([part[0][name] for part in found])
            if len(features) != len(labels):
                raise GatedPromptError(f"{len(features)} images came with {len(labels)} labels")
            outputs = linear.out_features
            problem = problem_type or problem_of(labels, outputs)
            fits[name] = fit_linear(features, labels, outputs, problem, l2, linear.bias is not None, weights)
            _check_precision(name, features, fits[name], precisions.get(name, torch.float32))
        return fits

    fits = combine(look_at_images, finish)
    before = {name: copy.deepcopy(head.state_dict()) for name, head in heads.items()}
    try:
        for name, fit in fits.items():
            _write(name, last_linear(heads[name]), fit)
    except Exception:
        for name, head in heads.items():
            head.load_state_dict(before[name])
        raise


@torch.no_grad()
def _write(name: str, linear: nn.Linear, fit: Fit) -> None:
    """Set weight and bias of a Linear, through their parametrizations if they have some.

    Raises:
        GatedPromptError: the weight is computed from other parameters, which cannot express the fitted one.
    """
    for part, value in zip(("weight", "bias"), fit, strict=True):
        if getattr(linear, part) is None:
            continue
        if part in linear._parameters:
            getattr(linear, part).copy_(value)
            continue
        wanted = value.to(getattr(linear, part))
        try:
            setattr(linear, part, wanted)  # torch.nn.utils.parametrize calls `right_inverse`
            written = torch.allclose(getattr(linear, part), wanted, rtol=1e-3, atol=1e-5)
        except Exception:  # whatever a parametrization raises that has no inverse
            written = False
        if not written:
            raise _computed(name, part)


def _computed(name: str, part: str) -> GatedPromptError:
    return GatedPromptError(
        f"initialize_head: the {part} of {name} is computed from other parameters (a parametrization, pruning, weight "
        "norm), which cannot express the fitted one. Call initialize_head first and reparametrize the head afterwards."
    )


def _trained_heads(root: nn.Module) -> dict[str, nn.Module]:
    """The heads that training changes and saving keeps, by name."""
    wrappers = {n: m for n, m in root.named_modules() if isinstance(m, ModulesToSaveWrapper)}
    active = {n: [name for name in m.active_adapters if name in m.modules_to_save] for n, m in wrappers.items()}
    kept = {n: m.modules_to_save[active[n][0]] for n, m in wrappers.items() if active[n] and not m.disable_adapters}
    if not wrappers and not isinstance(root, PeftModel) and not has_prompts(root):
        modules = {name: root.get_submodule(name) for name in find_head_names(root)}
        kept = {n: m for n, m in modules.items() if any(p.requires_grad for p in m.parameters())}
    heads = {n: m for n, m in kept.items() if HEAD.search(n.rpartition(".")[2])} or kept
    if not heads:
        raise GatedPromptError(
            f"initialize_head: this {type(root).__name__} trains no head. Name it in modules_to_save of the adapter's "
            "config, and switch the adapter on."
        )
    for name, head in heads.items():
        linear = last_linear(head, name)
        for part in ("weight", "bias"):
            # Old ways of weight norm and pruning compute the attribute anew in each forward.
            if part not in linear._parameters and not is_parametrized(linear, part):
                raise _computed(name, part)
    return heads


def last_linear(head: nn.Module, name: str = "head") -> nn.Linear:
    """The last Linear of a head in the order in which its modules were made.

    Raises:
        GatedPromptError: it has none.
    """
    linears = [module for module in head.modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise _not_a_linear(name, head)
    return linears[-1]


def _not_a_linear(name: str, head: nn.Module) -> GatedPromptError:
    return GatedPromptError(
        f"initialize_head: {name} ({type(head).__name__}) does not end in a Linear, so it cannot be fitted and keeps "
        "its random start."
    )


def _check_precision(name: str, features: Tensor, fit: Fit, precision: torch.dtype) -> None:
    """Warn if the outputs in this precision are off by more than a tenth of their spread over the images."""
    if precision in (torch.float32, torch.float64):
        return
    exact, rounded = (
        F.linear(*(tensor.to(dtype).double() for tensor in (features, *fit))) for dtype in (torch.float64, precision)
    )
    with_images = exact.std(0, correction=0) > 0  # a class without images has a constant output
    spread = float(exact[:, with_images].std(0, correction=0).square().mean().sqrt())
    error = float((rounded - exact)[:, with_images].square().mean().sqrt())
    if error > 0.1 * spread:
        warnings.warn(
            f"initialize_head: {name} computes in {str(precision).removeprefix('torch.')}, which rounds away what was "
            f"fitted: its outputs are off by {error / spread:.0%} of their spread over the images, because its "
            "features hardly vary beside their mean. Keep the head in float32, outside autocast, as "
            "gated_prompt.heads.TokenClassifier does",
            stacklevel=4,
        )


class _LastLinear:
    """Collects what enters the last Linear of a head, float64 (N, D), and checks that its output is the head's."""

    def __init__(self, name: str, head: nn.Module) -> None:
        self.name, self.head, self.seen = name, head, list[Tensor]()
        self.precision = torch.float32
        self._output: Tensor | None = None
        linear = last_linear(head, name)
        self._handles = [linear.register_forward_hook(self._of_linear)]
        if linear is not head:
            self._handles.append(head.register_forward_hook(self._of_head))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _of_linear(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        features = args[0].detach()
        if features.ndim != 2:
            raise GatedPromptError(
                f"initialize_head: {self.name} reads features of shape {tuple(features.shape)}. Expected one row "
                "per image, (images, width)."
            )
        if not bool(torch.isfinite(features).all()):
            raise GatedPromptError(
                "initialize_head: the features hold NaN or infinite values. Look at the images and, in float16, at "
                "the precision of the base."
            )
        self.seen.append(features.double().cpu())
        self._output, self.precision = output, output.dtype

    def _of_head(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not (isinstance(output, Tensor) and self._output is not None and torch.equal(output, self._output)):
            raise _not_a_linear(self.name, self.head)


def _labels(batch: Batch) -> Tensor:
    labels: Any = None
    if isinstance(batch, Mapping):
        labels = batch.get("labels")
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        labels = batch[1]
    if not isinstance(labels, Tensor) or labels.ndim not in (1, 2):
        raise GatedPromptError(
            "initialize_head: a batch has no labels. Expected a pair (pixels, labels) or a dict with 'pixel_values' "
            "and 'labels', where the labels are a tensor (images,) or (images, classes)."
        )
    return labels.detach().cpu()


def _placed(value: Any, anchor: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(anchor.device, anchor.dtype if value.is_floating_point() else None)


def _check_options(
    problem_type: str | None, l2: float, class_weights: Sequence[float] | None, heads: Mapping[str, nn.Module]
) -> None:
    faults = []
    if problem_type not in (None, *PROBLEMS):
        faults.append(f"problem_type is {problem_type!r}. Choose from: {', '.join(map(repr, PROBLEMS))}.")
    if not (math.isfinite(l2) and l2 > 0):
        faults.append(f"l2 is {l2}. Expected a finite number above 0.")
    if class_weights is not None:
        outputs = [last_linear(head).out_features for head in heads.values()]
        if any(len(class_weights) != count for count in outputs):
            faults.append(f"{len(class_weights)} class weights for a head of {outputs[0]} outputs. Give one for each.")
        if not all(math.isfinite(weight) and weight >= 0 for weight in class_weights):
            faults.append("class_weights has a negative or infinite value. Expected finite numbers of at least 0.")
    if faults:
        raise GatedPromptError(f"initialize_head: {' '.join(faults)}")
