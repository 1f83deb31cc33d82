"""Merges what was said about a configuration and remembers who said it.

Order, later wins: defaults, YAML file, environment, command line (flags and ``--set``, which may not
disagree). Nothing is skipped: an unknown section, key, variable or a value of the wrong kind is an error
that names the nearest known one, and all errors found are reported together.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from xllm.config.cluster import ClusterConfig, InstanceConfig, RegistryConfig
from xllm.config.schema import ENV_PREFIX, Option, options_of
from xllm.config.serve import ENGINE_SECTIONS, SECTIONS, SERVE_SECTIONS, EngineConfig, ServeConfig
from xllm.errors import ConfigError, XllmError, boundary

SourceKind = Literal["default", "yaml", "env", "flag", "argument"]
# Read by the scripts and by the command line itself, not by a section.
RESERVED_ENV = ("XLLM_CONFIG", "XLLM_VENV", "XLLM_PYTHON", "XLLM_TORCH_SPEC")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Who said a value."""

    kind: SourceKind
    """The layer."""
    name: str = ""
    """The flag, variable or file."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()


DEFAULT = Source(kind="default")


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """The merged configuration with the source of every value that is not a default."""

    sections: Mapping[str, Any]
    """Section name -> its frozen dataclass."""
    sources: Mapping[str, Source]
    """``section.field`` -> who said it; defaults are absent."""

    def source(self, key: str) -> Source:
        """Who said ``section.field``."""
        return self.sources.get(key, DEFAULT)

    def registry(self) -> RegistryConfig:
        """Where the instances meet."""
        found: RegistryConfig = self.sections["registry"]
        return found

    def instance(self) -> InstanceConfig:
        """What an engine publishes."""
        found: InstanceConfig = self.sections["instance"]
        return found

    def cluster(self) -> ClusterConfig:
        """How a service looks after its instances."""
        found: ClusterConfig = self.sections["cluster"]
        return found

    def engine(self) -> EngineConfig:
        """The engine's sections, composed."""
        return EngineConfig(**{name: self.sections[name] for name in ENGINE_SECTIONS})

    def serve(self) -> ServeConfig:
        """All sections, composed."""
        return ServeConfig(engine=self.engine(), api=self.sections["api"])


class Schema:
    """The options of some sections, indexed by every name they may be called."""

    def __init__(self, sections: Iterable[str] = SERVE_SECTIONS) -> None:
        self.sections = tuple(sections)
        self.options = tuple(opt for name in self.sections for opt in options_of(name, SECTIONS[name]))
        self.by_key = {option.key: option for option in self.options}
        self.by_env = {option.env: option for option in self.options if option.env}
        self.by_flat: dict[str, tuple[Option, bool]] = {}
        for option in self.options:
            for flag in filter(None, (option.flag, *option.aliases)):
                self._add_flat(flag, option, True)
                if option.kind == "bool":
                    self._add_flat("--no-" + flag.removeprefix("--"), option, False)
            for flag in option.negative_aliases:
                self._add_flat(flag, option, False)

    def _add_flat(self, flag: str, option: Option, positive: bool) -> None:
        name = flat_name(flag)
        if name in self.by_flat:
            raise ValueError(f"two options are called {flag}")
        self.by_flat[name] = (option, positive)

    def find_flat(self, name: str) -> tuple[Option, bool]:
        """The option called ``name`` (a flag without dashes in front) and whether its value counts as said.

        Raises:
            ConfigError: no such option; names the nearest.
        """
        found = self.by_flat.get(flat_name(name))
        if found is None:
            raise unknown("option", name, [n.replace("_", "-") for n in self.by_flat], shown=name)
        return found

    def find_key(self, key: str) -> Option:
        """The option ``section.field``.

        Raises:
            ConfigError: no such option; names the nearest.
        """
        option = self.by_key.get(key.replace("-", "_"))
        if option is None:
            raise unknown("key", key.replace("-", "_"), self.by_key, shown=key)
        return option


def flat_name(flag: str) -> str:
    """``--max-model-len`` and ``max-model-len`` -> ``max_model_len``."""
    return flag.removeprefix("--").replace("-", "_")


def unknown(what: str, name: str, known: Iterable[str], *, shown: str) -> ConfigError:
    """The error for a name nobody knows, with the nearest that exists."""
    by_dashes = {k.replace("_", "-"): k for k in known}
    near = difflib.get_close_matches(name.replace("_", "-"), by_dashes, n=1, cutoff=0.5)
    hint = f"did you mean {by_dashes[near[0]]!r}?" if near else "see --help for the names that exist"
    return ConfigError(f"unknown {what} {shown!r}", hint=hint)


class Merge:
    """Collects values layer by layer; ``finish`` builds the sections or reports every problem found."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.values: dict[str, Any] = {}
        self.sources: dict[str, Source] = {}
        self.problems: list[XllmError] = []

    def add_yaml(self, path: Path) -> None:
        """Add a YAML (or JSON) file: sections, flag names without dashes in front, or both."""
        with boundary(ConfigError, f"cannot read the configuration file {path}"):
            data = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
        if data is None:
            data = {}
        if not isinstance(data, dict):
            raise ConfigError(f"{path} must hold a mapping, found {type(data).__name__}")
        self.add_mapping(data, Source(kind="yaml", name=str(path)))

    def add_mapping(self, data: Mapping[Any, Any], source: Source) -> None:
        """Add sections (``cache: {block_size: 16}``) and flat names (``block-size: 16``)."""
        for key, value in data.items():
            name = str(key)
            if isinstance(value, Mapping) and name in SECTIONS:
                for field, inner in value.items():
                    self._try_add(
                        f"{name}.{field}", inner, source, f"{source.name}: {name}.{field}", keyed=True
                    )
            else:
                self._try_add(name, value, source, f"{source.name}: {name}", keyed="." in name)

    def add_env(self, environ: Mapping[str, str]) -> None:
        """Add the ``XLLM_*`` variables. Kubernetes' service variables (XLLM_PORT=tcp://...) are not ours."""
        for name, text in environ.items():
            if not name.startswith(ENV_PREFIX) or name in RESERVED_ENV:
                continue
            if text == "" or _is_service_link(name, text):
                continue
            option = self.schema.by_env.get(name)
            if option is not None:
                self._put(option, text, Source(kind="env", name=name), name)
            elif name not in _all_env_names():
                self.problems.append(unknown("environment variable", name, _all_env_names(), shown=name))

    def add_flag(self, option: Option, value: Any, name: str) -> None:
        """Add one command-line flag; ``value`` is its text, or a bool for a flag without a value."""
        self._put(option, value, Source(kind="flag", name=name), name)

    def add_set(self, text: str) -> None:
        """Add ``section.field=value``."""
        key, equals, value = text.partition("=")
        if not equals:
            self.problems.append(ConfigError(f"--set {text!r} has no '='", hint="write section.field=value"))
            return
        source = Source(kind="flag", name="--set")
        self._try_add(key.strip(), value.strip(), source, f"--set {key}", keyed=True)

    def finish(self) -> Loaded:
        """Build the sections.

        Raises:
            ConfigError: with every problem found in any layer or section.
        """
        sections = {}
        for name in self.schema.sections:
            fields = {
                key.partition(".")[2]: value
                for key, value in self.values.items()
                if key.startswith(name + ".")
            }
            try:
                sections[name] = SECTIONS[name](**fields)
            except ConfigError as problem:
                self.problems.append(problem)
        raise_together(self.problems)
        return Loaded(sections=sections, sources=dict(self.sources))

    def _try_add(self, name: str, value: Any, source: Source, where: str, *, keyed: bool) -> None:
        try:
            option, positive = (self.schema.find_key(name), True) if keyed else self.schema.find_flat(name)
        except ConfigError as problem:
            self.problems.append(ConfigError(f"{where}: {problem.message}", hint=problem.hint))
            return
        self._put(option, value, source, where, positive=positive)

    def _put(self, option: Option, value: Any, source: Source, where: str, *, positive: bool = True) -> None:
        try:
            parsed = option.parse(value, where)
        except ConfigError as problem:
            self.problems.append(problem)
            return
        if not positive:
            parsed = not parsed
        earlier = self.sources.get(option.key)
        if earlier is not None and earlier.kind == source.kind and self.values[option.key] != parsed:
            text = f"{option.key} is said twice: by {earlier} and by {where}"
            self.problems.append(ConfigError(text, hint="keep one"))
            return
        self.values[option.key] = parsed
        self.sources[option.key] = source


def load(
    *,
    sections: Iterable[str] = SERVE_SECTIONS,
    config_file: str | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Iterable[tuple[Option, Any, str]] = (),
    sets: Iterable[str] = (),
) -> Loaded:
    """Merge all layers; ``flags`` are (option, value, the flag as written).

    Raises:
        ConfigError: every problem found, together.
    """
    merge = Merge(Schema(sections))
    if config_file:
        merge.add_yaml(Path(config_file))
    merge.add_env(environ or {})
    for option, value, name in flags:
        merge.add_flag(option, value, name)
    for text in sets:
        merge.add_set(text)
    return merge.finish()


def load_arguments(arguments: Mapping[str, Any], *, sections: Iterable[str] = ENGINE_SECTIONS) -> Loaded:
    """A configuration from Python keyword arguments called like the flags (``max_model_len=...``).

    Raises:
        ConfigError: an unknown name or an impossible value.
    """
    merge = Merge(Schema(sections))
    for name, value in arguments.items():
        merge._try_add(name, value, Source(kind="argument", name=name), name, keyed="." in name)
    return merge.finish()


def engine_config_from_plain(data: Mapping[str, Any]) -> EngineConfig:
    """The inverse of ``to_plain(EngineConfig)``; how a launcher hands a configuration to a process."""
    merge = Merge(Schema(ENGINE_SECTIONS))
    merge.add_mapping(data, Source(kind="argument", name="configuration"))
    return merge.finish().engine()


def section_from_plain(name: str, data: Mapping[str, Any]) -> Any:
    """The inverse of ``to_plain`` of one section."""
    merge = Merge(Schema((name,)))
    merge.add_mapping({name: data}, Source(kind="argument", name="configuration"))
    return merge.finish().sections[name]


def raise_together(problems: Iterable[XllmError]) -> None:
    """Raise nothing, the only problem, or one error that lists them all."""
    found = list(problems)
    if len(found) == 1:
        raise found[0]
    if found:
        lines = [f"{number}. {problem.public_message}" for number, problem in enumerate(found, start=1)]
        raise ConfigError(f"{len(found)} problems in the configuration:\n" + "\n".join(lines))


def _all_env_names() -> tuple[str, ...]:
    """Variables of every section: one meant for the edge is no mistake in an engine's environment."""
    return (*Schema(SECTIONS).by_env, *RESERVED_ENV)


def _is_service_link(name: str, text: str) -> bool:
    return text.startswith(("tcp://", "udp://")) or name.startswith(("XLLM_SERVICE_", "XLLM_PORT_"))


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key said twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise ConfigError(f"line {node.start_mark.line + 1}: said twice: {', '.join(twice)}")
        return super().construct_mapping(node, deep)
