"""The tests' command line.

Parts that need a real engine are marked with its name and run whenever it is there. ``--require docker,vllm`` turns such a
skip into a failure; ``--thorough`` also runs what takes many minutes. It stands here and not in tests/, since pytest would
take ``docker`` for the folder of that name if it did not know the option by then.
"""

from __future__ import annotations

import pytest

ENGINES = ("docker", "browser", "elasticsearch", "vllm", "gpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require", default="", help=f"engines that must be there, comma-separated: {', '.join(ENGINES)}")
    parser.addoption("--thorough", action="store_true", help="run the long tests as well")


def pytest_configure(config: pytest.Config) -> None:
    unknown = set(_required(config)) - set(ENGINES)
    if unknown:
        raise pytest.UsageError(f"--require knows {', '.join(ENGINES)}, not {', '.join(sorted(unknown))}")
    for engine in ENGINES:
        config.addinivalue_line("markers", f"{engine}: needs a real {engine} engine")
    config.addinivalue_line("markers", "thorough: takes minutes; runs with --thorough")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--thorough"):
        return
    for item in items:
        if item.get_closest_marker("thorough"):
            item.add_marker(pytest.mark.skip(reason="long: run with --thorough (make thorough)"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    outcome = yield
    report = outcome.get_result()
    wanted = [engine for engine in _required(item.config) if item.get_closest_marker(engine)]
    left_out = item.get_closest_marker("thorough") and not item.config.getoption("--thorough")
    if wanted and report.skipped and not left_out:
        report.outcome = "failed"
        report.longrepr = f"--require {','.join(wanted)}, but the test was skipped: {report.longrepr}"


def _required(config: pytest.Config) -> list[str]:
    return [name for name in config.getoption("--require").split(",") if name]
