"""A paper's yaml as typed data: its card, what runs at which scale, and what that needs."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from papertrial.engine.errors import PapertrialError, nearest

Scale = Literal["smoke", "laptop", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "laptop", "paper")
Settings = dict[str, Any]
T = TypeVar("T", bound=BaseModel)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]


Part = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9][A-Za-z0-9._+-]*)?$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Claim(Strict):
    """One pre-registered claim: the five texts are the card's, word for word."""

    id: Name
    claim: str
    paper: str
    measure: str
    replicated_if: str
    deviation: str | None = Field(None, description="what of the criterion can't be computed as written, and why")


class Needs(Strict):
    datasets: list[Name] = []
    models: list[Part] = Field([], description="base models, every part or one (model/part), at the same scale")


class Method(Strict):
    """Something that runs on the problems."""

    role: Literal["proposed", "baseline", "control"]
    label: str | None = Field(None, description="its name in figures and tables")
    settings: Settings = {}
    on: dict[Name, Settings] = Field(
        {}, description='settings that differ on one problem; quoted ("on"), as yaml reads on as true'
    )
    control_of: Name | None = Field(None, description="the method whose key mechanism this control breaks")
    claims: list[Name] = Field([], description="the claims it is a control for; the headline by default")

    @model_validator(mode="after")
    def _control_names_its_method(self) -> "Method":
        if (self.role == "control") != (self.control_of is not None):
            raise ValueError("a control, and only a control, says which method it breaks: control_of")
        return self


class Problem(Strict):
    """What methods run on."""

    label: str | None = None
    methods: list[Name] | None = Field(None, description="which methods run on it; all by default")
    settings: Settings = {}
    work: list[str] | None = Field(
        None,
        description="what a run's time grows with, to price a scale that has not run: settings whose product it is (a "
        "list counts as its sum, len(list) as its length; twice means squared), or a needed base model, for its "
        "network's operations",
    )


class Tune(Strict):
    """An equal budget of settings tried on seeds of their own, before anything is judged."""

    grids: dict[Name, dict[str, list[Any]]] = Field(description="method -> setting -> values tried, all combinations")
    problems: list[Name] | None = Field(None, description="tuned on each of these by itself; all by default")
    seeds: list[int]
    metric: str = Field(description="a column of the rows; its mean over the tuning rows decides")
    goal: Literal["min", "max"] = "min"
    trials: int = Field(description="how many settings each method may try; every grid has exactly that many")
    edge: bool = Field(False, description="one more point outwards where the best is the end of a one-setting grid")

    @model_validator(mode="after")
    def _equal_budgets(self) -> "Tune":
        for method, grid in self.grids.items():
            size = 1
            for values in grid.values():
                size *= len(values)
            if size != self.trials:
                raise ValueError(
                    f"the grid of {method} has {size} settings, but every method gets {self.trials} trials"
                )
        return self


class ProblemAtScale(Strict):
    seeds: int | list[int] | None = None
    methods: list[Name] | None = None
    settings: Settings = {}


class UnitSlice(Strict):
    """The runs of some methods on some problems, as one job."""

    methods: list[Name] | None = None
    problems: list[Name] | None = None


class AtScale(Strict):
    """What a scale runs, and how it's cut into jobs."""

    seeds: int | list[int] = Field(description="a number n means seeds 0 to n - 1")
    settings: Settings = Field({}, description="sizes: enter every problem's settings")
    problems: dict[Name, ProblemAtScale] = Field({}, description="what differs for one problem at this scale")
    trials: int | None = Field(None, description="try only the first settings of each grid (smoke)")
    units: Literal["paper", "problem", "method", "run"] | dict[Name, UnitSlice] = "method"
    mem_mb: int = 2000
    runtime: int = Field(30, description="minutes")
    gpu: int = 0
    per_gpu: int = Field(1, description="how many of these units one GPU holds at a time: 1, 2, 3, 4, 6 or 12")


class Card(Strict):
    """One paper on trial."""

    slug: Name
    title: str
    year: int | None = None
    arxiv: str | None = None
    code: str | None = None
    chapter: Name
    testbed: str | None = None
    tier: Literal["A", "B", "C"] | None = None
    data: Literal["real", "simulated", "real and simulated"] = Field(description="what the verdicts rest on")
    summary: str = Field("", description="the method in a few sentences")
    details: list[str] = Field([], description="details that matter, each with its reason")
    tried: str | None = Field(None, description="what was tried where a claim did not come out")
    claims: list[Claim] = Field(min_length=1)
    needs: Needs = Needs()
    compares_with: list[Part] = Field([], description="base models whose rows enter evidence as shared baselines")
    problems: dict[Name, Problem] = Field(min_length=1)
    methods: dict[Name, Method] = Field(min_length=1)
    cells: list[str] = Field([], description="row columns that, with problem, method and seed, name a row")
    tune: list[Tune] = []
    scales: dict[Scale, AtScale]
    scale_gap: str = Field(description="the paper's size against ours")
    deviation: str | None = Field(None, description="what of the card can't be done as written, and why")

    @model_validator(mode="after")
    def _names_exist(self) -> "Card":
        problems, methods, claims = list(self.problems), list(self.methods), [c.id for c in self.claims]
        if len(set(claims)) < len(claims):
            raise ValueError("two claims have the same id")
        missing = [s for s in SCALES if s not in self.scales]
        if missing:
            raise ValueError(f"scales: {', '.join(missing)} missing; every paper runs at smoke, laptop and paper scale")

        def known(names: list[str] | None, among: list[str], where: str) -> None:
            for name in names or []:
                if name not in among:
                    raise ValueError(f"{where}: no such name '{name}'; {nearest(name, among)}")

        for name, problem in self.problems.items():
            known(problem.methods, methods, f"problems.{name}.methods")
        for name, method in self.methods.items():
            known(list(method.on), problems, f"methods.{name}.on")
            known(method.claims, claims, f"methods.{name}.claims")
            if method.control_of:
                known([method.control_of], methods, f"methods.{name}.control_of")
        for i, tune in enumerate(self.tune):
            known(list(tune.grids), methods, f"tune.{i}.grids")
            known(tune.problems, problems, f"tune.{i}.problems")
        for scale, at in self.scales.items():
            known(list(at.problems), problems, f"scales.{scale}.problems")
            for name, problem in at.problems.items():
                known(problem.methods, methods, f"scales.{scale}.problems.{name}.methods")
            if isinstance(at.units, dict):
                for name, unit in at.units.items():
                    known(unit.methods, methods, f"scales.{scale}.units.{name}.methods")
                    known(unit.problems, problems, f"scales.{scale}.units.{name}.problems")
        return self

    @property
    def module(self) -> str:
        """The dotted name of the paper's folder in the package."""
        return f"papertrial.papers.{self.chapter}.{self.slug.replace('-', '_')}"

    def controls(self, claim_id: str) -> dict[str, str]:
        """{control: the method it breaks} for one claim."""
        headline = self.claims[0].id
        return {
            name: method.control_of
            for name, method in self.methods.items()
            if method.control_of and claim_id in (method.claims or [headline])
        }


def load_yaml(path: Path) -> Any:
    """Parse a yaml file (the C loader where there is one)."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except FileNotFoundError:
        raise PapertrialError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PapertrialError(f"{path}: not valid yaml: {' '.join(str(error).split())}") from None


def parse(model: type[T], data: Any, path: Path | str) -> T:
    """Validate data against a typed model; an error names the file, the key and the nearest valid one."""
    if not isinstance(data, dict):
        raise PapertrialError(f"{path}: a mapping of settings is expected")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise PapertrialError("\n".join(_explain(model, e, path) for e in error.errors())) from None


def _explain(model: type[BaseModel], error: dict, path: Path | str) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key '{key}'; {nearest(str(error['loc'][-1]), _keys_at(model, error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"{path}: key '{key}' is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}: {f'{key}: ' if key else ''}{message}"


def _keys_at(model: type[BaseModel], loc: tuple) -> list[str]:
    """The valid keys of the model that stands at a location of the document."""
    here: Any = model
    for part in loc:
        if isinstance(here, type) and issubclass(here, BaseModel) and part in here.model_fields:
            here = _model_in(here.model_fields[part].annotation)
    return list(here.model_fields) if here is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_model_in(a) for a in getattr(annotation, "__args__", ())]
    return next((m for m in found if m), None)


def load_card(path: Path) -> Card:
    """Read and validate config/papers/<chapter>/<slug>.yaml; the slug and the chapter are its path's."""
    data = load_yaml(path)
    if isinstance(data, dict):
        for key, expected in (("slug", path.stem), ("chapter", path.parent.name)):
            if data.setdefault(key, expected) != expected:
                raise PapertrialError(f"{path}: {key} is '{data[key]}', but the path says '{expected}'")
    return parse(Card, data, path)
