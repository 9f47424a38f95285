"""Build the command line of a closed compiler from `device.sdk.compiler`: a build step, and its version."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.base import FILES, OUTPUT, BuildProfile, BuildStep, ConfigError, Environment, PrepareError
from launcher.commands import search_path
from launcher.config.sdk import SdkConf
from launcher.devices.host import ask
from launcher.inheritance import inherited

if TYPE_CHECKING:
    from launcher.planning.workshop import Workshop

_PROBE_TIMEOUT_S = 10.0
_WORD = re.compile(r"\{(\w+)\}")
_WHERE = "device.sdk.compiler"


class BinaryCompilerAdapter:
    """A closed compiler, as `device.sdk` declares it."""

    def __init__(self, sdk: SdkConf) -> None:
        """Read the declaration. Raises `ConfigError` if it is wrong."""
        assert sdk.compiler is not None
        self._conf, self._env = sdk.compiler, sdk.env
        if not self._conf.argv:
            raise ConfigError(f"{_WHERE}.argv is empty; give the command, such as [npucc, -o, {OUTPUT}/m, {{source}}]")
        self.program = self._conf.argv[0]
        self.reads = tuple(self._conf.reads)
        output = Path(self._conf.output)
        if output.is_absolute() or ".." in output.parts or not output.name:
            raise ConfigError(f"{_WHERE}.output={self._conf.output!r} must be the path of a file below {OUTPUT}")

    def version(self, environment: Environment) -> str:
        """Return the compiler's version as it says it; the pinned one, or empty, if it is not here to be asked.

        Runs `version_argv`. Raises `ConfigError` if the answer is not as pinned or expected, `PrepareError` if there is
        none.
        """
        conf = self._conf
        path = search_path(environment)
        if not conf.version_argv or shutil.which(conf.version_argv[0], path=path) is None:
            return conf.version or ""
        said = self._ask(path)
        found = re.search(self._pattern(), said)
        if found is None:
            last = said.strip().splitlines()[-1:] or ["nothing"]
            raise ConfigError(
                f"{_WHERE}.version_pattern={conf.version_pattern!r} does not match what "
                f"{' '.join(conf.version_argv)} says: {last[0][:200]}"
            )
        if conf.version and found[1] != conf.version:
            raise ConfigError(
                f"{_WHERE}.version={conf.version!r}, but {self.program} is {found[1]}; install that version, or change "
                "the key: models that were compiled with the other are kept apart"
            )
        return found[1]

    def step(self, source: str, model_format: str, shop: Workshop, version: str) -> BuildStep:
        """Return the build step that compiles `source`. Pure. Raises `ConfigError` for an unknown {word}."""
        conf = self._conf
        settings = {**conf.flags, **shop.settings}
        words = {
            **{key: str(value) for key, value in settings.items()},
            "source": source,
            "format": model_format,
            "model_id": shop.model_id,
            "target": shop.product or "",
            "device_count": str(shop.device_count),
            "context_length": str(shop.context_length),
            "dtype": shop.dtype,
        }
        argv = tuple(_filled(word, words, "argv") for word in conf.argv)
        env = {key: _filled(value, words, f"env.{key}") for key, value in {**self._env, **conf.env}.items()}
        files = {name: _filled(text, words, f"files.{name}") for name, text in conf.files.items()}
        profile = BuildProfile(
            target=shop.product or "any",
            compiler=Path(self.program).name,
            compiler_version=version or shop.serving.version,
            # The command without the source's path: the identity of the weights stands for that.
            flags={"argv": [word.replace(source, "{source}") for word in argv], "env": env, "files": files},
            interface="npu",
        )
        return BuildStep(
            name=f"{profile.compiler}-compile",
            argv=argv,
            output=profile.place(str(shop.artifacts), shop.model_id, shop.identity),
            environment=shop.serving,
            env=env,
            files=files,
            made=conf.output,
            model_id=shop.model_id,
            profile=profile,
            meanings={str(code): meaning for code, meaning in conf.exit_codes.items()},
        )

    def missing(self, environment: Environment) -> str:
        """Return why a launch could not compile, if that is known before; empty if nothing is."""
        made = Path(environment.path).exists()  # else the program may come with the environment
        if not made or shutil.which(self.program, path=search_path(environment)):
            return ""
        return f"there is no program {self.program!r}; install the compiler, or name it in {_WHERE}.argv"

    def _pattern(self) -> re.Pattern[str]:
        try:
            pattern = re.compile(self._conf.version_pattern)
        except re.error as exc:
            raise ConfigError(f"{_WHERE}.version_pattern={self._conf.version_pattern!r}: {exc}") from exc
        if not pattern.groups:
            raise ConfigError(f"{_WHERE}.version_pattern={self._conf.version_pattern!r} needs a group for the version")
        return pattern

    def _ask(self, path: str) -> str:
        argv = self._conf.version_argv
        env = {**inherited(os.environ), **self._env, **self._conf.env, "PATH": path}
        program = shutil.which(argv[0], path=path) or argv[0]
        said = ask([program, *argv[1:]], _PROBE_TIMEOUT_S, env)
        if said.failed:
            raise PrepareError(f"{_WHERE}.version_argv={argv}: {said.failed}")
        return said.out.decode(errors="replace")


def _filled(text: str, words: Mapping[str, Any], key: str) -> str:
    """Return `text` with its {words} replaced, except the two that the build itself replaces."""

    def word(found: re.Match[str]) -> str:
        if found[0] in (OUTPUT, FILES):
            return found[0]
        if found[1] not in words:
            known = ", ".join(f"{{{name}}}" for name in ("output", "files", *sorted(words)))
            raise ConfigError(f"{_WHERE}.{key}: {found[0]} means nothing; known: {known}")
        return str(words[found[1]])

    return _WORD.sub(word, text)
