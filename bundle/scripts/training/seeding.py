from __future__ import annotations

from ignite.engine import Engine, Events
from monai.utils import set_determinism
from torch.utils.data import DataLoader

__all__ = ["EpochSeeder"]


class EpochSeeder:
    """
    Seeds every epoch by its number: batches and layers draw what they would have drawn in any run.

    So a resumed training equals one that never stopped, without storing the state of any random generator.

    Args:
        loader: the training loader; its batch sampler may have ``set_epoch``.
        seed: seed of the run.
    """

    def __init__(self, loader: DataLoader, seed: int) -> None:
        self.loader, self.seed = loader, seed

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        seed = (self.seed * 100_003 + engine.state.epoch) % 2**32
        set_determinism(seed=seed)
        for sampler in (self.loader.sampler, self.loader.batch_sampler):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(engine.state.epoch)
