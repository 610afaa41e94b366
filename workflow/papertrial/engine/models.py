"""A base model's yaml as typed data."""

from pathlib import Path

from pydantic import Field, model_validator

from papertrial.engine.cards import SCALES, Name, Needs, Scale, Settings, Strict, load_yaml, parse


class ModelAtScale(Strict):
    parts: list[Name] = Field(min_length=1, description="a seed, or an (optimizer, workload); one job each")
    settings: Settings = {}
    mem_mb: int = 2000
    runtime: int = Field(60, description="minutes")
    gpu: int = 0
    per_gpu: int = Field(1, description="how many of these jobs one GPU holds at a time: 1, 2, 3, 4, 6 or 12")


class Gate(Strict):
    """What a base model must reach before a verdict should rest on it; a miss is printed, never hidden."""

    metric: str
    min: float | None = None
    max: float | None = None


class BaseModelCard(Strict):
    """config/models/<name>.yaml; the recipe is workflow/papertrial/models/<name>.py."""

    name: Name
    about: str
    needs: Needs = Needs()
    settings: Settings = {}
    cells: list[str] = []
    work: list[str] | None = Field(None, description="settings whose product a part's time grows with, to price it")
    gates: list[Gate] = []
    scales: dict[Scale, ModelAtScale]

    @model_validator(mode="after")
    def _all_scales(self) -> "BaseModelCard":
        missing = [s for s in SCALES if s not in self.scales]
        if missing:
            raise ValueError(f"scales: {', '.join(missing)} missing")
        return self

    @property
    def module(self) -> str:
        return f"papertrial.models.{self.name.replace('-', '_')}"


def load_model_card(path: Path) -> BaseModelCard:
    data = load_yaml(path)
    if isinstance(data, dict):
        data.setdefault("name", path.stem)
    return parse(BaseModelCard, data, path)
