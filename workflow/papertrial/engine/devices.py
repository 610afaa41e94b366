"""Where torch methods run."""

from papertrial.engine.errors import PapertrialError


def resolve(device: str, torch_needed: bool) -> str:
    """The device a job runs on; a job without torch runs on the CPU whatever was asked.

    Raises:
        PapertrialError: the device asked for isn't there.
    """
    if not torch_needed or device == "cpu":
        return "cpu"
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in present.items() if there)
    if not present[device]:
        raise PapertrialError(f"device={device} was asked for, but torch {torch.__version__} finds none here")
    return device
