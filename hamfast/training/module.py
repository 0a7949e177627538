"""The Lightning side of training: loss, optimiser, averaged weights, validation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Protocol

import lightning
import numpy as np
import torch
from torch import Tensor, distributed

from hamfast.graph import CrystalGraph, structures_of
from hamfast.models import Cascade
from hamfast.models.in_training import InTraining
from hamfast.ops import rotate_irreps, rotation_from_euler
from hamfast.training.checkpoint import describe
from hamfast.training.config import Config, section_of_phase

MEV = 1e3


class Deal(Protocol):
    """How structures are dealt out to the processes;
    :class:`hamfast.training.sampler.EpochSampler`."""

    rank: int
    world: int

    def resume(self, epoch: int, batch: int) -> None:
        """Says which epoch comes next, and with which batch it begins."""

    def real(self, batch: int) -> int:
        """How many structures of this process's batch are no repeats; they come first."""

    def total_weight(self, batch: int) -> float:
        """The sum of the weights of a batch's structures, over all processes."""

    def structure(self, batch: int, index: int) -> int:
        """The number in the set of the structure at ``index`` of this process's batch."""


class CascadeTraining(lightning.LightningModule):
    """One phase: ``stage1``, ``stage2`` or ``joint``.

    The loss is a mean over structures of means over matrix elements, or with ``average: elements``
    the mean over all matrix elements of a batch. Any split of a batch over processes gives the same
    gradient: structures that only fill up a process's batch have no weight.

    Args:
        model: its parameters are trained in place.
        config: of the run.
        phase: its name.
        pair_cutoffs: ``[species, species]`` angstrom, for the checkpoints.
        steps_per_epoch: optimiser steps.
        training, validation: how the structures of each set are dealt out.
    """

    component_weight: Tensor
    elements: Tensor

    def __init__(
        self,
        model: Cascade,
        config: Config,
        phase: str,
        pair_cutoffs: np.ndarray,
        steps_per_epoch: int,
        training: Deal,
        validation: Deal,
    ):
        super().__init__()
        self.deals = {"train": training, "val": validation}
        self.sums: dict[str, Tensor] = {}
        self.first_step = 0  # of the epoch, in a run that goes on within one
        self.model, self.config, self.phase, self.pair_cutoffs = model, config, phase, pair_cutoffs
        self.steps_per_epoch = steps_per_epoch
        self.settings = config.training.of_phase(phase)
        self.lr_factor = 1.0  # lowered by the safety net
        self.ema: dict[str, Tensor] | None = None
        self.ema_updates = 0
        spec = model.spec
        pairs = range(spec.num_species**2)
        masks = torch.stack([spec.mask(p // spec.num_species, p % spec.num_species) for p in pairs])
        weight = spec.component_weight * masks  # [pairs, dim]
        elements = [math.prod(spec.block_shape(p // spec.num_species, p % spec.num_species)) for p in pairs]
        self.register_buffer("component_weight", weight.to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("elements", torch.tensor(elements, dtype=torch.get_default_dtype()), persistent=False)
        model.mixed_precision = config.training.mixed_precision
        self.share(None)
        self.stages = [list(model.stage1.trainable_parameters())]
        self.stages.append([] if model.stage2 is None else list(model.stage2.parameters()))
        trained = (phase != "stage2" or not model.freeze_stage1, phase != "stage1")
        for parameters, is_trained in zip(self.stages, trained, strict=True):
            for parameter in parameters:
                parameter.requires_grad_(is_trained)

    def share(self, group: distributed.ProcessGroup | None) -> None:
        """Has all processes of a group work on each structure together; None: each on its own."""
        self.group = group
        self.sharing = 1 if group is None else distributed.get_world_size(group)
        training, data = self.config.training, self.config.data
        self.model.sweeps_over = InTraining(training.recompute, data.max_edges_at_once, group)

    def on_fit_start(self) -> None:
        """The processes are there now."""
        if self.config.training.share_structures and self.trainer.world_size > 1:
            # One of their own: what Lightning exchanges goes another way.
            self.share(distributed.new_group())

    def predict(self, graph: CrystalGraph) -> Tensor:
        """The irreps that this phase trains, ``[edges, spec.dim]`` eV: of stage 1, or refined."""
        output = self.model(graph, refine=self.phase != "stage1")
        return output.refined

    # --- loss
    # ---------------------------------------------------------------------------------------------

    def errors(self, graph: CrystalGraph, difference: Tensor) -> tuple[Tensor, Tensor]:
        """Mean square (eV^2) and mean absolute error (eV) of each structure, over matrix elements.

        Args:
            graph: of the structures.
            difference: ``[edges, spec.dim]`` eV.
        """
        spec, pair = self.model.spec, graph.pair_species(self.model.spec.num_species)
        count = self.num_elements(graph)
        square = self._per_graph(graph, (difference.square() * self.component_weight[pair]).sum(1)) / count
        absolute = difference.new_zeros(difference.shape[0])
        for p in range(spec.num_species**2):
            which = torch.nonzero(pair == p).flatten()
            blocks = spec.to_blocks(difference[which], p // spec.num_species, p % spec.num_species)
            absolute = absolute.index_copy(0, which, blocks.abs().sum((1, 2)))
        return square, self._per_graph(graph, absolute) / count

    def num_elements(self, graph: CrystalGraph) -> Tensor:
        """``[structures]``: the matrix elements of each structure."""
        return self._per_graph(graph, self.elements[graph.pair_species(self.model.spec.num_species)])

    @staticmethod
    def _per_graph(graph, values):
        return values.new_zeros(graph.num_graphs).index_add(0, graph.edge_graph, values)

    def training_step(self, batch: CrystalGraph, batch_idx: int) -> Tensor:
        """The loss of this process's batch, so that the mean over processes is that of all.

        A batch that is worked off in parts has the gradients of all but the last one afterwards;
        the loss is that of the last.
        """
        self.zero_grad(set_to_none=True)
        graph = self._augment(batch, batch_idx)
        *parts, last = self._parts(graph)
        for part in parts:
            # Outside of what Lightning does: processes exchange gradients with the last part.
            self._loss(graph, part, batch_idx).backward()
        return self._loss(graph, last, batch_idx)

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """The gradients of a batch's parts stay: those of the step before went as it began."""

    def _parts(self, graph: CrystalGraph) -> list[tuple[int, int]]:
        """The first structure of each part, and the first that is not in it."""
        most = self.config.data.max_edges_at_once
        if most is None or graph.num_edges <= most * self.sharing:
            return [(0, graph.num_graphs)]
        most *= self.sharing
        parts, first, edges = [], 0, 0
        for n, own in enumerate(torch.bincount(graph.edge_graph, minlength=graph.num_graphs).tolist()):
            if n > first and edges + own > most:
                parts.append((first, n))
                first, edges = n, 0
            edges += own
        return [*parts, (first, graph.num_graphs)]

    def _loss(self, batch: CrystalGraph, part: tuple[int, int], batch_idx: int) -> Tensor:
        graph = structures_of(batch, *part)
        difference = self.predict(graph) - graph.known_target()
        errors = square, absolute = self.errors(graph, difference)
        mse, weight = self.settings.loss == "mse", self.settings.onsite_weight
        if weight != 1:
            factor = torch.where(graph.onsite, weight**0.5 if mse else weight, 1.0)
            square, absolute = self.errors(graph, difference * factor.to(difference).unsqueeze(1))
        deal = self.deals["train"]
        # In meV, so that values are of order one.
        objective = square * MEV**2 if mse else absolute * MEV
        real = max(0, deal.real(batch_idx) - part[0])
        own = self._add_up("train", graph, real, errors, objective)
        # Gradients are averaged over the processes, each of which may have another weight, or has a
        # part of the gradient.
        return own * (deal.world * self.sharing / deal.total_weight(batch_idx))

    def validation_step(self, batch: CrystalGraph, batch_idx: int) -> None:
        """Adds the errors of a batch to the sums of the epoch."""
        errors = self.errors(batch, self.predict(batch) - batch.known_target())
        mse = self.settings.loss == "mse"
        real = self.deals["val"].real(batch_idx)
        self._add_up("val", batch, real, errors, errors[0] * MEV**2 if mse else errors[1] * MEV)

    def _add_up(
        self, subset: str, graph: CrystalGraph, real: int, errors: tuple[Tensor, Tensor], objective: Tensor
    ) -> Tensor:
        """Adds :meth:`errors` to the sums of the epoch. Returns the weighted sum of the objective
        over the first ``real`` structures, which are no repeats."""
        square, absolute, objective = errors[0][:real], errors[1][:real], objective[:real]
        by_elements, mse = self.settings.average == "elements", self.settings.loss == "mse"
        weights = self.num_elements(graph)[:real] if by_elements else torch.ones_like(square)
        with torch.no_grad():
            columns = (
                square.sqrt() * MEV if mse else absolute * MEV,
                absolute * MEV,
                objective,
                torch.ones_like(square),
            )
            new = torch.stack([(column.double() * weights.double()).sum() for column in columns])
            self.sums[subset] = self.sums[subset] + new if subset in self.sums else new
        return (objective * weights).sum()

    def log_means(self) -> None:
        """Logs the epoch's weighted means over all structures of all processes, in meV.

        Names that begin with train are of the training set, those with val of the validation set.
        """
        for subset, sums in self.sums.items():
            # Where they share structures all have the same sums up to rounding, and the same means.
            if self.deals[subset].world * self.sharing > 1:
                distributed.all_reduce(sums)
            loss, mae, objective = (sums[:3] / sums[3]).unbind()
            values = {f"{subset}_loss_meV": loss, f"{subset}_mae_meV": mae}
            self.log_dict(values | ({"train_objective": objective} if subset == "train" else {}), on_epoch=True)
        self.sums = {}

    def _augment(self, graph: CrystalGraph, batch_idx: int) -> CrystalGraph:
        """Rotates each structure and its target by random Euler angles.

        The angles depend on the seed, the epoch and the structure's number in the set alone. So
        they are the same for any number of processes.
        """
        settings = self.settings
        if settings.rotate_angle == 0 or self.current_epoch < settings.rotate * settings.epochs:
            return graph
        vector, target = graph.vector.clone(), graph.known_target().clone()
        for n in range(graph.num_graphs):
            key = (self.config.seed, self.current_epoch, self.deals["train"].structure(batch_idx, n))
            generator = torch.Generator().manual_seed(hash(key) & 0x7FFFFFFF)
            angles = torch.empty(3).normal_(generator=generator).clamp(-1, 1) * settings.rotate_angle * math.pi
            rotation = rotation_from_euler(angles)
            which = torch.nonzero(graph.edge_graph == n).flatten()
            vector[which] = graph.vector[which] @ rotation.T.to(graph.vector)
            target[which] = rotate_irreps(target[which], self.model.spec.irreps, rotation)
        return replace(graph, vector=vector, target=target, units=None)

    # --- optimiser
    # ---------------------------------------------------------------------------------------------

    def _groups(self) -> list[list[torch.nn.Parameter]]:
        """The trained parameters of stage 1 and of stage 2, without a stage that is not trained."""
        groups = [[p for p in stage if p.requires_grad] for stage in self.stages]
        return [group for group in groups if group]

    def base_rates(self) -> list[float]:
        """The peak learning rate of each group."""
        rate = self.settings.learning_rate
        return [rate, rate * self.config.training.stage2_rate][: len(self._groups())]

    def configure_optimizers(self) -> Any:
        """AdamW with the rates of each stage, and the schedule of the configuration."""
        s = self.settings
        groups = [
            {"params": params, "lr": rate} for params, rate in zip(self._groups(), self.base_rates(), strict=True)
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=s.weight_decay)
        total = max(1, s.epochs * self.steps_per_epoch)

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / max(1, s.warmup_steps))
            if s.schedule == "constant":
                return warm * self.lr_factor
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
            return warm * (s.final_fraction + (1 - s.final_fraction) * cosine) * self.lr_factor

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Sets the rates of the first step, also in a run that is resumed."""
        self.set_rates()

    def set_rates(self) -> None:
        """Sets the rates of the next step.

        They follow from the configuration, the epochs that are done, and the safety net.
        """
        (optimizer,) = self.trainer.optimizers
        scheduler: Any = self.trainer.lr_scheduler_configs[0].scheduler
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        # Not from the checkpoint: rates, batches and epochs of a resumed run may differ.
        scheduler.last_epoch = progress.processed * self.steps_per_epoch + self.first_step
        scheduler.base_lrs = self.base_rates()
        for group, rate in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["initial_lr"], group["weight_decay"] = rate, self.settings.weight_decay
            group["lr"] = rate * scheduler.lr_lambdas[0](scheduler.last_epoch)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Scales the gradient down if its norm exceeds the phase's ``clip``."""
        if self.settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(
                [p for p in self.model.parameters() if p.requires_grad], self.settings.clip, error_if_nonfinite=False
            )

    # --- averaged weights
    # -----------------------------------------------------------------------------------------

    def _trained(self) -> dict[str, Tensor]:
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Takes the new weights into the averaged ones, before a callback may write both."""
        super().optimizer_step(*args, **kwargs)
        if self.settings.ema is None:
            return
        trained = self._trained()
        if self.ema is None:
            self.ema = {n: p.detach().clone() for n, p in trained.items()}
        self.ema_updates += 1
        # Young averages forget faster, so that early validation is meaningful.
        decay = min(self.settings.ema, (1 + self.ema_updates) / (10 + self.ema_updates))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), [trained[n].detach() for n in self.ema], 1 - decay)

    def on_train_epoch_end(self) -> None:
        """The next epoch is whole."""
        self.first_step = 0

    def on_validation_epoch_start(self) -> None:
        """Validates with the averaged weights."""
        self._swap()

    def on_validation_epoch_end(self) -> None:
        """Goes back to the trained weights, and logs the epoch."""
        self._swap()
        self.log_means()

    def _swap(self) -> None:
        """Exchanges the trained and the averaged weights."""
        if self.ema is not None:
            trained = self._trained()
            for name, average in self.ema.items():
                average_copy = average.clone()
                average.copy_(trained[name].detach())
                trained[name].data.copy_(average_copy)

    def restore_average(self, checkpoint: dict[str, Any]) -> None:
        """The averaged weights of a checkpoint, if it has some and they are wanted."""
        if checkpoint.get("ema") and self.settings.ema is not None:
            self.ema = {n: w.to(self.device) for n, w in checkpoint["ema"]["weights"].items()}

    # --- checkpoints
    # ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the description of the model, the averaged weights and the lowered rate."""
        checkpoint["hamfast"] = describe(self.config, self.model, self.pair_cutoffs) | {"phase": self.phase}
        checkpoint["ema"] = None if self.ema is None else {"weights": self.ema, "updates": self.ema_updates}
        checkpoint["lr_factor"] = self.lr_factor
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        done = progress.processed % self.steps_per_epoch
        checkpoint["within_epoch"] = {"batches": done, "of": self.steps_per_epoch, "sums": self._sums_so_far(done)}

    def _sums_so_far(self, batches: int) -> Tensor | None:
        """The training set's sums of all processes; every process comes here."""
        if not batches:
            return None
        sums = self.sums["train"].clone()
        if self.deals["train"].world > 1:
            distributed.all_reduce(sums)
        return sums

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes averaged weights, lowered rate and the next epoch's batches from a checkpoint."""
        # Lightning lets the loader begin before it says the epoch.
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        self.deals["train"].resume(progress["processed"], self._go_on_within_epoch(checkpoint))
        self.restore_average(checkpoint)
        if checkpoint.get("ema"):
            self.ema_updates = checkpoint["ema"]["updates"]
        # The safety net lowered the rate that was asked for then; another one is taken as it
        # stands.
        sections = checkpoint["hamfast"]["config"]["training"]
        before = sections[section_of_phase(self.phase)]["learning_rate"]
        self.lr_factor = checkpoint["lr_factor"] if before == self.settings.learning_rate else 1.0

    def _go_on_within_epoch(self, checkpoint: dict[str, Any]) -> int:
        """How many batches of the epoch are done already.

        With other batches than before the epoch begins anew.
        """
        within = checkpoint["within_epoch"]
        batches = within["batches"] if within["of"] == self.steps_per_epoch else 0
        if batches and within["sums"] is not None:
            self.sums["train"] = within["sums"] * (self.deals["train"].rank == 0)
        if within["batches"] and not batches:
            loop = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            loop["current"] = dict.fromkeys(loop["current"], 0)
            loop["total"]["completed"] = loop["total"]["processed"]
        self.first_step = batches
        return batches
