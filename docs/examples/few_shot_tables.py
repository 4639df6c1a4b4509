"""The page of few-shot results, made from the result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OMNIGLOT = {
    "MANN, no conv (cited)": {"5w1s": "82.8", "5w5s": "94.9"},
    "MAML, no conv": {"5w1s": "89.7 ± 1.1", "5w5s": "97.5 ± 0.6"},
    "Siamese nets": {"5w1s": "97.3", "5w5s": "98.4", "20w1s": "88.2", "20w5s": "97.0"},
    "Matching nets": {"5w1s": "98.1", "5w5s": "98.9", "20w1s": "93.8", "20w5s": "98.5"},
    "Neural statistician (cited)": {"5w1s": "98.1", "5w5s": "99.5", "20w1s": "93.2", "20w5s": "98.1"},
    "Memory module (cited)": {"5w1s": "98.4", "5w5s": "99.6", "20w1s": "95.0", "20w5s": "98.6"},
    "MAML": {"5w1s": "98.7 ± 0.4", "5w5s": "99.9 ± 0.1", "20w1s": "95.8 ± 0.3", "20w5s": "98.9 ± 0.2"},
    "Meta-SGD": {"5w1s": "99.53 ± 0.26", "5w5s": "99.93 ± 0.09", "20w1s": "95.93 ± 0.38", "20w5s": "98.97 ± 0.19"},
}
"""The lecture's table, in per cent. Systems that are cited are not rerun here."""

MINI_IMAGENET = {
    "Pretrained, fine-tuned": {"5w1s": "28.86 ± 0.54", "5w5s": "49.79 ± 0.79"},
    "Nearest neighbour": {"5w1s": "41.08 ± 0.70", "5w5s": "51.04 ± 0.65"},
    "Matching nets": {"5w1s": "43.56", "5w5s": "55.31", "20w1s": "17.31", "20w5s": "22.69"},
    "Meta-learner LSTM": {"5w1s": "43.44", "5w5s": "60.60", "20w1s": "16.70", "20w5s": "26.06"},
    "First-order MAML": {"5w1s": "48.07", "5w5s": "63.15"},
    "MAML": {"5w1s": "48.70", "5w5s": "63.11", "20w1s": "16.49", "20w5s": "19.29"},
    "Meta-SGD": {"5w1s": "50.47", "5w5s": "64.03", "20w1s": "17.56", "20w5s": "28.92"},
}
"""The lecture's table, in per cent."""

LECTURE = {"omniglot": OMNIGLOT, "mini-imagenet": MINI_IMAGENET}

SYSTEMS = {
    "no-conv-maml": "MAML, no conv",
    "siamese": "Siamese nets",
    "matching": "Matching nets",
    "maml": "MAML",
    "meta-sgd": "Meta-SGD",
    "fomaml": "First-order MAML",
    "reptile": "Reptile",
    "anil": "ANIL",
    "maml-plus-plus": "MAML++",
    "meta-learner-lstm": "Meta-learner LSTM",
    "prototypical": "Prototypical nets",
    "nearest-neighbour": "Nearest neighbour",
    "fine-tuning": "Pretrained, fine-tuned",
}
"""What stands behind ``omniglot-5w1s-`` in a row's name, and the system's name in the tables."""

SETTINGS = {"5w1s": "5-way 1-shot", "5w5s": "5-way 5-shot", "20w1s": "20-way 1-shot", "20w5s": "20-way 5-shot"}


def place(row: str) -> tuple[str, str, str]:
    """Data, system and setting of a row's name, such as ``mini-imagenet-5w1s-maml``."""
    data = next(data for data in LECTURE if row.startswith(data))
    setting, system = row.removeprefix(f"{data}-").split("-", 1)
    return data, SYSTEMS[system], setting


def percent(result: dict[str, Any]) -> str:
    """Accuracy and half-width of its interval."""
    return f"{100 * result['accuracy']:.2f} ± {100 * result['interval']:.2f}"


def page(results: list[dict[str, Any]], folder: Path) -> str:
    """The page in Markdown.

    Args:
        results: The contents of the rows' files.
        folder: Where sine-table.json and sine-figures.json are, if they are.
    """
    of = {data: [one for one in results if place(one["row"])[0] == data] for data in LECTURE}
    parts = [_omniglot(of["omniglot"]), _mini_imagenet(of["mini-imagenet"]), _sines(folder)]
    return "\n".join([*(line for part in parts for line in part), ""])


def card(row: str, result: dict[str, Any], half: float) -> str:
    """The card of a bundled learner in Markdown.

    Args:
        row: Its row.
        result: The row's file.
        half: Its accuracy as it is written, in half precision.
    """
    data, system, setting = place(row)
    known = LECTURE[data].get(system, {}).get(setting)
    seeds = result["seeds"]
    curve = ", ".join(f"{100 * value:.1f}" for value in result["curve"])
    lines = [
        f"# {row}@1",
        "",
        f"{system} for {SETTINGS[setting]} tasks of 28 x 28 pictures, ink 1 and paper 0, meta-trained on 1,100",
        "handwritten characters of Omniglot, each turned by a random multiple of 90 degrees. Their names:",
        f'`learned_optim.read_record("{row}")["trained_on"]`.',
        "",
        "## Recipe",
        "",
        f"- Configuration: `docs/configs/few-shot/{row}.yaml`, also in the file.",
        f"- Command: `{result['command']}`.",
        f"- {result['iterations']:,} iterations of {result['meta_batch_size']} tasks; this is the state after",
        f"  {result['selected']:,}, which did best on {result['validation_tasks']} tasks of 100 validation characters",
        f"  ({100 * result['validation']:.2f} %).",
        f"- Seeds: weights {seeds['torch']}, tasks {seeds['tasks']}, test tasks {seeds['test_tasks']}, division of the",
        f"  characters {seeds['classes']}.",
        f"- {result['train_hours']:.1f} hours on a busy machine; tested on {result['machine']}.",
        *([f"- {result['remark']}"] if result["remark"] else []),
        "",
        "## Result",
        "",
        f"{percent(result)} % (95 % interval) after {result['steps']} steps on",
        f"{result['tasks']} tasks of the 423 test characters{f'; the lecture has {known} %' if known else ''}.",
        f"As it is written here, in half precision: {100 * half:.2f} % on the same tasks.",
        f"After 0, 1, ..., {len(result['curve']) - 1} steps: {curve} %.",
        "",
        "## Known failures",
        "",
        "- Batch norm goes by the statistics of the batch at hand, as in the papers: the accuracy is for asking about",
        f"  {result['ways'] * result['shots']} pictures at once, {result['shots']} of each class; not of fewer.",
        "- It knows strokes on paper. Other pictures, sizes, and numbers of classes were not measured.",
        "",
        "## Licence",
        "",
        "Apache-2.0, as the package. Omniglot (Lake et al. 2015) is under the MIT licence; the file holds none of its",
        "pictures.",
        "",
    ]
    return "\n".join(lines)


def _omniglot(results: list[dict[str, Any]]) -> list[str]:
    return [
        "# Few-shot learning: results",
        "",
        "Made by `python docs/examples/few_shot.py table` from the files beside this page. *The lecture* is that of",
        "Jang, Choi and Lee, *Meta-Learning* (KAIST, EE807, lecture 17), whose tables hold the papers' numbers.",
        "",
        "## Omniglot",
        "",
        "Accuracy in per cent on 600 tasks of 423 test characters with 95 % intervals; the lecture's number in",
        "parentheses. Characters: 1,100 to train, 100 to select the checkpoint, 423 to test (split seed 0); each class",
        "of a task turned by a random multiple of 90 degrees, in training and test, K query images for each class, and",
        "batch norm by the statistics of its batch, as in the released code of MAML.",
        "",
        *_accuracies("omniglot", results),
        "",
        "How each was made. *Selected* is the iteration that did best on validation characters.",
        "",
        *_trainings(results),
        "",
        "Each row: `python docs/examples/few_shot.py train ROW` and then `test ROW`, with `--seed 2` where it says so.",
        "The papers' trainings have 60,000 iterations and more; those of these tables took what a CPU had to spare, so",
        "that only rows of like length compare systems. Pretraining (the last two rows) sees many labelled characters",
        "at once and learns fast; after it, too, batch norm goes by the statistics of the query set.",
    ]


def _mini_imagenet(results: list[dict[str, Any]]) -> list[str]:
    made = ["How each was made.", "", *_trainings(results)] if results else ["None was run here: we lack the data."]
    return [
        "",
        "## mini-ImageNet",
        "",
        "Accuracy in per cent on 600 tasks of Ravi and Larochelle's 20 test classes; the lecture's number in",
        "parentheses. Each row: `python docs/examples/few_shot.py train ROW` and then `test ROW`, where ROW is a",
        "`mini-imagenet-...` in [the configurations](../../configs/few-shot), for 84 x 84 pictures in one of the four",
        "layouts that `meta_init.mini_imagenet` reads.",
        "",
        *_accuracies("mini-imagenet", results),
        "",
        *made,
    ]


def _accuracies(data: str, results: list[dict[str, Any]]) -> list[str]:
    """Systems by settings."""
    ours = {place(one["row"])[1:]: one for one in results}
    known = LECTURE[data]
    lines = ["| | " + " | ".join(SETTINGS.values()) + " |", "|---" * (len(SETTINGS) + 1) + "|"]
    for system in [*known, *(name for name in SYSTEMS.values() if name not in known)]:
        cells = []
        for setting in SETTINGS:
            one, theirs = ours.get((system, setting)), known.get(system, {}).get(setting)
            found = f"**{percent(one)}**" if one else ""
            cells.append(" ".join([found, f"({theirs})" if theirs else ""]).strip())
        if any(cells):
            lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return lines


def _trainings(results: list[dict[str, Any]]) -> list[str]:
    """How long each row was trained, and on what."""
    lines = [
        "| row | iterations, selected | tasks an iteration | steps at test | hours | tested on |",
        "|---|---|---|---|---|---|",
    ]
    for one in results:
        iterations = f"{one['iterations']:,} of {one['planned']:,}, {one['selected']:,}"
        lines.append(
            f"| [{one['row']}](../../configs/few-shot/{one['row']}.yaml) | {iterations} | {one['meta_batch_size']} | "
            f"{one['steps']} | {one['train_hours']:.1f} | {one['machine']} |"
        )
    return [*lines, "", *(f"- {one['row']}: {one['remark']}" for one in results if one["remark"])]


def _sines(folder: Path) -> list[str]:
    lines: list[str] = []
    if (folder / "sine-table.json").exists():
        from sine_table import table

        found = json.loads((folder / "sine-table.json").read_text())
        lines += [
            "",
            "## Sine waves, the Meta-SGD paper's table",
            "",
            f"`{found['command']}`: mean squared error after one step on 600 fresh waves with 95 % intervals; the",
            f"lecture's in parentheses (100 waves). {found['seconds'] / 60:.0f} minutes for all six models,",
            f"{found['jobs']} side by side ({found['machine']}).",
            "",
            table(found),
        ]
    if (folder / "sine-figures.json").exists():
        found = json.loads((folder / "sine-figures.json").read_text())
        lines += [
            "",
            "## Sine waves, the lecture's figures",
            "",
            f"`{found['command']}`: mean squared error on 600 fresh waves after so many steps on 10 points.",
            "",
            "| waves | system | 0 | 1 | 2 | 5 | 10 |",
            "|---|---|---|---|---|---|---|",
        ]
        for family, curves in found["adaptation"].items():
            for name in ("MAML", "pretrained", "oracle"):
                curve = curves[name]
                cells = [
                    f"{curve['mean'][k]:.3f} ± {curve['interval'][k]:.3f}" if k < len(curve["mean"]) else ""
                    for k in (0, 1, 2, 5, 10)
                ]
                lines.append(f"| {family} | {name} | " + " | ".join(cells) + " |")
        lines += ["", "![adaptation](adaptation.png)", "", "![Meta-SGD's figure 3](meta-sgd-figure-3.png)"]
    return lines
