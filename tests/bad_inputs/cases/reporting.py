"""What `report` refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.bad_inputs.setting import Case, Setting


def runs(*folders: str) -> Callable[[Setting], None]:
    def spoil(setting: Setting) -> None:
        del setting.options["runs"]
        setting.more += folders

    return spoil


def output(path: str) -> Callable[[Setting], None]:
    return lambda setting: setting.options.update(output=path)


def folder_in_its_place(setting: Setting) -> None:
    setting.path("page.html").mkdir()
    setting.options.update(output="page.html")


def another_page(setting: Setting) -> None:
    setting.path("page.html").write_text("<!DOCTYPE html>")
    setting.options.update(output="page.html")


Refused = partial(Case, command="report")
CASES = [
    Refused("no run", runs(), ("--runs: required",)),
    Refused("no such folder", runs("finish"), ("did you mean finished?",)),
    Refused("a folder that is no run", runs("model"), ("model: holds no run",)),
    Refused("a file of a run", runs("finished/run.json"), ("the run is finished",)),
    Refused("a run given twice", runs("finished", "./finished/"), ("finished: given twice",)),
    Refused("several of them", runs("model", "absent", "finished"), ("model: ", "absent: ")),
    Refused("a page where a folder is", folder_in_its_place, ("--output: page.html cannot be",)),
    Refused("a page over another", another_page, ("page.html holds something other than the",)),
    Refused(
        "a page in no folder", output("absent/page.html"), ("--output: absent/page.html cannot",)
    ),
    Refused("a page in a file of rows", output("rows.json"), ("--output: rows.json: the page is",)),
    Refused("an unknown option", runs("finished", "--html", "x"), ("--html: unknown option",)),
]
