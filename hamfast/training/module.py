"""The Lightning side of training: loss, optimiser, averaged weights, validation."""

from __future__ import annotations

import math
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from hamfast.graph import CrystalGraph
from hamfast.models import Cascade
from hamfast.ops import rotate_irreps, rotation_from_euler
from hamfast.training.checkpoint import describe
from hamfast.training.config import Config, PhaseConfig

MEV = 1e3


class CascadeTraining(lightning.LightningModule):
    """One phase: ``stage1``, ``stage2`` or ``joint``.

    The loss is a mean over structures of means over matrix elements, so that any split of a batch over processes gives the
    same gradient.
    """

    component_weight: Tensor
    elements: Tensor

    def __init__(self, model: Cascade, config: Config, phase: str, pair_cutoffs: np.ndarray, steps_per_epoch: int):
        super().__init__()
        self.model, self.config, self.phase, self.pair_cutoffs = model, config, phase, pair_cutoffs
        self.steps_per_epoch = steps_per_epoch
        settings = config.training.stage2 if phase == "stage2" else config.training.stage1
        assert settings is not None
        self.settings: PhaseConfig = settings
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
        for name, parameter in model.named_parameters():
            if "unused" not in name:
                parameter.requires_grad_(self._trains(name))

    def _trains(self, name: str) -> bool:
        if self.phase == "joint":
            return True
        if self.phase == "stage1":
            return name.startswith("stage1.")
        return name.startswith("stage2.") or not self.model.freeze_stage1

    def predict(self, graph: CrystalGraph) -> Tensor:
        output = self.model(graph, refine=self.phase != "stage1")
        return output.refined

    # --- loss -----------------------------------------------------------------------------------------------------

    def errors(self, graph: CrystalGraph, difference: Tensor) -> tuple[Tensor, Tensor]:
        """Mean square (eV^2) and mean absolute error (eV) over matrix elements, one per structure."""
        spec, pair = self.model.spec, graph.pair_species(self.model.spec.num_species)
        count = self._per_graph(graph, self.elements[pair])
        square = self._per_graph(graph, (difference.square() * self.component_weight[pair]).sum(1)) / count
        absolute = difference.new_zeros(difference.shape[0])
        for p in range(spec.num_species**2):
            which = torch.nonzero(pair == p).flatten()
            blocks = spec.to_blocks(difference[which], p // spec.num_species, p % spec.num_species)
            absolute = absolute.index_copy(0, which, blocks.abs().sum((1, 2)))
        return square, self._per_graph(graph, absolute) / count

    @staticmethod
    def _per_graph(graph, values):
        return values.new_zeros(graph.num_graphs).index_add(0, graph.edge_graph, values)

    def training_step(self, batch: CrystalGraph, batch_idx: int) -> Tensor:
        batch = self._augment(batch, batch_idx)
        square, absolute = self.errors(batch, self.predict(batch) - batch.known_target())
        # In meV, where numbers are of order one.
        loss = square.mean() * MEV**2 if self.settings.loss == "mse" else absolute.mean() * MEV
        shown = square.mean().sqrt() * MEV if self.settings.loss == "mse" else loss
        self._log(
            batch,
            train_loss_meV=shown.detach(),
            train_mae_meV=absolute.mean().detach() * MEV,
            train_objective=loss.detach(),
        )
        return loss

    def validation_step(self, batch: CrystalGraph, batch_idx: int) -> None:
        square, absolute = self.errors(batch, self.predict(batch) - batch.known_target())
        loss = square.mean().sqrt() if self.settings.loss == "mse" else absolute.mean()
        self._log(batch, val_loss_meV=loss * MEV, val_mae_meV=absolute.mean() * MEV)

    def _log(self, batch: CrystalGraph, **values: Tensor) -> None:
        """Means over the epoch, over all processes."""
        self.log_dict(dict(values), on_step=False, on_epoch=True, sync_dist=True, batch_size=batch.num_graphs)

    def _augment(self, graph: CrystalGraph, batch_idx: int) -> CrystalGraph:
        """Turns structure and target by random Euler angles; they depend on seed, epoch, step and process alone."""
        settings = self.settings
        if settings.rotate_angle == 0 or self.current_epoch < settings.rotate * settings.epochs:
            return graph
        key = (self.config.seed, self.current_epoch, batch_idx, self.global_rank)
        generator = torch.Generator().manual_seed(hash(key) & 0x7FFFFFFF)
        limit = settings.rotate_angle
        angles = torch.empty(3).normal_(generator=generator).clamp(-1, 1) * limit * math.pi
        rotation = rotation_from_euler(angles)
        rotated = graph.rotated(rotation)
        rotated.target = rotate_irreps(graph.known_target(), self.model.spec.irreps, rotation)
        return rotated

    # --- optimiser ------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        s, trained = self.settings, self._trained()
        first = [p for n, p in trained.items() if not n.startswith("stage2.")]
        second = [p for n, p in trained.items() if n.startswith("stage2.")]
        rate = s.learning_rate * (self.config.training.stage2_rate if first else 1.0)
        groups = [{"params": first, "lr": s.learning_rate}, {"params": second, "lr": rate}]
        optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], betas=(0.9, 0.99), weight_decay=s.weight_decay
        )
        total = max(1, s.epochs * self.steps_per_epoch)

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / max(1, s.warmup_steps))
            if s.schedule == "constant":
                return warm * self.lr_factor
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
            return warm * (s.final_fraction + (1 - s.final_fraction) * cosine) * self.lr_factor

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        if self.settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(
                [p for p in self.model.parameters() if p.requires_grad], self.settings.clip, error_if_nonfinite=False
            )

    # --- averaged weights -----------------------------------------------------------------------------------------

    def _trained(self) -> dict[str, Tensor]:
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
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

    def on_validation_epoch_start(self) -> None:
        self._swap()

    def on_validation_epoch_end(self) -> None:
        self._swap()

    def _swap(self) -> None:
        if self.ema is not None:
            trained = self._trained()
            for name, average in self.ema.items():
                average_copy = average.clone()
                average.copy_(trained[name].detach())
                trained[name].data.copy_(average_copy)

    def restore_average(self, checkpoint: dict[str, Any]) -> None:
        """The averaged weights of a checkpoint, if it has some."""
        if checkpoint.get("ema"):
            self.ema = {n: w.to(self.device) for n, w in checkpoint["ema"]["weights"].items()}

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["hamfast"] = describe(self.config, self.model.spec, self.pair_cutoffs) | {"phase": self.phase}
        checkpoint["ema"] = None if self.ema is None else {"weights": self.ema, "updates": self.ema_updates}
        checkpoint["lr_factor"] = self.lr_factor

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.restore_average(checkpoint)
        if checkpoint.get("ema"):
            self.ema_updates = checkpoint["ema"]["updates"]
        self.lr_factor = checkpoint["lr_factor"]
